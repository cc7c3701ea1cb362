// Conformance: mbarrier, named barriers, election, register reallocation, and the proxies; one block.
#include "micro.cuh"
#include "ptx/convert.cuh"

struct SyncStorage { alignas(1024) uint8_t tile[2048]; uint32_t words[128]; alignas(8) uint64_t bar; };

__device__ __forceinline__ const uint32_t* words_in(const MicroParams& p) { return reinterpret_cast<const uint32_t*>(p.in); }
__device__ __forceinline__ uint32_t* words_out(const MicroParams& p) { return reinterpret_cast<uint32_t*>(p.out); }

// The bytes are announced apart from the arrival.
KERNEL(micro_mbarrier_expect_tx, 128, 1, MICRO_PARAMS) {
  auto& s = shared_storage<SyncStorage>();
  const uint32_t bar = micro_barrier(s.bar, 1), tile = shared_address(s.tile);
  if (threadIdx.x == 0) {
    ptx::mbarrier_expect_tx(bar, 2048);
    ptx::bulk_load(tile, p.in, 1024, bar);
    ptx::bulk_load(tile + 1024, p.in + 4096, 1024, bar);
    ptx::mbarrier_arrive(bar);
  }
  while (!ptx::mbarrier_try_wait(bar, 0)) {}
  ptx::st_global_v4(p.out + threadIdx.x * 16, ptx::ld_shared_v4(tile + threadIdx.x * 16));
}
// Three phases of all threads: in each, a thread passes its word to the thread 37 further on.
KERNEL(micro_mbarrier_phases, 128, 1, MICRO_PARAMS) {
  auto& s = shared_storage<SyncStorage>();
  const uint32_t bar = micro_barrier(s.bar, 128);
  uint32_t v = words_in(p)[threadIdx.x];
  for (uint32_t round = 0; round < 3; round++) {
    s.words[threadIdx.x] = v;
    ptx::mbarrier_arrive(bar);
    while (!ptx::mbarrier_try_wait(bar, round & 1)) {}
    v = s.words[(threadIdx.x + 128 - 37) % 128] + round;
    __syncthreads();
  }
  words_out(p)[threadIdx.x] = v;
}
// The bytes of a barrier serve another barrier, with another count, and then hold a number.
KERNEL(micro_mbarrier_invalidate, 128, 1, MICRO_PARAMS) {
  auto& s = shared_storage<SyncStorage>();
  const uint32_t bar = micro_barrier(s.bar, 1);
  if (threadIdx.x == 5) {
    s.words[0] = words_in(p)[0];
    ptx::mbarrier_arrive(bar);
  }
  ptx::mbarrier_wait(bar, 0);
  const uint32_t first = s.words[0];
  __syncthreads();
  if (threadIdx.x == 0 && !FAULT(86)) ptx::mbarrier_invalidate(bar);
  micro_barrier(s.bar, 64);                                   // phases count from 0 again
  if (threadIdx.x < 64) {
    s.words[threadIdx.x] = words_in(p)[threadIdx.x] + first;
    ptx::mbarrier_arrive(bar);
  }
  ptx::mbarrier_wait(bar, 0);
  const uint32_t second = s.words[threadIdx.x / 2];
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::mbarrier_invalidate(bar);
    s.bar = 0x1234567;
  }
  __syncthreads();
  words_out(p)[threadIdx.x] = second + (uint32_t)s.bar;
}
// Two warps produce and do not stay; two wait, and hand the slots back the same way.
KERNEL(micro_barrier_arrive, 128, 1, MICRO_PARAMS) {
  auto& s = shared_storage<SyncStorage>();
  const uint32_t half = threadIdx.x % 64;
  for (int round = 0; round < 2; round++) {
    if (threadIdx.x < 64) {
      if (round > 0) ptx::barrier_sync(2, 128);
      s.words[half] = words_in(p)[round * 64 + half];
      ptx::barrier_arrive(1, 128);
    } else {
      if (!FAULT(87)) ptx::barrier_sync(1, 128);
      else ptx::barrier_arrive(1, 128);
      words_out(p)[round * 64 + half] = s.words[63 - half];
      if (round == 0) ptx::barrier_arrive(2, 128);
    }
  }
}
// Exactly one lane of each warp, whichever it is.
KERNEL(micro_elect_one, 128, 1, MICRO_PARAMS) {
  const uint32_t chosen = ptx::elect_one() ? 1 : 0;
  words_out(p)[threadIdx.x] = ptx::redux_add(chosen);
}
// One warpgroup gives registers up, two take them.
KERNEL(micro_setmaxnreg, 384, 1, MICRO_PARAMS) {
  if (threadIdx.x < 128) ptx::setmaxnreg_dec<40>();
  else ptx::setmaxnreg_inc<232>();
  words_out(p)[threadIdx.x] = words_in(p)[threadIdx.x] * 3;
}
// Instructions without a result: what is around them is as it was.  No predecessor: the wait returns at once.
KERNEL(micro_no_effect, 128, 1, MICRO_PARAMS) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  ptx::nanosleep(20);
  ptx::prefetch_tensor_map(&map_a);
  words_out(p)[threadIdx.x] = words_in(p)[threadIdx.x] + (ptx::arch() >= 90 ? 1 : 0);
}
// Plain stores to global memory, then a bulk copy of the same bytes.  Scratch lies at p.out + 2048.
KERNEL(micro_fence_proxy_async_global, 128, 1, MICRO_PARAMS) {
  auto& s = shared_storage<SyncStorage>();
  const uint32_t bar = micro_barrier(s.bar, 1), tile = shared_address(s.tile);
  ptx::st_global_v4(p.out + 2048 + threadIdx.x * 16, ptx::ld_global_nc_v4(p.in + (127 - threadIdx.x) * 16));
  if (!FAULT(88)) ptx::fence_proxy_async_global();
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(bar, 2048);
    ptx::bulk_load(tile, p.out + 2048, 2048, bar);
  }
  ptx::mbarrier_wait(bar, 0);
  ptx::st_global_v4(p.out + threadIdx.x * 16, ptx::ld_shared_v4(tile + threadIdx.x * 16));
}
// A tile is overwritten once it has been read, before it has arrived.
KERNEL(micro_bulk_wait_read, 128, 1, MICRO_PARAMS) {
  auto& s = shared_storage<SyncStorage>();
  const uint32_t tile = shared_address(s.tile);
  for (int half = 0; half < 2; half++) {
    ptx::st_shared_v4(tile + threadIdx.x * 16, ptx::ld_global_nc_v4(p.in + half * 2048 + threadIdx.x * 16));
    ptx::fence_proxy_async_shared();
    __syncthreads();
    if (threadIdx.x == 0) {
      ptx::bulk_store(p.out + half * 2048, tile, 2048);
      ptx::bulk_commit();
      if (!FAULT(89)) ptx::bulk_wait_read<0>();
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) ptx::bulk_wait<0>();
}
