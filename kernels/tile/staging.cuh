// From accumulators to memory by way of shared memory: 64 rows of a warpgroup.
#pragma once
#include "ptx/matrix.cuh"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"

// Where 64 rows of an output [halves, R, columns] go.
struct OutputBlock {
  const TensorMap* map;  // {columns, halves, R}, boxes {64, 1, 64}
  char* out;             // row 0 of this half
  uint64_t row_bytes;
  uint32_t columns;      // of one half
  uint32_t half;
  uint32_t row;
  uint32_t rows;         // valid ones, from `row` on
  uint32_t column;       // the first
};

// 64 rows of kColumns 16-bit values, in blocks of 64 columns under the 128-byte swizzle, as TMA stores them.
template <uint32_t kColumns> struct Staging {
  static_assert(kColumns % 64 == 0);
  static constexpr uint32_t kBlockBytes = 64 * 128;
  alignas(1024) unsigned char bytes[kColumns / 64 * kBlockBytes];
};

// Columns 16 i .. 16 i + 15 of the warp's 16 rows, as stmatrix takes them: low and high 8 rows of the first 8 columns,
// then of the other 8.
__device__ __forceinline__ void stage_columns(uint32_t staging, uint32_t i, const uint32_t (&values)[4]) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const uint32_t row = warp * 16 + lane % 16, chunk = i % 4 * 2 + lane / 16;
  ptx::stmatrix_x4(staging + i / 4 * (64 * 128) + row * 128 + (chunk ^ row % 8) * 16, values[0], values[1], values[2],
                   values[3]);
}

// By all threads of the warpgroup, after a fence and a barrier.  Whole blocks go by TMA, which clips columns; the last
// rows of an expert go in 16-byte stores, because TMA would write on into the next expert's rows.
template <uint32_t kColumns> __device__ __forceinline__ void store_staged(uint32_t staging, const OutputBlock& to) {
  const uint32_t thread = threadIdx.x % 128;
  if (to.rows >= 64) {
    if (thread == 0) {
#pragma unroll
      for (uint32_t i = 0; i < kColumns / 64; i++)
        if (to.column + i * 64 < to.columns)
          ptx::tma_store_3d(to.map, (int)(to.column + i * 64), (int)to.half, (int)to.row, staging + i * (64 * 128));
      ptx::bulk_commit();
    }
    return;
  }
  constexpr uint32_t kChunks = kColumns / 8;
  for (uint32_t i = thread; i < to.rows * kChunks; i += 128) {
    const uint32_t row = i / kChunks, chunk = i % kChunks, column = to.column + chunk * 8;
    if (column < to.columns)
      ptx::st_global_v4(to.out + (to.row + row) * to.row_bytes + column * 2,
                        ptx::ld_shared_v4(staging + chunk / 8 * (64 * 128) + row * 128 + (chunk % 8 ^ row % 8) * 16));
  }
}
