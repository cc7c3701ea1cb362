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

// 16 kM rows by 8 kN columns of a product; a stage holds kDepth elements of its depth.
//
// acc[m][n][2 h + b] of a lane is row 16 m + 8 h + lane / 4, column 8 n + 2 (lane % 4) + b.
template <class T, uint32_t kDepth, int kM, int kN> class WarpProduct {
 public:
  static constexpr int kSteps = kDepth / 16;

  // The operands of one step of 16 of the depth.
  struct Fragments {
    uint32_t a[kM][4];
    uint32_t b[kN][2];
  };

  // The warp's first row and first column among those of the stages.
  __device__ __forceinline__ WarpProduct(uint32_t row, uint32_t column) {
    const uint32_t lane = threadIdx.x % 32;
    a_ = chunk_offset<kDepth>(row + lane % 16, lane / 16);
    b_ = chunk_offset<kDepth>(column + lane % 8 + (kN > 1 ? lane / 16 * 8 : 0), lane / 8 % 2);
  }

  // Blocks of 16 rows lie 16 rows apart whatever the permutation.  A step is two chunks, and its number is a bit
  // of the chunk that nothing else sets: exclusive or commutes with the permutation.
  __device__ __forceinline__ void load(Fragments& f, uint32_t rows, uint32_t columns, int step) const {
    constexpr uint32_t kBlock = 16 * kDepth * 2;
#pragma unroll
    for (int m = 0; m < kM; m++) ptx::ldmatrix_x4(f.a[m], rows + (a_ ^ step * 32) + m * kBlock);
    if constexpr (kN == 1) {
      ptx::ldmatrix_x2(f.b[0], columns + (b_ ^ step * 32));
    } else {
      static_assert(kN % 2 == 0);
#pragma unroll
      for (int n = 0; n < kN; n += 2) {
        uint32_t two[4];
        ptx::ldmatrix_x4(two, columns + (b_ ^ step * 32) + n / 2 * kBlock);
        f.b[n][0] = two[0], f.b[n][1] = two[1];
        f.b[n + 1][0] = two[2], f.b[n + 1][1] = two[3];
      }
    }
  }

  __device__ __forceinline__ void add(float (&acc)[kM][kN][4], const Fragments& f) const {
#pragma unroll
    for (int m = 0; m < kM; m++)
#pragma unroll
      for (int n = 0; n < kN; n++) Mma<T>::add(acc[m][n], f.a[m], f.b[n]);
  }

 private:
  uint32_t a_, b_;
};
