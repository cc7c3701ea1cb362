// Grouped GEMM for few rows of an expert, by cp.async and mma.sync: from sm_80 on.
//
//   for expert e, for row r of e, for column c:
//     store:       out[r, c] = sum_k x[r, k] W_e[c, k]
//     pair:        out[r, c] = g,  out[r, columns + c] = u
//     activation:  out[r, c] = act(g, u)
//       where g, u = sum_k x[token_of_row[r], k] Gate_e[c, k], and the same with Up_e
//
// 1. The weights are the rows of the product and the tokens its columns, of which mma takes eight: one row does not
//    pay for sixty-four.
// 2. The weights are read once and their bytes decide: small tiles of them, several blocks on a multiprocessor, and
//    a ring of stages that is filled across the borders of tiles keep the memory busy (tile/copy_ring.cuh).
// 3. A warp makes 32 weight rows.  Which weight row lies where in a stage is chosen so that each thread ends with
//    two neighbouring columns, gate and up of the same, and the eight threads of a token with 32 bytes.
#pragma once
#include "tile/activation.cuh"
#include "tile/copy_ring.cuh"
#include "tile/float16.cuh"

// Row 16 m + 8 h + g of a product of 32 weight rows is in lanes 4 g ... 4 g + 3.
template <bool kPairs> struct DecodeLayout {
  static __device__ __forceinline__ WeightPlace place(uint32_t row) {
    const uint32_t m = row / 16 % 2, h = row / 8 % 2, g = row % 8;
    if (kPairs) return {h, row / 32 * 16 + g * 2 + m};
    return {0, row / 32 * 32 + m * 16 + g * 2 + h};
  }
};

template <CopyTile kTile, Epilogue kEpilogue, class T>
__device__ __forceinline__ void portable_decode(const GroupedGemmArgs& args) {
  constexpr bool kPairs = kEpilogue != Epilogue::Store;
  constexpr int kM = 2, kN = kTile.rows / 8;
  static_assert(kTile.columns == kTile.threads / 32 * 32);

  auto& storage = shared_storage<CopyStorage<kTile>>();
  const uint32_t lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
  ptx::grid_dependency_wait();

  CopyLoader<kTile, kEpilogue, T, DecodeLayout<kPairs>> loader(args, storage);
  CopyPipeline<kTile, true, T, kM, kN> pipeline(storage, loader, warp * 32, 0);
  while (pipeline.more()) {
    float acc[kM][kN][4] = {};
    const WorkTile work = pipeline.accumulate(acc, (args.depth + kTile.depth - 1) / kTile.depth, loader);

    const uint32_t column =
        work.column_block * kTileColumns<kTile, kEpilogue> + warp * (kPairs ? 16 : 32) + lane / 4 * 2;
#pragma unroll
    for (int n = 0; n < kN; n++)
#pragma unroll
      for (int b = 0; b < 2; b++) {
        const uint32_t row = work.row + n * 8 + lane % 4 * 2 + b;
        if (row >= work.row_end) continue;
        T* out = device_pointer<T>(args.out) + row * args.out_stride + column;
        const auto store = [](T* to, float low, float high) {
          *reinterpret_cast<uint32_t*>(to) = Float16<T>::pack(low, high);
        };
        const auto activated = [&](int m) { return activate(args.activation, acc[m][n][b], acc[m][n][2 + b]); };
        if constexpr (kEpilogue == Epilogue::Store) {
          if (column < args.columns) store(out, acc[0][n][b], acc[0][n][2 + b]);
          if (column + 16 < args.columns) store(out + 16, acc[1][n][b], acc[1][n][2 + b]);
        } else if (column < args.columns) {
          if constexpr (kEpilogue == Epilogue::Activation) {
            store(out, activated(0), activated(1));
          } else {
            store(out, acc[0][n][b], acc[1][n][b]);
            store(out + args.columns, acc[0][n][2 + b], acc[1][n][2 + b]);
          }
        }
      }
  }
}
