// Vector clocks: who knows that what has happened.
//
// A clock domain is a cluster (usually of one block): one entry per thread, and `kAgents` entries for
// asynchronous operations.  Knowledge of other clusters is rare (device-scope release and acquire) and is
// kept beside it as immutable snapshots; knowledge of whole kernels of a chain is a bit set.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

// For loops over arrays: compiled for wider vectors too, and chosen when the program starts.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define EMU_WIDE_VECTORS __attribute__((target_clones("avx512f", "avx2", "default"), optimize("O3")))
#else
#define EMU_WIDE_VECTORS
#endif

namespace emu {
constexpr int kAgents = 64;

using ClockVec = std::vector<uint32_t>;
using Snapshot = std::shared_ptr<const ClockVec>;
// What is known of other clusters: (cluster, snapshot), sorted by cluster.
using Foreign = std::vector<std::pair<uint32_t, Snapshot>>;
using ForeignPtr = std::shared_ptr<const Foreign>;

void join_into(ClockVec& a, const ClockVec& b);
ForeignPtr join_foreign(const ForeignPtr&, const ForeignPtr&);
ForeignPtr with_cluster(const ForeignPtr&, uint32_t cluster, const ClockVec&);
// What is known of `cluster` itself is knowledge of its own clock domain.
void join_own(ClockVec& seen, const ForeignPtr&, uint32_t cluster);
bool foreign_knows(const ForeignPtr&, uint32_t cluster, uint32_t who, uint32_t when);

struct Clocks {
  ClockVec seen;                 // what I know to have happened
  ClockVec shared_published;     // generic-proxy writes that the async proxy may read in shared memory
  ClockVec global_published;     // the same in global memory; empty until a fence covers it
  ForeignPtr foreign, foreign_published;
  uint64_t grids = 0;            // kernels of this chain known to be complete
  // What device-scope fences have pushed out of the cluster.  It travels through barriers: the write of one
  // thread, fenced by that thread, is published by another thread's relaxed atomic after a barrier.
  // Likewise what relaxed reads have met, which the next fence of any thread behind the barrier takes up.
  ForeignPtr fenced, met;
  uint64_t fenced_grids = 0, met_grids = 0;

  void reset(size_t n) { seen.assign(n, 0); shared_published.assign(n, 0); global_published.clear(); foreign.reset(); foreign_published.reset(); fenced.reset(); met.reset(); }
  bool empty() const { return seen.empty(); }
  void join(const Clocks& o) {
    join_into(seen, o.seen);
    join_into(shared_published, o.shared_published);
    if (!o.global_published.empty()) join_into(global_published, o.global_published);
    if (o.foreign != foreign) foreign = join_foreign(foreign, o.foreign);
    if (o.foreign_published != foreign_published) foreign_published = join_foreign(foreign_published, o.foreign_published);
    if (o.fenced != fenced) fenced = join_foreign(fenced, o.fenced);
    if (o.met != met) met = join_foreign(met, o.met);
    grids |= o.grids;
    fenced_grids |= o.fenced_grids;
    met_grids |= o.met_grids;
  }
};
// What a device-scope release publishes, and an acquire takes up: knowledge that leaves the cluster.
struct Release {
  ForeignPtr foreign;
  uint64_t grids = 0;
  bool empty() const { return !foreign && !grids; }
  void join(const Release& o) { foreign = join_foreign(foreign, o.foreign); grids |= o.grids; }
};
}  // namespace emu
