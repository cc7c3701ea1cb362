// Conformance: memory order and atomics between blocks.  Four blocks of 32 threads, a cluster, so that all are
// resident and may wait for one another.  Flags and counters lie at p.out + 4096 and begin as zero.
#include "micro.cuh"

__device__ __forceinline__ uint32_t* order_flags(const MicroParams& p) { return reinterpret_cast<uint32_t*>(p.out + 4096); }

// A chain: each block adds its input to what its predecessor wrote with plain stores.
KERNEL(micro_release_acquire, 32, 1, MICRO_PARAMS) {
  const auto* in = reinterpret_cast<const uint32_t*>(p.in);
  auto* out = reinterpret_cast<uint32_t*>(p.out);
  const uint32_t rank = blockIdx.x, at = rank * 32 + threadIdx.x;
  uint32_t before = 0;
  if (rank > 0) {
    if (threadIdx.x == 0) while (ptx::ld_acquire(order_flags(p)) != rank) {}
    __syncthreads();
    before = out[at - 31 - threadIdx.x % 2 * 2];              // of another thread; 31 and 33 back
  }
  out[at] = before + in[at];
  __syncthreads();
  if (threadIdx.x == 0) {
    if (FAULT(108)) ptx::st_relaxed(order_flags(p), rank + 1);
    else ptx::st_release(order_flags(p), rank + 1);
  }
}
// The same by fences around relaxed accesses, each thread with its own flag.
KERNEL(micro_relaxed_fences, 32, 1, MICRO_PARAMS) {
  const auto* in = reinterpret_cast<const uint32_t*>(p.in);
  auto* out = reinterpret_cast<uint32_t*>(p.out);
  const uint32_t rank = blockIdx.x, at = rank * 32 + threadIdx.x;
  uint32_t before = 0;
  if (rank > 0) {
    while (ptx::ld_relaxed(order_flags(p) + at - 32) == 0) {}
    if (!FAULT(109)) ptx::fence_acq_rel_gpu();
    before = out[at - 32];
  }
  out[at] = before * 2 + in[at];
  ptx::fence_acq_rel_gpu();
  ptx::st_relaxed(order_flags(p) + at, 1);
}
// Sums and tickets: words 0 to 7 are float sums, 8 to 135 marks of tickets, 136 the last block's sum of the
// partials, 137 that of block 0, which waits for a counter.
KERNEL(micro_atomics, 32, 1, MICRO_PARAMS) {
  const auto* in = reinterpret_cast<const uint32_t*>(p.in);
  auto* out = reinterpret_cast<uint32_t*>(p.out);
  uint32_t* counters = order_flags(p);
  uint32_t* partials = counters + 32;
  const uint32_t v = in[blockIdx.x * 32 + threadIdx.x];
  ptx::red_add_float(reinterpret_cast<float*>(p.out) + threadIdx.x % 8, (float)v);
  out[8 + ptx::atom_add_relaxed(counters, 1)] = 1;
  if (threadIdx.x != 0) return;
  partials[blockIdx.x] = v;
  const uint32_t ticket = FAULT(110) ? ptx::atom_add_relaxed(counters + 1, 1) : ptx::atom_add_acq_rel(counters + 1, 1);
  if (ticket == 3) out[136] = partials[0] + partials[1] + partials[2] + partials[3];
  partials[4 + blockIdx.x] = v * 2;
  ptx::red_add_release(counters + 2, 1);
  if (blockIdx.x != 0) return;
  while (ptx::ld_acquire(counters + 2) != 4) {}
  out[137] = partials[4] + partials[5] + partials[6] + partials[7];
}
