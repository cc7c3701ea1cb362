// Element types and the tensor map, as bits: kernels need no CUDA header, and neither does the emulator.
#pragma once
#include "common/device.cuh"

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
struct e4m3 {
  uint8_t bits;
};
struct e5m2 {
  uint8_t bits;
};

// A CUtensorMap, encoded by the host.  Pass by value as `const __grid_constant__ TensorMap`.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

__device__ __forceinline__ float to_float(bf16 v) { return __uint_as_float((unsigned)v.bits << 16); }

// The two halves of a packed pair of bf16.
__device__ __forceinline__ float low_bf16(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

// What the host passes as a number.
template <class T> __device__ __forceinline__ T* device_pointer(uint64_t address) {
  return reinterpret_cast<T*>(address);
}
