// Who waits for what, when nothing can run any more.
#include "core/state.h"
#include <cstdio>

namespace emu {
static std::string waits_for(const Fiber* f) {
  char b[512];
  Block* home = f->home;
  switch (f->wait) {
    case Wait::Collective: {
      uint32_t missing = 0;
      for (auto& c : f->warp->collectives) if (c.mask >> f->lane & 1) missing = c.mask & ~c.arrived;
      snprintf(b, sizeof b, "warp %d waits at %s for lanes %08x", f->warp->index, f->wait_name, missing);
      break;
    }
    case Wait::Mbarrier: {
      auto it = home->mbarriers.find((uint32_t)f->wait_a);
      if (it == home->mbarriers.end()) { snprintf(b, sizeof b, "wait on an invalidated mbarrier"); break; }
      const Mbarrier& m = it->second;
      snprintf(b, sizeof b, "wait for parity %d of mbarrier %s (phase %llu, %d of %d arrivals missing, tx-count %lld) at %s", (int)f->wait_b,
               shared_name(m.addr).c_str(), (unsigned long long)m.phase, m.pending, m.count, (long long)m.tx, source_of(f->pc).c_str());
      break;
    }
    case Wait::NamedBarrier:
      snprintf(b, sizeof b, "%s %d: %d of %d threads arrived, at %s", f->wait_name, (int)f->wait_a, home->barriers[f->wait_a].arrived, (int)f->wait_b, source_of(f->pc).c_str());
      break;
    case Wait::ClusterBarrier:
      snprintf(b, sizeof b, "barrier.cluster.wait: %d of %d threads arrived, at %s", home->cluster->barrier.arrived, home->cluster->barrier.expected, source_of(f->pc).c_str());
      break;
    case Wait::Bulk: snprintf(b, sizeof b, "cp.async.bulk.wait_group at %s", source_of(f->pc).c_str()); break;
    case Wait::Registers: snprintf(b, sizeof b, "setmaxnreg.inc to %d: the register pool has %d, at %s", (int)f->wait_a, home->register_pool, source_of(f->pc).c_str()); break;
    case Wait::GridDependency: snprintf(b, sizeof b, "griddepcontrol.wait at %s", source_of(f->pc).c_str()); break;
    case Wait::Yield: snprintf(b, sizeof b, "spins in %s at %s", f->wait_name, source_of(f->pc).c_str()); break;
    case Wait::None: snprintf(b, sizeof b, "is runnable"); break;
  }
  return b;
}
static std::string ranges(const std::vector<int>& v) {
  std::string s;
  for (size_t i = 0; i < v.size();) {
    size_t j = i;
    while (j + 1 < v.size() && v[j + 1] == v[j] + 1) j++;
    s += (s.empty() ? "" : " ") + std::to_string(v[i]) + (i == j ? "" : "-" + std::to_string(v[j]));
    i = j + 1;
  }
  return s;
}
std::string deadlock_report() {
  std::string s = "deadlock: no thread can run and no asynchronous operation is in flight";
  for (Cluster* c : run->live)
    for (Block* b : c->blocks) {
      std::map<std::string, std::vector<int>> groups;
      for (Fiber* f : b->fibers) groups[f->done ? "exited" : waits_for(f)].push_back(f->t);
      s += "\n kernel " + std::string(c->grid->kernel->name) + " block (" + std::to_string(b->index.x) + "," + std::to_string(b->index.y) + "," + std::to_string(b->index.z) + "):";
      for (auto& [what, threads] : groups) s += "\n  threads " + ranges(threads) + ": " + what;
      if (s.size() > 6000) return s + "\n  ...";
    }
  return s;
}
}  // namespace emu
