// Loads and stores of 16 bytes, cache policies, and memory order between blocks.
//
// 16-byte accesses go through these so that the emulator sees them whole: a compiler may split a struct copy.
#pragma once
#include "common/device.cuh"

namespace ptx {
// PTX ISA: ld.global.nc.  Read-only data; 16-byte aligned.
PTX_INLINE uint4 ld_global_nc_v4(const void* p) {
  uint4 r;
  PTX("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];", (O32(r.x), O32(r.y), O32(r.z), O32(r.w)), (IPTR(p)));
  return r;
}
// The same for data that is read once: it does not stay in L1.
PTX_INLINE uint4 ld_global_nc_v4_streaming(const void* p) {
  uint4 r;
  PTX("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];", (O32(r.x), O32(r.y), O32(r.z), O32(r.w)),
      (IPTR(p)));
  return r;
}
// The same under a cache policy.
PTX_INLINE uint4 ld_global_nc_v4_policy(const void* p, uint64_t policy) {
  uint4 r;
  PTX("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;",
      (O32(r.x), O32(r.y), O32(r.z), O32(r.w)), (IPTR(p), I64(policy)));
  return r;
}
// PTX ISA: ld.global.  For what an earlier kernel wrote: .nc is for memory that nobody writes while the kernel runs,
// and a dependent launch starts while its predecessor still writes.
PTX_INLINE uint4 ld_global_v4_streaming(const void* p) {
  uint4 r;
  PTX("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];", (O32(r.x), O32(r.y), O32(r.z), O32(r.w)), (IPTR(p)));
  return r;
}
// PTX ISA: st.global
PTX_INLINE void st_global_v4(void* p, uint4 v) {
  PTX("st.global.v4.u32 [%0], {%1, %2, %3, %4};", (), (IPTR(p), I32(v.x), I32(v.y), I32(v.z), I32(v.w)));
}
PTX_INLINE void st_global_b16(void* p, uint16_t v) { PTX("st.global.b16 [%0], %1;", (), (IPTR(p), I16(v))); }
PTX_INLINE void st_global_b64(void* p, uint64_t v) { PTX("st.global.b64 [%0], %1;", (), (IPTR(p), I64(v))); }
// Of words that may be integers: the emulator takes those of st_global_v4 for floats.
PTX_INLINE void st_global_v4_b32(void* p, uint4 v) {
  PTX("st.global.v4.b32 [%0], {%1, %2, %3, %4};", (), (IPTR(p), I32(v.x), I32(v.y), I32(v.z), I32(v.w)));
}
// PTX ISA: createpolicy
PTX_INLINE uint64_t policy_evict_first() {
  uint64_t r;
  PTX("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;", (O64(r)), ());
  return r;
}
PTX_INLINE uint64_t policy_evict_last() {
  uint64_t r;
  PTX("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;", (O64(r)), ());
  return r;
}
// PTX ISA: prefetch
PTX_INLINE void prefetch_l2(const void* p) { PTX("prefetch.global.L2 [%0];", (), (IPTR(p))); }

// PTX ISA: ld.shared, st.shared
PTX_INLINE uint4 ld_shared_v4(uint32_t addr) {
  uint4 r;
  PTX("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];", (O32(r.x), O32(r.y), O32(r.z), O32(r.w)), (I32(addr)));
  return r;
}
PTX_INLINE void st_shared_v4(uint32_t addr, uint4 v) {
  PTX("st.shared.v4.u32 [%0], {%1, %2, %3, %4};", (), (I32(addr), I32(v.x), I32(v.y), I32(v.z), I32(v.w)));
}
// In a block of the cluster (addr from map_to_rank)
PTX_INLINE uint32_t ld_cluster(uint32_t addr) {
  uint32_t r;
  PTX("ld.shared::cluster.u32 %0, [%1];", (O32(r)), (I32(addr)));
  return r;
}
PTX_INLINE void st_cluster(uint32_t addr, uint32_t v) {
  PTX("st.shared::cluster.u32 [%0], %1;", (), (I32(addr), I32(v)));
}
// PTX ISA: st.async.  A remote store that counts towards the remote barrier's bytes.
PTX_INLINE void st_async(uint32_t addr, uint32_t v, uint32_t bar) {
  PTX("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32 [%0], %1, [%2];", (),
      (I32(addr), I32(v), I32(bar)));
}

// PTX ISA: "Memory Consistency Model"; ld, st, atom, red with .acquire, .release and .gpu
PTX_INLINE uint32_t ld_acquire(const uint32_t* p) {
  uint32_t r;
  PTX("ld.acquire.gpu.global.u32 %0, [%1];", (O32(r)), (IPTR(p)));
  return r;
}
PTX_INLINE uint32_t ld_relaxed(const uint32_t* p) {
  uint32_t r;
  PTX("ld.relaxed.gpu.global.u32 %0, [%1];", (O32(r)), (IPTR(p)));
  return r;
}
PTX_INLINE void st_release(uint32_t* p, uint32_t v) {
  PTX("st.release.gpu.global.u32 [%0], %1;", (), (IPTR(p), I32(v)));
}
PTX_INLINE void st_relaxed(uint32_t* p, uint32_t v) {
  PTX("st.relaxed.gpu.global.u32 [%0], %1;", (), (IPTR(p), I32(v)));
}
PTX_INLINE void red_add_release(uint32_t* p, uint32_t v) {
  PTX("red.release.gpu.global.add.u32 [%0], %1;", (), (IPTR(p), I32(v)));
}
PTX_INLINE void red_add_float(float* p, float v) {
  PTX("red.relaxed.gpu.global.add.f32 [%0], %1;", (), (IPTR(p), IF32(v)));
}
PTX_INLINE uint32_t atom_add_acq_rel(uint32_t* p, uint32_t v) {
  uint32_t r;
  PTX("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;", (O32(r)), (IPTR(p), I32(v)));
  return r;
}
PTX_INLINE uint32_t atom_add_relaxed(uint32_t* p, uint32_t v) {
  uint32_t r;
  PTX("atom.relaxed.gpu.global.add.u32 %0, [%1], %2;", (O32(r)), (IPTR(p), I32(v)));
  return r;
}
}  // namespace ptx
