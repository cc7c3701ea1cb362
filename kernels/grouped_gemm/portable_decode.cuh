// Grouped GEMM for few rows of an expert, by cp.async and mma.sync: from sm_80 on.
//
//   for expert e, for row r of e, for column c:
//     g = row_weights[r] * sum_k x[r or token_of_row[r], k] Gate_e[c, k] + bias_e[c]; u, the same with Up_e
//     out[r, c] = act(g, u)                           or out[r, c] = g, out[r, columns + c] = u
//   or of one matrix, Up_e or Down_e:
//     out[r, c] = act(u)                              or out[r, c] = u
//
// 1. The weights are the rows of the product and the tokens its columns, of which mma takes eight: one row does not
//    pay for sixty-four.
// 2. The weights are read once and their bytes decide: small tiles of them, several blocks on a multiprocessor, and
//    a ring of stages that is filled across the borders of tiles keep the memory busy (tile/copy_ring.cuh).
// 3. A warp makes 32 weight rows.  Which weight row lies where in a stage is chosen so that each thread ends with
//    two neighbouring columns, gate and up of the same, and the eight threads of a token with 32 bytes.
// 4. One matrix is multiplied as gate and up are: one half of a tile's columns in the gate's place, the other in the up
//    projection's.  What becomes of sums is the same for all threads, and asked once for all of a thread's.
#pragma once
#include "tile/copy_ring.cuh"
#include "tile/weights_first.cuh"

// Row 16 m + 8 h + g of a product of 32 weight rows is in lanes 4 g ... 4 g + 3: column 2 g + m of half h.
struct DecodeLayout {
  static __device__ __forceinline__ WeightPlace place(uint32_t row) {
    const uint32_t m = row / 16 % 2, h = row / 8 % 2, g = row % 8;
    return {h, row / 32 * 16 + g * 2 + m};
  }
};

template <CopyTile kTile, class T> __device__ __forceinline__ void portable_decode(const GroupedGemmArgs& args) {
  constexpr int kM = 2, kN = kTile.rows / 8;
  static_assert(kTile.columns == kTile.threads / 32 * 32);

  auto& storage = shared_storage<CopyStorage<kTile>>();
  const uint32_t lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  ptx::grid_dependency_wait();

  CopyLoader<kTile, T, DecodeLayout> loader(args, storage);
  CopyPipeline<kTile, true, T, kM, kN> pipeline(storage, loader, warp * 32, 0);
  while (pipeline.more()) {
    // acc[m][n][2 h + b]: column `column` + m of half h, row `row` + 8 n + b.
    float acc[kM][kN][4] = {};
    const WorkTile work = pipeline.accumulate(acc, (args.depth + kTile.depth - 1) / kTile.depth, loader);

    const uint32_t column = work.column_block * tile_columns<kTile.columns>(args) + warp * 16 + lane / 4 * 2;
    const ColumnPlace places[2] = {column_place<kTile.columns>(args, 0, column),
                                   column_place<kTile.columns>(args, 1, column)};
    store_weights_first<T, kN>(args, places, work, [&](int m, int n, int i) { return acc[m][n][i]; });
  }
}
