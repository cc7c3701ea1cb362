// Plan: the order of assignments by expert.  An assignment is a pair (token, k), numbered token * K + k.
//
//   for a in 0 .. T * K:
//     local[a] = expert_map[ids[a]], or ids[a] without a map, or 0 without ids; none where that is outside 0 .. E,
//                and from num_tokens * K on
//     tokens_per_expert[local[a]] += 1
//   expert_offsets[e] = sum of tokens_per_expert[j] over j < e
//   next = expert_offsets
//   for a in 0 .. T * K:
//     if local[a] is none: row_of_assignment[a] = NOT_ROUTED
//     else:
//       row = next[local[a]]++
//       row_of_assignment[a] = row
//       token_of_row[row] = a / K
//       row_weights[row] = topk_weights[a], where they are asked for
//
// Departures:
// 1. Assignments are cut into chunks.  plan_count counts each chunk's experts into scratch [chunks, E]; plan_scan, one
//    block, turns the counts into the offsets, and each chunk's counts into its first rows; plan_scatter hands the
//    rows out.  plan_small is all three in one block, over one chunk.
// 2. A chunk's rows are handed out PLAN_TILE assignments at a time, of which each warp takes kRounds * 32 in a row.
//    Equal experts of 32 lanes find each other by match_any; shared memory holds what the warp, and then the warps
//    before it, have of each expert.  Every rank is a count, so the order is stable and no schedule changes it.
// 3. Any number of blocks does: they stride over the chunks.
#include "abi.h"
#include "common/types.cuh"
#include "ptx/sync.cuh"
#include "tile/token_count.cuh"

constexpr uint32_t kMaxExperts = 1024;
constexpr uint32_t kWarps = PLAN_THREADS / 32, kRounds = PLAN_TILE / PLAN_THREADS, kAll = 0xffffffffu;
constexpr uint32_t kNone = 0xffffffffu;
constexpr uint32_t kAhead = 8;  // counts that plan_scan asks for before it needs the first

struct PlanStorage {
  uint32_t count[kMaxExperts];           // of a chunk; while rows are handed out: the next row of each expert
  uint32_t first_row[kMaxExperts];       // of a tile
  uint16_t before[kWarps][kMaxExperts];  // assignments of the tile in the warp; in the warps before it
  uint32_t warp_total[kWarps];
};
static_assert(sizeof(PlanStorage) == PLAN_SHARED, "the host passes as much");

// Those that there is room for: of them, token_count(p.num_tokens) * K may have a row.
__device__ __forceinline__ uint32_t num_assignments(const PlanArgs& p) { return p.num_tokens.host * p.top_k; }
__device__ __forceinline__ uint32_t num_chunks(const PlanArgs& p) {
  const uint32_t assignments = num_assignments(p);
  return assignments / p.assignments_per_chunk + (assignments % p.assignments_per_chunk != 0);
}

// The assignment that this thread has of round i of a tile: a warp's are neighbours.
__device__ __forceinline__ uint32_t own_assignment(uint32_t tile, uint32_t i) {
  return tile + (threadIdx.x / 32 * kRounds + i) * 32 + threadIdx.x % 32;
}

// The experts of this thread's assignments before `end`; E where there is none here.
__device__ __forceinline__ void local_experts(const PlanArgs& p, uint32_t tile, uint32_t end,
                                              uint32_t (&expert)[kRounds]) {
  const int32_t* ids = device_pointer<const int32_t>(p.topk_ids);
  const int32_t* map = device_pointer<const int32_t>(p.expert_map);
  const uint32_t live = min(end, token_count(p.num_tokens) * p.top_k);
#pragma unroll
  for (uint32_t i = 0; i < kRounds; i++) {
    const uint32_t a = own_assignment(tile, i);
    expert[i] = kNone;
    if (a < live)  // negative ids are great ones
      expert[i] = ids != nullptr ? (uint32_t)ids[a / p.top_k * p.ids_stride + a % p.top_k] : 0;
  }
#pragma unroll
  for (uint32_t i = 0; i < kRounds; i++) {
    if (map != nullptr) expert[i] = expert[i] < p.expert_map_len ? (uint32_t)map[expert[i]] : kNone;
    expert[i] = min(expert[i], p.num_experts);
  }
}

// scratch[chunk, e] = the chunk's assignments to e
__device__ __forceinline__ void count_chunks(PlanStorage& s, const PlanArgs& p) {
  uint32_t* scratch = device_pointer<uint32_t>(p.scratch);
  const uint32_t assignments = num_assignments(p), chunks = num_chunks(p);
  for (uint32_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    for (uint32_t e = threadIdx.x; e < p.num_experts; e += PLAN_THREADS) s.count[e] = 0;
    __syncthreads();
    const uint32_t first = chunk * p.assignments_per_chunk;
    const uint32_t end = first + min(p.assignments_per_chunk, assignments - first);
    for (uint32_t tile = first; tile < end; tile += PLAN_TILE) {
      uint32_t expert[kRounds];
      local_experts(p, tile, end, expert);
#pragma unroll
      for (uint32_t i = 0; i < kRounds; i++) {
        if (expert[i] < p.num_experts) atomicAdd(&s.count[expert[i]], 1u);
      }
    }
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < p.num_experts; e += PLAN_THREADS)
      scratch[(uint64_t)chunk * p.num_experts + e] = s.count[e];
  }
}

// Offsets, and scratch[chunk, e] = the first row of the chunk's assignments to e.  One block.
__device__ __forceinline__ void scan_counts(PlanStorage& s, const PlanArgs& p) {
  uint32_t* scratch = device_pointer<uint32_t>(p.scratch);
  uint32_t* expert_offsets = device_pointer<uint32_t>(p.expert_offsets);
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t chunks = num_chunks(p);
  uint32_t before = 0;  // rows of the experts of earlier rounds
  for (uint32_t first = 0; first < p.num_experts; first += PLAN_THREADS) {
    const uint32_t e = first + threadIdx.x;
    uint32_t total = 0;
    if (e < p.num_experts) {
#pragma unroll kAhead
      for (uint32_t chunk = 0; chunk < chunks; chunk++) total += scratch[(uint64_t)chunk * p.num_experts + e];
    }
    uint32_t sum = total;
#pragma unroll
    for (uint32_t by = 1; by < 32; by *= 2) {
      const uint32_t left = __shfl_up_sync(kAll, sum, by);
      if (lane >= by) sum += left;
    }
    __syncthreads();  // the last round's totals are read
    if (lane == 31) s.warp_total[warp] = sum;
    __syncthreads();
    uint32_t row = before + sum - total;
    for (uint32_t w = 0; w < kWarps; w++) {
      if (w < warp) row += s.warp_total[w];
      before += s.warp_total[w];
    }
    if (e < p.num_experts) {
      device_pointer<uint32_t>(p.tokens_per_expert)[e] = total;
      expert_offsets[e] = row;
      for (uint32_t chunk = 0; chunk < chunks; chunk += kAhead) {
        uint32_t count[kAhead];
        uint32_t* cell = scratch + (uint64_t)chunk * p.num_experts + e;
#pragma unroll
        for (uint32_t i = 0; i < kAhead; i++) count[i] = chunk + i < chunks ? cell[(uint64_t)i * p.num_experts] : 0;
#pragma unroll
        for (uint32_t i = 0; i < kAhead; i++) {
          if (chunk + i < chunks) cell[(uint64_t)i * p.num_experts] = row;
          row += count[i];
        }
      }
    }
  }
  if (threadIdx.x == 0) expert_offsets[p.num_experts] = before;
}

// Both maps.
__device__ __forceinline__ void scatter_chunks(PlanStorage& s, const PlanArgs& p) {
  const uint32_t* scratch = device_pointer<const uint32_t>(p.scratch);
  uint32_t* token_of_row = device_pointer<uint32_t>(p.token_of_row);
  uint32_t* row_of_assignment = device_pointer<uint32_t>(p.row_of_assignment);
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t assignments = num_assignments(p), chunks = num_chunks(p);
  uint16_t* before = s.before[warp];
  for (uint32_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    // Each thread keeps the counts that it wrote itself.
    for (uint32_t e = threadIdx.x; e < p.num_experts; e += PLAN_THREADS)
      s.count[e] = scratch[(uint64_t)chunk * p.num_experts + e];
    const uint32_t first = chunk * p.assignments_per_chunk;
    const uint32_t end = first + min(p.assignments_per_chunk, assignments - first);
    for (uint32_t tile = first; tile < end; tile += PLAN_TILE) {
      for (uint32_t e = lane; e < p.num_experts; e += 32) before[e] = 0;
      uint32_t expert[kRounds], rank[kRounds];
      local_experts(p, tile, end, expert);
#pragma unroll
      for (uint32_t i = 0; i < kRounds; i++) {
        const bool routed = expert[i] < p.num_experts;
        const uint32_t same = __match_any_sync(kAll, expert[i]);
        const uint32_t earlier = (uint32_t)__popc(same & ((1u << lane) - 1));
        __syncwarp();  // the last round's counts are written
        rank[i] = routed ? before[expert[i]] + earlier : 0;
        __syncwarp();
        if (routed && earlier == 0) before[expert[i]] = (uint16_t)(rank[i] + (uint32_t)__popc(same));
      }
      __syncthreads();
      for (uint32_t e = threadIdx.x; e < p.num_experts; e += PLAN_THREADS) {
        uint32_t sum = 0;
        for (uint32_t w = 0; w < kWarps; w++) {
          const uint32_t own = s.before[w][e];
          s.before[w][e] = (uint16_t)sum;
          sum += own;
        }
        s.first_row[e] = s.count[e];
        s.count[e] += sum;
      }
      __syncthreads();
#pragma unroll
      for (uint32_t i = 0; i < kRounds; i++) {
        const uint32_t a = own_assignment(tile, i);
        if (expert[i] < p.num_experts) {
          const uint32_t row = s.first_row[expert[i]] + before[expert[i]] + rank[i];
          row_of_assignment[a] = row;
          token_of_row[row] = a / p.top_k;
          if (p.row_weights != 0)
            device_pointer<float>(p.row_weights)[row] =
                device_pointer<const float>(p.topk_weights)[a / p.top_k * p.weights_stride + a % p.top_k];
        } else if (a < end) {
          row_of_assignment[a] = NOT_ROUTED;
        }
      }
      __syncwarp();  // before the warp's counts start again from 0
    }
  }
}

#define PLAN_KERNEL(name, ...)                                        \
  KERNEL(name, PLAN_THREADS, 1, const __grid_constant__ PlanArgs p) { \
    PlanStorage& s = shared_storage<PlanStorage>();                   \
    ptx::grid_launch_dependents();                                    \
    ptx::grid_dependency_wait();                                      \
    __VA_ARGS__                                                       \
  }
PLAN_KERNEL(plan_count, count_chunks(s, p);)
PLAN_KERNEL(plan_scan, scan_counts(s, p);)
PLAN_KERNEL(plan_scatter, scatter_chunks(s, p);)
PLAN_KERNEL(plan_small, count_chunks(s, p); __syncthreads(); scan_counts(s, p); __syncthreads(); scatter_chunks(s, p);)
