// Which thread runs next, when blocks start, and the life of a chain of kernels.
#include "checks/lint.h"
#include "checks/race.h"
#include "core/device.h"
#include "models/async.h"
#include "models/exit_checks.h"
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>

namespace emu {
thread_local ThreadIndex* current = nullptr;
thread_local Run* run = nullptr;

int arch() { return (int)run->device->profile.arch; }
bool fault(int id) { return run->options.fault == id; }

void poison(void* p, size_t bytes, Poison code) {
  auto* b = static_cast<uint8_t*>(p);
  const auto byte_at = [code](const uint8_t* at) { return (uint8_t)(((uintptr_t)at & 1) ? code >> 8 : code & 0xff); };
  if (bytes && ((uintptr_t)b & 1)) { *b = byte_at(b); b++; bytes--; }
  auto* halves = reinterpret_cast<uint16_t*>(b);
  std::fill(halves, halves + bytes / 2, (uint16_t)code);
  if (bytes & 1) b[bytes - 1] = byte_at(b + bytes - 1);
}

// ---------------------------------------------------------------- threads
void wake(Fiber* f) {
  if (f->queued || f->done) return;
  f->queued = true;
  run->ready.push_back(f);
}
void block_on(Wait why, uint64_t a, uint64_t b, const char* name) {
  Fiber* f = self();
  look_at_last_store(f);
  f->wait = why;
  f->wait_a = a;
  f->wait_b = b;
  f->wait_name = name;
  if (why == Wait::Yield) wake(f);
  switch_context(&f->sp, run->scheduler_sp);
  f->wait = Wait::None;
}
void nanosleep() {
  EMU_ENTRY();
  block_on(Wait::Yield, 0, 0, "nanosleep");
}
static void fiber_main() {
  Fiber* f = self();
  const Grid* g = f->home->cluster->grid;
  g->kernel->call(g->kernel->fn, g->launch.args);
  look_at_last_store(f);
  check_thread_exit(f);
  f->done = true;
  f->home->cluster->grid->known |= f->clocks.grids;
  f->home->live--;
  if (++f->home->triggers == f->home->n_threads && !f->home->triggered) {    // an exit counts as a trigger
    f->home->triggered = true;
    f->home->cluster->grid->triggered++;
    grid_event();
  }
  void* never;
  switch_context(&never, run->scheduler_sp);
  abort();
}

// ---------------------------------------------------------------- blocks
struct Arena { uint8_t* bytes; Granule* shadow; };
static size_t arena_bytes(uint32_t shared) { return (kSharedBase + shared + 4095) / 4096 * 4096 + 4096; }
struct ArenaPool {                            // by shared bytes: reused by later blocks of the OS thread
  std::map<uint32_t, std::vector<Arena>> free;
  ~ArenaPool() {
    for (auto& [shared, list] : free)
      for (Arena& a : list) {
        munmap(a.bytes, arena_bytes(shared));
        unmap_shadow(a.shadow, kSharedBase + shared);
      }
  }
};
static thread_local ArenaPool arenas;
static Arena take_arena(uint32_t shared) {
  auto& free_list = arenas.free[shared];
  Arena a;
  if (free_list.empty()) {
    const size_t n = arena_bytes(shared);
    a.bytes = static_cast<uint8_t*>(mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(a.bytes + n - 4096, 4096, PROT_NONE);
    a.shadow = map_shadow(kSharedBase + shared);
  } else {
    a = free_list.back();
    free_list.pop_back();
  }
  poison(a.bytes, arena_bytes(shared) - 4096, kUnwritten);
  return a;
}

static Block* start_block(Cluster* c, uint32_t rank, uint3 index) {
  const emu_launch& l = c->grid->launch;
  auto* b = new Block;
  b->cluster = c;
  b->rank = rank;
  b->index = index;
  b->n_threads = b->live = (int)(l.block.x * l.block.y * l.block.z);
  b->shared_bytes = l.shared_bytes;
  const Arena a = take_arena(l.shared_bytes);
  b->arena = a.bytes;
  b->shadow = a.shadow;
  b->written.assign((kSharedBase + l.shared_bytes) / 16 + 2, 0);
  b->warps.resize((size_t)(b->n_threads + 31) / 32);
  for (size_t w = 0; w < b->warps.size(); w++) {
    Warp& x = b->warps[w];
    x.block = b;
    x.index = (int)w;
    x.lanes = std::min(32, b->n_threads - (int)w * 32);
    x.full = x.lanes == 32 ? 0xffffffffu : (1u << x.lanes) - 1;
    x.regs = c->grid->entry_regs;
  }
  for (int t = 0; t < b->n_threads; t++) {
    auto* f = new Fiber;
    f->t = t;
    f->lane = t % 32;
    f->who = rank * (uint32_t)b->n_threads + (uint32_t)t;
    f->warp = &b->warps[(size_t)t / 32];
    f->home = b;
    f->thread = {(unsigned)t % l.block.x, (unsigned)t / l.block.x % l.block.y, (unsigned)t / (l.block.x * l.block.y)};
    f->block = index;
    f->block_dim = {l.block.x, l.block.y, l.block.z};
    f->grid_dim = {l.grid.x, l.grid.y, l.grid.z};
    f->stack = take_stack();
    f->sp = fresh_context(f->stack, fiber_main);
    if (run->check()) {
      f->clocks.reset(c->n_threads + kAgents);
      f->clocks.seen[f->who] = 1;
      if (c->grid->index && !l.overlaps_previous) f->clocks.grids = run->grids[(size_t)c->grid->index - 1].known;
    }
    b->fibers.push_back(f);
  }
  return b;
}
static void start_cluster(Grid& g) {
  const emu_launch& l = g.launch;
  const uint32_t i = g.order[g.started++];
  const uint32_t nx = l.grid.x / l.cluster.x, ny = l.grid.y / l.cluster.y;
  const uint3 origin{i % nx * l.cluster.x, i / nx % ny * l.cluster.y, i / (nx * ny) * l.cluster.z};
  auto* c = new Cluster;
  c->grid = &g;
  c->seq = g.first_seq + i;
  c->live_blocks = (int)(l.cluster.x * l.cluster.y * l.cluster.z);
  c->n_threads = (uint32_t)c->live_blocks * l.block.x * l.block.y * l.block.z;
  c->agent_clock.assign(kAgents, 0);
  for (uint32_t z = 0, rank = 0; z < l.cluster.z; z++)
    for (uint32_t y = 0; y < l.cluster.y; y++)
      for (uint32_t x = 0; x < l.cluster.x; x++, rank++)
        c->blocks.push_back(start_block(c, rank, {origin.x + x, origin.y + y, origin.z + z}));
  run->live.push_back(c);
  run->stats.blocks += c->blocks.size();
  for (Block* b : c->blocks) for (Fiber* f : b->fibers) wake(f);
}
static void free_cluster(Cluster* c) {
  for (Block* b : c->blocks) {
    if (run->lint()) lint_flush(b);
    for (Fiber* f : b->fibers) { give_stack(f->stack); delete f; }
    arenas.free[b->shared_bytes].push_back({b->arena, b->shadow});
    delete b;
  }
  delete c;
}
static void end_cluster(Cluster* c) {
  Grid* g = c->grid;
  check_cluster_exit(c);
  for (size_t i = 0; i < run->live.size(); i++)
    if (run->live[i] == c) { run->live.erase(run->live.begin() + (long)i); break; }
  free_cluster(c);
  if (run->fault_kind == EMU_OK && ++g->finished == g->clusters) {
    g->known |= 1ull << g->index;
    grid_event();
  }
}
// A thread waits for its prerequisite kernel (griddepcontrol.wait): it may now be complete.
void grid_event() {
  for (Cluster* c : run->live)
    for (Block* b : c->blocks) wake_if(b, [](Fiber* f) { return f->wait == Wait::GridDependency; });
}

// ---------------------------------------------------------------- the loop
static Fiber* pick() {
  auto& r = run->ready;
  size_t i = 0;
  switch (run->policy) {
    case 0: break;                                                    // first in, first out
    case 1: i = run->rng.below((uint32_t)r.size()); break;            // uniformly random
    case 2: i = run->rng.below(4) ? r.size() - 1 : 0; break;          // mostly last in, first out
    default: {                                                        // random warp priorities starve some warps
      uint32_t best = 0;
      for (int k = 0; k < 6; k++) {
        const size_t j = run->rng.below((uint32_t)r.size());
        const uint32_t p = 1 + run->warp_priority[((r[j]->home->cluster->seq - run->first_seq) * 37 + (uint32_t)r[j]->warp->index) & 255];
        if (p > best) { best = p; i = j; }
      }
      if (run->rng.below(4096) == 0) for (auto& p : run->warp_priority) p = run->rng.below(1000);
    }
  }
  if (i != 0) std::swap(r[i], r[0]);
  Fiber* f = r.front();
  r.pop_front();
  return f;
}

// How many clusters of this kernel a device of the profile holds at once.
static uint32_t capacity(const Grid& g) {
  const emu_profile& p = run->device->profile;
  const emu_launch& l = g.launch;
  const uint32_t per_block = l.shared_bytes + kSharedBase, threads = l.block.x * l.block.y * l.block.z;
  const uint32_t by_shared = (p.max_shared_bytes + kSharedBase) / per_block, by_threads = 2048 / std::max(threads, 1u);
  const uint32_t blocks = p.sm_count * std::max(1u, std::min(std::min(by_shared, by_threads), 16u));
  return std::max(1u, blocks / (l.cluster.x * l.cluster.y * l.cluster.z));
}
// The next kernel that may start a cluster now, or null.  A kernel may overlap the one before it once all
// of that one's blocks have started and have triggered or ended.
static Grid* startable(uint32_t limit) {
  if (run->live.size() >= limit) return nullptr;
  for (size_t i = 0; i < run->grids.size(); i++) {
    Grid& g = run->grids[i];
    if (g.started < g.clusters) {
      if (i == 0) return &g;
      const Grid& before = run->grids[i - 1];
      if (before.done()) return &g;
      const uint32_t blocks = before.launch.grid.x * before.launch.grid.y * before.launch.grid.z;
      return g.launch.overlaps_previous && run->adversarial() && before.triggered == blocks ? &g : nullptr;
    }
  }
  return nullptr;
}
static bool all_done() {
  for (Grid& g : run->grids) if (!g.done()) return false;
  return true;
}
static void loop() {
  uint64_t idle = 0;
  const uint32_t most = capacity(run->grids[0]);
  const uint32_t limit = run->options.resident ? run->options.resident : run->adversarial() ? 1 + run->rng.below(std::min(most, 8u)) : 1;
  while (!all_done()) {
    // A kernel that overlaps its predecessor needs room beside it.
    while (Grid* g = startable(limit + (run->grids.size() > 1))) start_cluster(*g);
    if (!run->ready.empty()) {
      if (run->adversarial() && run->rng.below(32) == 0) step_async(run->live[run->rng.below((uint32_t)run->live.size())]);
      Fiber* f = pick();
      f->queued = false;
      current = f;
      run->stats.switches++;
      run->spin = 0;
      switch_context(&run->scheduler_sp, f->sp);
      current = nullptr;
      if (run->fault_kind != EMU_OK) return;
      // A spinning thread must not keep asynchronous work from finishing.
      if (f->wait == Wait::Yield) {
        if (++idle % 64 == 0) for (Cluster* c : run->live) step_async(c);
        if (idle > 5'000'000) return record_fault(EMU_WATCHDOG, "watchdog: threads only spin\n" + deadlock_report());
      } else {
        idle = 0;
      }
      if (f->done && f->home->live == 0 && --f->home->cluster->live_blocks == 0) end_cluster(f->home->cluster);
      if (run->fault_kind != EMU_OK) return;
      continue;
    }
    bool moved = false;
    const size_t n = run->live.size(), first = run->adversarial() && n ? run->rng.below((uint32_t)n) : 0;
    for (size_t i = 0; i < n && !moved; i++) moved = step_async(run->live[(i + first) % n]);
    if (!moved) return record_fault(EMU_DEADLOCK, deadlock_report());
  }
}

// ---------------------------------------------------------------- launch
static const char* refuse(const emu_profile& p, const emu_launch& l, const KernelEntry* k) {
  const uint64_t threads = (uint64_t)l.block.x * l.block.y * l.block.z, cluster = (uint64_t)l.cluster.x * l.cluster.y * l.cluster.z;
  if (!threads || threads > 1024 || l.block.z > 64) return "block size outside 1..1024";
  if (!l.grid.x || !l.grid.y || !l.grid.z || l.grid.x > 0x7fffffffu || l.grid.y > 65535 || l.grid.z > 65535) return "grid size is zero or too large";
  if (threads > (uint64_t)k->max_threads) return "more threads than the kernel's launch bounds allow";
  if (l.shared_bytes > p.max_shared_bytes) return "more shared memory than the device offers";
  if (!cluster || cluster > 8) return "cluster size outside 1..8";
  if (cluster > 1 && p.arch < 90) return "clusters need compute capability 9.0";
  if (l.overlaps_previous && p.arch < 90) return "programmatic dependent launch needs compute capability 9.0";
  if (l.grid.x % l.cluster.x || l.grid.y % l.cluster.y || l.grid.z % l.cluster.z) return "grid is not a multiple of the cluster";
  return nullptr;
}
static void prepare(const emu_launch* chain, size_t n) {
  // Numbered over the whole process: shadow memory is reused by later launches, and old records must show.
  static std::atomic<uint32_t> next_seq{1};
  uint64_t total = 0;
  for (size_t i = 0; i < n; i++) total += (uint64_t)chain[i].grid.x * chain[i].grid.y * chain[i].grid.z;
  if (total > (1u << 28) || next_seq + total > (1u << 28)) fail(EMU_UNSUPPORTED, "more than 2^28 blocks in one process");
  uint32_t seq = next_seq.fetch_add((uint32_t)total);
  run->first_seq = seq;
  for (size_t i = 0; i < n; i++) {
    Grid g{};
    g.kernel = static_cast<const KernelEntry*>(chain[i].kernel);
    g.launch = chain[i];
    g.index = (int)i;
    const uint64_t blocks = (uint64_t)g.launch.grid.x * g.launch.grid.y * g.launch.grid.z;
    g.clusters = (uint32_t)(blocks / (g.launch.cluster.x * g.launch.cluster.y * g.launch.cluster.z));
    g.first_seq = seq;
    seq += g.clusters;
    // Registers per thread at entry, as ptxas derives them from the launch bounds.
    g.entry_regs = std::min(255, 65536 / (g.kernel->max_threads * std::max(1, g.kernel->min_blocks)) / 8 * 8);
    g.order.resize(g.clusters);
    for (uint32_t k = 0; k < g.clusters; k++) g.order[k] = k;
    if (run->adversarial()) for (uint32_t k = g.clusters; k > 1; k--) std::swap(g.order[k - 1], g.order[run->rng.below(k)]);
    run->grids.push_back(std::move(g));
  }
}
}  // namespace emu

using namespace emu;
extern "C" int emu_run(emu_device* d, const emu_launch* chain, size_t n, const emu_options* o, emu_stats* stats, char* report, size_t report_len) {
  Run r;
  r.device = d;
  r.options = *o;
  r.rng.s = o->seed * 0x1234567ull + 99;
  r.policy = o->seed ? (int)(o->seed % 4 == 0 ? 1 : o->seed % 4) : 0;
  r.warp_priority.resize(256);
  for (auto& p : r.warp_priority) p = r.rng.below(1000);
  run = &r;
  current = nullptr;
  if (n > 64) record_fault(EMU_UNSUPPORTED, "more than 64 kernels in one chain");
  for (size_t i = 0; i < n && r.fault_kind == EMU_OK; i++) {
    auto* k = static_cast<const KernelEntry*>(chain[i].kernel);
    if (const char* why = refuse(d->profile, chain[i], k)) record_fault(EMU_LAUNCH, std::string(k->name) + ": " + why);
  }
  if (r.fault_kind == EMU_OK) {
    try {
      prepare(chain, n);
      loop();
      current = nullptr;
      if (r.fault_kind == EMU_OK) d->check_redzones();
    } catch (emu_fault_kind) {                // recorded by fail()
    }
  }
  current = nullptr;
  while (!r.live.empty()) { free_cluster(r.live.back()); r.live.pop_back(); }
  if (r.lint() && r.fault_kind == EMU_OK) r.report = lint_report();
  if (stats) *stats = r.stats;
  run = nullptr;
  if (report && report_len) snprintf(report, report_len, "%s", r.report.c_str());
  return r.fault_kind;
}
