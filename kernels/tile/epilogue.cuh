// What becomes of a tile's sums.
#pragma once
#include "abi.h"
#include "common/types.cuh"
#include "ptx/memory.cuh"
#include "tile/activation.cuh"

// The rows of x that a kernel takes, and the last word of its name.
enum class Epilogue {
  Store,   // packed: the down projection
  GateUp,  // gathered or packed: gate and up, or up alone; activated, or not
};

// Columns of a matrix that a tile of kColumns rows of the weights covers.
template <uint32_t kColumns> __device__ __forceinline__ uint32_t tile_columns(const GroupedGemmArgs& args) {
  return args.gated != 0 ? kColumns / 2 : kColumns;
}

// Where the sum of `column`, as the first half of a tile counts, lies in a row of both halves: the gate's columns before
// the up projection's, or one half of a tile before the other.
struct ColumnPlace {
  uint32_t at;
  bool exists;
};
template <uint32_t kColumns>
__device__ __forceinline__ ColumnPlace column_place(const GroupedGemmArgs& args, uint32_t half, uint32_t column) {
  if (args.gated != 0) return {column + half * args.columns, column < args.columns};
  return {column + half * (kColumns / 2), column + half * (kColumns / 2) < args.columns};
}

// Whether sums are stored as they are: neither weights nor biases.
__device__ __forceinline__ bool is_plain(const GroupedGemmArgs& args) { return (args.bias | args.row_weights) == 0; }

__device__ __forceinline__ float row_weight(const GroupedGemmArgs& args, uint32_t row, uint32_t row_end) {
  return args.row_weights != 0 && row < row_end ? device_pointer<const float>(args.row_weights)[row] : 1.f;
}

// An expert's biases.
class Biases {
 public:
  __device__ __forceinline__ Biases(const GroupedGemmArgs& args, uint32_t expert)
      : biases_(args.bias == 0
                    ? nullptr
                    : device_pointer<const float>(args.bias) + (uint64_t)expert * args.columns * (1 + args.gated)) {}
  __device__ __forceinline__ float one(ColumnPlace place) const {
    return biases_ != nullptr && place.exists ? biases_[place.at] : 0.f;
  }
  // Of two columns, the first of which is even.
  __device__ __forceinline__ float2 two(ColumnPlace place) const {
    if (biases_ == nullptr || !place.exists) return make_float2(0.f, 0.f);
    return *reinterpret_cast<const float2*>(biases_ + place.at);
  }
  // Of eight columns, the first of which is a multiple of eight.
  __device__ __forceinline__ void eight(ColumnPlace place, float (&to)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      uint4 words = make_uint4(0, 0, 0, 0);
      if (biases_ != nullptr && place.exists) words = ptx::ld_global_nc_v4(biases_ + place.at + i);
      to[i] = __uint_as_float(words.x);
      to[i + 1] = __uint_as_float(words.y);
      to[i + 2] = __uint_as_float(words.z);
      to[i + 3] = __uint_as_float(words.w);
    }
  }

 private:
  const float* biases_;
};

// Sums of both halves, activated in place; of gate and up then only the first is of use.  The branches are the same for
// all threads: they keep the compiler from mixing so many sums that it runs out of registers.
template <int kSums>
__device__ __forceinline__ void activate_halves(const GroupedGemmArgs& args, float (&first)[kSums],
                                                float (&second)[kSums]) {
  if (args.activated == 0) return;
  if (args.gated != 0) {
#pragma unroll
    for (int i = 0; i < kSums; i++) first[i] = activate(args.activation, first[i], second[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kSums; i++) {
      first[i] = activate(args.activation, first[i], first[i]);
      second[i] = activate(args.activation, second[i], second[i]);
    }
  }
}

// Whether both halves are stored, or one of what both are activated to.
__device__ __forceinline__ bool stores_both(const GroupedGemmArgs& args) {
  return args.activated == 0 || args.gated == 0;
}
