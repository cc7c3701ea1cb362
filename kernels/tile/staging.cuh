// From accumulators to memory by way of shared memory: 64 rows of a warpgroup.
#pragma once
#include "ptx/matrix.cuh"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"

// Where 64 rows of an output [halves, R, columns] go.
struct OutputBlock {
  const TensorMap* map;  // {columns, halves, R}, boxes {32, 1, 64}
  char* out;             // row 0 of this half
  uint64_t row_bytes;
  uint32_t columns;      // of one half
  uint32_t half;
  uint32_t row;
  uint32_t rows;         // valid ones, from `row` on
  uint32_t column;       // the first
};

// 64 rows of kColumns 16-bit values, in blocks of 32 columns under the 64-byte swizzle, as TMA stores them: a block of
// 64 columns would not divide all tiles.
constexpr uint32_t kStagedColumns = 32, kStagedBytes = 64 * 64;
template <uint32_t kColumns> struct Staging {
  static_assert(kColumns % kStagedColumns == 0);
  alignas(1024) unsigned char bytes[kColumns / kStagedColumns * kStagedBytes];
};
// Where 8 columns of a row lie.
__device__ __forceinline__ uint32_t staged(uint32_t staging, uint32_t row, uint32_t chunk) {
  return staging + chunk / 4 * kStagedBytes + row * 64 + (chunk % 4 ^ row / 2 % 4) * 16;
}

// Columns 16 i .. 16 i + 15 of the warp's 16 rows, as stmatrix takes them: low and high 8 rows of the first 8 columns,
// then of the other 8.
__device__ __forceinline__ void stage_columns(uint32_t staging, uint32_t i, const uint32_t (&values)[4]) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  ptx::stmatrix_x4(staged(staging, warp * 16 + lane % 16, i * 2 + lane / 16), values[0], values[1], values[2],
                   values[3]);
}

// By all threads of the warpgroup, after a fence and a barrier.  Whole blocks go by TMA, which clips columns; the last
// rows of an expert go in 16-byte stores, because TMA would write on into the next expert's rows.
template <uint32_t kColumns> __device__ __forceinline__ void store_staged(uint32_t staging, const OutputBlock& to) {
  const uint32_t thread = threadIdx.x % 128;
  if (to.rows >= 64) {
    if (thread == 0) {
#pragma unroll
      for (uint32_t i = 0; i < kColumns / kStagedColumns; i++) {
        const uint32_t column = to.column + i * kStagedColumns;
        if (column < to.columns)
          ptx::tma_store_3d(to.map, (int)column, (int)to.half, (int)to.row, staging + i * kStagedBytes);
      }
      ptx::bulk_commit();
    }
    return;
  }
#pragma unroll 1
  for (uint32_t block = 0; block < kColumns / kStagedColumns; block++)
#pragma unroll 1
    for (uint32_t i = thread; i < to.rows * 4; i += 128) {
      const uint32_t row = i / 4, chunk = block * 4 + i % 4, column = to.column + chunk * 8;
      if (column < to.columns)
        ptx::st_global_v4(to.out + (to.row + row) * to.row_bytes + column * 2,
                          ptx::ld_shared_v4(staged(staging, row, chunk)));
    }
}
