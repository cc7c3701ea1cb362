// Grouped GEMM for Hopper with weights as M, for experts with few rows.
//
// The naive version:
//
//   for each expert e, each of its rows r, each column j:
//     g = row_weights[r] * sum_k gate[e, j, k] * x[token_of_row[r], k] + gate_bias[e, j]
//     u = row_weights[r] * sum_k up[e, j, k] * x[token_of_row[r], k] + up_bias[e, j]
//     out[r, j] = act(g, u)                                  (or g and u side by side; or act(u), or u)
//
// Departures from it:
//
//  1. wgmma's M is 64 at least and N is 8: with weights as M, a tile of 8 rows of x costs what 8 rows cost.  A tile is
//     kColumns rows of weights by kRows rows of x, walked by a persistent grid (TileScheduler).  Time goes to reading
//     weights, each once, so that stages are deep and two blocks share a multiprocessor.
//  2. Warps are specialised: four multiply, one loads, through a ring of stages of 64 in depth.
//  3. Weights come by TMA, whose map {depth, 8, 2, columns / 8, E} interleaves gate and up by eight rows in shared
//     memory, wherever they lie in memory: a thread holds both of one column, and the activation happens in registers.
//     Of one matrix, by a map {depth, columns, 1, 1, E}, a thread holds columns eight apart.
//  4. Rows of x are gathered by cp.async, 16 bytes at a time, straight into the swizzled stage.  Where x is the packed
//     product of an earlier one (store), TMA takes it.  Both load whole blocks: rows past an expert's end are
//     multiplied and never stored.
//  5. Sums are rounded once, to 16 bits, and stored from registers.  The output is small beside the weights.
#pragma once
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "tile/activation.cuh"
#include "tile/epilogue.cuh"
#include "tile/float16.cuh"
#include "tile/operands.cuh"
#include "tile/warpgroup.cuh"

template <class T, Epilogue kEpilogue, uint32_t kRows, uint32_t kColumns, uint32_t kStages> class HopperDecode {
 public:
  static constexpr uint32_t kThreads = 128 + 32, kBlocks = kColumns / 64;
  static constexpr bool kGathered = kEpilogue != Epilogue::Store;
  static_assert(kRows % 8 == 0 && kColumns % 64 == 0);

  struct Storage {
    alignas(1024) T weights[kStages][kColumns * 64];
    alignas(1024) T x[kStages][kRows * 64];
    RingBarriers<kStages> ring;
  };

  // `x` only where it is not gathered.
  static __device__ __forceinline__ void run(const TensorMap* x, const TensorMap& weights,
                                             const GroupedGemmArgs& args) {
    Storage& shared = shared_storage<Storage>();
    if (threadIdx.x == 128) {
      if (!kGathered) ptx::prefetch_tensor_map(x);
      if (args.weight_maps == 0) ptx::prefetch_tensor_map(&weights);
    }
    if (threadIdx.x == 0) Ring<kStages>::init(shared.ring, kGathered ? 32 + 1 : 1, 4);
    __syncthreads();
    ptx::grid_dependency_wait();
    // The same number in every lane, which the compiler cannot see in threadIdx.x / 32.
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    const uint32_t k_tiles = (args.depth + 63) / 64;
    TileScheduler<kRows> tiles(device_pointer<const uint32_t>(args.expert_offsets), args.num_experts,
                               (args.columns + columns_of_tile(args) - 1) / columns_of_tile(args), blockIdx.x,
                               gridDim.x);
    if (warp == 4)
      produce(shared, x, weights, args, tiles, k_tiles);
    else
      consume(shared, args, tiles, k_tiles, warp);
  }

 private:
  static constexpr uint32_t kBytesX = kRows * 128, kBytesWeights = kColumns * 128;

  static __device__ __forceinline__ uint32_t columns_of_tile(const GroupedGemmArgs& args) {
    return kGathered ? tile_columns<kColumns>(args) : kColumns;
  }

  // One warp: its first lane issues TMA, all gather.
  static __device__ __forceinline__ void produce(Storage& shared, const TensorMap* x, const TensorMap& weights,
                                                 const GroupedGemmArgs& args, TileScheduler<kRows>& tiles,
                                                 uint32_t k_tiles) {
    Ring<kStages> ring(shared.ring);
    const uint32_t lane = threadIdx.x % 32;
    RowGather<kRows, 32> rows(args, lane);
    const uint32_t stages_x = shared_address(shared.x), stages_weights = shared_address(shared.weights);
    WorkTile work;
    while (tiles.next(work)) {
      const ExpertMap from = expert_map(args, weights, work.expert);
      const int column = (int)(work.column_block * columns_of_tile(args));
      if (kGathered) {
        const int groups = args.gated != 0 ? column / 8 : 0, columns = args.gated != 0 ? 0 : column;
        rows.begin(args, work);
#pragma unroll 1
        for (uint32_t k_tile = 0; k_tile < k_tiles; k_tile++) {
          const uint32_t full = ring.wait_empty();
          if (lane == 0) {
            ptx::mbarrier_arrive_expect_tx(full, kBytesWeights);
            ptx::tma_load_5d(stages_weights + ring.stage() * kBytesWeights, from.map, (int)k_tile * 64, columns, 0,
                             groups, from.expert, full);
          }
          rows.copy(args, stages_x + ring.stage() * kBytesX, k_tile * 64);
          ptx::cp_async_arrive_noinc(full);
          ring.advance();
        }
      } else if (lane == 0) {
        // Alone, waits included: a lane that waited beside it could miss the phase, which ends when the stage that
        // this one fills has been used.
#pragma unroll 1
        for (uint32_t k_tile = 0; k_tile < k_tiles; k_tile++) {
          const uint32_t full = ring.wait_empty();
          ptx::mbarrier_arrive_expect_tx(full, kBytesWeights + kBytesX);
          ptx::tma_load_3d(stages_weights + ring.stage() * kBytesWeights, from.map, (int)k_tile * 64, column,
                           from.expert, full);
          ptx::tma_load_2d(stages_x + ring.stage() * kBytesX, x, (int)k_tile * 64, (int)work.row, full);
          ring.advance();
        }
      }
      __syncwarp();
    }
    ptx::grid_launch_dependents();
  }

  static __device__ __forceinline__ void consume(Storage& shared, const GroupedGemmArgs& args,
                                                 TileScheduler<kRows>& tiles, uint32_t k_tiles, uint32_t warp) {
    Ring<kStages> ring(shared.ring);
    const uint32_t weights = shared_address(shared.weights), x = shared_address(shared.x);
    float acc[kBlocks][kRows / 2];
    WorkTile work;
    while (tiles.next(work)) {
      multiply<T, kBytesWeights, kBytesX, kGathered>(ring, acc, weights, x, k_tiles, [] {});
      static_assert(kBlocks <= 2);
      store_block(acc[0], args, work, warp, 0);
      if constexpr (kBlocks == 2) store_block(acc[1], args, work, warp, 1);
    }
  }

  // The sums of 64 rows of weights.  Accumulators 4 i + q and 4 i + 2 + q: the same row of x, row + 8 i + q, eight rows of
  // weights apart.
  static __device__ __forceinline__ void store_block(float (&acc)[kRows / 2], const GroupedGemmArgs& args,
                                                     const WorkTile& work, uint32_t warp, uint32_t block) {
    const uint32_t lane = threadIdx.x % 32, row = work.row + lane % 4 * 2;
    const Pair pair(args, work.column_block, block, warp * 16 + lane / 4);
    finish(acc, args, pair, work, row);
    const bool both = !kGathered || stores_both(args);
#pragma unroll
    for (uint32_t j = 0; j < kRows / 4; j++) {
      const uint32_t i = j / 2, q = j % 2, r = row + i * 8 + q;
      if (r >= work.row_end) continue;
      T* out = device_pointer<T>(args.out) + r * args.out_stride;
      if (pair.low.exists) out[both ? pair.low.at : pair.column] = T{(uint16_t)Float16<T>::pack(acc[i * 4 + q], 0.f)};
      if (pair.high.exists && both) out[pair.high.at] = T{(uint16_t)Float16<T>::pack(acc[i * 4 + 2 + q], 0.f)};
    }
  }

  // Where the sums of two of a tile's rows of weights go, `at` and at + 8 of a block of 64: gate and up of one column, in
  // the order of the tensor map, or two columns of one matrix.
  struct Pair {
    uint32_t column;  // the first, in its half
    ColumnPlace low, high;
    __device__ __forceinline__ Pair(const GroupedGemmArgs& args, uint32_t column_block, uint32_t block, uint32_t at) {
      if (kGathered && args.gated != 0) {
        column = column_block * (kColumns / 2) + block * 32 + at / 16 * 8 + at % 8;
        low = column_place<kColumns>(args, args.up_first, column);
        high = column_place<kColumns>(args, args.up_first ^ 1, column);
      } else {
        column = column_block * kColumns + block * 64 + at;
        low = {column, column < args.columns};
        high = {column + 8, column + 8 < args.columns};
      }
    }
  };

  // A block's sums, as they are stored: of gate and up activated, in the lower one's place.
  static __device__ __forceinline__ void finish(float (&acc)[kRows / 2], const GroupedGemmArgs& args, const Pair& pair,
                                                const WorkTile& work, uint32_t row) {
    if (!is_plain(args)) {
      const Biases biases(args, work.expert);
      const float low = biases.one(pair.low), high = biases.one(pair.high);
#pragma unroll
      for (uint32_t i = 0; i < kRows / 2; i++) {
        const float weight = row_weight(args, row + i / 4 * 8 + i % 2, work.row_end);
        acc[i] = acc[i] * weight + (i / 2 % 2 == 0 ? low : high);
      }
    }
    if (!kGathered || args.activated == 0) return;
    if (args.gated != 0) {
#pragma unroll
      for (uint32_t j = 0; j < kRows / 4; j++) {
        const float low = acc[j / 2 * 4 + j % 2], high = acc[j / 2 * 4 + 2 + j % 2];
        acc[j / 2 * 4 + j % 2] =
            activate(args.activation, args.up_first != 0 ? high : low, args.up_first != 0 ? low : high);
      }
    } else {
#pragma unroll
      for (uint32_t i = 0; i < kRows / 2; i++) acc[i] = activate(args.activation, acc[i], acc[i]);
    }
  }
};
