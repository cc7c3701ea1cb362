// Conformance: conversions, packed arithmetic, selection, approximations.  128 threads, three words in, one out.
#include "micro.cuh"
#include "ptx/convert.cuh"

#define EACH(name, expression)                                                    \
  KERNEL(micro_##name, 128, 1, MICRO_PARAMS) {                                    \
    const auto* in = reinterpret_cast<const uint32_t*>(p.in) + threadIdx.x * 3;   \
    const uint32_t a = in[0], b = in[1], c = in[2];                               \
    (void)a, (void)b, (void)c;                                                    \
    reinterpret_cast<uint32_t*>(p.out)[threadIdx.x] = expression;                 \
  }
#define FLOAT(x) __uint_as_float(x)
#define BITS(x) __float_as_uint(x)
EACH(pack_bf16, ptx::pack_bf16(FLOAT(a), FLOAT(b)))
EACH(pack_f16, ptx::pack_f16(FLOAT(a), FLOAT(b)))
EACH(pack_e4m3, ptx::pack_e4m3(FLOAT(a), FLOAT(b)))
EACH(pack_e5m2, ptx::pack_e5m2(FLOAT(a), FLOAT(b)))
EACH(e4m3_to_f16, ptx::e4m3_to_f16((uint16_t)a))
EACH(e5m2_to_f16, ptx::e5m2_to_f16((uint16_t)a))
EACH(f16_to_float, BITS(ptx::f16_to_float((uint16_t)a)))
EACH(add_bf16x2, ptx::add_bf16x2(a, b))
EACH(mul_bf16x2, ptx::mul_bf16x2(a, b))
EACH(fma_bf16x2, ptx::fma_bf16x2(a, b, c))
EACH(max_bf16x2, ptx::max_bf16x2(a, b))
EACH(mul_f16x2, ptx::mul_f16x2(a, b))
EACH(fma_f16x2, ptx::fma_f16x2(a, b, c))
EACH(permute_bytes, ptx::permute_bytes(a, b, c))
EACH(lop3, ptx::lop3<0xca>(a, b, c))                     // a ? b : c, bit by bit
EACH(redux_add, ptx::redux_add(a))
EACH(redux_max, ptx::redux_max(a))
EACH(redux_min, ptx::redux_min(a))
EACH(redux_max_signed, (uint32_t)ptx::redux_max_signed((int32_t)a))
EACH(redux_or, ptx::redux_or(a))
EACH(exp2_approx, BITS(ptx::exp2_approx(FLOAT(a))))
EACH(log2_approx, BITS(ptx::log2_approx(fabsf(FLOAT(a)))))
EACH(reciprocal_approx, BITS(ptx::reciprocal_approx(FLOAT(a))))
EACH(tanh_approx, BITS(ptx::tanh_approx(FLOAT(a))))
EACH(min_nan, BITS(ptx::min_nan(FLOAT(a), FLOAT(b))))
EACH(max_nan, BITS(ptx::max_nan(FLOAT(a), FLOAT(b))))
