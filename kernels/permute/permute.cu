// Permute: tokens gathered into expert order, bit for bit.
//
//   for r in 0 .. num_rows:
//     for h in 0 .. H:
//       rows[r, h] = x[token_of_row[r], h]
//
// Departures:
// 1. A thread copies 8 columns, 16 bytes, of PERMUTE_ROWS neighbouring rows; all loads are on their way before the
//    first store.
// 2. Any number of blocks does: they stride over the rows, whose number only the device knows.
#include "abi.h"
#include "common/types.cuh"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"

KERNEL(permute, ROW_THREADS, 1, const __grid_constant__ PermuteArgs p) {
  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  const uint32_t column = (blockIdx.y * ROW_THREADS + threadIdx.x) * 8;
  if (column >= p.hidden_size) return;
  const uint16_t* x = device_pointer<const uint16_t>(p.x) + column;
  uint16_t* rows = device_pointer<uint16_t>(p.rows) + column;
  const uint32_t* token_of_row = device_pointer<const uint32_t>(p.token_of_row);
  const uint32_t num_rows = *device_pointer<const uint32_t>(p.num_rows);

  const uint64_t step = (uint64_t)gridDim.x * PERMUTE_ROWS;
  for (uint64_t first = (uint64_t)blockIdx.x * PERMUTE_ROWS; first < num_rows; first += step) {
    uint4 chunk[PERMUTE_ROWS];
#pragma unroll
    for (uint32_t i = 0; i < PERMUTE_ROWS; i++) {
      if (first + i < num_rows) chunk[i] = ptx::ld_global_v4_streaming(x + token_of_row[first + i] * p.x_stride);
    }
#pragma unroll
    for (uint32_t i = 0; i < PERMUTE_ROWS; i++) {
      if (first + i < num_rows) ptx::st_global_v4(rows + (first + i) * p.rows_stride, chunk[i]);
    }
  }
}
