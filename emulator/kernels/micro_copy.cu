// Conformance: copies of every kind, one block of 128 threads.  Tiles are loaded, then written out as they lie.
#include "micro.cuh"

struct CopyStorage { alignas(1024) uint8_t tile[8192]; alignas(128) TensorMap map; alignas(8) uint64_t bar; };

__device__ __forceinline__ void write_out(const CopyStorage& s, uint8_t* out, int bytes) {
  for (int i = threadIdx.x * 16; i < bytes; i += 128 * 16) ptx::st_global_v4(out + i, ptx::ld_shared_v4(shared_address(s.tile) + i));
}
#define LOAD(name, bytes, call)                              \
  KERNEL(micro_##name, 128, 1, MICRO_PARAMS) {               \
    auto& s = shared_storage<CopyStorage>();                 \
    const uint32_t bar = micro_barrier(s.bar, 1);            \
    const uint32_t tile = shared_address(s.tile);            \
    if (threadIdx.x == 0) {                                  \
      ptx::mbarrier_arrive_expect_tx(bar, bytes);            \
      call;                                                  \
    }                                                        \
    ptx::mbarrier_wait(bar, 0);                              \
    write_out(s, p.out, bytes);                              \
  }
// The boxes hang over the edges of their tensors: the parts outside are zero.
LOAD(tma_load_1d, 128, ptx::tma_load_1d(tile, &map_a, -8, bar))
LOAD(tma_load_2d, 4096, ptx::tma_load_2d(tile, &map_a, 32, 5, bar))
LOAD(tma_load_2d_swizzle_32, 1024, ptx::tma_load_2d(tile, &map_a, 16, -1, bar))
LOAD(tma_load_2d_swizzle_64, 2048, ptx::tma_load_2d(tile, &map_a, 32, -1, bar))
LOAD(tma_load_2d_swizzle_128, 4096, ptx::tma_load_2d(tile, &map_a, 32, -1, bar))
LOAD(tma_load_2d_policy, 4096, ptx::tma_load_2d_policy(tile, &map_a, 0, 0, bar, ptx::policy_evict_first()))
LOAD(tma_load_3d, 2048, ptx::tma_load_3d(tile, &map_a, 8, 3, 1, bar))
LOAD(tma_load_4d, 2048, ptx::tma_load_4d(tile, &map_a, 8, 1, 0, 2, bar))
LOAD(tma_load_5d, 2048, ptx::tma_load_5d(tile, &map_a, 8, 1, 0, 1, -1, bar))
// A ragged map: rows 8 to 40 of a group of twenty that begins at row 10 of the tensor; zero past the group's end.
LOAD(tma_load_4d_ragged, 4096, ptx::tma_load_4d(tile, &map_a, 0, (1 << 30) - 20 + 8, 10 + 20, 1 << 30, bar))
LOAD(bulk_load, 1024, ptx::bulk_load(tile, p.in + 64, 1024, bar))

#define STORE(name, bytes, call)                                                                    \
  KERNEL(micro_##name, 128, 1, MICRO_PARAMS) {                                                      \
    auto& s = shared_storage<CopyStorage>();                                                        \
    const uint32_t tile = shared_address(s.tile);                                                   \
    for (int i = threadIdx.x * 16; i < bytes; i += 128 * 16) ptx::st_shared_v4(tile + i, ptx::ld_global_nc_v4(p.in + i)); \
    ptx::fence_proxy_async_shared();                                                                \
    __syncthreads();                                                                                \
    if (threadIdx.x == 0) {                                                                         \
      call;                                                                                         \
      ptx::bulk_commit();                                                                           \
      ptx::bulk_wait<0>();                                                                          \
    }                                                                                               \
  }
STORE(tma_store_2d, 4096, ptx::tma_store_2d(&map_b, 32, 5, tile))
STORE(tma_store_3d, 2048, ptx::tma_store_3d(&map_b, 8, 3, 1, tile))
STORE(tma_store_4d, 2048, ptx::tma_store_4d(&map_b, 8, 1, 0, 2, tile))
STORE(tma_reduce_add_2d, 4096, ptx::tma_reduce_add_2d(&map_b, 16, 5, tile))
STORE(tma_reduce_add_2d_f16, 2048, ptx::tma_reduce_add_2d(&map_b, 16, 5, tile))
STORE(tma_reduce_add_2d_bf16, 2048, ptx::tma_reduce_add_2d(&map_b, 16, 5, tile))
STORE(tma_reduce_add_2d_i32, 4096, ptx::tma_reduce_add_2d(&map_b, 16, 5, tile))
STORE(bulk_store, 1024, ptx::bulk_store(p.out + 64, tile, 1024))
STORE(bulk_reduce_add_f32, 1024, ptx::bulk_reduce_add_f32(p.out + 64, tile, 1024))

// 16 bytes per thread, of which 16, 12, 8 or 4 are read.
KERNEL(micro_cp_async_16, 128, 1, MICRO_PARAMS) {
  auto& s = shared_storage<CopyStorage>();
  ptx::cp_async_16(shared_address(s.tile) + threadIdx.x * 16, p.in + threadIdx.x * 16, 16 - threadIdx.x % 4 * 4);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();
  write_out(s, p.out, 2048);
}
KERNEL(micro_cp_async_4, 128, 1, MICRO_PARAMS) {
  auto& s = shared_storage<CopyStorage>();
  ptx::cp_async_4(shared_address(s.tile) + threadIdx.x * 4, p.in + (127 - threadIdx.x) * 4, threadIdx.x % 3 ? 4 : 0);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncthreads();
  write_out(s, p.out, 512);
}
// The arrival of cp.async on an mbarrier, waited for by all.
KERNEL(micro_cp_async_arrive, 128, 1, MICRO_PARAMS) {
  auto& s = shared_storage<CopyStorage>();
  const uint32_t bar = micro_barrier(s.bar, 128);
  ptx::cp_async_16(shared_address(s.tile) + threadIdx.x * 16, p.in + (threadIdx.x ^ 5) * 16, 16);
  ptx::cp_async_arrive_noinc(bar);
  ptx::mbarrier_wait(bar, 0);
  write_out(s, p.out, 2048);
}
// A tensor map whose address, second extent and row stride are replaced on the device: out gets the tile that
// the new map describes.  Scratch for the map lies at p.out + 8192.
KERNEL(micro_tensor_map_replace, 128, 1, MICRO_PARAMS) {
  auto& s = shared_storage<CopyStorage>();
  const uint32_t bar = micro_barrier(s.bar, 1), map = shared_address(&s.map);
  auto* published = reinterpret_cast<TensorMap*>(p.out + 8192);
  if (threadIdx.x < 32) {
    if (threadIdx.x < 8) {
      const auto* from = reinterpret_cast<const uint4*>(&map_a);
      ptx::st_shared_v4(map + threadIdx.x * 16, from[threadIdx.x]);
    }
    __syncwarp();
    if (threadIdx.x == 0) {
      ptx::tensor_map_set_address(map, p.in + 256);
      ptx::tensor_map_set_dim<1>(map, 9);
      ptx::tensor_map_set_stride<0>(map, 160);
    }
    __syncwarp();
    ptx::tensor_map_publish(published, map);
    if (threadIdx.x == 0) {
      if (!FAULT(80)) ptx::tensor_map_acquire(published);
      ptx::mbarrier_arrive_expect_tx(bar, 4096);
      ptx::tma_load_2d(shared_address(s.tile), published, 0, 0, bar);
    }
  }
  ptx::mbarrier_wait(bar, 0);
  write_out(s, p.out, 4096);
}
// Loads of 16 bytes by each of the global wrappers.
KERNEL(micro_loads, 128, 1, MICRO_PARAMS) {
  const uint8_t* in = p.in + threadIdx.x * 16;
  const uint64_t policy = ptx::policy_evict_last();
  ptx::prefetch_l2(in);
  const uint4 a = ptx::ld_global_nc_v4(in), b = ptx::ld_global_nc_v4_streaming(in), c = ptx::ld_global_nc_v4_policy(in, policy);
  const uint4 d = ptx::ld_global_v4_streaming(in);
  ptx::st_global_v4(p.out + threadIdx.x * 16, make_uint4(a.x, b.y, c.z, a.w ^ b.w ^ d.w));
}
// Stores of 2, 8 and 16 bytes.
KERNEL(micro_stores, 128, 1, MICRO_PARAMS) {
  const int t = threadIdx.x;
  ptx::st_global_b16(p.out + t * 2, reinterpret_cast<const uint16_t*>(p.in)[127 - t]);
  ptx::st_global_b64(p.out + 256 + t * 8, reinterpret_cast<const uint64_t*>(p.in)[t ^ 1]);
  ptx::st_global_v4_b32(p.out + 1280 + t * 16, ptx::ld_global_nc_v4(p.in + (t ^ 3) * 16));
}
