// What stands between an expert's two products.
#pragma once
#include "abi.h"
#include "common/device.cuh"

// One formula for all gated activations (see ActivationParams): a switch over them costs more code than these two
// multiplications.  The division is approximate on purpose: an IEEE division in an epilogue calls a subroutine,
// and accumulators are spilled around it.
__device__ __forceinline__ float activate(const ActivationParams& p, float gate, float up) {
  const float g = fminf(gate, p.gate_max);
  const float u = fmaxf(fminf(up, p.up_max), p.up_min);
  const float z = g * (p.cubic * g * g + p.alpha);
  return __fdividef(g, 1.f + __expf(-z)) * (u + p.up_bias);
}
