// The two 16-bit float types, as a template parameter of kernels that take either.
#pragma once
#include "common/types.cuh"
#include "ptx/convert.cuh"

template <class T> struct Float16;

template <> struct Float16<bf16> {
  static __device__ __forceinline__ uint32_t pack(float low, float high) { return ptx::pack_bf16(low, high); }
  static __device__ __forceinline__ float low(uint32_t pair) { return low_bf16(pair); }
  static __device__ __forceinline__ float high(uint32_t pair) { return high_bf16(pair); }
};

template <> struct Float16<f16> {
  static __device__ __forceinline__ uint32_t pack(float low, float high) { return ptx::pack_f16(low, high); }
  static __device__ __forceinline__ float low(uint32_t pair) { return ptx::f16_to_float((uint16_t)pair); }
  static __device__ __forceinline__ float high(uint32_t pair) { return ptx::f16_to_float((uint16_t)(pair >> 16)); }
};
