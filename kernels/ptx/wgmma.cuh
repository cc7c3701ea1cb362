// wgmma: asynchronous products of a warpgroup.
// PTX ISA: "Asynchronous Warpgroup Level Matrix Instructions".
//
// d[N / 2] is the thread's share of a 64 x N accumulator: d[4 j + q] is row (lane / 4 + 8 (q / 2)) of the
// warp's sixteen, column 8 j + 2 (lane % 4) + q % 2.  It must not be touched between the first product and
// the wait.
#pragma once
#include "common/device.cuh"
#include "ptx/wgmma_operands.cuh"

namespace ptx {
// PTX ISA: wgmma.fence.  Before the first wgmma after the registers were touched.
PTX_INLINE void wgmma_fence() { PTX("wgmma.fence.sync.aligned;", (), ()); }
// PTX ISA: wgmma.commit_group
PTX_INLINE void wgmma_commit() { PTX("wgmma.commit_group.sync.aligned;", (), ()); }
// PTX ISA: wgmma.wait_group
template <int kPending> PTX_INLINE void wgmma_wait() { PTX("wgmma.wait_group.sync.aligned %0;", (), (IMM(kPending))); }

// PTX ISA: "Matrix-descriptor Format".  Addresses and offsets are in units of 16 bytes.
enum class Swizzle : uint64_t { None = 0, B128 = 1, B64 = 2, B32 = 3 };
PTX_INLINE uint64_t matrix_descriptor(uint32_t addr, uint32_t leading_bytes, uint32_t stride_bytes, Swizzle swizzle) {
  return (uint64_t)((addr & 0x3ffff) >> 4) | ((uint64_t)(leading_bytes >> 4) << 16) |
         ((uint64_t)(stride_bytes >> 4) << 32) | ((uint64_t)swizzle << 62);
}
// K-major, rows of 128 bytes under the 128B swizzle: groups of eight rows lie 1024 bytes apart.
// Advance by 32 bytes of K with `+ 2`.
PTX_INLINE uint64_t k_major_128b(uint32_t addr) { return matrix_descriptor(addr, 16, 1024, Swizzle::B128); }
// MN-major under the 128B swizzle: blocks of 64 elements along MN lie `leading` bytes apart, groups of
// eight along K `stride` bytes.
PTX_INLINE uint64_t mn_major_128b(uint32_t addr, uint32_t leading, uint32_t stride) {
  return matrix_descriptor(addr, leading, stride, Swizzle::B128);
}

// PTX ISA: wgmma.mma_async.  d = a b (+ d if `accumulate`), a [64, K], b [K, N]; K is 32 bytes.
// `_ra`: a in registers, in the fragment layout of mma.sync.  kTransX = 1: MN-major (16-bit types only).
// clang-format off
#define WGMMA_TEXT(n, k, type, regs, p, rest)                                                       \
  "{\n.reg .pred p;\nsetp.ne.b32 p, %" #p ", 0;\n"                                                 \
  "wgmma.mma_async.sync.aligned.m64n" #n k ".f32." type "." type " {" PTX_ACC_TEXT_##regs "}, " rest "\n}"
#define WGMMA_16BIT(name, type, n, r0, r1, r2, r3, r4, r5, r6)                                      \
  template <int kTransA = 0, int kTransB = 0>                                                       \
  PTX_INLINE void name(float (&d)[r0], uint64_t a, uint64_t b, uint32_t accumulate) {               \
    PTX(WGMMA_TEXT(n, "k16", type, r0, r2, "%" #r0 ", %" #r1 ", p, 1, 1, %" #r3 ", %" #r4 ";"),     \
        (PTX_ACC_REGS_##r0(d)), (I64(a), I64(b), I32(accumulate), IMM(kTransA), IMM(kTransB)));     \
  }                                                                                                 \
  template <int kTransB = 0>                                                                        \
  PTX_INLINE void name##_ra(float (&d)[r0], const uint32_t (&a)[4], uint64_t b, uint32_t accumulate) { \
    PTX(WGMMA_TEXT(n, "k16", type, r0, r5,                                                          \
                   "{%" #r0 ", %" #r1 ", %" #r2 ", %" #r3 "}, %" #r4 ", p, 1, 1, %" #r6 ";"),       \
        (PTX_ACC_REGS_##r0(d)),                                                                     \
        (I32(a[0]), I32(a[1]), I32(a[2]), I32(a[3]), I64(b), I32(accumulate), IMM(kTransB)));       \
  }
#define WGMMA_8BIT(name, type, n, r0, r1, r2, r3, r4, r5)                                           \
  PTX_INLINE void name(float (&d)[r0], uint64_t a, uint64_t b, uint32_t accumulate) {               \
    PTX(WGMMA_TEXT(n, "k32", type, r0, r2, "%" #r0 ", %" #r1 ", p, 1, 1;"),                         \
        (PTX_ACC_REGS_##r0(d)), (I64(a), I64(b), I32(accumulate)));                                 \
  }                                                                                                 \
  PTX_INLINE void name##_ra(float (&d)[r0], const uint32_t (&a)[4], uint64_t b, uint32_t accumulate) { \
    PTX(WGMMA_TEXT(n, "k32", type, r0, r5, "{%" #r0 ", %" #r1 ", %" #r2 ", %" #r3 "}, %" #r4 ", p, 1, 1;"), \
        (PTX_ACC_REGS_##r0(d)), (I32(a[0]), I32(a[1]), I32(a[2]), I32(a[3]), I64(b), I32(accumulate)));  \
  }
// clang-format on
// N, then the numbers of the operands after the N / 2 accumulators.
#define WGMMA_SHAPE(n, r0, r1, r2, r3, r4, r5, r6)               \
  WGMMA_16BIT(wgmma_bf16, "bf16", n, r0, r1, r2, r3, r4, r5, r6) \
  WGMMA_16BIT(wgmma_f16, "f16", n, r0, r1, r2, r3, r4, r5, r6)   \
  WGMMA_8BIT(wgmma_e4m3, "e4m3", n, r0, r1, r2, r3, r4, r5)
WGMMA_SHAPE(8, 4, 5, 6, 7, 8, 9, 10)
WGMMA_SHAPE(16, 8, 9, 10, 11, 12, 13, 14)
WGMMA_SHAPE(24, 12, 13, 14, 15, 16, 17, 18)
WGMMA_SHAPE(32, 16, 17, 18, 19, 20, 21, 22)
WGMMA_SHAPE(40, 20, 21, 22, 23, 24, 25, 26)
WGMMA_SHAPE(48, 24, 25, 26, 27, 28, 29, 30)
WGMMA_SHAPE(64, 32, 33, 34, 35, 36, 37, 38)
WGMMA_SHAPE(80, 40, 41, 42, 43, 44, 45, 46)
WGMMA_SHAPE(96, 48, 49, 50, 51, 52, 53, 54)
WGMMA_SHAPE(128, 64, 65, 66, 67, 68, 69, 70)
WGMMA_SHAPE(160, 80, 81, 82, 83, 84, 85, 86)
WGMMA_SHAPE(192, 96, 97, 98, 99, 100, 101, 102)
WGMMA_SHAPE(256, 128, 129, 130, 131, 132, 133, 134)
#undef WGMMA_SHAPE
#undef WGMMA_8BIT
#undef WGMMA_16BIT
#undef WGMMA_TEXT
}  // namespace ptx
