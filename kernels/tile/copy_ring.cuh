// How the operands of a grouped GEMM reach shared memory without TMA: every thread copies 16 bytes at a time by
// cp.async into a ring of stages, some blocks of depth ahead of the products and across the borders of tiles.
#pragma once
#include "abi.h"
#include "common/types.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/sync.cuh"
#include "tile/epilogue.cuh"
#include "tile/mma.cuh"
#include "tile/scheduler.cuh"

// A row of the table of tiles, without what only the host needs.
struct CopyTile {
  uint32_t rows;     // of x
  uint32_t columns;  // rows of the weights
  uint32_t depth;    // of a stage
  uint32_t stages;
  uint32_t threads;
};

// A tile's place travels beside its operands, so that it is looked up once.  Where a tile's depth is one block, a warp
// may look up the tile kTile.stages + 1 after the one whose place others still read.
template <CopyTile kTile> struct CopyStorage {
  alignas(128) uint16_t x[kTile.stages][kTile.rows * kTile.depth];
  alignas(128) uint16_t weights[kTile.stages][kTile.columns * kTile.depth];
  WorkTile tiles[kTile.stages + 2];
};

// Which row of an expert's weights lies in a row of a stage: a column of one half of the tile (tile/epilogue.cuh).  The
// choice is free, and decides which columns of the result one thread holds.
struct WeightPlace {
  uint32_t half;
  uint32_t column;
};

// Where an expert's memory starts, and a row in it.
template <class T> __device__ __forceinline__ const T* expert_base(const ExpertMatrices& weights, uint32_t expert) {
  if (weights.table != 0) return device_pointer<const T>(device_pointer<const uint64_t>(weights.table)[expert]);
  return device_pointer<const T>(weights.base) + expert * weights.expert_stride;
}
template <class T>
__device__ __forceinline__ const T* weight_row(const ExpertMatrices& weights, const T* base, WeightPlace place) {
  return base + (place.half != 0 ? weights.up_offset : weights.gate_offset) + place.column * weights.row_stride;
}

// This thread's share of the copies.  It owns the 16-byte chunk t % kChunks of every kStep-th row of both operands.
// Layout::place(row) is the WeightPlace of a stage's row.
template <CopyTile kTile, class T, class Layout> class CopyLoader {
 public:
  __device__ __forceinline__ CopyLoader(const GroupedGemmArgs& args, CopyStorage<kTile>& storage)
      : args_(args), storage_(storage),
        tiles_(device_pointer<const uint32_t>(args.expert_offsets), args.num_experts,
               (args.columns + tile_columns<kTile.columns>(args) - 1) / tile_columns<kTile.columns>(args), blockIdx.x,
               gridDim.x),
        chunk_(threadIdx.x % kChunks), row_(threadIdx.x / kChunks), depth_(args.depth) {
    const uint32_t offset = chunk_offset<kTile.depth>(row_, chunk_);
    x_stage_ = shared_address(storage.x) + offset;
    weight_stage_ = shared_address(storage.weights) + offset;
    begin();
  }

  // Starts copying the next block of depth into a stage.  A group is committed even where there is nothing left to
  // copy, so that the number of groups says how far the ring is.
  __device__ __forceinline__ void next(uint32_t stage) {
    if (depth_ < args_.depth) {
      // What lies past the depth, an expert's last row or the last column is zero, and not read.
      const uint32_t live = depth_ + chunk_ * 8 < args_.depth ? live_ : 0;
      const T* x = device_pointer<const T>(args_.x) + depth_ + chunk_ * 8;
#pragma unroll
      for (uint32_t i = 0; i < kCopiesW; i++) {
        const uint32_t to = weight_stage_ + stage * kStageW + i * kStepBytes;
        ptx::cp_async_16(to, weight_[i] + depth_, live >> (kCopiesX + i) << 4 & 16);
      }
#pragma unroll
      for (uint32_t i = 0; i < kCopiesX; i++) {
        const uint32_t to = x_stage_ + stage * kStageX + i * kStepBytes;
        ptx::cp_async_16(to, x + token_[i] * args_.x_stride, live >> i << 4 & 16);
      }
      depth_ += kTile.depth;
      if (depth_ >= args_.depth) begin();
    }
    ptx::cp_async_commit();
  }

 private:
  static constexpr uint32_t kChunks = kTile.depth / 8, kStep = kTile.threads / kChunks;
  static constexpr uint32_t kCopiesX = kTile.rows / kStep, kCopiesW = kTile.columns / kStep;
  static constexpr uint32_t kStepBytes = kStep * kTile.depth * 2;
  static constexpr uint32_t kStageX = kTile.rows * kTile.depth * 2, kStageW = kTile.columns * kTile.depth * 2;
  // Rows kStep apart are permuted alike, and each operand is a whole number of copies for every thread.
  static_assert(kTile.threads % kChunks == 0 && kStep % 8 == 0);
  static_assert(kTile.rows % kStep == 0 && kTile.columns % kStep == 0 && kCopiesX + kCopiesW <= 28);

  // Turns to the next tile; where there is none, depth_ stays at its end.
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
    depth_ = live_ = 0;
    const uint32_t* token_of_row = device_pointer<const uint32_t>(args_.token_of_row);
#pragma unroll
    for (uint32_t i = 0; i < kCopiesX; i++) {
      const uint32_t row = work.row + row_ + i * kStep;
      if (row < work.row_end) live_ |= 1u << i;
      token_[i] = min(row, work.row_end - 1);
      if (token_of_row != nullptr) token_[i] = token_of_row[token_[i]];
    }
    const T* base = expert_base<T>(args_.weights, work.expert);
    const uint32_t column = work.column_block * tile_columns<kTile.columns>(args_);
#pragma unroll
    for (uint32_t i = 0; i < kCopiesW; i++) {
      WeightPlace place = Layout::place(row_ + i * kStep);
      place.column += column;
      if (column_place<kTile.columns>(args_, place.half, place.column).exists) live_ |= 1u << (kCopiesX + i);
      weight_[i] = weight_row(args_.weights, base, place) + chunk_ * 8;
    }
  }

  const GroupedGemmArgs& args_;
  CopyStorage<kTile>& storage_;
  TileScheduler<kTile.rows> tiles_;
  uint32_t chunk_, row_, x_stage_, weight_stage_, tile_ = 0;
  uint32_t depth_, live_;  // the next block; which of this thread's rows exist
  uint32_t token_[kCopiesX];  // rows of x: their addresses are made late, so that nothing waits for token_of_row
  const T* weight_[kCopiesW];
};

// The products of a block's tiles, one after the other: the consumers' place in the ring.
//
// Block b of depth is copied while the products of block b - kTile.stages + 1 are made, and the fragments of a step
// are loaded while the step before is multiplied: mma waits neither for shared memory nor for a barrier.
// kWeightsFirst: the weights are the rows of the product.
template <CopyTile kTile, bool kWeightsFirst, class T, int kM, int kN> class CopyPipeline {
  using Product = WarpProduct<T, kTile.depth, kM, kN>;

 public:
  // The warp's first row and first column in the product.
  template <class Loader>
  __device__ __forceinline__ CopyPipeline(CopyStorage<kTile>& storage, Loader& loader, uint32_t row, uint32_t column)
      : storage_(storage), product_(row, column),
        rows_(shared_address(kWeightsFirst ? storage.weights[0] : storage.x[0])),
        columns_(shared_address(kWeightsFirst ? storage.x[0] : storage.weights[0])) {
#pragma unroll 1
    for (uint32_t i = 0; i + 1 < kTile.stages; i++) loader.next(i);
    wait();
  }

  // Whether there is a tile yet to come.
  __device__ __forceinline__ bool more() const { return storage_.tiles[tile_].row_end != 0; }

  // acc += the product of the next tile, whose depth is `blocks` stages; the tile's place.
  template <class Loader>
  __device__ __forceinline__ WorkTile accumulate(float (&acc)[kM][kN][4], uint32_t blocks, Loader& loader) {
    product_.load(rows(), columns());
#pragma unroll 1
    for (uint32_t block = 0; block < blocks; block++) {
#pragma unroll
      for (int step = 0; step < Product::kSteps; step++) {
        const bool last = step + 1 == Product::kSteps;
        if (last) {
          stage_ = stage_ + 1 == kTile.stages ? 0 : stage_ + 1;
          wait();
        }
        product_.add(acc, step, !last || block + 1 < blocks, rows(), columns());
        // Into the stage before this one, which all have left.
        if (step == 0) loader.next(stage_ == 0 ? kTile.stages - 1 : stage_ - 1);
      }
    }
    const WorkTile work = storage_.tiles[tile_];
    tile_ = tile_ + 1 == kTile.stages + 2 ? 0 : tile_ + 1;
    return work;
  }

 private:
  static constexpr uint32_t kX = kTile.rows * kTile.depth * 2, kW = kTile.columns * kTile.depth * 2;

  // Until the next stage is there, and nobody reads the last one any more.
  __device__ __forceinline__ void wait() {
    ptx::cp_async_wait<(int)kTile.stages - 2>();
    __syncthreads();
  }
  __device__ __forceinline__ uint32_t rows() const { return rows_ + stage_ * (kWeightsFirst ? kW : kX); }
  __device__ __forceinline__ uint32_t columns() const { return columns_ + stage_ * (kWeightsFirst ? kX : kW); }

  CopyStorage<kTile>& storage_;
  Product product_;
  uint32_t rows_, columns_, stage_ = 0, tile_ = 0;
};
