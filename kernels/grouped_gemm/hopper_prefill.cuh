// Grouped GEMM for Hopper with tokens as M, for experts with many rows.
//
// The naive version:
//
//   for each expert e, each of its rows r, each column j:
//     g = row_weights[r] * sum_k x[token_of_row[r], k] * gate[e, j, k] + gate_bias[e, j]
//     u = row_weights[r] * sum_k x[token_of_row[r], k] * up[e, j, k] + up_bias[e, j]
//     out[r, j] = act(g, u)                                  (or g and u side by side; or act(u), or u)
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
//  6. A thread holds gate and up of the same column, so that the activation happens in registers.  One matrix is
//     multiplied as gate and up are: one half of a tile's columns in the gate's place, the other in the up projection's.
//     What becomes of sums is the same for all threads, and asked once for all of a thread's.
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
  // A thread with 192 sums has no registers left for weights of rows and biases.
  static constexpr bool kAdjusts = kBlocks * kColumns / 2 <= 128;
  static constexpr bool kGathered = kEpilogue != Epilogue::Store;
  static constexpr uint32_t kPassColumns = kColumns / 2;  // what is staged at a time
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

  static __device__ __forceinline__ uint32_t columns_of_tile(const GroupedGemmArgs& args) {
    return kGathered ? tile_columns<kColumns>(args) : kColumns;
  }
  static __device__ __forceinline__ TileScheduler<kRows> walk(const GroupedGemmArgs& args) {
    return TileScheduler<kRows>(device_pointer<const uint32_t>(args.expert_offsets), args.num_experts,
                                (args.columns + columns_of_tile(args) - 1) / columns_of_tile(args), blockIdx.x,
                                gridDim.x);
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
      // Where the halves lie in the map {depth, columns, halves, E}.
      const int column = (int)(work.column_block * columns_of_tile(args));
      const int second_column = column + (args.gated != 0 ? 0 : (int)kColumns / 2);
      const int half = (int)args.up_first, second_half = (int)(args.gated != 0 ? args.up_first ^ 1 : 0);
      rows.begin(args, work);
#pragma unroll 1
      for (uint32_t k_tile = 0; k_tile < k_tiles; k_tile++) {
        const uint32_t full = ring.wait_empty();
        if (threadIdx.x == 0) {
          const uint32_t to = stages_weights + ring.stage() * kBytesWeights;
          ptx::mbarrier_arrive_expect_tx(full, kBytesWeights);
          ptx::tma_load_4d(to, from.map, (int)k_tile * 64, column, half, from.expert, full);
          ptx::tma_load_4d(to + kBytesWeights / 2, from.map, (int)k_tile * 64, second_column, second_half, from.expert,
                           full);
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
                           (int)(work.column_block * kColumns), from.expert, full);
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
      const uint32_t column = work.column_block * columns_of_tile(args);
#pragma unroll
      for (uint32_t i = 0; i < kBlocks * 2; i++) {
        const uint32_t block = i / 2, half = i % 2, block_row = row + block * 64;
        if (block_row >= work.row_end) break;
        if (half == 1 && kGathered && !stores_both(args)) continue;
        if (threadIdx.x % 128 == 0) ptx::bulk_wait_read<0>();
        synchronize(consumer);
        stage(staging, acc[block], half, args, work, block_row, column);
        ptx::fence_proxy_async_shared();
        synchronize(consumer);
        const bool beside = kGathered && half == 1 && args.gated != 0;
        OutputBlock to;
        to.map = &out;
        to.out = device_pointer<char>(args.out) + (beside ? (uint64_t)args.columns * 2 : 0);
        to.row_bytes = args.out_stride * 2;
        to.columns = args.columns;
        to.half = beside ? 1 : 0;
        to.row = block_row;
        to.rows = work.row_end - block_row;
        to.column = column + (half == 1 && !beside ? kPassColumns : 0);
        store_staged<kPassColumns>(staging, to);
      }
    }
    // The turn after the last tile's, so that no barrier is left half full.
    if (kAlternate && whose == consumer) wait_for_turn(consumer);
    if (threadIdx.x % 128 == 0) ptx::bulk_wait<0>();
  }

  // A half of the accumulators, or both activated, into the staging: rows from `row` on, and the tile's columns from
  // `column` on.  Of 16 columns, accumulator 4 g + 2 h + b is row lane / 4 + 8 h of the warp's, column 8 g + 2 (lane %
  // 4) + b.
  static __device__ __forceinline__ void stage(uint32_t staging, const float (&acc)[kColumns / 2], uint32_t half,
                                               const GroupedGemmArgs& args, const WorkTile& work, uint32_t row,
                                               uint32_t column) {
    const uint32_t lane = threadIdx.x % 32, first_row = row + threadIdx.x / 32 % 4 * 16 + lane / 4;
    const uint32_t first_column = column + lane % 4 * 2;
#pragma unroll
    for (uint32_t i = 0; i < kPassColumns / 16; i++) {
      float sums[8], others[8];
#pragma unroll
      for (uint32_t j = 0; j < 8; j++) {
        sums[j] = acc[half * (kColumns / 4) + i * 8 + j];
        others[j] = acc[kColumns / 4 + i * 8 + j];
      }
      if (kAdjusts && !is_plain(args)) {
        const Biases biases(args, work.expert);
        add_biases(sums, args, biases, half, first_row, work.row_end, first_column + i * 16);
        if (kGathered && half == 0) add_biases(others, args, biases, 1, first_row, work.row_end, first_column + i * 16);
      }
      if (kGathered && args.activated != 0) activate_half(args, half, sums, others);
      const uint32_t values[4] = {Float16<T>::pack(sums[0], sums[1]), Float16<T>::pack(sums[2], sums[3]),
                                  Float16<T>::pack(sums[4], sums[5]), Float16<T>::pack(sums[6], sums[7])};
      stage_columns(staging, i, values);
    }
  }
  // Of the gate's sums the others are the up projection's; of one matrix all halves are alike.
  static __device__ __forceinline__ void activate_half(const GroupedGemmArgs& args, uint32_t half, float (&sums)[8],
                                                       const float (&others)[8]) {
    if (half == 0 && uniform(args.gated != 0)) {
#pragma unroll
      for (uint32_t j = 0; j < 8; j++) sums[j] = activate(args.activation, sums[j], others[j]);
    } else {
#pragma unroll
      for (uint32_t j = 0; j < 8; j++) sums[j] = activate(args.activation, sums[j], sums[j]);
    }
  }
  static __device__ __forceinline__ void add_biases(float (&sums)[8], const GroupedGemmArgs& args, const Biases& biases,
                                                    uint32_t half, uint32_t row, uint32_t row_end, uint32_t column) {
#pragma unroll
    for (uint32_t j = 0; j < 8; j += 2) {
      const float weight = row_weight(args, row + j % 4 * 4, row_end);
      const float2 bias = biases.two(column_place<kColumns>(args, half, column + j / 4 * 8));
      sums[j] = sums[j] * weight + bias.x;
      sums[j + 1] = sums[j + 1] * weight + bias.y;
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
