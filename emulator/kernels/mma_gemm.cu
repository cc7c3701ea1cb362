// Self-test kernels: a GEMM without Hopper's instructions (cp.async, ldmatrix, mma.sync), and one wgmma tile
// whose operands are both MN-major.
//   C [M, N] f32 = A [M, K] B [N, K]^T, bf16, K % 8 == 0; 128 threads, 64 x 64 x 32, 3 stages
#include "common/types.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/matrix.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"

constexpr int kStages = 3, kPitch = 40;                     // rows padded to 80 bytes: ldmatrix without bank conflicts
struct MmaStorage { alignas(16) bf16 a[kStages][64 * kPitch]; alignas(16) bf16 b[kStages][64 * kPitch]; };

__device__ __forceinline__ void load_stage(MmaStorage& s, int stage, const bf16* A, const bf16* B, int M, int N, int K, int m0, int n0, int k0) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int c = threadIdx.x + i * 128, r = c / 4, k = (c % 4) * 8;
    const bool in_k = k0 + k < K, in_a = m0 + r < M && in_k, in_b = n0 + r < N && in_k;
    ptx::cp_async_16(shared_address(&s.a[stage][r * kPitch + k]), A + (in_a ? (size_t)(m0 + r) * K + k0 + k : 0), in_a ? 16 : 0);
    ptx::cp_async_16(shared_address(&s.b[stage][r * kPitch + k]), B + (in_b ? (size_t)(n0 + r) * K + k0 + k : 0), in_b ? 16 : 0);
  }
}
KERNEL(test_mma_gemm, 128, 1, const bf16* A, const bf16* B, float* C, int M, int N, int K) {
  auto& s = shared_storage<MmaStorage>();
  const int m0 = blockIdx.y * 64, n0 = blockIdx.x * 64, k_tiles = (K + 31) / 32;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, wm = (warp & 1) * 32, wn = (warp >> 1) * 32;
  float acc[2][4][4] = {};
  for (int i = 0; i < kStages - 1; i++) {
    if (i < k_tiles) load_stage(s, i, A, B, M, N, K, m0, n0, i * 32);
    ptx::cp_async_commit();
  }
  for (int k = 0; k < k_tiles; k++) {
    if (FAULT(50)) ptx::cp_async_wait<kStages - 1>();
    else ptx::cp_async_wait<kStages - 2>();
    if (!FAULT(51)) __syncthreads();
    if (k + kStages - 1 < k_tiles) load_stage(s, (k + kStages - 1) % kStages, A, B, M, N, K, m0, n0, (k + kStages - 1) * 32);
    ptx::cp_async_commit();
    const int stage = k % kStages;
#pragma unroll
    for (int kk = 0; kk < 32; kk += 16) {
      uint32_t a[2][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int ra = wm + i * 16 + (lane & 15), ca = kk + (lane >> 4) * 8;
        ptx::ldmatrix_x4(a[i], shared_address(&s.a[stage][ra * kPitch + ca]));
        const int rb = wn + i * 16 + (lane & 7) + (lane >> 4) * 8, cb = kk + ((lane >> 3) & 1) * 8;
        ptx::ldmatrix_x4(b[i], shared_address(&s.b[stage][rb * kPitch + cb]));
      }
#pragma unroll
      for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) ptx::mma_bf16(acc[i][j], a[i], b[j >> 1][(j & 1) * 2], b[j >> 1][(j & 1) * 2 + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; i++)
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
      for (int q = 0; q < 4; q++) {
        const int r = m0 + wm + i * 16 + (lane >> 2) + (q >> 1) * 8, c = n0 + wn + j * 8 + (lane & 3) * 2 + (q & 1);
        if (r < M && (c < N || FAULT(52))) C[(size_t)r * N + c] = acc[i][j][q];
      }
}

// C [64, 128] = At [64, 64]^T Bt [64, 128], by TMA with the 128B swizzle: what a weight gradient needs.
struct TransposedStorage { alignas(1024) bf16 a[64 * 64]; alignas(1024) bf16 b[2][64 * 64]; alignas(8) uint64_t bar; };
KERNEL(test_wgmma_transposed, 128, 1, const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b, float* C) {
  auto& s = shared_storage<TransposedStorage>();
  const uint32_t bar = shared_address(&s.bar);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(bar, 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(bar, 3 * 64 * 64 * 2);
    ptx::tma_load_2d(shared_address(s.a), &map_a, 0, 0, bar);
    ptx::tma_load_2d(shared_address(s.b[0]), &map_b, 0, 0, bar);
    ptx::tma_load_2d(shared_address(s.b[1]), &map_b, 64, 0, bar);
  }
  ptx::mbarrier_wait(bar, 0);
  float acc[64];
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; k++)                               // 16 rows of 128 bytes per step
    ptx::wgmma_bf16<1, 1>(acc, ptx::mn_major_128b(shared_address(s.a) + k * 2048, 8192, 1024),
                          ptx::mn_major_128b(shared_address(s.b) + k * 2048, FAULT(60) ? 4096 : 8192, 1024), k != 0);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
  for (int i = 0; i < 64; i++) C[(warp * 16 + (lane >> 2) + ((i >> 1) & 1) * 8) * 128 + (i >> 2) * 8 + (lane & 3) * 2 + (i & 1)] = acc[i];
}
