// How many tokens a launch really has.
#pragma once
#include "abi.h"
#include "common/types.cuh"

// After grid_dependency_wait(): an earlier kernel may write the number.
__device__ __forceinline__ uint32_t token_count(const TokenCount& count) {
  return count.device == 0 ? count.host : min(*device_pointer<const uint32_t>(count.device), count.host);
}
