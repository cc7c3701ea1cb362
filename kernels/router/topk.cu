// Router, second half: each token's K best experts and their weights.
//
//   for t in 0 .. T:
//     left = all experts
//     for k in 0 .. K:
//       topk_ids[t, k] = the expert in left with the greatest logit; the lowest id among equals, NaN last
//       take it out of left
//     score(e) = softmax: exp(logits[t, e] - max) / sum_j exp(logits[t, j] - max)
//                sigmoid: 1 / (1 + exp(-logits[t, e]))
//     topk_weights[t, k] = score(topk_ids[t, k])
//     renormalised: each divided by their sum
//
// Departures:
// 1. A warp routes a token.  Lane l holds the logits of experts l, l + 32, ... as unsigned keys of the same order, in
//    which NaN is 1 and "not there, or taken" 0: one redux finds the greatest, a second the lowest id that has it.
// 2. The size class of E, which is the number of keys of a lane, is the only thing known at compile time.
// 3. Lane k keeps choice k.  The sums of scores are made in the order of a butterfly, the same in every lane.
// 4. Any number of blocks does: warps stride over the tokens.
#include "abi.h"
#include "common/types.cuh"
#include "ptx/convert.cuh"
#include "ptx/sync.cuh"
#include "tile/token_count.cuh"

constexpr uint32_t kAll = 0xffffffffu;

__device__ __forceinline__ uint32_t key_of(float logit) {
  const uint32_t bits = __float_as_uint(logit + 0.f);  // -0 becomes +0: they are equal
  const uint32_t key = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return logit != logit ? 1u : key;
}
// Of the keys of NaN, and of what is not there, a NaN.
__device__ __forceinline__ float logit_of(uint32_t key) {
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

template <uint32_t kValues>
__device__ __forceinline__ void route_token(const RouterTopKArgs& p, uint64_t token) {
  const uint32_t lane = threadIdx.x % 32;
  const float* logits = device_pointer<const float>(p.logits) + token * p.logits_stride;
  uint32_t key[kValues];
#pragma unroll
  for (uint32_t i = 0; i < kValues; i++) {
    const uint32_t expert = i * 32 + lane;
    key[i] = expert < p.num_experts ? key_of(logits[expert]) : 0;
  }

  float greatest = 0.f, sum = 0.f;
  if (p.scoring == SCORING_SOFTMAX) {
    uint32_t best = 0;
#pragma unroll
    for (uint32_t i = 0; i < kValues; i++) best = max(best, key[i]);
    greatest = logit_of(ptx::redux_max(best));
#pragma unroll
    for (uint32_t i = 0; i < kValues; i++) {
      if (key[i] != 0) sum += expf(logit_of(key[i]) - greatest);
    }
    sum = warp_sum(sum);
  }

  uint32_t chosen = 0, chosen_key = 0;
#pragma unroll 1
  for (uint32_t k = 0; k < p.top_k; k++) {
    uint32_t best = 0;
#pragma unroll
    for (uint32_t i = 0; i < kValues; i++) best = max(best, key[i]);
    best = ptx::redux_max(best);
    uint32_t lowest = kAll;
#pragma unroll
    for (uint32_t i = kValues; i-- > 0;) {
      if (key[i] == best) lowest = i * 32 + lane;
    }
    lowest = ptx::redux_min(lowest);
#pragma unroll
    for (uint32_t i = 0; i < kValues; i++) {
      if (lowest == i * 32 + lane) key[i] = 0;
    }
    if (lane == k) {
      chosen = lowest;
      chosen_key = best;
    }
  }

  float weight = 0.f;
  if (lane < p.top_k) {
    const float logit = logit_of(chosen_key);
    weight = p.scoring == SCORING_SOFTMAX ? expf(logit - greatest) / sum : sigmoid(logit);
  }
  if (p.renormalize == RENORMALIZE_SUM) weight /= warp_sum(weight);
  if (lane < p.top_k) {
    device_pointer<int32_t>(p.topk_ids)[token * p.ids_stride + lane] = (int32_t)chosen;
    device_pointer<float>(p.topk_weights)[token * p.weights_stride + lane] = weight;
  }
}

template <uint32_t kValues>
__device__ __forceinline__ void route(const RouterTopKArgs& p) {
  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  constexpr uint32_t kWarps = ROUTER_THREADS / 32;
  const uint32_t num_tokens = token_count(p.num_tokens);
  const uint64_t step = (uint64_t)gridDim.x * kWarps;
  for (uint64_t token = (uint64_t)blockIdx.x * kWarps + threadIdx.x / 32; token < num_tokens; token += step)
    route_token<kValues>(p, token);
}

KERNEL(router_topk_64, ROUTER_THREADS, 1, const __grid_constant__ RouterTopKArgs p) { route<2>(p); }
KERNEL(router_topk_128, ROUTER_THREADS, 1, const __grid_constant__ RouterTopKArgs p) { route<4>(p); }
KERNEL(router_topk_256, ROUTER_THREADS, 1, const __grid_constant__ RouterTopKArgs p) { route<8>(p); }
KERNEL(router_topk_512, ROUTER_THREADS, 1, const __grid_constant__ RouterTopKArgs p) { route<16>(p); }
KERNEL(router_topk_1024, ROUTER_THREADS, 1, const __grid_constant__ RouterTopKArgs p) { route<32>(p); }
