// Self-test kernel: softmax and top-k routing, one warp per token.  FAULT(n) are deliberate mistakes,
// listed in tests/faults.rs.
#include "common/types.cuh"

template <int kValues>
__device__ __forceinline__ void route(const float* logits, int tokens, int experts, int top_k, int renormalise, int* ids, float* weights) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int token = blockIdx.x * (blockDim.x >> 5) + warp;
  if (token >= tokens) return;                              // whole warps leave together
  const unsigned all = 0xffffffffu;
  float v[kValues];
  float most = -INFINITY;
#pragma unroll
  for (int i = 0; i < kValues; i++) {
    const int e = i * 32 + lane;
    v[i] = e < experts ? logits[(size_t)token * experts + e] : -INFINITY;
    most = fmaxf(most, v[i]);
  }
#pragma unroll
  for (int o = 16; o; o >>= 1) most = fmaxf(most, __shfl_xor_sync(all, most, o));
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < kValues; i++) {
    v[i] = i * 32 + lane < experts ? __expf(v[i] - most) : -1.f;
    if (v[i] > 0.f) sum += v[i];
  }
#pragma unroll
  for (int o = 16; o; o >>= 1) sum += __shfl_xor_sync(all, sum, FAULT(1) && o == 4 ? 8 : o);
  float picked = 0.f, weight = 0.f;
  int id = -1;
  for (int j = 0; j < top_k; j++) {
    float best = -2.f;
    int best_id = 0x7fffffff;
#pragma unroll
    for (int i = 0; i < kValues; i++)
      if (v[i] > best) { best = v[i]; best_id = i * 32 + lane; }
    if (FAULT(2) && lane >= experts) return;
#pragma unroll
    for (int o = 16; o; o >>= 1) {
      const float other = __shfl_xor_sync(all, best, o);
      const int other_id = __shfl_xor_sync(all, best_id, o);
      if (other > best || (other == best && other_id < best_id)) { best = other; best_id = other_id; }
    }
#pragma unroll
    for (int i = 0; i < kValues; i++)
      if (best_id == i * 32 + lane) v[i] = -1.f;
    picked += best;
    if (lane == j) { weight = best; id = best_id; }
  }
  if (lane < top_k) {
    ids[(size_t)token * top_k + lane] = id;
    weights[(size_t)token * top_k + lane] = weight / (renormalise ? picked : sum);
  }
}
KERNEL(test_router_64, 128, 1, const float* logits, int tokens, int experts, int top_k, int renormalise, int* ids, float* weights) {
  route<2>(logits, tokens, experts, top_k, renormalise, ids, weights);
}
KERNEL(test_router_256, 128, 1, const float* logits, int tokens, int experts, int top_k, int renormalise, int* ids, float* weights) {
  route<8>(logits, tokens, experts, top_k, renormalise, ids, weights);
}
