// Conformance: wgmma in every shape, type and operand layout.
//   out [64, N] f32 = A B, A [64, K] and B [K, N], loaded by TMA; K is 128 bytes.
#include "micro.cuh"
#include "ptx/wgmma.cuh"

struct WgmmaStorage { alignas(1024) uint8_t a[64 * 128]; alignas(1024) uint8_t b[256 * 128]; alignas(8) uint64_t bar; };

template <int kN> __device__ __forceinline__ void store_accumulator(const float (&acc)[kN / 2], uint8_t* out) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  auto* o = reinterpret_cast<float*>(out);
#pragma unroll
  for (int i = 0; i < kN / 2; i++) o[(warp * 16 + (lane >> 2) + ((i >> 1) & 1) * 8) * kN + (i >> 2) * 8 + (lane & 3) * 2 + (i & 1)] = acc[i];
}
// Both tiles, K-major under the 128B swizzle.
template <int kN> __device__ __forceinline__ WgmmaStorage& load_tiles(const TensorMap& map_a, const TensorMap& map_b) {
  auto& s = shared_storage<WgmmaStorage>();
  const uint32_t bar = micro_barrier(s.bar, 1);
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(bar, (64 + kN) * 128);
    ptx::tma_load_2d(shared_address(s.a), &map_a, 0, 0, bar);
    ptx::tma_load_2d(shared_address(s.b), &map_b, 0, 0, bar);
  }
  ptx::mbarrier_wait(bar, 0);
  return s;
}
#define PRODUCT(call)                                                    \
  float acc[kN / 2];                                                     \
  ptx::wgmma_fence();                                                    \
  _Pragma("unroll") for (int k = 0; k < 4; k++) { call; }                \
  ptx::wgmma_commit();                                                   \
  ptx::wgmma_wait<0>();                                                  \
  store_accumulator<kN>(acc, p.out)
#define SHARED_OPERANDS(n, suffix, wrapper)                                                               \
  KERNEL(micro_wgmma_##suffix##_n##n, 128, 1, MICRO_PARAMS) {                                             \
    constexpr int kN = n;                                                                                 \
    auto& s = load_tiles<kN>(map_a, map_b);                                                               \
    PRODUCT(ptx::wrapper(acc, ptx::k_major_128b(shared_address(s.a)) + 2 * k, ptx::k_major_128b(shared_address(s.b)) + 2 * k, k != 0)); \
  }
// A from registers, in fragment order: registers hold rows r, r + 8, r, r + 8 at K halves 0, 0, 1, 1.
#define REGISTER_OPERAND(n, suffix, wrapper)                                                              \
  KERNEL(micro_wgmma_##suffix##_ra_n##n, 128, 1, MICRO_PARAMS) {                                          \
    constexpr int kN = n;                                                                                 \
    auto& s = load_tiles<kN>(map_a, map_b);                                                               \
    const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, word = threadIdx.x & 3;                 \
    const auto* in = reinterpret_cast<const uint32_t*>(p.in);                                             \
    uint32_t a[4][4];                                                                                     \
    for (int k = 0; k < 4; k++)                                                                           \
      for (int r = 0; r < 4; r++) a[k][r] = in[(row + (r & 1) * 8) * 32 + k * 8 + (r >> 1) * 4 + word];   \
    PRODUCT(ptx::wrapper(acc, a[k], ptx::k_major_128b(shared_address(s.b)) + 2 * k, k != 0));            \
  }
SHARED_OPERANDS(8, bf16, wgmma_bf16)
SHARED_OPERANDS(16, bf16, wgmma_bf16)
SHARED_OPERANDS(24, bf16, wgmma_bf16)
SHARED_OPERANDS(32, bf16, wgmma_bf16)
SHARED_OPERANDS(40, bf16, wgmma_bf16)
SHARED_OPERANDS(48, bf16, wgmma_bf16)
SHARED_OPERANDS(64, bf16, wgmma_bf16)
SHARED_OPERANDS(80, bf16, wgmma_bf16)
SHARED_OPERANDS(96, bf16, wgmma_bf16)
SHARED_OPERANDS(128, bf16, wgmma_bf16)
SHARED_OPERANDS(160, bf16, wgmma_bf16)
SHARED_OPERANDS(192, bf16, wgmma_bf16)
SHARED_OPERANDS(256, bf16, wgmma_bf16)
SHARED_OPERANDS(8, f16, wgmma_f16)
SHARED_OPERANDS(64, f16, wgmma_f16)
SHARED_OPERANDS(128, f16, wgmma_f16)
SHARED_OPERANDS(256, f16, wgmma_f16)
SHARED_OPERANDS(8, e4m3, wgmma_e4m3)
SHARED_OPERANDS(64, e4m3, wgmma_e4m3)
SHARED_OPERANDS(128, e4m3, wgmma_e4m3)
SHARED_OPERANDS(256, e4m3, wgmma_e4m3)
REGISTER_OPERAND(8, bf16, wgmma_bf16_ra)
REGISTER_OPERAND(16, bf16, wgmma_bf16_ra)
REGISTER_OPERAND(24, bf16, wgmma_bf16_ra)
REGISTER_OPERAND(32, bf16, wgmma_bf16_ra)
REGISTER_OPERAND(40, bf16, wgmma_bf16_ra)
REGISTER_OPERAND(48, bf16, wgmma_bf16_ra)
REGISTER_OPERAND(64, bf16, wgmma_bf16_ra)
REGISTER_OPERAND(80, bf16, wgmma_bf16_ra)
REGISTER_OPERAND(96, bf16, wgmma_bf16_ra)
REGISTER_OPERAND(128, bf16, wgmma_bf16_ra)
REGISTER_OPERAND(160, bf16, wgmma_bf16_ra)
REGISTER_OPERAND(192, bf16, wgmma_bf16_ra)
REGISTER_OPERAND(256, bf16, wgmma_bf16_ra)
REGISTER_OPERAND(8, f16, wgmma_f16_ra)
REGISTER_OPERAND(64, f16, wgmma_f16_ra)
REGISTER_OPERAND(128, f16, wgmma_f16_ra)
REGISTER_OPERAND(256, f16, wgmma_f16_ra)
REGISTER_OPERAND(8, e4m3, wgmma_e4m3_ra)
REGISTER_OPERAND(64, e4m3, wgmma_e4m3_ra)
REGISTER_OPERAND(128, e4m3, wgmma_e4m3_ra)
REGISTER_OPERAND(256, e4m3, wgmma_e4m3_ra)

// Operands in every layout.  A tile of 64 rows of 128 bytes lies in blocks as wide as the swizzle span (16 bytes
// without one), each of 64 rows; rows run along M or N (K-major) or along K (MN-major).
template <int kWidth> __device__ __forceinline__ void load_blocks(uint32_t dst, const TensorMap& map, uint32_t bar) {
  for (int c = 0; c < 128 / kWidth; c++) ptx::tma_load_2d(dst + c * 64 * kWidth, &map, c * kWidth / 2, 0, bar);
}
template <int kWidth, int kTransposed> __device__ __forceinline__ uint64_t layout_descriptor(uint32_t tile, int k) {
  constexpr ptx::Swizzle swizzle = kWidth == 128 ? ptx::Swizzle::B128 : kWidth == 64 ? ptx::Swizzle::B64 : kWidth == 32 ? ptx::Swizzle::B32 : ptx::Swizzle::None;
  if (!kTransposed) return ptx::matrix_descriptor(tile + k * 32 / kWidth * 64 * kWidth + k * 32 % kWidth, 64 * 16, 8 * kWidth, swizzle);
  // Without a swizzle the roles of the two offsets are exchanged.
  if (kWidth == 16) return ptx::matrix_descriptor(tile + k * 256, 128, 64 * 16, swizzle);
  if (kWidth == 128) return ptx::mn_major_128b(tile + k * 16 * kWidth, 64 * kWidth, 8 * kWidth);
  return ptx::matrix_descriptor(tile + k * 16 * kWidth, 64 * kWidth, 8 * kWidth, swizzle);
}
template <int kWidth, int kTransA, int kTransB> __device__ __forceinline__ void layout_product(const TensorMap& map_a, const TensorMap& map_b, const MicroParams& p) {
  constexpr int kN = 64;
  auto& s = shared_storage<WgmmaStorage>();
  const uint32_t bar = micro_barrier(s.bar, 1);
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(bar, 2 * 64 * 128);
    load_blocks<kWidth>(shared_address(s.a), map_a, bar);
    load_blocks<kWidth>(shared_address(s.b), map_b, bar);
  }
  ptx::mbarrier_wait(bar, 0);
  PRODUCT((ptx::wgmma_bf16<kTransA, kTransB>(acc, layout_descriptor<kWidth, kTransA>(shared_address(s.a), k), layout_descriptor<kWidth, kTransB>(shared_address(s.b), k), k != 0)));
}
#define LAYOUT(width, ta, tb) \
  KERNEL(micro_wgmma_layout_##width##_##ta##tb, 128, 1, MICRO_PARAMS) { layout_product<width, ta, tb>(map_a, map_b, p); }
LAYOUT(16, 0, 0) LAYOUT(16, 1, 0) LAYOUT(16, 0, 1)
LAYOUT(32, 0, 0) LAYOUT(32, 1, 0) LAYOUT(32, 0, 1)
LAYOUT(64, 0, 0) LAYOUT(64, 1, 0) LAYOUT(64, 0, 1)
LAYOUT(128, 0, 0) LAYOUT(128, 1, 0) LAYOUT(128, 0, 1) LAYOUT(128, 1, 1)
