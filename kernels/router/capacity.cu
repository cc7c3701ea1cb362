// Router, between choice and weights: what is too much for an expert falls away.
//
//   for each sequence, each expert e:
//     taken = 0
//     for k in 0 .. K, t in the sequence:
//       if topk_ids[t, k] == e:
//         taken += 1
//         if taken > capacity: topk_ids[t, k] = -1
//
// Departures:
// 1. A warp walks a sequence for one expert, 32 tokens at a time; ballots count.  Warps stride over the pairs.
// 2. Ids are loaded kAhead at a time.  They are loaded and stored as relaxed: another warp may see an id that falls
//    away before or after it does, and neither is its own.
#include "abi.h"
#include "common/types.cuh"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "tile/token_count.cuh"

constexpr uint32_t kAhead = 8, kAll = 0xffffffffu, kDropped = 0xffffffffu;

KERNEL(router_capacity, ROUTER_THREADS, 1, const __grid_constant__ RouterCapacityArgs p) {
  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  constexpr uint32_t kWarps = ROUTER_THREADS / 32;
  const uint32_t lane = threadIdx.x % 32, num_tokens = token_count(p.num_tokens);
  const uint32_t* offsets = device_pointer<const uint32_t>(p.sequence_offsets);
  const uint64_t pairs = (uint64_t)p.num_sequences * p.num_experts;
  for (uint64_t pair = (uint64_t)blockIdx.x * kWarps + threadIdx.x / 32; pair < pairs; pair += gridDim.x * kWarps) {
    const uint64_t sequence = pair / p.num_experts;
    const uint32_t expert = (uint32_t)(pair % p.num_experts);
    const uint64_t start = offsets != nullptr ? min(offsets[sequence], num_tokens) : 0;
    const uint64_t end = offsets != nullptr ? min(offsets[sequence + 1], num_tokens) : num_tokens;
    uint32_t taken = 0;
    for (uint32_t k = 0; k < p.top_k; k++) {
      for (uint64_t first = start; first < end; first += kAhead * 32) {
        uint32_t* ids = device_pointer<uint32_t>(p.topk_ids) + (first + lane) * p.ids_stride + k;
        uint32_t id[kAhead];
#pragma unroll
        for (uint32_t i = 0; i < kAhead; i++) {
          id[i] = kDropped;
          if (first + i * 32 + lane < end) id[i] = ptx::ld_relaxed(ids + i * 32 * p.ids_stride);
        }
#pragma unroll
        for (uint32_t i = 0; i < kAhead; i++) {
          const uint32_t same = __ballot_sync(kAll, id[i] == expert);
          const uint32_t before = taken + (uint32_t)__popc(same & ((1u << lane) - 1));
          if (id[i] == expert && before >= p.capacity) ptx::st_relaxed(ids + i * 32 * p.ids_stride, kDropped);
          taken += (uint32_t)__popc(same);
        }
      }
    }
  }
}
