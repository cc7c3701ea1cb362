// How the operands of a grouped GEMM reach shared memory on Hopper.
#pragma once
#include "abi.h"
#include "common/types.cuh"
#include "ptx/cp_async.cuh"
#include "tile/scheduler.cuh"

// The tensor map of an expert's weights and the expert's coordinate in it.
struct ExpertMap {
  const TensorMap* map;
  int expert;
};
__device__ __forceinline__ ExpertMap expert_map(const GroupedGemmArgs& args, const TensorMap& all, uint32_t expert) {
  if (args.weight_maps == 0) return {&all, (int)expert};
  return {device_pointer<const TensorMap>(args.weight_maps) + expert, 0};
}

// kThreads threads copy kRows rows of x, 64 elements of depth at a time, into a stage under the 128-byte swizzle.
// Thread t owns the 16-byte chunk t % 8 of the rows t / 8, t / 8 + kThreads / 8, ...
template <uint32_t kRows, uint32_t kThreads> class RowGather {
 public:
  __device__ __forceinline__ RowGather(const GroupedGemmArgs& args, uint32_t thread)
      : depth_(args.depth), chunk_(thread % 8), row_(thread / 8) {}

  // The rows of the next tile.  Rows past the expert's last one repeat it: they are loaded and never stored.
  __device__ __forceinline__ void begin(const GroupedGemmArgs& args, const WorkTile& work) {
    const uint32_t* token_of_row = device_pointer<const uint32_t>(args.token_of_row);
#pragma unroll
    for (uint32_t i = 0; i < kCopies; i++) {
      const uint32_t row = min(work.row + row_ + i * kStep, work.row_end - 1);
      // A plain load: __ldg may be moved above griddepcontrol.wait, before the plan was written.
      token_[i] = token_of_row != nullptr ? token_of_row[row] : row;
    }
  }

  // Elements k .. k + 64 of the rows; what lies past the depth is zero, as TMA does it for the other operand.
  __device__ __forceinline__ void copy(const GroupedGemmArgs& args, uint32_t stage, uint32_t k) const {
    const uint32_t element = k + chunk_ * 8, stride = (uint32_t)args.x_stride * 2;
    const bool inside = element < depth_;
    const char* x = device_pointer<const char>(args.x) + (inside ? element * 2 : 0);
#pragma unroll
    for (uint32_t i = 0; i < kCopies; i++) {
      const uint32_t row = row_ + i * kStep;
      ptx::cp_async_16(stage + row * 128 + (chunk_ ^ row % 8) * 16, x + (uint64_t)token_[i] * stride, inside ? 16 : 0);
    }
  }

 private:
  static constexpr uint32_t kStep = kThreads / 8, kCopies = kRows / kStep;
  static_assert(kThreads % 8 == 0 && kRows % kStep == 0);
  uint32_t depth_, chunk_, row_;
  uint32_t token_[kCopies];
};
