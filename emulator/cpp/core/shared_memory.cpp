// Shared memory: a block's own, and that of its cluster.
#include "checks/race.h"
#include "core/state.h"

namespace emu {
void* shared_storage(size_t bytes, size_t align) {
  EMU_ENTRY();
  Block* b = self()->home;
  if (bytes > b->shared_bytes) fail(EMU_LAUNCH, "the kernel uses %zu bytes of dynamic shared memory but was launched with %u", bytes, b->shared_bytes);
  if (align > 1024) fail(EMU_LAUNCH, "shared memory alignment of %zu is not available", align);
  return b->arena + kSharedBase;
}
uint32_t shared_address(const void* p) {
  EMU_ENTRY();
  Block* b = self()->home;
  const uintptr_t d = (uintptr_t)p - (uintptr_t)b->arena;
  if (d > kSharedBase + b->shared_bytes) fail(EMU_OUT_OF_BOUNDS, "address %p is not in this block's shared memory", p);
  return (uint32_t)d;
}
uint8_t* shared_bytes_at(Block* b, uint32_t addr, uint32_t n, const char* what) {
  if (addr < kSharedBase || (uint64_t)addr + n > kSharedBase + (uint64_t)b->shared_bytes)
    fail(EMU_OUT_OF_BOUNDS, "%s: %u bytes at %s are outside the block's %u bytes of shared memory", what, n, shared_name(addr).c_str(), b->shared_bytes);
  return b->arena + addr;
}
// A shared::cta address is a shared::cluster address of the executing block.
SharedRef resolve_cluster(uint32_t addr, const char* what) {
  Block* b = self()->home;
  const uint32_t rank = addr >> kRankShift;
  if (!rank) return {b, addr};
  if (rank > b->cluster->blocks.size()) fail(EMU_CLUSTER, "%s: shared::cluster address of block %u in a cluster of %zu", what, rank - 1, b->cluster->blocks.size());
  Block* other = b->cluster->blocks[rank - 1];
  if (other->live == 0) fail(EMU_CLUSTER, "%s: block %u of the cluster has exited; its shared memory is gone", what, rank - 1);
  return {other, addr & ((1u << kRankShift) - 1)};
}
}  // namespace emu
