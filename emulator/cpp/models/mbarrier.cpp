// mbarrier: phases, arrivals, transaction counts (PTX ISA, "Parallel Synchronization and Communication
// Instructions: mbarrier").
#include "models/mbarrier.h"
#include "models/models.h"

namespace emu {
static Mbarrier& find(Block* b, uint32_t addr, const char* what) {
  auto it = b->mbarriers.find(addr);
  if (it == b->mbarriers.end()) fail(EMU_BARRIER, "%s on %s, which is not an initialised mbarrier", what, shared_name(addr).c_str());
  Mbarrier& m = it->second;
  Fiber* f = self();
  if (f && run->check() && f->who != m.init_who && f->clocks.seen[m.init_who] < m.init_clock)
    fail(EMU_RACE, "race: %s on mbarrier %s is not ordered after mbarrier.init by %s", what, shared_name(addr).c_str(), actor(b->cluster, m.init_who).c_str());
  return m;
}
Mbarrier& mbarrier_for_async(Block* b, uint32_t addr, const char* what) {
  Mbarrier& m = find(b, addr, what);
  if (run->check() && !m.async_visible)
    fail(EMU_PROXY, "mbarrier %s is used by the async proxy without fence.mbarrier_init or fence.proxy.async after its init", shared_name(addr).c_str());
  return m;
}
static void try_complete(Block* b, Mbarrier& m) {
  if (m.pending != 0 || m.tx != 0) return;
  for (auto& op : b->cluster->async)
    if (!op->store && op->bar_block == b && op->bar == m.addr && op->phase == m.phase && !op->finished)
      fail(EMU_ASYNC, "mbarrier %s completes phase %llu while a copy that signals it, issued at %s, is in flight: expect_tx is too small",
           shared_name(m.addr).c_str(), (unsigned long long)m.phase, source_of(op->pc).c_str());
  m.phase++;
  m.pending = m.count;
  if (run->check()) {
    m.completed.join(m.accumulating);
    m.accumulating.reset(m.accumulating.seen.size());
  }
  const uint32_t addr = m.addr;
  const uint64_t phase = m.phase;
  wake_if(b, [addr, phase](Fiber* f) { return f->wait == Wait::Mbarrier && f->wait_a == addr && (phase & 1) != f->wait_b; });
}
void mbarrier_complete_tx(AsyncOp& op, uint32_t bytes) {
  auto it = op.bar_block->mbarriers.find(op.bar);
  if (it == op.bar_block->mbarriers.end()) fail(EMU_ASYNC, "a copy completes on %s, which is no longer an mbarrier", shared_name(op.bar).c_str());
  Mbarrier& m = it->second;
  if (m.phase != op.phase)
    fail(EMU_ASYNC, "bytes of the copy issued at %s in phase %llu of mbarrier %s arrive in phase %llu: expect_tx does not cover them", source_of(op.pc).c_str(),
         (unsigned long long)op.phase, shared_name(m.addr).c_str(), (unsigned long long)m.phase);
  m.tx -= bytes;
  if (m.tx < -(1 << 20)) fail(EMU_ASYNC, "the tx-count of mbarrier %s underflows", shared_name(m.addr).c_str());
  if (op.finished && run->check()) m.accumulating.join(op.clocks);
  if (m.pending == 0) try_complete(op.bar_block, m);
}
static void arrive(Block* b, Mbarrier& m, uint32_t n, const Clocks* with) {
  if (run->check() && with) m.accumulating.join(*with);
  if ((int64_t)n > m.pending)
    fail(EMU_BARRIER, "mbarrier %s: more arrivals in phase %llu than its count of %d", shared_name(m.addr).c_str(), (unsigned long long)m.phase, m.count);
  m.pending -= (int)n;
  if (m.pending == 0) try_complete(b, m);
}
void mbarrier_async_arrive(AsyncOp& op) {
  auto it = op.bar_block->mbarriers.find(op.bar);
  if (it == op.bar_block->mbarriers.end()) fail(EMU_ASYNC, "cp.async.mbarrier.arrive lands on %s, which is no longer an mbarrier", shared_name(op.bar).c_str());
  if (it->second.phase != op.phase)
    fail(EMU_ASYNC, "cp.async.mbarrier.arrive of phase %llu of mbarrier %s lands in phase %llu: the barrier's count does not include it",
         (unsigned long long)op.phase, shared_name(op.bar).c_str(), (unsigned long long)it->second.phase);
  op.finished = true;
  arrive(op.bar_block, it->second, 1, &op.clocks);
}
void publish_mbarrier_inits() {
  for (Block* b : home_cluster()->blocks)
    for (auto& [addr, m] : b->mbarriers) if (m.init_who == self()->who) m.async_visible = true;
}

// ---------------------------------------------------------------- instructions
void model_mbarrier_init(const Instr& i, Frame& f) {
  Fiber* me = self();
  Block* b = me->home;
  const uint32_t addr = f.address(i.args[0]), count = f.get32(i.args[1]);
  if (addr % 8) fail(EMU_MISALIGNED, "mbarrier.init: %s is not 8-byte aligned", shared_name(addr).c_str());
  if (count == 0 || count >= 1 << 20) fail(EMU_BARRIER, "mbarrier.init: count %u is outside 1..2^20-1", count);
  memset(shared_bytes_at(b, addr, 8, "mbarrier.init"), 0xa5, 8);
  auto old = b->mbarriers.find(addr);
  if (old != b->mbarriers.end()) fail(EMU_BARRIER, "mbarrier.init of %s, which is a live mbarrier (mbarrier.inval first)", shared_name(addr).c_str());
  Mbarrier& m = b->mbarriers[addr];
  m = Mbarrier{addr, (int)count, (int)count, 0, 0, me->who, 0, false, {}, {}};
  b->mbarrier_low = std::min(b->mbarrier_low, addr);
  b->mbarrier_high = std::max(b->mbarrier_high, addr + 8);
  if (!run->check()) return;
  m.init_clock = me->clocks.seen[me->who];
  m.accumulating.reset(me->clocks.seen.size());
  m.completed.reset(me->clocks.seen.size());
  b->written[addr / 16] |= (uint16_t)(0xff << (addr & 8));       // it initialises; it does not read
  shared_access(b, me->who, me->clocks, addr, 8, kWrite | kAtomic, here());
}
void model_mbarrier_inval(const Instr& i, Frame& f) {
  const uint32_t addr = f.address(i.args[0]);
  find(home(), addr, "mbarrier.inval");
  home()->mbarriers.erase(addr);
}
// mbarrier.arrive{.expect_tx}{.noComplete}.release.{cta,cluster}.shared::{cta,cluster} _, [addr]{, count or bytes}
void model_mbarrier_arrive(const Instr& i, Frame& f) {
  Fiber* me = self();
  const bool tx = i.has("expect_tx"), remote = i.has("shared::cluster");
  const uint32_t addr = f.address(i.args[1]);
  if (!remote && addr >> kRankShift) fail(EMU_CLUSTER, "%s: a shared::cluster address where shared::cta is meant", i.name.c_str());
  if (remote && i.args[0].kind != PtxArg::Sink) fail(EMU_PTX, "%s: a remote arrival returns no state", i.name.c_str());
  const SharedRef at = resolve_cluster(addr, "mbarrier.arrive");
  if (at.block != me->home && !i.has("cluster")) fail(EMU_CLUSTER, "%s: an arrival in another block needs cluster scope", i.name.c_str());
  Mbarrier& m = find(at.block, at.addr, "mbarrier.arrive");
  if (tx) m.tx += f.get32(i.args[2]);
  arrive(at.block, m, !tx && i.args.size() > 2 ? f.get32(i.args[2]) : 1, &me->clocks);
  if (run->check()) tick(me);
}
void model_mbarrier_expect_tx(const Instr& i, Frame& f) {
  const SharedRef at = resolve_cluster(f.address(i.args[0]), "mbarrier.expect_tx");
  find(at.block, at.addr, "mbarrier.expect_tx").tx += f.get32(i.args[1]);
}
// mbarrier.{try_wait,test_wait}.parity.acquire.{cta,cluster}.shared::cta p, [addr], parity{, hint}
void model_mbarrier_wait(const Instr& i, Frame& f) {
  const bool may_suspend = i.mods[1] == "try_wait";
  const uint32_t addr = f.address(i.args[1]);
  const uint64_t parity = f.get32(i.args[2]);
  Block* b = home();
  Mbarrier& m = find(b, addr, i.name.c_str());
  if (parity > 1) fail(EMU_BARRIER, "mbarrier wait for parity %llu", (unsigned long long)parity);
  if (++run->spin > 100'000) fail(EMU_WATCHDOG, "watchdog: %s spins on an mbarrier whose phase has completed", f.program->function.c_str());
  if ((m.phase & 1) == parity) {
    const bool spurious = run->adversarial() && run->rng.below(16) == 0;      // try_wait may time out at any moment
    if (may_suspend && !spurious) block_on(Wait::Mbarrier, addr, parity, "mbarrier.try_wait");
    else block_on(Wait::Yield, 0, 0, i.mods[1].c_str());
  }
  Mbarrier& now = find(b, addr, i.name.c_str());
  const bool done = (now.phase & 1) != parity;
  if (done && run->check()) self()->clocks.join(now.completed);
  f.set(i.args[0], done);
}
// cp.async.mbarrier.arrive{.noinc}: an arrival once all earlier cp.async of this thread have landed.
namespace {
struct CpAsyncArrival : AsyncOp {
  std::vector<CpAsync> copies;
  void step() override {
    for (const CpAsync& c : copies) {
      uint8_t* d = block->arena + c.dst;
      memset(d, 0, (size_t)c.bytes);
      if (c.src_bytes) memcpy(d, c.src, (size_t)c.src_bytes);
    }
    mbarrier_async_arrive(*this);
  }
};
}  // namespace
void model_cp_async_mbarrier_arrive(const Instr& i, Frame& f) {
  Fiber* me = self();
  auto op = std::make_unique<CpAsyncArrival>();
  op->block = op->bar_block = me->home;
  op->issuer = me;
  op->pc = here();
  op->bar = f.address(i.args[0]);
  Mbarrier& m = find(me->home, op->bar, "cp.async.mbarrier.arrive");
  if (!i.has("noinc")) m.pending++;
  op->phase = m.phase;
  op->copies = std::move(me->cp_async);
  me->cp_async.clear();
  if (run->check()) {
    for (const CpAsync& c : op->copies)
      if (c.src_bytes) global_access(me->home->cluster, me->who, me->clocks, (uintptr_t)c.src, (size_t)c.src_bytes, kRead, c.pc);
    op->clocks = me->clocks;
    tick(me);
  }
  add_async(me->home->cluster, std::move(op));
}
// st.async: a remote store that signals the remote block's barrier.
namespace {
struct StoreAsync : AsyncOp {
  uint32_t dst, bytes;
  uint8_t value[16];
  void step() override {
    memcpy(block->arena + dst, value, bytes);
    finished = true;
    mbarrier_complete_tx(*this, bytes);
  }
};
}  // namespace
void model_st_async(const Instr& i, Frame& f) {
  Fiber* me = self();
  auto op = std::make_unique<StoreAsync>();
  const SharedRef to = resolve_cluster(f.address(i.args[0]), "st.async");
  const size_t values = i.args.size() - 2, each = i.mods.back() == "b64" || i.mods.back() == "u64" ? 8 : 4;
  for (size_t k = 0; k < values; k++) {
    const uint64_t v = f.get(i.args[1 + k]);
    memcpy(op->value + k * each, &v, each);
  }
  op->bytes = (uint32_t)(values * each);
  const SharedRef bar = resolve_cluster(f.address(i.args.back()), "st.async");
  if (bar.block != to.block) fail(EMU_CLUSTER, "st.async: the barrier and the destination lie in different blocks");
  if (to.addr % op->bytes) fail(EMU_MISALIGNED, "st.async: %s is not %u-byte aligned", shared_name(to.addr).c_str(), op->bytes);
  poison(shared_bytes_at(to.block, to.addr, op->bytes, "st.async"), op->bytes, kInFlight);
  op->block = op->bar_block = to.block;
  op->dst = to.addr;
  op->bar = bar.addr;
  op->issuer = me;
  op->pc = here();
  op->phase = mbarrier_for_async(bar.block, bar.addr, "st.async").phase;
  if (run->check()) {
    const uint32_t agent = (uint32_t)start_agent(me->home->cluster, me->clocks, &op->clocks);
    shared_access(to.block, agent, op->clocks, to.addr, op->bytes, kWrite | kAsync, op->pc);
  }
  add_async(me->home->cluster, std::move(op));
}
}  // namespace emu
