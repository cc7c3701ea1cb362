// From codes to fragments of bf16: quantised weights as operand A of mma.sync and of wgmma.
//
// The host has repacked them (src/cuda/quantised.rs) by blocks of 16 rows and 64 of depth.  Of a block a lane gets 16
// or 32 bytes by whole loads, and they are its fragments of the four steps of 16: of the rows g = lane / 4 and g + 8,
// of the depths 2 (lane % 4), one more, and both eight on.  A block's scales lie apart.
//
// Codes become bf16 exactly: the bits of exponent and mantissa move to where bf16 has them, and a power of two makes up
// for the difference of the biases; e4m3's and e2m1's subnormals are bf16's then.
#pragma once
#include "abi.h"
#include "common/types.cuh"
#include "ptx/convert.cuh"
#include "ptx/memory.cuh"
#include "tile/epilogue.cuh"

// a * b on both halves; from sm_80 on, where mul.bf16x2 is not.  The sum with -0 changes nothing.
__device__ __forceinline__ uint32_t multiply_bf16x2(uint32_t a, uint32_t b) {
  return ptx::fma_bf16x2(a, b, 0x80008000u);
}

// e4m3, scales f32: [8 g][2] for the rows g and g + 8.  They multiply sums of 128 in depth.
struct Fp8Block {
  static constexpr uint32_t kCodeBytes = 1024, kScaleBytes = 64;
  static constexpr bool kScalesSums = true;

  // `codes` is an address in the shared window.
  __device__ __forceinline__ void load(uint32_t codes, const uint8_t*, uint32_t) {
    const uint32_t lane = threadIdx.x % 32;
    const uint4 low = ptx::ld_shared_v4(codes + lane * 16), high = ptx::ld_shared_v4(codes + 512 + lane * 16);
    words_[0] = low.x, words_[1] = low.y, words_[2] = low.z, words_[3] = low.w;
    words_[4] = high.x, words_[5] = high.y, words_[6] = high.z, words_[7] = high.w;
  }
  // Codes of 0.
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < 8; i++) words_[i] = 0;
  }
  __device__ __forceinline__ void fragment(int step, uint32_t (&a)[4]) const {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint32_t word = words_[2 * step + i];
      a[2 * i] = widen(word << 8);
      a[2 * i + 1] = widen(word);
    }
  }
  static __device__ __forceinline__ float2 sum_scales(const uint8_t* scales) {
    return *reinterpret_cast<const float2*>(scales + threadIdx.x % 32 / 4 * 8);
  }

 private:
  // The codes in the upper bytes of the halves.
  static __device__ __forceinline__ uint32_t widen(uint32_t codes) {
    // 2^120: the biases are 7 and 127.
    return multiply_bf16x2((codes & 0x80008000u) | ((codes >> 4) & 0x07f007f0u), 0x7b807b80u);
  }
  uint32_t words_[8];
};

// e2m1, scales e8m0: [8 g][2][2], of the rows g and g + 8 each one for 32 in depth.
struct Mxfp4 {
  static constexpr uint32_t kCodeBytes = 512, kScaleBytes = 32;
  static constexpr bool kScalesSums = false;

  __device__ __forceinline__ void load(uint32_t codes, const uint8_t* scales, uint32_t) {
    const uint32_t lane = threadIdx.x % 32;
    words_ = ptx::ld_shared_v4(codes + lane * 16);
    scales_ = *reinterpret_cast<const uint32_t*>(scales + lane / 4 * 4);
  }
  __device__ __forceinline__ void clear() {
    words_ = make_uint4(0, 0, 0, 0);
    scales_ = 0;
  }
  __device__ __forceinline__ void fragment(int step, uint32_t (&a)[4]) const {
    const uint32_t word = step == 0 ? words_.x : step == 1 ? words_.y : step == 2 ? words_.z : words_.w;
    const uint32_t scales[2] = {power_of_two(scales_ >> (step / 2 * 8)), power_of_two(scales_ >> (16 + step / 2 * 8))};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      // The code in the upper four bits of each half; what is beside it is masked.
      const uint32_t codes = word << (12 - 4 * i);
      // 2^126: the biases are 1 and 127.
      const uint32_t value = multiply_bf16x2((codes & 0x80008000u) | ((codes >> 6) & 0x01c001c0u), 0x7e807e80u);
      a[i] = multiply_bf16x2(value, scales[i % 2]);
    }
  }

 private:
  // 2^(exponent - 127) twice, of the lowest byte; NaN of 255.
  static __device__ __forceinline__ uint32_t power_of_two(uint32_t bytes) {
    const uint32_t exponent = bytes & 255;
    // 2^-127 is subnormal; the same bit makes a NaN of infinity.
    const uint32_t bits = exponent << 7 | (((exponent + 1) & 255) < 2 ? 0x40u : 0u);
    return bits | bits << 16;
  }
  uint4 words_;
  uint32_t scales_;
};

// Whole numbers 8 higher, scales bf16: [groups][8 g][2] for the rows g and g + 8; of groups of 32 there are two, else one
// or, of 128, one for two blocks.  A product of code and scale is rounded once, to bf16.
struct Int4 {
  static constexpr uint32_t kCodeBytes = 512, kScaleBytes = 64;
  static constexpr bool kScalesSums = false;

  // `scale_bytes` are those that a block has.
  __device__ __forceinline__ void load(uint32_t codes, const uint8_t* scales, uint32_t scale_bytes) {
    const uint32_t lane = threadIdx.x % 32;
    words_ = ptx::ld_shared_v4(codes + lane * 16);
#pragma unroll
    for (int i = 0; i < 2; i++)
      scales_[i] = *reinterpret_cast<const uint32_t*>(scales + i * (scale_bytes - 32) + lane / 4 * 4);
  }
  __device__ __forceinline__ void clear() {
    words_ = make_uint4(0, 0, 0, 0);
    scales_[0] = scales_[1] = 0;
  }
  __device__ __forceinline__ void fragment(int step, uint32_t (&a)[4]) const {
    const uint32_t word = step == 0 ? words_.x : step == 1 ? words_.y : step == 2 ? words_.z : words_.w;
    const uint32_t both = scales_[step / 2];
    const uint32_t scales[2] = {ptx::permute_bytes(both, 0, 0x1010), ptx::permute_bytes(both, 0, 0x3232)};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      // 128 + code: bits below bf16's 2^7.  Then - 136.
      const uint32_t value = ptx::fma_bf16x2(((word >> (4 * i)) & 0x000f000fu) | 0x43004300u, 0x3f803f80u, 0xc308c308u);
      a[i] = multiply_bf16x2(value, scales[i % 2]);
    }
  }

 private:
  uint4 words_;
  uint32_t scales_[2];
};

// Columns of a lane: the first of two of each half, of a unit of 32 rows of the weights.
__device__ __forceinline__ void unit_places(const GroupedGemmArgs& args, uint32_t unit, ColumnPlace (&places)[2]) {
  const uint32_t g = threadIdx.x % 32 / 4;
#pragma unroll
  for (uint32_t half = 0; half < 2; half++) {
    const uint32_t column = args.gated != 0 ? unit * 16 + g * 2 : unit * 32 + half * 16 + g * 2;
    places[half] = {args.gated != 0 ? column + half * args.columns : column, column < args.columns};
  }
}

// Where the blocks of a tile lie: `units` of 32 rows from `unit` on, at one depth all in a row.
template <class Format> class TileBlocks {
 public:
  __device__ __forceinline__ TileBlocks() {}
  __device__ __forceinline__ TileBlocks(const QuantisedMatrices& weights, uint32_t expert, uint32_t unit,
                                        uint32_t most_units)
      : codes_(device_pointer<const uint8_t>(weights.codes) + expert * weights.codes_stride +
               unit * (2 * Format::kCodeBytes)),
        scales_(device_pointer<const uint8_t>(weights.scales) + expert * weights.scales_stride +
                unit * 2 * weights.scale_bytes),
        blocks_(min(weights.row_blocks / 2 - unit, most_units) * 2) {}

  __device__ __forceinline__ const uint8_t* codes(const QuantisedMatrices& weights, uint32_t block) const {
    return codes_ + (uint64_t)block * weights.row_blocks * Format::kCodeBytes;
  }
  __device__ __forceinline__ const uint8_t* scales(const QuantisedMatrices& weights, uint32_t block) const {
    return scales_ + (uint64_t)(block >> weights.scale_shift) * weights.row_blocks * weights.scale_bytes;
  }
  __device__ __forceinline__ uint32_t code_bytes() const { return blocks_ * Format::kCodeBytes; }
  __device__ __forceinline__ uint32_t scale_bytes(const QuantisedMatrices& weights) const {
    return blocks_ * weights.scale_bytes;
  }

 private:
  const uint8_t* codes_;
  const uint8_t* scales_;
  uint32_t blocks_;
};
