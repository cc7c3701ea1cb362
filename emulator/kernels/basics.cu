// The smallest kernels: what the crate's example launches.
#include "common/types.cuh"

KERNEL(iota, 1024, 1, uint32_t* out, uint32_t n) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = i;
}
