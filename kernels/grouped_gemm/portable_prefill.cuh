// Grouped GEMM for many rows of an expert, by cp.async and mma.sync: from sm_80 on.
//
//   for expert e, for row r of e, for column c:
//     store:       out[r, c] = sum_k x[r, k] W_e[c, k]
//     pair:        out[r, c] = g,  out[r, columns + c] = u
//     activation:  out[r, c] = act(g, u)
//       where g, u = sum_k x[token_of_row[r], k] Gate_e[c, k], and the same with Up_e
//
// 1. Persistent blocks take tiles of kTile.rows rows by kTile.columns weight rows (tile/scheduler.cuh).
// 2. Both operands pass through a ring of stages in shared memory, which is filled across the borders of tiles, so
//    that a tile's epilogue hides the latency of the next one's first loads (tile/copy_ring.cuh).
// 3. A warp makes 32 or 64 rows by 64 weight rows.  Which weight row lies where in a stage is chosen so that each
//    thread ends with 8 neighbouring columns, gate and up of the same: the activation needs no exchange, and sums go
//    from registers to global memory in stores of 16 bytes, four of which make 64 bytes of a row.
#pragma once
#include "ptx/memory.cuh"
#include "tile/activation.cuh"
#include "tile/copy_ring.cuh"
#include "tile/float16.cuh"

// Column 8 j + 2 q + b of a product of 64 weight rows is lane q's.  Its columns of the result are 8 q ... 8 q + 7.
template <bool kPairs> struct PrefillLayout {
  static __device__ __forceinline__ WeightPlace place(uint32_t row) {
    const uint32_t j = row / 8 % 8, q = row / 2 % 4, b = row % 2;
    if (kPairs) return {j % 2, row / 64 * 32 + q * 8 + j / 2 * 2 + b};
    return {0, row / 32 * 32 + q * 8 + j % 4 * 2 + b};
  }
};

template <CopyTile kTile, Epilogue kEpilogue, class T>
__device__ __forceinline__ void portable_prefill(const GroupedGemmArgs& args) {
  constexpr bool kPairs = kEpilogue != Epilogue::Store;
  constexpr uint32_t kWarpColumns = 64, kWarpRows = kTile.rows * kTile.columns / kWarpColumns / (kTile.threads / 32);
  constexpr int kM = kWarpRows / 16, kN = kWarpColumns / 8;
  static_assert(kWarpRows % 16 == 0 && kTile.rows % kWarpRows == 0 && kTile.columns % kWarpColumns == 0);

  auto& storage = shared_storage<CopyStorage<kTile>>();
  const uint32_t lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  const uint32_t warp_row = warp % (kTile.rows / kWarpRows) * kWarpRows;
  const uint32_t warp_column = warp / (kTile.rows / kWarpRows) * kWarpColumns;
  ptx::grid_dependency_wait();

  CopyLoader<kTile, kEpilogue, T, PrefillLayout<kPairs>> loader(args, storage);
  CopyPipeline<kTile, false, T, kM, kN> pipeline(storage, loader, warp_row, warp_column);
  while (pipeline.more()) {
    float acc[kM][kN][4] = {};
    const WorkTile work = pipeline.accumulate(acc, (args.depth + kTile.depth - 1) / kTile.depth, loader);

    const uint32_t column =
        work.column_block * kTileColumns<kTile, kEpilogue> + warp_column / (kPairs ? 2 : 1) + lane % 4 * 8;
#pragma unroll
    for (int m = 0; m < kM; m++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        // Two times eight columns: of the gate and of the up projection, or 32 columns apart.
        uint32_t v[2][4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float (&first)[4] = acc[m][kPairs ? 2 * i : i], (&second)[4] = acc[m][kPairs ? 2 * i + 1 : i + 4];
          if constexpr (kEpilogue == Epilogue::Activation) {
            v[0][i] = Float16<T>::pack(activate(args.activation, first[2 * h], second[2 * h]),
                                       activate(args.activation, first[2 * h + 1], second[2 * h + 1]));
          } else {
            v[0][i] = Float16<T>::pack(first[2 * h], first[2 * h + 1]);
            v[1][i] = Float16<T>::pack(second[2 * h], second[2 * h + 1]);
          }
        }
        const uint32_t row = work.row + warp_row + m * 16 + h * 8 + lane / 4;
        if (row < work.row_end && column < args.columns) {
          T* out = device_pointer<T>(args.out) + row * args.out_stride + column;
          ptx::st_global_v4(out, {v[0][0], v[0][1], v[0][2], v[0][3]});
          if constexpr (kEpilogue == Epilogue::Pair)
            ptx::st_global_v4(out + args.columns, {v[1][0], v[1][1], v[1][2], v[1][3]});
          if constexpr (kEpilogue == Epilogue::Store)
            if (column + 32 < args.columns) ptx::st_global_v4(out + 32, {v[1][0], v[1][1], v[1][2], v[1][3]});
        }
      }
  }
}
