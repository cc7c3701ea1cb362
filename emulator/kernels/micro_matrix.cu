// Conformance: ldmatrix, stmatrix, mma.sync; one warp.
#include "micro.cuh"
#include "ptx/matrix.cuh"

struct MatrixStorage { alignas(128) uint8_t tile[32 * 16]; };

// 32 rows of 16 bytes into shared memory.
__device__ __forceinline__ MatrixStorage& load_rows(const MicroParams& p) {
  auto& s = shared_storage<MatrixStorage>();
  ptx::st_shared_v4(shared_address(s.tile) + threadIdx.x * 16, ptx::ld_global_nc_v4(p.in + threadIdx.x * 16));
  __syncwarp();
  return s;
}
__device__ __forceinline__ void store_rows(const MatrixStorage& s, const MicroParams& p, unsigned rows) {
  __syncwarp();
  if (threadIdx.x < rows) ptx::st_global_v4(p.out + threadIdx.x * 16, ptx::ld_shared_v4(shared_address(s.tile) + threadIdx.x * 16));
}
#define LOAD(name, count)                                                                            \
  KERNEL(micro_##name, 32, 1, MICRO_PARAMS) {                                                        \
    auto& s = load_rows(p);                                                                          \
    uint32_t r[count];                                                                               \
    ptx::name(r, shared_address(s.tile) + threadIdx.x * 16);                                         \
    for (int i = 0; i < count; i++) reinterpret_cast<uint32_t*>(p.out)[threadIdx.x * count + i] = r[i]; \
  }
LOAD(ldmatrix_x4, 4)
LOAD(ldmatrix_x4_trans, 4)
LOAD(ldmatrix_x2, 2)
LOAD(ldmatrix_x2_trans, 2)

#define STORE(name, rows, ...)                                                       \
  KERNEL(micro_##name, 32, 1, MICRO_PARAMS) {                                        \
    auto& s = shared_storage<MatrixStorage>();                                       \
    const auto* in = reinterpret_cast<const uint32_t*>(p.in) + threadIdx.x * 4;      \
    const uint32_t v[4] = {in[0], in[1], in[2], in[3]};                              \
    ptx::name(shared_address(s.tile) + threadIdx.x * 16, __VA_ARGS__);               \
    store_rows(s, p, rows);                                                          \
  }
STORE(stmatrix_x4, 32, v[0], v[1], v[2], v[3])
STORE(stmatrix_x4_trans, 32, v[0], v[1], v[2], v[3])
STORE(stmatrix_x2, 16, v[0], v[1])

// d [16, 8] = A [16, 32 bytes] B [8, 32 bytes]^T: in holds A's rows, then B's.
#define MMA(name)                                                                                       \
  KERNEL(micro_##name, 32, 1, MICRO_PARAMS) {                                                           \
    const auto* in = reinterpret_cast<const uint32_t*>(p.in);                                           \
    const int row = threadIdx.x / 4, word = threadIdx.x % 4;                                            \
    uint32_t a[4];                                                                                      \
    for (int r = 0; r < 4; r++) a[r] = in[(row + (r & 1) * 8) * 8 + (r >> 1) * 4 + word];               \
    const uint32_t* b = in + 16 * 8 + row * 8 + word;                                                   \
    float d[4] = {1.f, 2.f, 3.f, 4.f};                                                                  \
    ptx::name(d, a, b[0], b[4]);                                                                        \
    auto* o = reinterpret_cast<float*>(p.out);                                                          \
    for (int q = 0; q < 4; q++) o[(row + (q >> 1) * 8) * 8 + word * 2 + (q & 1)] = d[q];                \
  }
MMA(mma_bf16)
MMA(mma_f16)
MMA(mma_e4m3)
