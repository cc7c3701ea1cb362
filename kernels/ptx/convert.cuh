// Conversions, packed halves, byte and bit selection, approximations.
#pragma once
#include "common/device.cuh"

namespace ptx {
// One instruction with 32-bit operands and result.
#define MOE_PTX_2(name, text)                             \
  PTX_INLINE uint32_t name(uint32_t a, uint32_t b) {      \
    uint32_t r;                                           \
    PTX(text " %0, %1, %2;", (O32(r)), (I32(a), I32(b))); \
    return r;                                             \
  }
#define MOE_PTX_3(name, text)                                         \
  PTX_INLINE uint32_t name(uint32_t a, uint32_t b, uint32_t c) {      \
    uint32_t r;                                                       \
    PTX(text " %0, %1, %2, %3;", (O32(r)), (I32(a), I32(b), I32(c))); \
    return r;                                                         \
  }
#define MOE_PTX_FLOAT(name, text)               \
  PTX_INLINE float name(float x) {              \
    float r;                                    \
    PTX(text " %0, %1;", (OF32(r)), (IF32(x))); \
    return r;                                   \
  }

// PTX ISA: cvt.  The pair (low, high) lies in that order in the result.
PTX_INLINE uint32_t pack_bf16(float low, float high) {
  uint32_t r;
  PTX("cvt.rn.bf16x2.f32 %0, %1, %2;", (O32(r)), (IF32(high), IF32(low)));
  return r;
}
PTX_INLINE uint32_t pack_f16(float low, float high) {
  uint32_t r;
  PTX("cvt.rn.f16x2.f32 %0, %1, %2;", (O32(r)), (IF32(high), IF32(low)));
  return r;
}
PTX_INLINE uint16_t pack_e4m3(float low, float high) {   // saturating; from sm_89
  uint16_t r;
  PTX("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;", (O16(r)), (IF32(high), IF32(low)));
  return r;
}
PTX_INLINE uint16_t pack_e5m2(float low, float high) {
  uint16_t r;
  PTX("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;", (O16(r)), (IF32(high), IF32(low)));
  return r;
}
PTX_INLINE uint32_t e4m3_to_f16(uint16_t pair) {
  uint32_t r;
  PTX("cvt.rn.f16x2.e4m3x2 %0, %1;", (O32(r)), (I16(pair)));
  return r;
}
PTX_INLINE uint32_t e5m2_to_f16(uint16_t pair) {
  uint32_t r;
  PTX("cvt.rn.f16x2.e5m2x2 %0, %1;", (O32(r)), (I16(pair)));
  return r;
}
PTX_INLINE float f16_to_float(uint16_t v) {
  float r;
  PTX("cvt.f32.f16 %0, %1;", (OF32(r)), (I16(v)));
  return r;
}

// PTX ISA: "Half Precision Floating-Point Instructions"
MOE_PTX_2(add_bf16x2, "add.rn.bf16x2")   // add and mul from sm_90
MOE_PTX_2(mul_bf16x2, "mul.rn.bf16x2")
MOE_PTX_3(fma_bf16x2, "fma.rn.bf16x2")
MOE_PTX_2(max_bf16x2, "max.bf16x2")
MOE_PTX_2(mul_f16x2, "mul.rn.f16x2")
MOE_PTX_3(fma_f16x2, "fma.rn.f16x2")

// PTX ISA: prmt.  Byte k of the result is byte (selector >> 4 k & 7) of (b:a).
MOE_PTX_3(permute_bytes, "prmt.b32")
// PTX ISA: lop3.  kTable = the expression evaluated on 0xf0 (a), 0xcc (b), 0xaa (c).
template <int kTable> PTX_INLINE uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r;
  PTX("lop3.b32 %0, %1, %2, %3, %4;", (O32(r)), (I32(a), I32(b), I32(c), IMM(kTable)));
  return r;
}
// PTX ISA: redux.sync, over a full warp
#define MOE_REDUX(name, text, type)                                               \
  PTX_INLINE type name(type v) {                                                  \
    uint32_t r;                                                                   \
    PTX("redux.sync." text " %0, %1, 0xffffffff;", (O32(r)), (I32((uint32_t)v))); \
    return (type)r;                                                               \
  }
MOE_REDUX(redux_add, "add.u32", uint32_t)
MOE_REDUX(redux_max, "max.u32", uint32_t)
MOE_REDUX(redux_min, "min.u32", uint32_t)
MOE_REDUX(redux_max_signed, "max.s32", int32_t)
MOE_REDUX(redux_or, "or.b32", uint32_t)
#undef MOE_REDUX

// PTX ISA: min, max with .NaN.  NaN if either is one.
#define MOE_PTX_FLOAT_2(name, text)                          \
  PTX_INLINE float name(float a, float b) {                  \
    float r;                                                 \
    PTX(text " %0, %1, %2;", (OF32(r)), (IF32(a), IF32(b))); \
    return r;                                                \
  }
MOE_PTX_FLOAT_2(min_nan, "min.NaN.f32")
MOE_PTX_FLOAT_2(max_nan, "max.NaN.f32")
#undef MOE_PTX_FLOAT_2
// PTX ISA: ex2, lg2, rcp, tanh
MOE_PTX_FLOAT(exp2_approx, "ex2.approx.ftz.f32")
MOE_PTX_FLOAT(log2_approx, "lg2.approx.ftz.f32")
MOE_PTX_FLOAT(reciprocal_approx, "rcp.approx.ftz.f32")
MOE_PTX_FLOAT(tanh_approx, "tanh.approx.f32")
#undef MOE_PTX_2
#undef MOE_PTX_3
#undef MOE_PTX_FLOAT
}  // namespace ptx
