// Named barriers, proxy and scope fences, clusters, election, register reallocation, dependent launch.
#pragma once
#include "ptx/arch.cuh"

namespace ptx {
// PTX ISA: bar, barrier.  Constant ids: with a dynamic one ptxas reserves all sixteen.
PTX_INLINE void barrier_sync(uint32_t id, uint32_t threads) { PTX("bar.sync %0, %1;", (), (I32(id), I32(threads))); }
PTX_INLINE void barrier_arrive(uint32_t id, uint32_t threads) {
  PTX("bar.arrive %0, %1;", (), (I32(id), I32(threads)));
}

// PTX ISA: membar/fence (fence.proxy).  What this thread has written or observed in shared memory through
// the generic proxy becomes visible to TMA and wgmma.
PTX_INLINE void fence_proxy_async_shared() { PTX("fence.proxy.async.shared::cta;", (), ()); }
PTX_INLINE void fence_proxy_async_global() { PTX("fence.proxy.async.global;", (), ()); }
// PTX ISA: membar/fence
PTX_INLINE void fence_acq_rel_gpu() { PTX("fence.acq_rel.gpu;", (), ()); }
PTX_INLINE void fence_acq_rel_cluster() { PTX("fence.acq_rel.cluster;", (), ()); }

// PTX ISA: barrier.cluster
PTX_INLINE void cluster_arrive() { PTX("barrier.cluster.arrive.release.aligned;", (), ()); }
PTX_INLINE void cluster_arrive_relaxed() { PTX("barrier.cluster.arrive.relaxed.aligned;", (), ()); }
PTX_INLINE void cluster_wait() { PTX("barrier.cluster.wait.acquire.aligned;", (), ()); }
PTX_INLINE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
// PTX ISA: special registers, %cluster_ctarank
PTX_INLINE uint32_t cluster_rank() {
  uint32_t r;
  PTX("mov.u32 %0, %%cluster_ctarank;", (O32(r)), ());
  return r;
}
// PTX ISA: mapa.  The address of the same variable in block `rank` of the cluster.
PTX_INLINE uint32_t map_to_rank(uint32_t addr, uint32_t rank) {
  uint32_t r;
  PTX("mapa.shared::cluster.u32 %0, %1, %2;", (O32(r)), (I32(addr), I32(rank)));
  return r;
}

// PTX ISA: elect.sync.  One lane of a full warp.
PTX_INLINE bool elect_one() {
  uint32_t chosen;
  PTX("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.b32 %0, 1, 0, p;\n}", (O32(chosen)), ());
  return chosen != 0;
}

// PTX ISA: setmaxnreg
template <int kRegisters> PTX_INLINE void setmaxnreg_inc() {
  PTX("setmaxnreg.inc.sync.aligned.u32 %0;", (), (IMM(kRegisters)));
}
template <int kRegisters> PTX_INLINE void setmaxnreg_dec() {
  PTX("setmaxnreg.dec.sync.aligned.u32 %0;", (), (IMM(kRegisters)));
}

// PTX ISA: griddepcontrol.  Programmatic dependent launch; nothing below sm_90.
PTX_INLINE void grid_dependency_wait() {
  if (arch() >= 90) PTX("griddepcontrol.wait;", (), ());
}
PTX_INLINE void grid_launch_dependents() {
  if (arch() >= 90) PTX("griddepcontrol.launch_dependents;", (), ());
}
// PTX ISA: nanosleep
PTX_INLINE void nanosleep(uint32_t ns) { PTX("nanosleep.u32 %0;", (), (I32(ns))); }
}  // namespace ptx
