// ldmatrix, stmatrix and mma.sync.  PTX ISA: "Warp Level Matrix Instructions".
#pragma once
#include "common/device.cuh"

namespace ptx {
// PTX ISA: ldmatrix.  Lane l addresses row l % 8 of matrix l / 8; a row is 16 bytes.
PTX_INLINE void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
  PTX("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];", (O32(r[0]), O32(r[1]), O32(r[2]), O32(r[3])),
      (I32(row)));
}
PTX_INLINE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) {
  PTX("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];",
      (O32(r[0]), O32(r[1]), O32(r[2]), O32(r[3])), (I32(row)));
}
PTX_INLINE void ldmatrix_x2(uint32_t (&r)[2], uint32_t row) {
  PTX("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];", (O32(r[0]), O32(r[1])), (I32(row)));
}
PTX_INLINE void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t row) {
  PTX("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];", (O32(r[0]), O32(r[1])), (I32(row)));
}
// PTX ISA: stmatrix
PTX_INLINE void stmatrix_x4(uint32_t row, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  PTX("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};", (),
      (I32(row), I32(a), I32(b), I32(c), I32(d)));
}
PTX_INLINE void stmatrix_x4_trans(uint32_t row, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  PTX("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};", (),
      (I32(row), I32(a), I32(b), I32(c), I32(d)));
}
PTX_INLINE void stmatrix_x2(uint32_t row, uint32_t a, uint32_t b) {
  PTX("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};", (), (I32(row), I32(a), I32(b)));
}

// PTX ISA: mma.  d += a b, with a [16, K] row-major and b [K, 8] column-major fragments.
#define MOE_MMA(name, text)                                                                          \
  PTX_INLINE void name(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {            \
    PTX("mma.sync.aligned." text " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};", \
        (IOF32(d[0]), IOF32(d[1]), IOF32(d[2]), IOF32(d[3])),                                        \
        (I32(a[0]), I32(a[1]), I32(a[2]), I32(a[3]), I32(b0), I32(b1)));                             \
  }
MOE_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
MOE_MMA(mma_f16, "m16n8k16.row.col.f32.f16.f16.f32")
MOE_MMA(mma_e4m3, "m16n8k32.row.col.f32.e4m3.e4m3.f32")   // from sm_89
#undef MOE_MMA
}  // namespace ptx
