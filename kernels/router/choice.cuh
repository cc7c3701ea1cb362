// What experts are chosen by, where it is not the logits as they lie in memory.
#pragma once
#include "ptx/memory.cuh"
#include "router/scores.cuh"
#include "tile/float16.cuh"

// sqrt(mean(x^2) + eps)
__device__ __forceinline__ float input_norm(const RouterTopKArgs& p, uint64_t token) {
  const uint16_t* x = device_pointer<const uint16_t>(p.x) + token * p.x_stride;
  float squares = 0.f;
  for (uint32_t h = threadIdx.x % 32 * 8; h < p.hidden_size; h += 32 * 8) {
    const uint4 v = ptx::ld_global_v4_streaming(x + h);
    const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float low = p.x_is_f16 ? Float16<f16>::low(pairs[i]) : Float16<bf16>::low(pairs[i]);
      const float high = p.x_is_f16 ? Float16<f16>::high(pairs[i]) : Float16<bf16>::high(pairs[i]);
      sum += low * low + high * high;
    }
    squares += sum;
  }
  return sqrtf(warp_sum(squares) / (float)p.hidden_size + p.norm_eps);
}

// Gives the experts outside the best groups the value that they have there.  Lane g ranks group g; lanes start at
// different places of their groups, so that they read different banks.
__device__ __forceinline__ void leave_groups(const RouterTopKArgs& p, float* values) {
  const uint32_t lane = threadIdx.x % 32, size = p.num_experts / p.num_groups;
  uint32_t own = 0;
  __syncwarp();  // the values are other lanes'
  if (lane < p.num_groups) {
    uint32_t first = 0, second = 0, place = lane % size;
#pragma unroll 4
    for (uint32_t i = 0; i < size; i++) {
      const uint32_t key = key_of(values[lane * size + place]);
      second = max(second, min(first, key));
      first = max(first, key);
      place = place + 1 == size ? 0 : place + 1;
    }
    own = p.group_score == GROUP_MAX ? first : key_of(value_of(first) + value_of(second));
  }
  __syncwarp();  // read, before they change
  uint32_t rank = 0;
  for (uint32_t g = 0; g < p.num_groups; g++) {
    const uint32_t other = __shfl_sync(kAll, own, (int)g);
    rank += other > own || (other == own && g < lane);
  }
  const uint32_t kept = __ballot_sync(kAll, lane < p.num_groups && rank < p.kept_groups);
#pragma unroll 1
  for (uint32_t e = lane; e < p.num_experts; e += 32) {
    if ((kept >> e / size & 1) == 0) values[e] = p.group_fill;
  }
}

// Makes the logits what they are to be, and `values [E]`, in shared memory, what the choice is made by: capped
// logits, or scores with their bias in the groups that take part.  Lane l makes those of experts l, l + 32, ...
__device__ __forceinline__ Softmax prepare_choice(const RouterTopKArgs& p, uint64_t token, float* logits,
                                                  float* values) {
  const uint32_t lane = threadIdx.x % 32;
  const float* bias = device_pointer<const float>(p.bias);
  const float* selection_bias = device_pointer<const float>(p.selection_bias);
  const float norm = p.x != 0 ? input_norm(p, token) : 1.f;
  uint32_t best = 0;
#pragma unroll 1
  for (uint32_t e = lane; e < p.num_experts; e += 32) {
    float logit = logits[e];
    if (p.x != 0) logit /= norm;
    if (bias != nullptr) logit += bias[e];
    if (p.x != 0 || bias != nullptr) logits[e] = logit;
    logit = capped(p, logit);
    values[e] = logit;
    best = max(best, key_of(logit));
  }
  Softmax softmax = {};
  if (p.scoring == SCORING_SOFTMAX) {
    softmax.greatest = value_of(ptx::redux_max(best));
#pragma unroll 1
    for (uint32_t e = lane; e < p.num_experts; e += 32) softmax.sum += expf(values[e] - softmax.greatest);
    softmax.sum = warp_sum(softmax.sum);
  }
  if (selection_bias != nullptr || p.num_groups != 0) {
#pragma unroll 1
    for (uint32_t e = lane; e < p.num_experts; e += 32) {
      const float score = score_of(p, values[e], softmax);
      values[e] = selection_bias != nullptr ? score + selection_bias[e] : score;
    }
  }
  if (p.num_groups != 0) leave_groups(p, values);
  __syncwarp();  // each lane reads the logit of its choice
  return softmax;
}
