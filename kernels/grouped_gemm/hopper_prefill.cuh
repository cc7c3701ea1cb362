// Grouped GEMM for Hopper with tokens as M, for experts with many rows.
//
// The naive version:
//
//   for each expert e, each of its rows r, each column j:
//     g = sum_k x[token_of_row[r], k] * gate[e, j, k]
//     u = sum_k x[token_of_row[r], k] * up[e, j, k]
//     out[r, j] = act(g, u)                                  (or g and u side by side; or one sum, stored)
//
// Departures from it:
//
//  1. Tiles of kRows x kColumns, walked by a persistent grid (TileScheduler).
//  2. Warps are specialised: one warpgroup loads, the others multiply, through a ring of stages of 64 in depth.
//     setmaxnreg moves registers from the first to the others.
//  3. Weights come by TMA, whose map absorbs their layout; past the last column and the end of the depth it fills zeros.
//     The gate's rows lie before the up projection's in a stage, wherever they lie in memory.
//  4. Rows of x are gathered by cp.async, 16 bytes at a time, straight into the swizzled stage.  Where x is the packed
//     product of an earlier one (store), TMA takes it.  Both load whole blocks: rows past an expert's end are
//     multiplied and never stored.
//  5. Products are wgmma's; each consumer warpgroup owns 64 rows of the tile.  A warpgroup without rows skips them.
//  6. A thread holds gate and up of the same column, so that the activation happens in registers.
//  7. Sums are rounded once, to 16 bits, staged in shared memory by stmatrix, and stored by TMA where all 64 rows are
//     the expert's, else by predicated 16-byte stores.
#pragma once
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "tile/activation.cuh"
#include "tile/epilogue.cuh"
#include "tile/float16.cuh"
#include "tile/operands.cuh"
#include "tile/staging.cuh"
#include "tile/warpgroup.cuh"

template <class T, Epilogue kEpilogue, uint32_t kRows, uint32_t kColumns, uint32_t kStages> class HopperPrefill {
 public:
  static constexpr uint32_t kConsumers = kRows / 64, kThreads = 128 * (1 + kConsumers);
  static constexpr bool kGathered = kEpilogue != Epilogue::Store;
  static constexpr uint32_t kPassColumns = kColumns / 2;  // what is staged at a time
  static constexpr uint32_t kTileColumns = kGathered ? kColumns / 2 : kColumns;  // columns of one half
  static_assert(kRows % 64 == 0 && kPassColumns % 64 == 0 && kColumns <= 256);

  struct Storage {
    alignas(1024) T x[kStages][kRows * 64];
    alignas(1024) T weights[kStages][kColumns * 64];
    Staging<kPassColumns> staging[kConsumers];
    RingBarriers<kStages> ring;
  };

  // `x` only where it is not gathered.
  static __device__ __forceinline__ void run(const TensorMap* x, const TensorMap& weights, const TensorMap& out,
                                             const GroupedGemmArgs& args) {
    Storage& shared = shared_storage<Storage>();
    if (threadIdx.x == 0) Ring<kStages>::init(shared.ring, kGathered ? 128 + 1 : 1, 4 * kConsumers);
    __syncthreads();
    ptx::grid_dependency_wait();
    // The same number in every lane, which the compiler cannot see in threadIdx.x / 128: roles and addresses stay in
    // uniform registers.
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), warpgroup = warp / 4;
    const uint32_t k_tiles = (args.depth + 63) / 64;
    TileScheduler<kRows> tiles(device_pointer<const uint32_t>(args.expert_offsets), args.num_experts,
                               (args.columns + kTileColumns - 1) / kTileColumns, blockIdx.x, gridDim.x);
    if (warpgroup == 0) {
      ptx::setmaxnreg_dec<kGathered ? 56 : 40>();
      if (kGathered)
        produce_gathered(shared, weights, args, tiles, k_tiles);
      else if (warp == 0)
        produce_packed(shared, *x, weights, args, tiles, k_tiles);
    } else {
      ptx::setmaxnreg_inc<kGathered ? 224 : 232>();
      consume(shared, out, args, tiles, k_tiles, warpgroup - 1);
    }
  }

 private:
  static constexpr uint32_t kBytesX = kRows * 128, kBytesWeights = kColumns * 128;

  // The whole warpgroup: 128 copies of x and one arrival with the bytes of the weights fill a stage.
  static __device__ __forceinline__ void produce_gathered(Storage& shared, const TensorMap& weights,
                                                          const GroupedGemmArgs& args, TileScheduler<kRows>& tiles,
                                                          uint32_t k_tiles) {
    Ring<kStages> ring(shared.ring);
    RowGather<kRows, 128> rows(args, threadIdx.x);
    const uint32_t stages_x = shared_address(shared.x), stages_weights = shared_address(shared.weights);
    WorkTile work;
    while (tiles.next(work)) {
      const ExpertMap from = expert_map(args, weights, work.expert);
      const int column = (int)(work.column_block * kTileColumns);
      rows.begin(args, work);
#pragma unroll 1
      for (uint32_t k_tile = 0; k_tile < k_tiles; k_tile++) {
        const uint32_t full = ring.wait_empty();
        if (threadIdx.x == 0) {
          const uint32_t to = stages_weights + ring.stage() * kBytesWeights;
          ptx::mbarrier_arrive_expect_tx(full, kBytesWeights);
          ptx::tma_load_4d(to, from.map, (int)k_tile * 64, column, (int)args.up_first, from.expert, full);
          ptx::tma_load_4d(to + kBytesWeights / 2, from.map, (int)k_tile * 64, column, (int)args.up_first ^ 1,
                           from.expert, full);
        }
        rows.copy(args, stages_x + ring.stage() * kBytesX, k_tile * 64);
        ptx::cp_async_arrive_noinc(full);
        ring.advance();
      }
    }
    ptx::grid_launch_dependents();
  }

  // One warp, one lane of which issues.
  static __device__ __forceinline__ void produce_packed(Storage& shared, const TensorMap& x, const TensorMap& weights,
                                                        const GroupedGemmArgs& args, TileScheduler<kRows>& tiles,
                                                        uint32_t k_tiles) {
    Ring<kStages> ring(shared.ring);
    const uint32_t stages_x = shared_address(shared.x), stages_weights = shared_address(shared.weights);
    WorkTile work;
    while (tiles.next(work)) {
      const ExpertMap from = expert_map(args, weights, work.expert);
#pragma unroll 1
      for (uint32_t k_tile = 0; k_tile < k_tiles; k_tile++) {
        const uint32_t full = ring.wait_empty();
        if (threadIdx.x == 0) {
          ptx::mbarrier_arrive_expect_tx(full, kBytesX + kBytesWeights);
          ptx::tma_load_2d(stages_x + ring.stage() * kBytesX, &x, (int)k_tile * 64, (int)work.row, full);
          ptx::tma_load_3d(stages_weights + ring.stage() * kBytesWeights, from.map, (int)k_tile * 64,
                           (int)(work.column_block * kTileColumns), from.expert, full);
        }
        __syncwarp();  // a lane that still waits must see this phase
        ring.advance();
      }
    }
    ptx::grid_launch_dependents();
  }

  static __device__ __forceinline__ void consume(Storage& shared, const TensorMap& out, const GroupedGemmArgs& args,
                                                 TileScheduler<kRows>& tiles, uint32_t k_tiles, uint32_t consumer) {
    Ring<kStages> ring(shared.ring);
    const uint32_t x = shared_address(shared.x) + consumer * 64 * 128, weights = shared_address(shared.weights);
    const uint32_t staging = shared_address(&shared.staging[consumer]);
    float acc[1][kColumns / 2];
    WorkTile work;
    while (tiles.next(work)) {
      const uint32_t row = work.row + consumer * 64;
      // A vote, so that the compiler knows the branch to be uniform and keeps the ring's place in uniform registers.
      if (__all_sync(0xffffffffu, row >= work.row_end)) {
        discard(ring, k_tiles);
        continue;
      }
      multiply<T, kBytesX, kBytesWeights, kGathered>(ring, acc, x, weights, k_tiles);
      OutputBlock to;
      to.map = &out;
      to.out = device_pointer<char>(args.out);
      to.row_bytes = args.out_stride * 2;
      to.columns = args.columns;
      to.half = 0;
      to.row = row;
      to.rows = work.row_end - row;
      to.column = work.column_block * kTileColumns;
      constexpr uint32_t kPasses = kEpilogue == Epilogue::Activation ? 1 : 2;
#pragma unroll
      for (uint32_t pass = 0; pass < kPasses; pass++) {
        if (threadIdx.x % 128 == 0) ptx::bulk_wait_read<0>();
        synchronize(consumer);
        stage(staging, acc[0], pass, args);
        ptx::fence_proxy_async_shared();
        synchronize(consumer);
        store_staged<kPassColumns>(staging, to);
        if (kEpilogue == Epilogue::Store) to.column += kPassColumns;
        if (kEpilogue == Epilogue::Pair) {
          to.half = 1;
          to.out += args.columns * 2;
        }
      }
    }
    if (threadIdx.x % 128 == 0) ptx::bulk_wait<0>();
  }

  // Half of the accumulators, or all of them activated, into the staging.
  static __device__ __forceinline__ void stage(uint32_t staging, const float (&acc)[kColumns / 2], uint32_t pass,
                                               const GroupedGemmArgs& args) {
#pragma unroll
    for (uint32_t i = 0; i < kPassColumns / 16; i++) {
      uint32_t values[4];
#pragma unroll
      for (uint32_t q = 0; q < 4; q++) {
        const uint32_t first = i * 8 + q * 2, second = first + kPassColumns / 2;
        if (kEpilogue == Epilogue::Activation)
          values[q] = Float16<T>::pack(activate(args.activation, acc[first], acc[second]),
                                       activate(args.activation, acc[first + 1], acc[second + 1]));
        else
          values[q] = Float16<T>::pack(acc[pass * (kPassColumns / 2) + first], acc[pass * (kPassColumns / 2) + first + 1]);
      }
      stage_columns(staging, i, values);
    }
  }

  // A barrier of one consumer warpgroup.  The ids are constants: with a dynamic one the compiler reserves all sixteen.
  static __device__ __forceinline__ void synchronize(uint32_t consumer) {
    static_assert(kConsumers <= 2);
    if (consumer == 0)
      ptx::barrier_sync(1, 128);
    else
      ptx::barrier_sync(2, 128);
  }
};
