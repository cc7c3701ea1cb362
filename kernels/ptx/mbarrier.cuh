// mbarrier.  PTX ISA: "Parallel Synchronization and Communication Instructions: mbarrier".
//
// `bar` is an address in the shared window (shared_address).  Barriers are touched by these alone.
#pragma once
#include "common/device.cuh"

namespace ptx {
// PTX ISA: mbarrier.init
PTX_INLINE void mbarrier_init(uint32_t bar, uint32_t count) {
  PTX("mbarrier.init.shared::cta.b64 [%0], %1;", (), (I32(bar), I32(count)));
}
// PTX ISA: mbarrier.inval.  Before the bytes are used for anything else.
PTX_INLINE void mbarrier_invalidate(uint32_t bar) { PTX("mbarrier.inval.shared::cta.b64 [%0];", (), (I32(bar))); }
// PTX ISA: membar/fence.  After init, before the cluster or the async proxy uses the barrier.
PTX_INLINE void fence_mbarrier_init() { PTX("fence.mbarrier_init.release.cluster;", (), ()); }

// PTX ISA: mbarrier.arrive
PTX_INLINE void mbarrier_arrive(uint32_t bar) {
  PTX("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];", (), (I32(bar)));
}
// PTX ISA: mbarrier.arrive, of a block of the cluster (`bar` from map_to_rank)
PTX_INLINE void mbarrier_arrive_cluster(uint32_t bar) {
  PTX("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];", (), (I32(bar)));
}
// PTX ISA: mbarrier.arrive, with the bytes that the phase waits for
PTX_INLINE void mbarrier_arrive_expect_tx(uint32_t bar, uint32_t bytes) {
  PTX("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;", (), (I32(bar), I32(bytes)));
}
PTX_INLINE void mbarrier_arrive_expect_tx_cluster(uint32_t bar, uint32_t bytes) {
  PTX("mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%0], %1;", (), (I32(bar), I32(bytes)));
}
// PTX ISA: mbarrier.expect_tx
PTX_INLINE void mbarrier_expect_tx(uint32_t bar, uint32_t bytes) {
  PTX("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;", (), (I32(bar), I32(bytes)));
}
// PTX ISA: mbarrier.try_wait.  May return false at any time.
PTX_INLINE bool mbarrier_try_wait(uint32_t bar, uint32_t parity) {
  uint32_t done;
  PTX("{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
      "selp.b32 %0, 1, 0, p;\n}",
      (O32(done)), (I32(bar), I32(parity)));
  return done != 0;
}
// The same, acquiring what other blocks of the cluster released.
PTX_INLINE bool mbarrier_try_wait_cluster(uint32_t bar, uint32_t parity) {
  uint32_t done;
  PTX("{\n.reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
      "selp.b32 %0, 1, 0, p;\n}",
      (O32(done)), (I32(bar), I32(parity)));
  return done != 0;
}
PTX_INLINE void mbarrier_wait(uint32_t bar, uint32_t parity) {
  while (!mbarrier_try_wait(bar, parity)) {}
}
PTX_INLINE void mbarrier_wait_cluster(uint32_t bar, uint32_t parity) {
  while (!mbarrier_try_wait_cluster(bar, parity)) {}
}
}  // namespace ptx
