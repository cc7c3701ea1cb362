// Router, second half: each token's K best experts and their weights.
//
//   for t in 0 .. T:
//     if there is a norm or a bias: logits[t, e] = logits[t, e] / sqrt(mean(x[t]^2) + eps) + bias[e]
//     capped(e) = logits[t, e], or softcap * tanh(logits[t, e] / softcap)
//     score(e) = softmax: exp(capped(e) - max) / sum_j exp(capped(j) - max)
//                sigmoid: 1 / (1 + exp(-capped(e)))
//                sqrt-softplus: sqrt(log(1 + exp(capped(e))))
//     value(e) = capped(e); with a selection bias or groups score(e) + selection_bias[e], or the fill outside the
//                groups that are kept
//     left = all experts
//     for k in 0 .. K:
//       topk_ids[t, k] = the expert in left with the greatest value; the lowest id among equals, NaN last
//       take it out of left
//     or, with a table: topk_ids[t, k] = table[token_ids[t], k], -1 where that is no expert
//     topk_weights[t, k] = score(topk_ids[t, k]), 0 for -1; or what sparsemixer makes of it
//     renormalised: each divided by what the rule makes of them all
//     topk_weights[t, k] *= scale * expert_scale[topk_ids[t, k]]
//
// Departures:
// 1. A warp routes a token.  Lane l holds the values of experts l, l + 32, ... as unsigned keys of the same order, in
//    which NaN is 1 and "not there, or taken" 0: one redux finds the greatest, a second the lowest id that has it.
// 2. The size class of E, which is the number of keys of a lane, is the only thing known at compile time.  Rules are
//    the same for all threads.  What most routers do not have is made in loops over shared memory (choice.cuh), and
//    costs the others a branch.
// 3. Lane k keeps choice k, and reads its logit again.  The sums of scores are made in the order of a butterfly, the
//    same in every lane.
// 4. Any number of blocks does: warps stride over the tokens.
// 5. With a capacity the kernel runs twice: the second time the table holds what the first has chosen and
//    router_capacity has left of it.
#include "ptx/sync.cuh"
#include "router/choice.cuh"
#include "tile/token_count.cuh"

// The experts of the table's row of this token, where there is one.
__device__ __forceinline__ uint32_t look_up(const RouterTopKArgs& p, uint64_t token) {
  const uint32_t lane = threadIdx.x % 32;
  const uint64_t row = p.token_ids != 0 ? device_pointer<const uint32_t>(p.token_ids)[token] : token;
  if (lane >= p.top_k || row >= p.table_rows) return kNone;
  const uint32_t id = (uint32_t)device_pointer<const int32_t>(p.table)[row * p.table_stride + lane];
  return id < p.num_experts ? id : kNone;
}

template <uint32_t kValues>
__device__ __forceinline__ void route_token(const RouterTopKArgs& p, uint64_t token, float* values) {
  const uint32_t lane = threadIdx.x % 32;
  float* logits = device_pointer<float>(p.logits) + token * p.logits_stride;
  uint32_t key[kValues];
  Softmax softmax = {};
  if (p.prepared) {
    softmax = prepare_choice(p, token, logits, values);
#pragma unroll
    for (uint32_t i = 0; i < kValues; i++) {
      const uint32_t expert = i * 32 + lane;
      key[i] = expert < p.num_experts ? key_of(values[expert]) : 0;
    }
  } else {
#pragma unroll
    for (uint32_t i = 0; i < kValues; i++) {
      const uint32_t expert = i * 32 + lane;
      key[i] = expert < p.num_experts ? key_of(logits[expert]) : 0;
    }
    if (p.scoring == SCORING_SOFTMAX) {
      uint32_t best = 0;
#pragma unroll
      for (uint32_t i = 0; i < kValues; i++) best = max(best, key[i]);
      softmax.greatest = value_of(ptx::redux_max(best));
#pragma unroll
      for (uint32_t i = 0; i < kValues; i++) {
        if (key[i] != 0) softmax.sum += expf(value_of(key[i]) - softmax.greatest);
      }
      softmax.sum = warp_sum(softmax.sum);
    }
  }

  uint32_t chosen = kNone;
  if (p.table != 0) {
    chosen = look_up(p, token);
  } else {
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
      if (lane == k) chosen = lowest;
    }
  }

  float weight = 0.f;
  if (p.scoring == SCORING_SPARSEMIXER)
    weight = sparse_mixer(p, logits, chosen);
  else if (chosen != kNone)
    weight = score_of(p, capped(p, logits[chosen]), softmax);
  weight = finish_weight(p, weight, chosen);
  if (lane < p.top_k) {
    device_pointer<int32_t>(p.topk_ids)[token * p.ids_stride + lane] = (int32_t)chosen;
    device_pointer<float>(p.topk_weights)[token * p.weights_stride + lane] = weight;
  }
}

template <uint32_t kValues>
struct RouteStorage {
  float values[ROUTER_THREADS / 32][kValues * 32];
};
static_assert(sizeof(RouteStorage<1>) == ROUTER_VALUE_BYTES * 32, "the host passes as much for each expert");

template <uint32_t kValues>
__device__ __forceinline__ void route(const RouterTopKArgs& p) {
  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  constexpr uint32_t kWarps = ROUTER_THREADS / 32;
  const uint32_t num_tokens = token_count(p.num_tokens), warp = threadIdx.x / 32;
  float* values = p.prepared ? shared_storage<RouteStorage<kValues>>().values[warp] : nullptr;
  const uint64_t step = (uint64_t)gridDim.x * kWarps;
  for (uint64_t token = (uint64_t)blockIdx.x * kWarps + warp; token < num_tokens; token += step)
    route_token<kValues>(p, token, values);
}

KERNEL(router_topk_64, ROUTER_THREADS, 12, const __grid_constant__ RouterTopKArgs p) { route<2>(p); }
KERNEL(router_topk_128, ROUTER_THREADS, 12, const __grid_constant__ RouterTopKArgs p) { route<4>(p); }
KERNEL(router_topk_256, ROUTER_THREADS, 12, const __grid_constant__ RouterTopKArgs p) { route<8>(p); }
KERNEL(router_topk_512, ROUTER_THREADS, 9, const __grid_constant__ RouterTopKArgs p) { route<16>(p); }
KERNEL(router_topk_1024, ROUTER_THREADS, 5, const __grid_constant__ RouterTopKArgs p) { route<32>(p); }
