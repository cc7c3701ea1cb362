// What the micro-kernels of the conformance suite share: one signature, one wrapper or layout each.
#pragma once
#include "common/types.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"

struct MicroParams { const uint8_t* in; uint8_t* out; };
#define MICRO_PARAMS const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b, const __grid_constant__ MicroParams p

// One barrier of one arrival, initialised by thread 0 and visible to all.
__device__ __forceinline__ uint32_t micro_barrier(uint64_t& storage, uint32_t count) {
  const uint32_t bar = shared_address(&storage);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(bar, count);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  return bar;
}
