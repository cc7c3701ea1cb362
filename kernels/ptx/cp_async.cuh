// cp.async: copies of 4 to 16 bytes by a thread, through the generic proxy.
// PTX ISA: "Data Movement and Conversion Instructions: Non-bulk copy".
#pragma once
#include "common/device.cuh"

namespace ptx {
// PTX ISA: cp.async.  Bytes past `src_bytes` are zero; with src_bytes = 0 nothing is read.
PTX_INLINE void cp_async_16(uint32_t dst, const void* src, uint32_t src_bytes) {
  PTX("cp.async.cg.shared.global [%0], [%1], 16, %2;", (), (I32(dst), IPTR(src), I32(src_bytes)));
}
PTX_INLINE void cp_async_4(uint32_t dst, const void* src, uint32_t src_bytes) {
  PTX("cp.async.ca.shared.global [%0], [%1], 4, %2;", (), (I32(dst), IPTR(src), I32(src_bytes)));
}
// PTX ISA: cp.async.commit_group
PTX_INLINE void cp_async_commit() { PTX("cp.async.commit_group;", (), ()); }
// PTX ISA: cp.async.wait_group
template <int kPending> PTX_INLINE void cp_async_wait() { PTX("cp.async.wait_group %0;", (), (IMM(kPending))); }
// PTX ISA: cp.async.mbarrier.arrive.  One of the barrier's own count arrivals, once this thread's copies
// have landed; before wgmma reads them, whoever waited must fence_proxy_async_shared().
PTX_INLINE void cp_async_arrive_noinc(uint32_t bar) {
  PTX("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];", (), (I32(bar)));
}
}  // namespace ptx
