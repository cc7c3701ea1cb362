// Products of a warpgroup over the stages of a ring.
#pragma once
#include "common/types.cuh"
#include "ptx/sync.cuh"
#include "ptx/wgmma.cuh"
#include "tile/ring.cuh"

// A condition that is the same in all lanes, put to the vote: then the compiler knows the branch to be uniform, and
// keeps the ring's place and the descriptors in uniform registers.  Else the main loop has half as many instructions
// again.
__device__ __forceinline__ bool uniform(bool condition) { return __all_sync(0xffffffffu, condition); }

// wgmma by element type; the wrappers tell N from the number of accumulators.
template <class T> struct Wgmma;
template <> struct Wgmma<bf16> {
  template <uint32_t kRegisters>
  static __device__ __forceinline__ void multiply(float (&acc)[kRegisters], uint64_t a, uint64_t b,
                                                  uint32_t accumulate) {
    ptx::wgmma_bf16(acc, a, b, accumulate);
  }
};
template <> struct Wgmma<f16> {
  template <uint32_t kRegisters>
  static __device__ __forceinline__ void multiply(float (&acc)[kRegisters], uint64_t a, uint64_t b,
                                                  uint32_t accumulate) {
    ptx::wgmma_f16(acc, a, b, accumulate);
  }
};

// acc[i] = A_i B^T over `k_tiles` stages of 64 elements of depth: A_i the i-th 64 rows from `a` on, B the rows from `b`
// on, both K-major under the 128-byte swizzle, in stages of kBytesA and kBytesB.  Each warp releases a stage once its
// products are complete, one k-tile later, so that the next products are under way meanwhile.
//
// `issued` is called when the last products are under way and no stage of the tile will be waited for any more.
//
// kFence: cp.async wrote part of the stage.  It writes through the generic proxy and wgmma reads through the async
// proxy; the barrier orders the copies before this thread, the fence orders them before its wgmma.
template <class T, uint32_t kBytesA, uint32_t kBytesB, bool kFence, uint32_t kStages, uint32_t kBlocks,
          uint32_t kRegisters, class Issued>
__device__ __forceinline__ void multiply(Ring<kStages>& ring, float (&acc)[kBlocks][kRegisters], uint32_t a, uint32_t b,
                                         uint32_t k_tiles, Issued issued) {
  constexpr uint32_t kBlockBytes = 64 * 128, kStepBytes = 32, kSteps = 4;
  const bool releases = threadIdx.x % 32 == 0;
  uint32_t previous = 0;
#pragma unroll 1
  for (uint32_t k_tile = 0; k_tile < k_tiles; k_tile++) {
    ring.wait_full();
    if (kFence) ptx::fence_proxy_async_shared();
    // One descriptor for each operand, advanced in units of 16 bytes: encoding each costs a third of the loop.
    const uint64_t descriptor_a = ptx::k_major_128b(a + ring.stage() * kBytesA);
    const uint64_t descriptor_b = ptx::k_major_128b(b + ring.stage() * kBytesB);
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t step = 0; step < kSteps; step++)
#pragma unroll
      for (uint32_t i = 0; i < kBlocks; i++)
        Wgmma<T>::multiply(acc[i], descriptor_a + (i * kBlockBytes + step * kStepBytes) / 16,
                           descriptor_b + step * kStepBytes / 16, (k_tile | step) != 0);
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
    if (k_tile != 0 && releases) ring.release(previous);
    previous = ring.stage();
    ring.advance();
  }
  issued();
  ptx::wgmma_wait<0>();
  if (releases) ring.release(previous);
}

// Consumes a tile's stages without a product.
template <uint32_t kStages> __device__ __forceinline__ void discard(Ring<kStages>& ring, uint32_t k_tiles) {
  for (uint32_t k_tile = 0; k_tile < k_tiles; k_tile++) {
    ring.wait_full();
    __syncwarp();  // a lane that still waits must see this phase
    if (threadIdx.x % 32 == 0) ring.release(ring.stage());
    ring.advance();
  }
}
