// Grouped GEMM of quantised weights, by cp.async and mma.sync: from sm_80 on.
//
//   for expert e, for row r of e, for column c:
//     g, u = row_weights[r] * sum_k x[token_of_row[r], k] value(Gate_e[c, k]) + bias_e[c], and the same with Up_e
//     out[r, c] = act(g, u)                           or out[r, c] = g,  out[r, columns + c] = u
//   or, of one matrix:
//     out[r, c] = act(u)                              or out[r, c] = u
//   where value(w[c, k]) = code[c, k] * scale[c, k / group]
//
// 1. The weights are the rows of the product, and the tokens its columns, for any number of them: a thread widens codes
//    to fragments of bf16 in registers, and each fragment serves all of a tile's tokens.
// 2. Codes lie in memory as threads take them (tile/dequantise.cuh): a stage's are copied in one piece, and read back
//    by whole words, without ldmatrix and without a bank conflict.
// 3. Block scales of fp8 multiply sums in f32, every 128 of depth; those of four bits multiply the widened codes.
// 4. Stages are filled across the borders of tiles, as tile/copy_ring.cuh does.
#pragma once
#include "ptx/cp_async.cuh"
#include "ptx/sync.cuh"
#include "tile/copy_ring.cuh"
#include "tile/dequantise.cuh"
#include "tile/operands.cuh"
#include "tile/weights_first.cuh"

template <CopyTile kTile, class Format> class PortableQuantised {
 public:
  static_assert(kTile.depth == 64 && kTile.columns == kTile.threads && kTile.rows % 16 == 0 && kTile.stages >= 3);

  struct Storage {
    alignas(128) uint16_t x[kTile.stages][kTile.rows * 64];
    alignas(128) uint8_t codes[kTile.stages][kTile.columns / 16 * Format::kCodeBytes];
    alignas(128) uint8_t scales[kTile.stages][kTile.columns / 16 * Format::kScaleBytes];
    WorkTile tiles[kTile.stages + 2];
  };

  static __device__ __forceinline__ void run(const GroupedGemmArgs& args, const QuantisedMatrices& weights) {
    Storage& storage = shared_storage<Storage>();
    ptx::grid_dependency_wait();
    const uint32_t lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    // As WarpProduct (tile/mma.cuh) takes columns.
    const uint32_t column = chunk_offset<64>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    const uint32_t x = shared_address(storage.x) + column;
    const uint32_t codes = shared_address(storage.codes) + warp * 2 * Format::kCodeBytes;
    const uint32_t blocks = (args.depth + 63) / 64;

    Loader loader(args, weights, storage, blocks);
#pragma unroll 1
    for (uint32_t i = 0; i + 1 < kTile.stages; i++) loader.next(i);
    wait();
    uint32_t stage = 0, tile = 0;
    while (storage.tiles[tile].row_end != 0) {
      // acc[m][n][2 h + b]: column places[h] + m, row work.row + 8 n + 2 (lane % 4) + b.
      float acc[2][kN][4] = {};
      float part[Format::kScalesSums ? 2 : 1][Format::kScalesSums ? kN : 1][4] = {};
#pragma unroll 1
      for (uint32_t block = 0; block < blocks; block++) {
        // Into the stage before this one, which all have left.
        loader.next(stage == 0 ? kTile.stages - 1 : stage - 1);
        const uint8_t* scales = storage.scales[stage] + warp * 2 * weights.scale_bytes;
        Format of_warp[2];
#pragma unroll
        for (int m = 0; m < 2; m++)
          of_warp[m].load(codes + stage * kCodes + m * Format::kCodeBytes, scales + m * weights.scale_bytes,
                          weights.scale_bytes);
#pragma unroll
        for (int step = 0; step < 4; step++) {
          uint32_t b[kN][2];
#pragma unroll
          for (int n = 0; n < kN; n += 2) {
            uint32_t two[4];
            ptx::ldmatrix_x4(two, ((x + stage * kX) ^ (step * 32)) + n * 1024);
            b[n][0] = two[0], b[n][1] = two[1];
            b[n + 1][0] = two[2], b[n + 1][1] = two[3];
          }
#pragma unroll
          for (int m = 0; m < 2; m++) {
            uint32_t a[4];
            of_warp[m].fragment(step, a);
#pragma unroll
            for (int n = 0; n < kN; n++) {
              if constexpr (Format::kScalesSums)
                Mma<bf16>::add(part[m][n], a, b[n]);
              else
                Mma<bf16>::add(acc[m][n], a, b[n]);
            }
          }
        }
        if constexpr (Format::kScalesSums) {
          if (block % 2 == 1 || block + 1 == blocks) {
#pragma unroll
            for (int m = 0; m < 2; m++) {
              const float2 scale = Format::sum_scales(scales + m * weights.scale_bytes);
#pragma unroll
              for (int n = 0; n < kN; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                  acc[m][n][i] += part[m][n][i] * (i < 2 ? scale.x : scale.y);
                  part[m][n][i] = 0.f;
                }
            }
          }
        }
        stage = stage + 1 == kTile.stages ? 0 : stage + 1;
        wait();
      }
      const WorkTile work = storage.tiles[tile];
      tile = tile + 1 == kTile.stages + 2 ? 0 : tile + 1;
      ColumnPlace places[2];
      unit_places(args, work.column_block * kUnits + warp, places);
      store_weights_first<bf16, kN>(args, places, work, [&](int m, int n, int i) { return acc[m][n][i]; });
    }
  }

 private:
  static constexpr int kN = kTile.rows / 8;
  static constexpr uint32_t kUnits = kTile.columns / 32, kX = kTile.rows * 128;
  static constexpr uint32_t kCodes = kTile.columns / 16 * Format::kCodeBytes;
  static constexpr uint32_t kScales = kTile.columns / 16 * Format::kScaleBytes;

  // Until the next stage is there, and nobody reads the last one any more.
  static __device__ __forceinline__ void wait() {
    ptx::cp_async_wait<(int)kTile.stages - 2>();
    __syncthreads();
  }

  // This thread's share of the copies, some blocks of depth ahead of the products; as CopyLoader.
  class Loader {
   public:
    __device__ __forceinline__ Loader(const GroupedGemmArgs& args, const QuantisedMatrices& weights, Storage& storage,
                                      uint32_t blocks)
        : args_(args), weights_(weights), storage_(storage), rows_(args, threadIdx.x),
          tiles_(device_pointer<const uint32_t>(args.expert_offsets), args.num_experts,
                 (args.columns + tile_columns<kTile.columns>(args) - 1) / tile_columns<kTile.columns>(args), blockIdx.x,
                 gridDim.x),
          blocks_(blocks), block_(blocks) {
      begin();
    }

    __device__ __forceinline__ void next(uint32_t stage) {
      if (block_ < blocks_) {
        const uint32_t at = threadIdx.x * 16;
        const uint8_t* codes = from_.codes(weights_, block_);
        const uint32_t to = shared_address(storage_.codes) + stage * kCodes;
        // What lies past the last column is zero, and not read.
#pragma unroll
        for (uint32_t i = 0; i < kCodes; i += kTile.threads * 16)
          ptx::cp_async_16(to + at + i, codes + at + i, at + i < from_.code_bytes() ? 16 : 0);
        if (at < kScales)
          ptx::cp_async_16(shared_address(storage_.scales) + stage * kScales + at, from_.scales(weights_, block_) + at,
                           at < from_.scale_bytes(weights_) ? 16 : 0);
        rows_.copy(args_, shared_address(storage_.x) + stage * kX, block_ * 64);
        if (++block_ == blocks_) begin();
      }
      ptx::cp_async_commit();
    }

   private:
    static_assert(kCodes % (kTile.threads * 16) == 0 && kScales <= kTile.threads * 16);

    // Turns to the next tile; where there is none, block_ stays at its end.
    __device__ __forceinline__ void begin() {
      WorkTile work;
      const bool more = tiles_.next(work);
      if (!more) work.row_end = 0;
      if (threadIdx.x == 0) storage_.tiles[tile_] = work;
      tile_ = tile_ + 1 == kTile.stages + 2 ? 0 : tile_ + 1;
      if (!more) {
        ptx::grid_launch_dependents();
        return;
      }
      block_ = 0;
      rows_.begin(args_, work);
      from_ = TileBlocks<Format>(weights_, work.expert, work.column_block * kUnits, kUnits);
    }

    const GroupedGemmArgs& args_;
    const QuantisedMatrices& weights_;
    Storage& storage_;
    RowGather<kTile.rows, kTile.threads> rows_;
    TileScheduler<kTile.rows> tiles_;
    TileBlocks<Format> from_;
    uint32_t blocks_, block_, tile_ = 0;
  };
};
