// Bulk and tensor copies, and tensor maps changed on the device.
// PTX ISA: "Data Movement and Conversion Instructions: Bulk copy", "... Tensor copy".
#pragma once
#include "common/types.cuh"

namespace ptx {
// PTX ISA: prefetch, prefetchu
PTX_INLINE void prefetch_tensor_map(const TensorMap* m) { PTX("prefetch.tensormap [%0];", (), (IPTR(m))); }

// PTX ISA: cp.async.bulk.tensor.  A box at (x, y, ...) into shared memory; `bar` counts its bytes.
#define MOE_TILE_LOAD(dim, modifier) \
  "cp.async.bulk.tensor." dim ".shared::cluster.global.tile.mbarrier::complete_tx::bytes" modifier
PTX_INLINE void tma_load_1d(uint32_t dst, const TensorMap* m, int x, uint32_t bar) {
  PTX(MOE_TILE_LOAD("1d", "") " [%0], [%1, {%2}], [%3];", (), (I32(dst), IPTR(m), I32(x), I32(bar)));
}
PTX_INLINE void tma_load_2d(uint32_t dst, const TensorMap* m, int x, int y, uint32_t bar) {
  PTX(MOE_TILE_LOAD("2d", "") " [%0], [%1, {%2, %3}], [%4];", (), (I32(dst), IPTR(m), I32(x), I32(y), I32(bar)));
}
PTX_INLINE void tma_load_3d(uint32_t dst, const TensorMap* m, int x, int y, int z, uint32_t bar) {
  PTX(MOE_TILE_LOAD("3d", "") " [%0], [%1, {%2, %3, %4}], [%5];", (),
      (I32(dst), IPTR(m), I32(x), I32(y), I32(z), I32(bar)));
}
PTX_INLINE void tma_load_4d(uint32_t dst, const TensorMap* m, int x, int y, int z, int w, uint32_t bar) {
  PTX(MOE_TILE_LOAD("4d", "") " [%0], [%1, {%2, %3, %4, %5}], [%6];", (),
      (I32(dst), IPTR(m), I32(x), I32(y), I32(z), I32(w), I32(bar)));
}
PTX_INLINE void tma_load_5d(uint32_t dst, const TensorMap* m, int x, int y, int z, int w, int v, uint32_t bar) {
  PTX(MOE_TILE_LOAD("5d", "") " [%0], [%1, {%2, %3, %4, %5, %6}], [%7];", (),
      (I32(dst), IPTR(m), I32(x), I32(y), I32(z), I32(w), I32(v), I32(bar)));
}
// Under a cache policy.
PTX_INLINE void tma_load_2d_policy(uint32_t dst, const TensorMap* m, int x, int y, uint32_t bar, uint64_t policy) {
  PTX(MOE_TILE_LOAD("2d", ".L2::cache_hint") " [%0], [%1, {%2, %3}], [%4], %5;", (),
      (I32(dst), IPTR(m), I32(x), I32(y), I32(bar), I64(policy)));
}
// To the same place in every block of the cluster whose bit of `blocks` is set.
PTX_INLINE void tma_load_2d_multicast(uint32_t dst, const TensorMap* m, int x, int y, uint32_t bar, uint16_t blocks) {
  PTX(MOE_TILE_LOAD("2d", ".multicast::cluster") " [%0], [%1, {%2, %3}], [%4], %5;", (),
      (I32(dst), IPTR(m), I32(x), I32(y), I32(bar), I16(blocks)));
}
PTX_INLINE void tma_load_3d_multicast(uint32_t dst, const TensorMap* m, int x, int y, int z, uint32_t bar,
                                      uint16_t blocks) {
  PTX(MOE_TILE_LOAD("3d", ".multicast::cluster") " [%0], [%1, {%2, %3, %4}], [%5], %6;", (),
      (I32(dst), IPTR(m), I32(x), I32(y), I32(z), I32(bar), I16(blocks)));
}
#undef MOE_TILE_LOAD

// PTX ISA: cp.async.bulk.tensor, to global memory; parts outside the tensor are dropped.
PTX_INLINE void tma_store_2d(const TensorMap* m, int x, int y, uint32_t src) {
  PTX("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];", (),
      (IPTR(m), I32(x), I32(y), I32(src)));
}
PTX_INLINE void tma_store_3d(const TensorMap* m, int x, int y, int z, uint32_t src) {
  PTX("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3}], [%4];", (),
      (IPTR(m), I32(x), I32(y), I32(z), I32(src)));
}
PTX_INLINE void tma_store_4d(const TensorMap* m, int x, int y, int z, int w, uint32_t src) {
  PTX("cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3, %4}], [%5];", (),
      (IPTR(m), I32(x), I32(y), I32(z), I32(w), I32(src)));
}
// PTX ISA: cp.reduce.async.bulk.tensor
PTX_INLINE void tma_reduce_add_2d(const TensorMap* m, int x, int y, uint32_t src) {
  PTX("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%0, {%1, %2}], [%3];", (),
      (IPTR(m), I32(x), I32(y), I32(src)));
}

// PTX ISA: cp.async.bulk.  Contiguous bytes, multiples of 16, 16-byte aligned.
PTX_INLINE void bulk_load(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar) {
  PTX("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];", (),
      (I32(dst), IPTR(src), I32(bytes), I32(bar)));
}
PTX_INLINE void bulk_load_multicast(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar, uint16_t blocks) {
  PTX("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;",
      (), (I32(dst), IPTR(src), I32(bytes), I32(bar), I16(blocks)));
}
PTX_INLINE void bulk_copy_to_cluster(uint32_t dst, uint32_t src, uint32_t bytes, uint32_t bar) {
  PTX("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];", (),
      (I32(dst), I32(src), I32(bytes), I32(bar)));
}
PTX_INLINE void bulk_store(void* dst, uint32_t src, uint32_t bytes) {
  PTX("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;", (), (IPTR(dst), I32(src), I32(bytes)));
}
// PTX ISA: cp.reduce.async.bulk
PTX_INLINE void bulk_reduce_add_f32(void* dst, uint32_t src, uint32_t bytes) {
  PTX("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;", (),
      (IPTR(dst), I32(src), I32(bytes)));
}
// PTX ISA: cp.async.bulk.commit_group, cp.async.bulk.wait_group
PTX_INLINE void bulk_commit() { PTX("cp.async.bulk.commit_group;", (), ()); }
template <int kPending> PTX_INLINE void bulk_wait() { PTX("cp.async.bulk.wait_group %0;", (), (IMM(kPending))); }
// The sources have been read and may be overwritten; the destinations may not have been written.
template <int kPending> PTX_INLINE void bulk_wait_read() {
  PTX("cp.async.bulk.wait_group.read %0;", (), (IMM(kPending)));
}

// PTX ISA: tensormap.replace.  `map` is a copy in shared memory, 128-byte aligned.
PTX_INLINE void tensor_map_set_address(uint32_t map, const void* address) {
  PTX("tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%0], %1;", (), (I32(map), IPTR(address)));
}
template <int kDim> PTX_INLINE void tensor_map_set_dim(uint32_t map, uint32_t size) {
  PTX("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], %1, %2;", (), (I32(map), IMM(kDim), I32(size)));
}
template <int kStride> PTX_INLINE void tensor_map_set_stride(uint32_t map, uint64_t bytes) {
  PTX("tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%0], %1, %2;", (),
      (I32(map), IMM(kStride), I64(bytes)));
}
// PTX ISA: tensormap.cp_fenceproxy.  By a full warp: publishes the map at `dst` in global memory.
PTX_INLINE void tensor_map_publish(TensorMap* dst, uint32_t map) {
  PTX("tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%0], [%1], 128;", (),
      (IPTR(dst), I32(map)));
}
// PTX ISA: fence.proxy.tensormap.  Before the first use of a map that the device has changed.
PTX_INLINE void tensor_map_acquire(const TensorMap* map) {
  PTX("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;", (), (IPTR(map)));
}
}  // namespace ptx
