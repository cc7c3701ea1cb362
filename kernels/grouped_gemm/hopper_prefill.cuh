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
//  3. Weights come by TMA, whose map absorbs their layout; past the last column and the end of the depth it fills
//     zeros.  The gate's rows lie before the up projection's in a stage, wherever they lie in memory.
//  4. Rows of x are gathered by cp.async, 16 bytes at a time, straight into the swizzled stage.  Where x is the packed
//     product of an earlier one (store), TMA takes it.  Both load whole blocks: rows past an expert's end are
//     multiplied and never stored.
//  5. Products are wgmma's, of two consumer warpgroups.  A tile that fits the registers of one is computed by one, the
//     next tile by the other, so that one's epilogue runs beside the other's products; of a larger tile each owns half
//     of the rows, and skips it where the half has none.
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
  static constexpr uint32_t kConsumers = 2, kThreads = 128 * (1 + kConsumers);
  static constexpr bool kAlternate = kRows * kColumns / 128 <= 192;  // accumulators of a thread
  static constexpr uint32_t kBlocks = kRows / 64 / (kAlternate ? 1 : kConsumers);  // of 64 rows, of one consumer
  static constexpr bool kGathered = kEpilogue != Epilogue::Store;
  static constexpr uint32_t kPassColumns = kColumns / 2;  // what is staged at a time
  static constexpr uint32_t kTileColumns = kGathered ? kColumns / 2 : kColumns;  // columns of one half
  static_assert(kRows % (kAlternate ? 64 : 128) == 0 && kPassColumns % 32 == 0 && kColumns <= 256);

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
    if (threadIdx.x == 128) {
      if (!kGathered) ptx::prefetch_tensor_map(x);
      if (args.weight_maps == 0) ptx::prefetch_tensor_map(&weights);
      ptx::prefetch_tensor_map(&out);
    }
    if (threadIdx.x == 0) Ring<kStages>::init(shared.ring, kGathered ? 128 + 1 : 1, kAlternate ? 4 : 8);
    __syncthreads();
    ptx::grid_dependency_wait();
    // The same number in every lane, which the compiler cannot see in threadIdx.x / 128: roles and addresses stay in
    // uniform registers.
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), warpgroup = warp / 4;
    const uint32_t k_tiles = (args.depth + 63) / 64;
    if (warpgroup == 0) {
      ptx::setmaxnreg_dec<kGathered ? 56 : 40>();
      if (kGathered)
        produce_gathered(shared, weights, args, k_tiles);
      else if (warp == 0)
        produce_packed(shared, *x, weights, args, k_tiles);
    } else {
      ptx::setmaxnreg_inc<kGathered ? 224 : 232>();
      consume(shared, out, args, k_tiles, warpgroup - 1);
    }
  }

 private:
  static constexpr uint32_t kBytesX = kRows * 128, kBytesWeights = kColumns * 128;

  static __device__ __forceinline__ TileScheduler<kRows> walk(const GroupedGemmArgs& args) {
    return TileScheduler<kRows>(device_pointer<const uint32_t>(args.expert_offsets), args.num_experts,
                                (args.columns + kTileColumns - 1) / kTileColumns, blockIdx.x, gridDim.x);
  }

  // The whole warpgroup: 128 copies of x and one arrival with the bytes of the weights fill a stage.
  static __device__ __forceinline__ void produce_gathered(Storage& shared, const TensorMap& weights,
                                                          const GroupedGemmArgs& args, uint32_t k_tiles) {
    TileScheduler<kRows> tiles = walk(args);
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
          ptx::tma_load_4d(to + kBytesWeights / 2, from.map, (int)k_tile * 64, column, (int)(args.up_first ^ 1),
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
                                                        const GroupedGemmArgs& args, uint32_t k_tiles) {
    TileScheduler<kRows> tiles = walk(args);
    Ring<kStages> ring(shared.ring);
    const uint32_t stages_x = shared_address(shared.x), stages_weights = shared_address(shared.weights);
    WorkTile work;
    while (tiles.next(work)) {
      const ExpertMap from = expert_map(args, weights, work.expert);
      // One lane alone, waits included: a lane that waited beside it could miss the phase, which ends when the stage
      // that this one fills has been used.
      if (threadIdx.x == 0) {
#pragma unroll 1
        for (uint32_t k_tile = 0; k_tile < k_tiles; k_tile++) {
          const uint32_t full = ring.wait_empty();
          ptx::mbarrier_arrive_expect_tx(full, kBytesX + kBytesWeights);
          ptx::tma_load_2d(stages_x + ring.stage() * kBytesX, &x, (int)k_tile * 64, (int)work.row, full);
          ptx::tma_load_3d(stages_weights + ring.stage() * kBytesWeights, from.map, (int)k_tile * 64,
                           (int)(work.column_block * kTileColumns), from.expert, full);
          ring.advance();
        }
      }
      __syncwarp();
    }
    ptx::grid_launch_dependents();
  }

  static __device__ __forceinline__ void consume(Storage& shared, const TensorMap& out, const GroupedGemmArgs& args,
                                                 uint32_t k_tiles, uint32_t consumer) {
    TileScheduler<kRows> tiles = walk(args);
    Ring<kStages> ring(shared.ring);
    const uint32_t first_row = kAlternate ? 0 : consumer * kBlocks * 64;
    const uint32_t x = shared_address(shared.x) + first_row * 128, weights = shared_address(shared.weights);
    const uint32_t staging = shared_address(&shared.staging[consumer]);
    float acc[kBlocks][kColumns / 2];
    WorkTile work;
    uint32_t whose = 0;  // the consumer of the next tile, where they alternate
    if (kAlternate && consumer == 1) pass_turn(consumer);
    while (tiles.next(work)) {
      if (kAlternate) {
        whose ^= 1;
        if (uniform(whose == consumer)) {
          ring.skip(k_tiles);
          continue;
        }
      }
      const uint32_t row = work.row + first_row;
      if (!kAlternate && uniform(row >= work.row_end)) {
        discard(ring, k_tiles);
        continue;
      }
      // Consumers take turns.  The ring's order alone is not enough: copies land out of order, and who ran ahead of the
      // other's unfinished stages would mistake their phases for the ones before.
      if (kAlternate) wait_for_turn(consumer);
      multiply<T, kBytesX, kBytesWeights, kGathered>(ring, acc, x, weights, k_tiles, [&] {
        if (kAlternate) pass_turn(consumer);
      });
      OutputBlock to;
      to.map = &out;
      to.row_bytes = args.out_stride * 2;
      to.columns = args.columns;
      constexpr uint32_t kPasses = kEpilogue == Epilogue::Activation ? 1 : 2;
#pragma unroll
      for (uint32_t i = 0; i < kBlocks * kPasses; i++) {
        const uint32_t block = i / kPasses, pass = i % kPasses;
        to.row = row + block * 64;
        if (to.row >= work.row_end) break;
        to.rows = work.row_end - to.row;
        to.half = kEpilogue == Epilogue::Pair ? pass : 0;
        to.column = work.column_block * kTileColumns + (kEpilogue == Epilogue::Store ? pass * kPassColumns : 0);
        to.out = device_pointer<char>(args.out) + to.half * args.columns * 2;
        if (threadIdx.x % 128 == 0) ptx::bulk_wait_read<0>();
        synchronize(consumer);
        stage(staging, acc[block], pass, args);
        ptx::fence_proxy_async_shared();
        synchronize(consumer);
        store_staged<kPassColumns>(staging, to);
      }
    }
    // The turn after the last tile's, so that no barrier is left half full.
    if (kAlternate && whose == consumer) wait_for_turn(consumer);
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
        const uint32_t first = pass * (kPassColumns / 2) + i * 8 + q * 2, up = first + kPassColumns / 2;
        if (kEpilogue == Epilogue::Activation)
          values[q] = Float16<T>::pack(activate(args.activation, acc[first], acc[up]),
                                       activate(args.activation, acc[first + 1], acc[up + 1]));
        else
          values[q] = Float16<T>::pack(acc[first], acc[first + 1]);
      }
      stage_columns(staging, i, values);
    }
  }

  // A barrier of one consumer warpgroup.  The ids are constants: with a dynamic one the compiler reserves all sixteen.
  static __device__ __forceinline__ void synchronize(uint32_t consumer) {
    if (consumer == 0)
      ptx::barrier_sync(1, 128);
    else
      ptx::barrier_sync(2, 128);
  }

  // One consumer's 128 arrivals and the other's 128 waits.
  static __device__ __forceinline__ void wait_for_turn(uint32_t consumer) {
    if (consumer == 0)
      ptx::barrier_sync(3, 256);
    else
      ptx::barrier_sync(4, 256);
  }
  static __device__ __forceinline__ void pass_turn(uint32_t consumer) {
    if (consumer == 0)
      ptx::barrier_arrive(4, 256);
    else
      ptx::barrier_arrive(3, 256);
  }
};
