// Operations in which several threads meet: warp collectives, named barriers, the cluster barrier.
#include "checks/race.h"
#include "core/state.h"

namespace emu {
void collective(uint32_t mask, const void* key, const char* name, void* arg, Act act) {
  Fiber* f = self();
  Warp* w = f->warp;
  const uint32_t me = 1u << f->lane;
  if (!(mask & me)) fail(EMU_DIVERGENCE, "%s: lane %d is not in its own mask %08x", name, f->lane, mask);
  mask &= w->full;
  Collective* c = nullptr;
  for (auto& x : w->collectives) {
    if (!(x.mask & mask)) continue;
    if (x.mask != mask || x.key != key)
      fail(EMU_DIVERGENCE, "divergent warp: lanes %08x of warp %d wait at %s (mask %08x) while lane %d reaches %s (mask %08x)",
           x.arrived, w->index, x.name, x.mask, f->lane, name, mask);
    c = &x;
    break;
  }
  if (!c) {
    w->collectives.push_back({mask, 0, key, name, {}});
    c = &w->collectives.back();
  }
  c->arrived |= me;
  c->arg[f->lane] = arg;
  if (c->arrived != c->mask) return block_on(Wait::Collective, mask, 0, name);
  Collective complete = *c;
  w->collectives.erase(w->collectives.begin() + (c - w->collectives.data()));
  act(complete);
  for (int i = 0; i < w->lanes; i++)
    if ((complete.mask >> i & 1) && i != f->lane) {
      Fiber* other = lane_of(w, i);
      other->wait = Wait::None;
      wake(other);
    }
}

// __syncwarp orders memory among its lanes; shuffles and votes do not.
void syncwarp(uint32_t mask) {
  EMU_ENTRY();
  static const char key = 0;
  collective(mask, &key, "__syncwarp", nullptr, [](Collective& c) {
    if (!run->check()) return;
    Fiber* f = self();
    Clocks sum = f->clocks;
    for (int i = 0; i < 32; i++) if (c.mask >> i & 1) sum.join(lane_of(f->warp, i)->clocks);
    for (int i = 0; i < 32; i++)
      if (c.mask >> i & 1) {
        Fiber* o = lane_of(f->warp, i);
        o->clocks = sum;
        tick(o);
      }
  });
}

uint64_t shuffle(Shuffle kind, uint32_t mask, uint64_t value, int arg, int width) {
  EMU_ENTRY();
  static const char key[4] = {};
  struct Lane { uint64_t value, result; int arg, width; } mine{value, 0, arg, width};
  if (width < 1 || width > 32 || (width & (width - 1))) fail(EMU_DIVERGENCE, "__shfl_sync: width %d is not a power of two up to 32", width);
  collective(mask, &key[(int)kind], "__shfl_sync", &mine, [kind](Collective& c) {
    for (int l = 0; l < 32; l++) {
      if (!(c.mask >> l & 1)) continue;
      Lane& x = *static_cast<Lane*>(c.arg[l]);
      const int w = x.width, base = l & ~(w - 1);
      int from = l;
      switch (kind) {
        case Shuffle::Index: from = base + (x.arg & (w - 1)); break;
        case Shuffle::Up: from = l - x.arg < base ? l : l - x.arg; break;
        case Shuffle::Down: from = l + x.arg >= base + w ? l : l + x.arg; break;
        case Shuffle::Xor: from = (l ^ x.arg) >= base + w ? l : l ^ x.arg; break;
      }
      if (!(c.mask >> from & 1)) fail(EMU_DIVERGENCE, "__shfl_sync: lane %d reads lane %d, which is not in the mask %08x", l, from, c.mask);
      x.result = static_cast<Lane*>(c.arg[from])->value;
    }
  });
  return mine.result;
}

static uint32_t fold(Vote kind, uint32_t a, uint32_t b) {
  switch (kind) {
    case Vote::Add: return a + b;
    case Vote::MinU: return a < b ? a : b;
    case Vote::MaxU: return a > b ? a : b;
    case Vote::MinS: return (int32_t)a < (int32_t)b ? a : b;
    case Vote::MaxS: return (int32_t)a > (int32_t)b ? a : b;
    case Vote::And: return a & b;
    case Vote::Or: return a | b;
    case Vote::Xor: return a ^ b;
    default: return 0;
  }
}
uint32_t vote_at(const void* key, const char* name, Vote kind, uint32_t mask, uint32_t value) {
  struct Lane { uint32_t value, result; } mine{value, 0};
  collective(mask, key, name, &mine, [kind](Collective& c) {
    for (int l = 0; l < 32; l++) {
      if (!(c.mask >> l & 1)) continue;
      Lane& x = *static_cast<Lane*>(c.arg[l]);
      uint32_t r = 0;
      bool first = true;
      for (int o = 0; o < 32; o++) {
        if (!(c.mask >> o & 1)) continue;
        const uint32_t y = static_cast<Lane*>(c.arg[o])->value;
        if (kind == Vote::Ballot) r |= (y ? 1u : 0u) << o;
        else if (kind == Vote::MatchAny) r |= (y == x.value ? 1u : 0u) << o;
        else r = first ? y : fold(kind, r, y);
        first = false;
      }
      x.result = r;
    }
  });
  return mine.result;
}
uint32_t vote(Vote kind, uint32_t mask, uint32_t value) {
  EMU_ENTRY();
  static const char key[16] = {};
  return vote_at(&key[(int)kind], kind == Vote::Ballot ? "__ballot_sync" : kind == Vote::MatchAny ? "__match_any_sync" : "__reduce_sync", kind, mask, value);
}

// ---------------------------------------------------------------- named barriers
struct BarrierVisit { int id, threads, predicate; uint64_t generation; };
static int meet(int id, int n, bool wait, int predicate, const void* key, const char* name) {
  Fiber* f = self();
  Block* b = f->home;
  if (id < 0 || id > 15) fail(EMU_BARRIER, "%s: barrier id %d is outside 0..15", name, id);
  if (n <= 0 || (n % 32 && n != b->n_threads)) fail(EMU_BARRIER, "%s %d: thread count %d is not a multiple of 32", name, id, n);
  BarrierVisit visit{id, n, predicate, 0};
  collective(0xffffffffu, key, name, &visit, [&](Collective& c) {
    NamedBarrier& nb = b->barriers[id];
    int lanes = 0;
    for (int l = 0; l < 32; l++) {
      if (!(c.mask >> l & 1)) continue;
      auto& x = *static_cast<BarrierVisit*>(c.arg[l]);
      lanes++;
      x.generation = nb.generation;
      nb.votes += x.predicate != 0;
      if (x.id != id || x.threads != n) fail(EMU_BARRIER, "%s: lanes of one warp disagree on barrier id or count", name);
      if (run->check()) {
        Fiber* o = lane_of(f->warp, l);
        if (nb.accumulating.empty()) nb.accumulating.reset(f->clocks.seen.size());
        nb.accumulating.join(o->clocks);
        tick(o);
      }
    }
    if (nb.expected == 0) nb.expected = n;
    else if (nb.expected != n) fail(EMU_BARRIER, "%s %d: count %d here, %d at an earlier arrival", name, id, n, nb.expected);
    nb.arrived += lanes;
    if (nb.arrived > nb.expected) fail(EMU_BARRIER, "%s %d: %d threads arrived at a barrier of %d", name, id, nb.arrived, nb.expected);
    if (nb.arrived == nb.expected) {
      if (run->check()) {
        nb.completed[nb.generation & 1] = nb.accumulating;
        nb.accumulating.reset(f->clocks.seen.size());
      }
      nb.last_votes = nb.votes;
      nb.arrived = nb.expected = nb.votes = 0;
      nb.generation++;
      wake_if(b, [id](Fiber* o) { return o->wait == Wait::NamedBarrier && (int)o->wait_a == id; });
    }
  });
  if (!wait) return 0;
  NamedBarrier& nb = b->barriers[id];
  while (nb.generation == visit.generation) block_on(Wait::NamedBarrier, (uint64_t)id, (uint64_t)n, name);
  if (run->check()) f->clocks.join(nb.completed[visit.generation & 1]);
  return nb.last_votes;
}
void named_barrier(int id, int threads, bool wait, const void* key, const char* name) { meet(id, threads, wait, 0, key, name); }
void syncthreads() {
  EMU_ENTRY();
  static const char key = 0;
  meet(0, self()->home->n_threads, true, 0, &key, "__syncthreads");
}
int syncthreads_count(int predicate) {
  EMU_ENTRY();
  static const char key = 0;
  return meet(0, self()->home->n_threads, true, predicate, &key, "__syncthreads_count");
}

// ---------------------------------------------------------------- the cluster barrier
void cluster_arrive(bool release) {
  Fiber* f = self();
  Cluster* c = f->home->cluster;
  ClusterBarrier& b = c->barrier;
  if (f->cluster_arrived) fail(EMU_CLUSTER, "barrier.cluster.arrive twice without barrier.cluster.wait");
  f->cluster_arrived = true;
  f->cluster_phase = b.phase;
  b.expected = (int)c->n_threads;
  if (run->check()) {
    if (b.accumulating.empty()) b.accumulating.reset(f->clocks.seen.size());
    if (release) {
      b.accumulating.join(f->clocks);
      tick(f);
    } else {                                              // a relaxed arrival passes on what a fence has published
      join_own(b.accumulating.seen, f->clocks.fenced, c->seq);
      b.accumulating.foreign = join_foreign(b.accumulating.foreign, f->clocks.fenced);
      b.accumulating.grids |= f->clocks.fenced_grids;
    }
  }
  if (++b.arrived < b.expected) return;
  if (run->check()) {
    b.completed[b.phase & 1] = b.accumulating;
    b.accumulating.reset(f->clocks.seen.size());
  }
  b.arrived = 0;
  b.phase++;
  for (Block* x : c->blocks) wake_if(x, [](Fiber* o) { return o->wait == Wait::ClusterBarrier; });
}
void cluster_wait(bool acquire) {
  Fiber* f = self();
  ClusterBarrier& b = f->home->cluster->barrier;
  if (!f->cluster_arrived) fail(EMU_CLUSTER, "barrier.cluster.wait without barrier.cluster.arrive");
  while (b.phase == f->cluster_phase) block_on(Wait::ClusterBarrier, 0, 0, "barrier.cluster.wait");
  f->cluster_arrived = false;
  if (run->check() && acquire) f->clocks.join(b.completed[f->cluster_phase & 1]);
}
}  // namespace emu
