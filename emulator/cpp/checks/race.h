// Happens-before checks: every access is compared with the earlier accesses to the same bytes.
#pragma once
#include "core/state.h"

namespace emu {
enum Access : uint32_t { kRead = 0, kWrite = 1, kAsync = 2, kAtomic = 4, kBlockScope = 8 };

struct Slot { uint32_t clock, pc, cluster_flags; uint16_t who, mask; };   // cluster_flags: seq << 4 | Access
constexpr int kSlots = 8;
struct Granule { Slot slots[kSlots]; };       // 16 bytes of memory

Granule* map_shadow(size_t bytes);
void unmap_shadow(Granule*, size_t bytes);

void tick(Fiber*);                            // after a release: later accesses are not covered by it
int start_agent(Cluster*, const Clocks& from, Clocks* out);
inline void prefetch_shadow(const Block* b, uint32_t addr) {
  const auto* g = reinterpret_cast<const char*>(b->shadow) + (size_t)addr / 16 * sizeof(Granule);
  __builtin_prefetch(g, 1);
  __builtin_prefetch(g + 64, 1);
}
void shared_access(Block*, uint32_t who, const Clocks&, uint32_t addr, uint32_t bytes, uint32_t flags, uint32_t pc);
void global_access(Cluster*, uint32_t who, const Clocks&, uintptr_t addr, size_t bytes, uint32_t flags, uint32_t pc);
// A global access by an instruction wrapper: alignment and bounds always, races when checked.
void checked_global(const void* p, size_t bytes, uint32_t flags);
// What a stored value is made of, and so where a mark (see Poison) shows.
enum class Holds : uint8_t {
  Nothing,                                    // bytes: a mark does not fit
  Halves,                                     // 16-bit floats: each may be a mark
  Floats,                                     // f32, or words that may be: the high half of each
  Bits,                                       // of any meaning: words of which both halves are the same mark
};
// Reports poison that is about to reach global memory.
void check_taint(const void* value, size_t bytes, Holds, const void* dst, uint32_t pc);
void look_at_last_store(Fiber*);              // the value that a plain store left behind
std::string actor(const Cluster*, uint32_t who);
const char* access_name(uint32_t flags);
}  // namespace emu
