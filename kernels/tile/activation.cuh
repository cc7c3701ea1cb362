// What stands between an expert's two products.
#pragma once
#include "abi.h"
#include "common/device.cuh"
#include "ptx/convert.cuh"

// One formula for all gated activations (see ActivationParams): a switch over them costs more code than these two
// multiplications.  exp and the division are approximate on purpose: an IEEE division in an epilogue calls a
// subroutine, and accumulators are spilled around it.  Clamps are comparisons, because fminf hides a NaN, and one
// after the other, because a nested one becomes a branch.
__device__ __forceinline__ float activate(const ActivationParams& p, float gate, float up) {
  const float g = gate > p.gate_max ? p.gate_max : gate;
  float u = up > p.up_max ? p.up_max : up;
  u = u < p.up_min ? p.up_min : u;
  // The square stays finite: where cubic is 0, its product with an infinite one would be NaN.
  const float z = g * (p.cubic * fminf(g * g, 3e38f) + p.alpha);
  constexpr float kLog2E = 1.44269504f;
  return g * ptx::reciprocal_approx(1.f + ptx::exp2_approx(-kLog2E * z)) * (u + p.up_bias);
}
