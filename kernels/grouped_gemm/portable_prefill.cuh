// Grouped GEMM for many rows of an expert, by cp.async and mma.sync: from sm_80 on.
//
//   for expert e, for row r of e, for column c:
//     g = row_weights[r] * sum_k x[r or token_of_row[r], k] Gate_e[c, k] + bias_e[c]; u, the same with Up_e
//     out[r, c] = act(g, u)                           or out[r, c] = g, out[r, columns + c] = u
//   or of one matrix, Up_e or Down_e:
//     out[r, c] = act(u)                              or out[r, c] = u
//
// 1. Persistent blocks take tiles of kTile.rows rows by kTile.columns weight rows (tile/scheduler.cuh).
// 2. Both operands pass through a ring of stages in shared memory, which is filled across the borders of tiles, so
//    that a tile's epilogue hides the latency of the next one's first loads (tile/copy_ring.cuh).
// 3. A warp makes 32 or 64 rows by 64 weight rows.  Which weight row lies where in a stage is chosen so that each
//    thread ends with 8 neighbouring columns, gate and up of the same: the activation needs no exchange, and sums go
//    from registers to global memory in stores of 16 bytes, four of which make 64 bytes of a row.
// 4. One matrix is multiplied as gate and up are: one half of a tile's columns in the gate's place, the other in the up
//    projection's.  What becomes of sums is the same for all threads, and asked once for all of a thread's.
#pragma once
#include "ptx/memory.cuh"
#include "tile/activation.cuh"
#include "tile/copy_ring.cuh"
#include "tile/epilogue.cuh"
#include "tile/float16.cuh"

// Column 8 j + 2 q + b of a product of 64 weight rows is lane q's.  Its columns of either half are 8 q ... 8 q + 7.
struct PrefillLayout {
  static __device__ __forceinline__ WeightPlace place(uint32_t row) {
    const uint32_t j = row / 8 % 8, q = row / 2 % 4, b = row % 2;
    return {j % 2, row / 64 * 32 + q * 8 + j / 2 * 2 + b};
  }
};

template <CopyTile kTile, class T> __device__ __forceinline__ void portable_prefill(const GroupedGemmArgs& args) {
  constexpr uint32_t kWarpColumns = 64, kWarpRows = kTile.rows * kTile.columns / kWarpColumns / (kTile.threads / 32);
  constexpr int kM = kWarpRows / 16, kN = kWarpColumns / 8;
  static_assert(kWarpRows % 16 == 0 && kTile.rows % kWarpRows == 0 && kTile.columns % kWarpColumns == 0);

  auto& storage = shared_storage<CopyStorage<kTile>>();
  const uint32_t lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  const uint32_t warp_row = warp % (kTile.rows / kWarpRows) * kWarpRows;
  const uint32_t warp_column = warp / (kTile.rows / kWarpRows) * kWarpColumns;
  ptx::grid_dependency_wait();

  CopyLoader<kTile, T, PrefillLayout> loader(args, storage);
  CopyPipeline<kTile, false, T, kM, kN> pipeline(storage, loader, warp_row, warp_column);
  while (pipeline.more()) {
    // acc[m][2 i + half][2 h + b]: row `row` + 16 m + 8 h, column `column` + 2 i + b of the half.
    float acc[kM][kN][4] = {};
    const WorkTile work = pipeline.accumulate(acc, (args.depth + kTile.depth - 1) / kTile.depth, loader);

    const uint32_t row = work.row + warp_row + lane / 4;
    const uint32_t column = work.column_block * tile_columns<kTile.columns>(args) + warp_column / 2 + lane % 4 * 8;
    const ColumnPlace places[2] = {column_place<kTile.columns>(args, 0, column),
                                   column_place<kTile.columns>(args, 1, column)};
    const Biases biases(args, work.expert);
#pragma unroll
    for (int m = 0; m < kM; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const uint32_t r = row + m * 16 + h * 8;
        if (r >= work.row_end) continue;
        float sums[2][8];
#pragma unroll
        for (int i = 0; i < 16; i++) sums[i % 2][i / 2] = acc[m][i / 4 * 2 + i % 2][2 * h + i / 2 % 2];
        if (!is_plain(args)) {
          const float weight = row_weight(args, r, work.row_end);
#pragma unroll
          for (int half = 0; half < 2; half++) {
            float bias[8];
            biases.eight(places[half], bias);
#pragma unroll
            for (int i = 0; i < 8; i++) sums[half][i] = sums[half][i] * weight + bias[i];
          }
        }
        activate_halves(args, sums[0], sums[1]);
        T* out = device_pointer<T>(args.out) + r * args.out_stride;
#pragma unroll
        for (int half = 0; half < 2; half++) {
          if (!places[half].exists || (half == 1 && !stores_both(args))) continue;
          const float (&v)[8] = sums[half];
          ptx::st_global_v4(out + places[half].at, {Float16<T>::pack(v[0], v[1]), Float16<T>::pack(v[2], v[3]),
                                                    Float16<T>::pack(v[4], v[5]), Float16<T>::pack(v[6], v[7])});
        }
      }
  }
}
