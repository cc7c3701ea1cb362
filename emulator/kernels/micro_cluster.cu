// Conformance and self-test: clusters of four blocks of 32 threads.  Out gets 4 x 1024 bytes, one part per block.
#include "micro.cuh"

struct ClusterStorage { alignas(1024) uint8_t tile[1024]; alignas(16) uint32_t words[32]; alignas(8) uint64_t bar; };

__device__ __forceinline__ void write_part(const ClusterStorage& s, uint8_t* out) {
  for (int i = threadIdx.x * 16; i < 1024; i += 512) ptx::st_global_v4(out + ptx::cluster_rank() * 1024 + i, ptx::ld_shared_v4(shared_address(s.tile) + i));
}
// Block 0 sends one tile to blocks 0, 1 and 3; block 2 loads another itself.
KERNEL(micro_tma_load_2d_multicast, 32, 1, MICRO_PARAMS) {
  auto& s = shared_storage<ClusterStorage>();
  const uint32_t bar = micro_barrier(s.bar, 1), rank = ptx::cluster_rank();
  if (threadIdx.x == 0) ptx::mbarrier_arrive_expect_tx(bar, 1024);
  if (!FAULT(81)) ptx::cluster_sync();                      // every barrier is ready before any block signals it
  if (threadIdx.x == 0) {
    if (rank == 0) ptx::tma_load_2d_multicast(shared_address(s.tile), &map_a, 0, 0, bar, FAULT(82) ? 0x9 : 0xb);
    if (rank == 2) ptx::tma_load_2d(shared_address(s.tile), &map_a, 32, 0, bar);
  }
  ptx::mbarrier_wait_cluster(bar, 0);
  write_part(s, p.out);
  ptx::cluster_sync();
}
KERNEL(micro_bulk_load_multicast, 32, 1, MICRO_PARAMS) {
  auto& s = shared_storage<ClusterStorage>();
  const uint32_t bar = micro_barrier(s.bar, 1), rank = ptx::cluster_rank();
  if (threadIdx.x == 0) ptx::mbarrier_arrive_expect_tx(bar, 1024);
  ptx::cluster_sync();
  // Each block loads a quarter for all four.
  if (threadIdx.x == 0) ptx::bulk_load_multicast(shared_address(s.tile) + rank * 256, p.in + rank * 256, 256, bar, 0xf);
  ptx::mbarrier_wait_cluster(bar, 0);
  write_part(s, p.out);
  ptx::cluster_sync();
}
// Each block reads its right neighbour's words and writes into its left neighbour's.
KERNEL(micro_distributed_shared, 32, 1, MICRO_PARAMS) {
  auto& s = shared_storage<ClusterStorage>();
  const uint32_t rank = ptx::cluster_rank(), right = (rank + 1) % 4, left = (rank + 3) % 4, mine = shared_address(&s.words[threadIdx.x]);
  s.words[threadIdx.x] = rank * 100 + threadIdx.x;
  if (!FAULT(83)) ptx::cluster_sync();
  const uint32_t seen = ptx::ld_cluster(ptx::map_to_rank(mine, right));
  ptx::cluster_sync();
  ptx::st_cluster(ptx::map_to_rank(mine, left), seen + 1000);
  if (FAULT(84)) return;                                    // gone while others still use its memory
  ptx::cluster_sync();
  reinterpret_cast<uint32_t*>(p.out)[rank * 256 + threadIdx.x] = s.words[threadIdx.x];
}
// Remote arrivals: block 0 waits for a word of each other block.
KERNEL(micro_remote_arrive, 32, 1, MICRO_PARAMS) {
  auto& s = shared_storage<ClusterStorage>();
  const uint32_t bar = micro_barrier(s.bar, 3), rank = ptx::cluster_rank();
  ptx::cluster_sync();
  if (rank != 0 && threadIdx.x == 0) {
    ptx::st_cluster(ptx::map_to_rank(shared_address(&s.words[rank]), 0), rank * 7);
    ptx::mbarrier_arrive_cluster(ptx::map_to_rank(bar, 0));
  }
  if (rank == 0 && threadIdx.x > 0 && threadIdx.x < 4) {
    if (!FAULT(85)) ptx::mbarrier_wait_cluster(bar, 0);
    reinterpret_cast<uint32_t*>(p.out)[threadIdx.x] = s.words[threadIdx.x];
  }
  ptx::cluster_sync();
}
// st.async and bulk copies between blocks: each block sends to its right neighbour.
KERNEL(micro_send_to_neighbour, 32, 1, MICRO_PARAMS) {
  auto& s = shared_storage<ClusterStorage>();
  const uint32_t bar = micro_barrier(s.bar, 1), rank = ptx::cluster_rank(), right = (rank + 1) % 4;
  if (threadIdx.x == 0) ptx::mbarrier_arrive_expect_tx(bar, 128 + 512);
  const uint32_t tile = shared_address(s.tile);
  ptx::st_shared_v4(tile + threadIdx.x * 16, ptx::ld_global_nc_v4(p.in + rank * 512 + threadIdx.x * 16));
  ptx::fence_proxy_async_shared();
  ptx::cluster_sync();
  ptx::st_async(ptx::map_to_rank(shared_address(&s.words[threadIdx.x]), right), rank * 1000 + threadIdx.x, ptx::map_to_rank(bar, right));
  if (threadIdx.x == 0) ptx::bulk_copy_to_cluster(ptx::map_to_rank(tile + 512, right), tile, 512, ptx::map_to_rank(bar, right));
  ptx::mbarrier_wait_cluster(bar, 0);
  ptx::st_global_v4(p.out + rank * 1024 + threadIdx.x * 16, ptx::ld_shared_v4(tile + 512 + threadIdx.x * 16));
  reinterpret_cast<uint32_t*>(p.out)[rank * 256 + 128 + threadIdx.x] = s.words[threadIdx.x];
  ptx::cluster_sync();
}
// Block 0 sends one box to blocks 0, 1 and 3; block 2 loads another itself.  Both hang over the tensor's edges.
KERNEL(micro_tma_load_3d_multicast, 32, 1, MICRO_PARAMS) {
  auto& s = shared_storage<ClusterStorage>();
  const uint32_t bar = micro_barrier(s.bar, 1), rank = ptx::cluster_rank();
  if (threadIdx.x == 0) ptx::mbarrier_arrive_expect_tx(bar, 1024);
  ptx::cluster_sync();
  if (threadIdx.x == 0) {
    if (rank == 0) ptx::tma_load_3d_multicast(shared_address(s.tile), &map_a, 16, 4, -1, bar, 0xb);
    if (rank == 2) ptx::tma_load_3d(shared_address(s.tile), &map_a, -8, 1, 2, bar);
  }
  while (!ptx::mbarrier_try_wait_cluster(bar, 0)) {}
  write_part(s, p.out);
  ptx::cluster_sync();
}
// Each block announces its right neighbour's bytes there, then stores them.  The barriers are ready before any
// is used from outside; nobody leaves before its own has been used.
KERNEL(micro_remote_expect_tx, 32, 1, MICRO_PARAMS) {
  auto& s = shared_storage<ClusterStorage>();
  const uint32_t bar = micro_barrier(s.bar, 1), rank = ptx::cluster_rank(), right = (rank + 1) % 4;
  ptx::cluster_arrive();
  const uint32_t there = ptx::map_to_rank(bar, right), word = ptx::map_to_rank(shared_address(&s.words[31 - threadIdx.x]), right);
  ptx::cluster_wait();
  if (threadIdx.x == 0) ptx::mbarrier_arrive_expect_tx_cluster(there, FAULT(111) ? 64 : 128);
  ptx::st_async(word, rank * 1000 + threadIdx.x, there);
  while (!ptx::mbarrier_try_wait_cluster(bar, 0)) {}
  reinterpret_cast<uint32_t*>(p.out)[rank * 256 + threadIdx.x] = s.words[threadIdx.x];
  ptx::cluster_arrive_relaxed();
  ptx::cluster_wait();
}
// A relaxed cluster barrier orders what a fence before it has published.
KERNEL(micro_fence_cluster, 32, 1, MICRO_PARAMS) {
  auto& s = shared_storage<ClusterStorage>();
  const uint32_t rank = ptx::cluster_rank();
  s.words[threadIdx.x] = rank * 50 + threadIdx.x;
  if (!FAULT(112)) ptx::fence_acq_rel_cluster();
  ptx::cluster_arrive_relaxed();
  ptx::cluster_wait();
  const uint32_t seen = ptx::ld_cluster(ptx::map_to_rank(shared_address(&s.words[31 - threadIdx.x]), 3 - rank));
  ptx::cluster_sync();
  reinterpret_cast<uint32_t*>(p.out)[rank * 256 + threadIdx.x] = seen;
}
