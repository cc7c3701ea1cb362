// Self-test kernels: stable counting sort of assignments by expert (histogram, scan, scatter) and a gather.
#include "common/types.cuh"
#include "ptx/memory.cuh"

constexpr int kSortThreads = 256, kMaxExperts = 256, kSortWarps = kSortThreads / 32;

struct HistogramStorage { int count[kMaxExperts]; };
KERNEL(test_histogram, 256, 1, const int* expert, int n, int experts, int* block_count) {
  auto& s = shared_storage<HistogramStorage>();
  for (int e = threadIdx.x; e < experts; e += kSortThreads) s.count[e] = 0;
  if (!FAULT(10)) __syncthreads();
  const int i = blockIdx.x * kSortThreads + threadIdx.x;
  if (i < n) {
    const int e = expert[i];
    if (FAULT(11)) s.count[e]++;
    else atomicAdd(&s.count[e], 1);
  }
  if (!FAULT(12)) __syncthreads();
  for (int e = threadIdx.x; e < experts; e += kSortThreads) block_count[(size_t)blockIdx.x * experts + e] = s.count[e];
}

struct ScanStorage { int warp_sum[kSortWarps]; };
// One block: block_count becomes each block's first position per expert, offsets [experts + 1] the experts' bounds.
KERNEL(test_scan, 256, 1, int* block_count, int blocks, int experts, int* offsets) {
  auto& s = shared_storage<ScanStorage>();
  const int t = threadIdx.x, lane = t & 31, warp = t >> 5;
  int total = 0;
  if (t < experts)
    for (int b = 0; b < blocks; b++) total += block_count[(size_t)b * experts + t];
  int inclusive = total;
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) {
    const int x = __shfl_up_sync(0xffffffffu, inclusive, o);
    if (lane >= o) inclusive += x;
  }
  if (lane == 31) s.warp_sum[warp] = inclusive;
  if (!FAULT(15)) __syncthreads();
  int base = 0;
  for (int w = 0; w < warp; w++) base += s.warp_sum[w];
  int at = base + inclusive - total;
  if (t < experts) offsets[t] = at;
  if (t == experts - 1) offsets[experts] = at + total;
  if (t < experts)
    for (int b = 0; b < blocks; b++) {
      const int c = block_count[(size_t)b * experts + t];
      block_count[(size_t)b * experts + t] = at;
      at += c;
    }
}

struct ScatterStorage { int count[kSortWarps][kMaxExperts]; };
KERNEL(test_scatter, 256, 1, const int* expert, int n, int experts, const int* block_base, int* assignment_of_row, int* row_of_assignment) {
  auto& s = shared_storage<ScatterStorage>();
  const int t = threadIdx.x, lane = t & 31, warp = t >> 5;
  for (int i = t; i < kSortWarps * experts; i += kSortThreads) s.count[i / experts][i % experts] = 0;
  __syncthreads();
  const int i = blockIdx.x * kSortThreads + t;
  const int e = i < n ? expert[i] : experts;                // `experts`: none
  const unsigned same = __match_any_sync(0xffffffffu, e);
  const int rank = __popc(same & ((1u << lane) - 1));
  if (e < experts && rank == 0) s.count[warp][e] = __popc(same);
  if (!FAULT(13)) __syncthreads();
  for (int x = t; x < experts; x += kSortThreads) {         // exclusive scan over the warps of this block
    int run = block_base[(size_t)blockIdx.x * experts + x];
    for (int w = 0; w < kSortWarps; w++) {
      const int c = s.count[w][x];
      s.count[w][x] = run;
      run += c;
    }
  }
  __syncthreads();
  if (e < experts) {
    const int row = s.count[warp][e] + rank;
    assignment_of_row[row] = i;
    row_of_assignment[i] = row;
  }
}

// rows[r] = x[assignment_of_row[r] / top_k], 16 bytes per thread
KERNEL(test_gather, 128, 1, const bf16* x, const int* assignment_of_row, int top_k, int columns, bf16* rows) {
  const int r = blockIdx.x;
  const bf16* src = x + (size_t)(assignment_of_row[r] / top_k) * columns;
  bf16* dst = rows + (size_t)r * columns;
  for (int c = threadIdx.x; c < columns / 8 + (FAULT(14) ? 1 : 0); c += 128) ptx::st_global_v4(dst + c * 8, ptx::ld_global_nc_v4(src + c * 8));
}
