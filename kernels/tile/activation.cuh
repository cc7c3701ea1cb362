// What stands between an expert's two products.
#pragma once
#include "abi.h"
#include "common/device.cuh"
#include "ptx/convert.cuh"

// One formula for all activations (see ActivationParams): a switch over them costs more code, and a branch for every
// pair, than these multiplications.  exp and the division are approximate on purpose: an IEEE division in an epilogue
// calls a subroutine, and accumulators are spilled around it.  Clamps keep a NaN, which fminf would hide.
__device__ __forceinline__ float activate(const ActivationParams& p, float gate, float up) {
  const float g = ptx::max_nan(ptx::min_nan(gate, p.gate_max), p.gate_min);
  const float u = ptx::max_nan(ptx::min_nan(up, p.up_max), p.up_min);
  // The square stays finite: where a coefficient is 0, its product with an infinite one would be NaN.
  const float square = fminf(g * g, 3e38f);
  float exponent = p.coefficients[6];
#pragma unroll
  for (int i = 5; i >= 0; i--) exponent = exponent * square + p.coefficients[i];
  return g * ptx::reciprocal_approx(1.f + ptx::exp2_approx(g * exponent)) * (u + p.up_bias);
}
