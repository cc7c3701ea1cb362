// Fences, barriers, clusters, election, warp reductions, register reallocation, dependent launch.
#include "checks/race.h"
#include "models/mbarrier.h"
#include "models/models.h"

namespace emu {
// fence.proxy.async{.global,.shared::cta,.shared::cluster}: what this thread knows to have been written through
// the generic proxy becomes visible to the async proxy.  Not its own writes alone: a consumer that has waited for
// cp.async data may fence on the producer's behalf.
void model_fence_proxy_async(const Instr& i, Frame&) {
  Fiber* me = self();
  const bool global = i.has("global"), shared = i.has("shared::cta") || i.has("shared::cluster");
  if (!global) publish_mbarrier_inits();
  if (!run->check()) return;
  Clocks& k = me->clocks;
  if (!global) join_into(k.shared_published, k.seen);
  if (!shared) {
    join_into(k.global_published, k.seen);
    k.foreign_published = join_foreign(k.foreign_published, k.foreign);
  }
  tick(me);
}
void model_fence_mbarrier_init(const Instr&, Frame&) { publish_mbarrier_inits(); }

// ---------------------------------------------------------------- device-scope fences with relaxed atomics
static void fence(int scope) {
  Fiber* me = self();
  if (scope == 0 || !run->check()) return;                // inside a block nothing but barriers passes knowledge on
  Clocks& k = me->clocks;
  k.foreign = join_foreign(k.foreign, k.met);
  join_own(k.seen, k.met, me->home->cluster->seq);
  k.grids |= k.met_grids;
  k.fenced = with_cluster(k.foreign, me->home->cluster->seq, k.seen);
  k.fenced_grids = k.grids;
  tick(me);
}
void threadfence(int scope) {
  EMU_ENTRY();
  fence(scope);
}
void model_fence_scope(const Instr& i, Frame&) { fence(i.has("cta") ? 0 : 1); }

// ---------------------------------------------------------------- barriers and clusters
// bar.{sync,arrive} id{, threads}
void model_bar(const Instr& i, Frame& f) {
  const bool wait = i.mods[1] == "sync";
  if (!wait && i.args.size() < 2) fail(EMU_PTX, "bar.arrive needs a thread count");
  const int id = (int)f.get32(i.args[0]), n = i.args.size() > 1 ? (int)f.get32(i.args[1]) : home()->n_threads;
  named_barrier(id, n, wait, &i, i.name.c_str());
}
// barrier.cluster.{arrive,wait}{.release,.relaxed,.acquire}.aligned
void model_cluster_barrier(const Instr& i, Frame&) {
  if (i.mods[2] == "arrive") cluster_arrive(!i.has("relaxed"));
  else cluster_wait(true);
}
// mapa.shared::cluster.u32 d, addr, rank
void model_mapa(const Instr& i, Frame& f) {
  const uint32_t addr = f.address(i.args[1]), rank = f.get32(i.args[2]);
  if (rank >= home_cluster()->blocks.size()) fail(EMU_CLUSTER, "mapa: block %u in a cluster of %zu", rank, home_cluster()->blocks.size());
  f.set(i.args[0], (rank + 1) << kRankShift | (addr & ((1u << kRankShift) - 1)));
}
void model_elect(const Instr& i, Frame& f) {
  uint32_t chosen = 0;
  collective(f.get32(i.args[1]), &i, "elect.sync", &chosen, [](Collective& c) {
    // Any lane may be chosen, but always the same for the same mask.
    int k = run->adversarial() ? (int)((run->options.seed * 7) % (unsigned)__builtin_popcount(c.mask)) : 0;
    for (int l = 0; l < 32; l++) if (c.mask >> l & 1) if (k-- == 0) *static_cast<uint32_t*>(c.arg[l]) = 1;
  });
  f.set(i.args[0], chosen);
}
// redux.sync.{add,min,max,and,or,xor}.{u32,s32,b32} d, a, mask
uint32_t vote_at(const void* key, const char* name, Vote, uint32_t mask, uint32_t value);
void model_redux(const Instr& i, Frame& f) {
  const std::string &op = i.mods[2], &type = i.mods[3];
  const bool is_signed = type == "s32";
  if ((op == "and" || op == "or" || op == "xor") != (type == "b32")) fail(EMU_PTX, "%s: the type does not fit the operation", i.name.c_str());
  const Vote v = op == "add" ? Vote::Add : op == "min" ? (is_signed ? Vote::MinS : Vote::MinU) : op == "max" ? (is_signed ? Vote::MaxS : Vote::MaxU)
               : op == "and" ? Vote::And : op == "or" ? Vote::Or : Vote::Xor;
  f.set(i.args[0], vote_at(&i, "redux.sync", v, f.get32(i.args[2]), f.get32(i.args[1])));
}

// ---------------------------------------------------------------- registers
// setmaxnreg.{inc,dec}.sync.aligned.u32 n: registers go to and come from the block's pool.
void model_setmaxnreg(const Instr& i, Frame& f) {
  const int n = (int)f.get32(i.args[0]);
  const bool inc = i.mods[1] == "inc";
  if (n < 24 || n > 256 || n % 8) fail(EMU_REGISTERS, "setmaxnreg %d: must be a multiple of 8 in 24..256", n);
  collective(~0u, &i, "setmaxnreg", nullptr, [&](Collective&) {
    Fiber* me = self();
    Block* b = me->home;
    Warp* w = me->warp;
    if (inc && n < w->regs) fail(EMU_REGISTERS, "setmaxnreg.inc to %d from %d", n, w->regs);
    if (!inc && n > w->regs) fail(EMU_REGISTERS, "setmaxnreg.dec to %d from %d", n, w->regs);
    if (inc) {
      while (b->register_pool < 32 * (n - w->regs)) block_on(Wait::Registers, (uint64_t)n, 0, "setmaxnreg");
      b->register_pool -= 32 * (n - w->regs);
      w->regs = n;
    } else {
      b->register_pool += 32 * (w->regs - n);
      w->regs = n;
      wake_if(b, [](Fiber* o) { return o->wait == Wait::Registers; });
    }
  });
}

// ---------------------------------------------------------------- programmatic dependent launch
void model_grid_wait(const Instr&, Frame&) {
  Fiber* me = self();
  Grid* g = me->home->cluster->grid;
  if (g->index == 0) return;
  const Grid& before = run->grids[(size_t)g->index - 1];
  while (!before.done()) block_on(Wait::GridDependency, 0, 0, "griddepcontrol.wait");
  me->clocks.grids |= before.known;
}
void model_grid_launch_dependents(const Instr&, Frame&) {
  Block* b = home();
  if (b->triggered) return;
  // The first trigger of a block counts for all of its threads.
  b->triggered = true;
  b->cluster->grid->triggered++;
  grid_event();
}
void model_nanosleep(const Instr&, Frame&) { block_on(Wait::Yield, 0, 0, "nanosleep"); }
}  // namespace emu
