// Shadow memory and the happens-before check.
//
// Every 16 bytes of shared and global memory have a granule of eight records: who accessed which of the
// bytes, how, when (in the accessor's own clock) and where in the source.  An access is compared with all
// records of its granule; a conflicting one that the accessor does not know to have happened is a race.
#include "checks/race.h"
#include "checks/lint.h"
#include "core/device.h"
#include <sys/mman.h>

namespace emu {
static size_t shadow_bytes(size_t bytes) { return (bytes / 16 + 2) * sizeof(Granule); }
Granule* map_shadow(size_t bytes) {
  return static_cast<Granule*>(mmap(nullptr, shadow_bytes(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
}
void unmap_shadow(Granule* g, size_t bytes) { munmap(g, shadow_bytes(bytes)); }

void tick(Fiber* f) { f->clocks.seen[f->who]++; }

// An asynchronous operation is a thread of its own: it knows what its issuer knew, and whoever waits for it
// learns that it has happened.
int start_agent(Cluster* c, const Clocks& from, Clocks* out) {
  const int a = c->next_agent++ % kAgents;
  *out = from;
  out->seen[c->n_threads + (uint32_t)a] = ++c->agent_clock[(size_t)a];
  return (int)c->n_threads + a;
}

const char* access_name(uint32_t flags) {
  if (flags & kAsync) return flags & kWrite ? "async-proxy write" : "async-proxy read";
  if (flags & kAtomic) return "atomic";
  return flags & kWrite ? "write" : "read";
}
std::string actor(const Cluster* c, uint32_t who) {
  if (who >= c->n_threads) return "an asynchronous operation";
  const uint32_t per = c->n_threads / (uint32_t)c->blocks.size();
  std::string s = "thread " + std::to_string(who % per);
  if (c->blocks.size() > 1) s += " of cluster block " + std::to_string(who / per);
  return s;
}
static const Grid* grid_of(uint32_t seq) {
  for (const Grid& g : run->grids) if (seq >= g.first_seq && seq < g.first_seq + g.clusters) return &g;
  return nullptr;
}
static std::string actor_of_record(const Cluster* c, const Slot& s) {
  const uint32_t seq = s.cluster_flags >> 4;
  if (seq == c->seq) return actor(c, s.who);
  const Grid* g = grid_of(seq);
  if (g && g != c->grid) return "kernel " + std::string(g->kernel->name);
  return "another block";
}
// What an access by another cluster needs: its kernel known to be complete, or a device-scope release of it acquired.
static bool foreign_ordered(const Slot& s, const Clocks& k) {
  const uint32_t seq = s.cluster_flags >> 4;
  const Grid* g = grid_of(seq);
  return (g && (k.grids >> g->index & 1)) || foreign_knows(k.foreign, seq, s.who, s.clock);
}
static bool foreign_published(const Slot& s, const Clocks& k) {
  const uint32_t seq = s.cluster_flags >> 4;
  const Grid* g = grid_of(seq);
  return (g && (k.grids >> g->index & 1)) || foreign_knows(k.foreign_published, seq, s.who, s.clock);
}

struct Place { bool shared; uintptr_t offset; };
[[noreturn, gnu::cold]] static void report(const Slot& s, bool ordered, const Cluster* c, uint32_t who, uint32_t flags, uint32_t pc, Place at) {
  const std::string where = at.shared ? shared_name((uint32_t)at.offset) : "global memory, byte " + std::to_string(at.offset) + " of its buffer";
  const std::string then = actor_of_record(c, s), then_at = source_of(s.pc), now = actor(c, who), now_at = source_of(pc);
  if (ordered)
    fail(EMU_PROXY, "proxy hazard on %s:\n  the %s by %s at %s\n  is not published to the async proxy (fence.proxy.async) before\n  the %s by %s at %s",
         where.c_str(), access_name(s.cluster_flags & 15), then.c_str(), then_at.c_str(), access_name(flags), now.c_str(), now_at.c_str());
  fail(EMU_RACE, "race on %s:\n  the %s by %s at %s\n  is not ordered with\n  the %s by %s at %s", where.c_str(), access_name(s.cluster_flags & 15),
       then.c_str(), then_at.c_str(), access_name(flags), now.c_str(), now_at.c_str());
}

static inline void touch(Granule& g, uint16_t mask, const Cluster* c, uint32_t who, const Clocks& k, uint32_t flags, uint32_t pc, Place at) {
  const uint32_t cluster_flags = c->seq << 4 | flags, clock = k.seen[who];
  Slot *empty = nullptr, *same = nullptr, *older = nullptr;
  for (Slot& s : g.slots) {
    const uint32_t seq = s.cluster_flags >> 4, then = s.cluster_flags & 15;
    if (s.clock == 0 || (at.shared ? seq != c->seq : seq < run->first_seq)) {
      s.clock = 0;
      if (!empty) empty = &s;
      continue;
    }
    bool ordered, visible = true;
    if (seq == c->seq) {
      ordered = s.who == who || s.clock <= k.seen[s.who];
      if ((flags & kAsync) && (then & (kWrite | kAsync)) == kWrite) {
        const ClockVec& published = at.shared ? k.shared_published : k.global_published;
        visible = s.who < published.size() && s.clock <= published[s.who];
      }
    } else {
      ordered = foreign_ordered(s, k);
      if ((flags & kAsync) && (then & (kWrite | kAsync)) == kWrite) visible = foreign_published(s, k);
    }
    const bool both_atomic = (then & flags & kAtomic) && (seq == c->seq || !((then | flags) & kBlockScope));
    if ((s.mask & mask) && ((then | flags) & kWrite) && !both_atomic && !(ordered && visible)) report(s, ordered, c, who, flags, pc, at);
    if (s.who == who && s.clock == clock && s.cluster_flags == cluster_flags) {
      if (s.pc == pc) { same = &s; continue; }
      if (!older) older = &s;
    } else if (ordered && visible) {
      if (!(s.mask & ~mask) && ((flags & kWrite) || !(then & kWrite))) {      // this access says all that it said
        s.clock = 0;
        if (!empty) empty = &s;
      } else if (!older || (older->cluster_flags & kWrite)) {
        older = &s;
      }
    }
  }
  if (same) {
    same->mask |= mask;
    return;
  }
  Slot* into = empty ? empty : older ? older : &g.slots[run->rng.below(kSlots)];
  *into = Slot{clock, pc, cluster_flags, (uint16_t)who, mask};
}
static void touch_range(Granule* shadow, const Cluster* c, uint32_t who, const Clocks& k, uintptr_t offset, size_t bytes, uint32_t flags, uint32_t pc, bool shared) {
  run->stats.checks++;
  for (uintptr_t p = offset, end = offset + bytes; p < end;) {
    const uintptr_t in = p & 15;
    const size_t n = std::min<size_t>(16 - in, end - p);
    touch(shadow[p / 16], (uint16_t)(((1u << n) - 1) << in), c, who, k, flags, pc, {shared, p});
    p += n;
  }
}

void shared_access(Block* b, uint32_t who, const Clocks& k, uint32_t addr, uint32_t n, uint32_t flags, uint32_t pc) {
  if (addr < kSharedBase) fail(EMU_OUT_OF_BOUNDS, "access to reserved shared memory at %u", addr);
  if (addr < b->mbarrier_high && addr + n > b->mbarrier_low && !(flags & kAtomic))
    for (auto& [at, m] : b->mbarriers)
      if (at < addr + n && addr < at + 8)
        fail(EMU_BARRIER, "%s of the mbarrier at %s, at %s: only mbarrier instructions may touch it", access_name(flags), shared_name(at).c_str(), source_of(pc).c_str());
  for (uint32_t p = addr, end = addr + n; p < end;) {
    const uint32_t in = p & 15, part = std::min(16 - in, end - p);
    const uint16_t m = (uint16_t)(((1u << part) - 1) << in);
    uint16_t& w = b->written[p / 16];
    // Asynchronous reads of unwritten bytes are legitimate where their results are masked: poison marks them instead.
    if ((!(flags & kWrite) || (flags & kAtomic)) && !(flags & kAsync) && (w & m) != m)
      fail(EMU_UNINITIALISED, "%s of uninitialised shared memory %s by %s at %s", access_name(flags), shared_name(p).c_str(), actor(b->cluster, who).c_str(), source_of(pc).c_str());
    if (flags & kWrite) w |= m;
    p += part;
  }
  touch_range(b->shadow, b->cluster, who, k, addr, n, flags, pc, true);
}
void global_access(Cluster* c, uint32_t who, const Clocks& k, uintptr_t p, size_t n, uint32_t flags, uint32_t pc) {
  Device* d = run->device;
  std::string why;
  Allocation* a = d->find(p);
  if (!a && !d->near(p)) return;               // host memory: kernel parameters, local variables
  if (!d->inside((void*)p, n, &why))
    fail(EMU_OUT_OF_BOUNDS, "out-of-bounds %s of %s, by %s at %s", access_name(flags), why.c_str(), actor(c, who).c_str(), source_of(pc).c_str());
  touch_range(a->shadow, c, who, k, p - a->base, n, flags, pc, false);
}
void checked_global(const void* p, size_t n, uint32_t flags) {
  Fiber* f = self();
  std::string why;
  if ((uintptr_t)p % n) fail(EMU_MISALIGNED, "misaligned %zu-byte global %s", n, access_name(flags));
  if (!run->device->inside(p, n, &why)) fail(EMU_OUT_OF_BOUNDS, "out-of-bounds global %s: %s", access_name(flags), why.c_str());
  if (run->lint() && !(flags & kAtomic)) lint_access(f, (uintptr_t)p, (int)n, flags & kWrite, here(), false);
  if (run->check()) global_access(f->home->cluster, f->who, f->clocks, (uintptr_t)p, n, flags, here());
}
}  // namespace emu
