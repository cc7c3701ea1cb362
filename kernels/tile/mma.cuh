// The product of one warp, by mma.sync, from operands that lie in shared memory row by row of depth.
//
// Both operands are stored alike: either may be the rows of the product and the other its columns.
#pragma once
#include "common/types.cuh"
#include "ptx/matrix.cuh"

// Where a chunk of 16 bytes lies in a stage of rows of kDepth elements (64 or 128 bytes).  Chunks are permuted, so
// that neither a copy of whole rows nor ldmatrix, which reads one chunk of eight rows, meets a bank twice.
template <uint32_t kDepth>
__device__ __forceinline__ uint32_t chunk_offset(uint32_t row, uint32_t chunk) {
  constexpr uint32_t kChunks = kDepth / 8;
  static_assert(kDepth == 32 || kDepth == 64);
  return row * (kDepth * 2) + (chunk ^ row * kChunks / 8 % kChunks) * 16;
}

template <class T> struct Mma;
template <> struct Mma<bf16> {
  static __device__ __forceinline__ void add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_bf16(d, a, b[0], b[1]);
  }
};
template <> struct Mma<f16> {
  static __device__ __forceinline__ void add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    ptx::mma_f16(d, a, b[0], b[1]);
  }
};

// 16 kM rows by 8 kN columns of a product, from stages of kDepth elements of its depth in steps of 16.
//
// acc[m][n][2 h + b] of a lane is row 16 m + 8 h + lane / 4, column 8 n + 2 (lane % 4) + b.
template <class T, uint32_t kDepth, int kM, int kN> class WarpProduct {
 public:
  static constexpr int kSteps = kDepth / 16;
  static_assert(kSteps % 2 == 0 && (kN == 1 || kN % 2 == 0));

  // The warp's first row and first column among those of the stages.
  __device__ __forceinline__ WarpProduct(uint32_t row, uint32_t column) {
    const uint32_t lane = threadIdx.x % 32;
    row_ = chunk_offset<kDepth>(row + lane % 16, lane / 16);
    column_ = chunk_offset<kDepth>(column + lane % 8 + (kN > 1 ? lane / 16 * 8 : 0), lane / 8 % 2);
  }

  // The first step's fragments, from the stages at `rows` and `columns`.
  __device__ __forceinline__ void load(uint32_t rows, uint32_t columns) {
    load_a(rows, 0);
#pragma unroll
    for (int n = 0; n < kN; n += 2) load_b(columns, 0, n);
  }

  // acc += the product of a step.  Meanwhile the fragments of the next one are loaded, if it `follows`; it may be
  // the first of other stages, which are those given.
  __device__ __forceinline__ void add(float (&acc)[kM][kN][4], int step, bool follows, uint32_t rows,
                                      uint32_t columns) {
    const int next = (step + 1) % kSteps;
    if (follows) load_a(rows, next);
#pragma unroll
    for (int n = 0; n < kN; n++) {
#pragma unroll
      for (int m = 0; m < kM; m++) Mma<T>::add(acc[m][n], a_[step % 2][m], b_[step % kSets][n]);
      if (follows && (n % 2 == 1 || kN == 1)) load_b(columns, next, n / 2 * 2);
    }
  }

 private:
  // Blocks of 16 rows lie 16 rows apart whatever the permutation.  A step is two chunks, and its number sets bits of
  // the chunk that nothing else does: exclusive or commutes with the permutation.
  static constexpr uint32_t kBlock = 16 * kDepth * 2;
  __device__ __forceinline__ void load_a(uint32_t rows, int step) {
#pragma unroll
    for (int m = 0; m < kM; m++) ptx::ldmatrix_x4(a_[step % 2][m], rows + (row_ ^ step * 32) + m * kBlock);
  }
  __device__ __forceinline__ void load_b(uint32_t columns, int step, int n) {
    uint32_t (&b)[kN][2] = b_[step % kSets];
    if constexpr (kN == 1) {
      ptx::ldmatrix_x2(b[0], columns + (column_ ^ step * 32));
    } else {
      uint32_t two[4];
      ptx::ldmatrix_x4(two, columns + (column_ ^ step * 32) + n / 2 * kBlock);
      b[n][0] = two[0], b[n][1] = two[1];
      b[n + 1][0] = two[2], b[n + 1][1] = two[3];
    }
  }

  // Many columns' fragments take the places of those just used, which saves registers; few would come too late.
  static constexpr int kSets = kN > 4 ? 1 : 2;
  uint32_t row_, column_;
  uint32_t a_[2][kM][4], b_[kSets][kN][2];
};
