// What stands between an expert's two products.
#pragma once
#include "abi.h"
#include "common/device.cuh"

// One formula for all gated activations (see ActivationParams): a switch over them costs more code than these two
// multiplications.  The division is approximate on purpose: an IEEE division in an epilogue calls a subroutine,
// and accumulators are spilled around it.  Clamps are comparisons, because fminf hides a NaN.
__device__ __forceinline__ float activate(const ActivationParams& p, float gate, float up) {
  const float g = gate > p.gate_max ? p.gate_max : gate;
  const float u = up > p.up_max ? p.up_max : up < p.up_min ? p.up_min : up;
  // The square stays finite: where cubic is 0, its product with an infinite one would be NaN.
  const float z = g * (p.cubic * fminf(g * g, 3e38f) + p.alpha);
  return __fdividef(g, 1.f + __expf(-z)) * (u + p.up_bias);
}
