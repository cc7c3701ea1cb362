// From logits to keys that rank them, scores and weights.
#pragma once
#include "abi.h"
#include "common/types.cuh"
#include "ptx/convert.cuh"

constexpr uint32_t kAll = 0xffffffffu, kNone = 0xffffffffu;

// Keys have the order of their values: NaN is 1, the least.
__device__ __forceinline__ uint32_t key_of(float value) {
  const uint32_t bits = __float_as_uint(value + 0.f);  // -0 becomes +0: they are equal
  const uint32_t key = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return value != value ? 1u : key;
}
// Of the keys of NaN, and of what is not there, a NaN.
__device__ __forceinline__ float value_of(uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int by = 16; by > 0; by /= 2) v += __shfl_xor_sync(kAll, v, by);
  return v;
}

// Where exp(-x) would overflow the quotient is taken the other way around: it is tiny there, but not 0, which
// renormalisation would divide by.
__device__ __forceinline__ float sigmoid(float x) {
  const float e = expf(x < 0.f ? x : -x);
  return (x < 0.f ? e : 1.f) / (1.f + e);
}
// log(1 + exp(x)), without an exp that overflows.
__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))); }

__device__ __forceinline__ float capped(const RouterTopKArgs& p, float logit) {
  return p.softcap == 0.f ? logit : p.softcap * tanhf(logit / p.softcap);
}

// What all of a token's scores have in common.
struct Softmax {
  float greatest, sum;
};

// Of a capped logit.
__device__ __forceinline__ float score_of(const RouterTopKArgs& p, float logit, Softmax softmax) {
  if (p.scoring == SCORING_SOFTMAX) return expf(logit - softmax.greatest) / softmax.sum;
  return p.scoring == SCORING_SIGMOID ? sigmoid(logit) : sqrtf(softplus(logit));
}

// Lanes 0 and 1 get the weights of the two experts that they have chosen, each by a softmax of its own over the
// logits that are close to it; the second without the first.  What cannot be compared is close, so that a NaN shows.
__device__ __forceinline__ float sparse_mixer(const RouterTopKArgs& p, const float* logits, uint32_t chosen) {
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t first = __shfl_sync(kAll, chosen, 0), second = __shfl_sync(kAll, chosen, 1);
  const float best[2] = {capped(p, logits[first]), capped(p, logits[second])};
  float sum[2] = {};
#pragma unroll 1
  for (uint32_t e = lane; e < p.num_experts; e += 32) {
    const float logit = capped(p, logits[e]);
#pragma unroll
    for (uint32_t k = 0; k < 2; k++) {
      const bool far = (best[k] - logit) / fmaxf(fabsf(logit), best[k]) > 2.f * p.jitter;
      if (!far && (k == 0 || e != first)) sum[k] += expf(logit - best[k]);
    }
  }
  const float of_first = warp_sum(sum[0]), of_second = warp_sum(sum[1]);
  return lane < 2 ? 1.f / (lane == 0 ? of_first : of_second) : 0.f;
}

// From the scores of a token's choices, 0 in lanes without one, to their weights.
__device__ __forceinline__ float finish_weight(const RouterTopKArgs& p, float weight, uint32_t chosen) {
  if (p.renormalize != RENORMALIZE_NONE) {
    const bool is_root = p.renormalize == RENORMALIZE_P_NORM && p.renormalize_by != 1.f;
    float part = p.renormalize == RENORMALIZE_P_NORM ? fabsf(weight) : weight;
    if (is_root) part = powf(part, p.renormalize_by);
    float divisor = warp_sum(part);
    if (p.renormalize == RENORMALIZE_SUM) divisor += p.renormalize_by;
    if (p.renormalize == RENORMALIZE_CLAMP_MIN && divisor < p.renormalize_by) divisor = p.renormalize_by;
    if (is_root) divisor = powf(divisor, 1.f / p.renormalize_by);
    weight /= divisor;
  }
  // A choice that fell away weighs nothing, even where nothing is left to divide by.
  if (chosen == kNone) return 0.f;
  if (p.expert_scale != 0) weight *= device_pointer<const float>(p.expert_scale)[chosen];
  return weight * p.scale;
}
