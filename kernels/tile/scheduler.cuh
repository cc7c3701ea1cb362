// Which tile of a grouped GEMM a persistent block computes next.
#pragma once
#include "common/device.cuh"

// A tile: rows row .. min(row + kRows, row_end) of an expert, and one block of columns.
struct WorkTile {
  uint32_t expert;
  uint32_t row;
  uint32_t row_end;  // the expert's last row + 1
  uint32_t column_block;
};

// Tiles are numbered expert by expert; within an expert the row block runs fastest, so that blocks which run
// side by side read the same weights.  A block takes start, start + step, ...; every warp that walks does
// so by itself and as a whole, each lane holding one of 32 experts: E lookups one after the other would cost
// more than a small GEMM.
template <uint32_t kRows>
class TileScheduler {
 public:
  __device__ __forceinline__ TileScheduler(const uint32_t* expert_offsets, uint32_t num_experts, uint32_t column_blocks,
                                           uint32_t start, uint32_t step)
      : offsets_(expert_offsets), num_experts_(num_experts), column_blocks_(column_blocks), tile_(start), step_(step) {
    load(0);
  }

  // The next tile; false when there is none.  Collective over the warp.
  __device__ __forceinline__ bool next(WorkTile& work) {
    while (tile_ - first_ >= total_) {
      if (group_ + 32 >= num_experts_) return false;
      first_ += total_;
      load(group_ + 32);
    }
    const uint32_t place = tile_ - first_;
    // Experts without rows start where the next one does: the last to start at or before `place` owns it.
    const uint32_t owner = 31u - (uint32_t)__clz((int)__ballot_sync(0xffffffffu, before_ <= place));
    const uint32_t begin = __shfl_sync(0xffffffffu, begin_, (int)owner);
    const uint32_t end = __shfl_sync(0xffffffffu, end_, (int)owner);
    const uint32_t local = place - __shfl_sync(0xffffffffu, before_, (int)owner);
    const uint32_t row_blocks = (end - begin + kRows - 1) / kRows;
    work.expert = group_ + owner;
    work.row = begin + local % row_blocks * kRows;
    work.row_end = end;
    work.column_block = local / row_blocks;
    tile_ += step_;
    return true;
  }

 private:
  __device__ __forceinline__ void load(uint32_t group) {
    const uint32_t lane = threadIdx.x % 32, expert = group + lane;
    group_ = group;
    begin_ = end_ = 0;
    // Plain loads: __ldg may be moved above griddepcontrol.wait, before the plan was written.
    if (expert < num_experts_) {
      begin_ = offsets_[expert];
      end_ = offsets_[expert + 1];
    }
    const uint32_t tiles = (end_ - begin_ + kRows - 1) / kRows * column_blocks_;
    uint32_t sum = tiles;
#pragma unroll
    for (uint32_t by = 1; by < 32; by *= 2) {
      const uint32_t left = __shfl_up_sync(0xffffffffu, sum, by);
      if (lane >= by) sum += left;
    }
    before_ = sum - tiles;
    total_ = __shfl_sync(0xffffffffu, sum, 31);
  }

  const uint32_t* offsets_;
  uint32_t num_experts_, column_blocks_, tile_, step_;
  uint32_t group_ = 0, first_ = 0, total_ = 0;  // 32 experts, the tiles before them and theirs
  uint32_t begin_ = 0, end_ = 0, before_ = 0;   // this lane's expert: its rows, and the group's tiles before it
};
