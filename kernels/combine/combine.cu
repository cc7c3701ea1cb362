// Combine: each token's expert rows, weighted and summed, and what else is part of its output.
//
//   for t in 0 .. T, h in 0 .. H:
//     sum = accumulate ? out[t, h] : 0
//     for k in 0 .. K:
//       row = row_of_assignment[t * K + k]
//       if row != NOT_ROUTED:
//         sum += scale * topk_weights[t, k] * rows[row, h]
//       else if topk_ids[t, k] is an expert without weights:
//         sum += scale * topk_weights[t, k] * x[t, h]
//     if there are shared rows:
//       sum += shared_scale * shared_weights[t] * shared[t, h]
//     if there is a bias:
//       sum += bias[h]
//     out[t, h] = round(sum), unless accumulating without any term
//
// Departures:
// 1. A thread sums 8 columns, in 16-byte loads and stores.
// 2. Lane k of each warp reads the row and the weight of choice k (K <= 32), and tells the others.
// 3. Rows are loaded kAhead at a time, before the first of them is added; the sums keep the order of k.
// 4. Any number of blocks does: they stride over the tokens, whose number only the device may know.
// 5. What terms there are is known at run time, and the same for all threads.
#include "abi.h"
#include "common/types.cuh"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "tile/float16.cuh"
#include "tile/token_count.cuh"

constexpr uint32_t kAhead = 4;
constexpr uint32_t kInput = NOT_ROUTED - 1;  // as a row: the token itself

template <class T>
__device__ __forceinline__ void add(float (&sum)[8], float weight, uint4 v) {
  const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    sum[2 * i] = __fmaf_rn(weight, Float16<T>::low(pairs[i]), sum[2 * i]);
    sum[2 * i + 1] = __fmaf_rn(weight, Float16<T>::high(pairs[i]), sum[2 * i + 1]);
  }
}

template <class T>
__device__ __forceinline__ void combine_tokens(const CombineArgs& p) {
  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  const uint32_t all = 0xffffffffu, lane = threadIdx.x % 32;
  const uint32_t column = (blockIdx.y * ROW_THREADS + threadIdx.x) * 8;
  if (column - lane * 8 >= p.hidden_size) return;   // whole warps
  const bool has_columns = column < p.hidden_size;  // a lane without helps with the shuffles all the same
  const uint16_t* rows = device_pointer<const uint16_t>(p.rows) + column;
  uint16_t* out = device_pointer<uint16_t>(p.out) + column;
  const uint32_t* row_of_assignment = device_pointer<const uint32_t>(p.row_of_assignment);
  const uint32_t num_tokens = token_count(p.num_tokens);

  for (uint64_t token = blockIdx.x; token < num_tokens; token += gridDim.x) {
    const uint16_t* x = device_pointer<const uint16_t>(p.x) + token * p.x_stride + column;
    uint32_t own_row = lane < p.top_k ? row_of_assignment[token * p.top_k + lane] : NOT_ROUTED;
    if (p.x != 0 && lane < p.top_k && own_row == NOT_ROUTED) {
      const uint32_t id = (uint32_t)device_pointer<const int32_t>(p.topk_ids)[token * p.ids_stride + lane];
      if (id - p.zero_first < p.zero_end - p.zero_first) own_row = kInput;
    }
    float own_weight = 0.f;
    if (own_row != NOT_ROUTED) {
      own_weight = p.scale;
      if (p.topk_weights != 0)
        own_weight *= device_pointer<const float>(p.topk_weights)[token * p.weights_stride + lane];
    }
    uint16_t* target = out + token * p.out_stride;
    const bool any_term = p.shared != 0 || p.bias != 0 || __ballot_sync(all, own_row != NOT_ROUTED) != 0;
    if (p.accumulate && !any_term) continue;  // rounding could change a NaN's bits

    float sum[8] = {};
    if (p.accumulate && has_columns) {
      const uint4 before = ptx::ld_global_v4_streaming(target);
      add<T>(sum, 1.f, before);
    }
    for (uint32_t k = 0; k < p.top_k; k += kAhead) {
      uint32_t row[kAhead];
      uint4 values[kAhead];
#pragma unroll
      for (uint32_t i = 0; i < kAhead; i++) {
        row[i] = __shfl_sync(all, own_row, (int)(k + i));  // lanes from K on hold NOT_ROUTED
        const uint16_t* from = row[i] == kInput ? x : rows + row[i] * p.rows_stride;
        if (row[i] != NOT_ROUTED && has_columns) values[i] = ptx::ld_global_v4_streaming(from);
      }
#pragma unroll
      for (uint32_t i = 0; i < kAhead; i++) {
        const float weight = __shfl_sync(all, own_weight, (int)(k + i));
        if (row[i] != NOT_ROUTED && has_columns) add<T>(sum, weight, values[i]);
      }
    }
    if (p.shared != 0 && has_columns) {
      const uint16_t* shared = device_pointer<const uint16_t>(p.shared) + token * p.shared_stride + column;
      float weight = p.shared_scale;
      if (p.shared_weights != 0)
        weight *= device_pointer<const float>(p.shared_weights)[token * p.shared_weights_stride];
      add<T>(sum, weight, ptx::ld_global_v4_streaming(shared));
    }
    if (p.bias != 0 && has_columns) {
      const float* bias = device_pointer<const float>(p.bias) + column;
#pragma unroll
      for (uint32_t i = 0; i < 8; i++) sum[i] += bias[i];
    }
    if (has_columns) {
      ptx::st_global_v4(target, make_uint4(Float16<T>::pack(sum[0], sum[1]), Float16<T>::pack(sum[2], sum[3]),
                                           Float16<T>::pack(sum[4], sum[5]), Float16<T>::pack(sum[6], sum[7])));
    }
  }
}

KERNEL(combine_bf16, ROW_THREADS, 1, const __grid_constant__ CombineArgs p) { combine_tokens<bf16>(p); }
KERNEL(combine_f16, ROW_THREADS, 1, const __grid_constant__ CombineArgs p) { combine_tokens<f16>(p); }
