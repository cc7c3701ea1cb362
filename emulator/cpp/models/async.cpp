#include "models/async.h"
#include "models/mbarrier.h"
#include "models/numeric.h"

namespace emu {
uint32_t swizzled(uint32_t a, int span) {
  switch (span) {
    case 128: return a ^ ((a >> 3) & 0x70);
    case 64: return a ^ ((a >> 3) & 0x30);
    case 32: return a ^ ((a >> 3) & 0x10);
    default: return a;
  }
}
// Bytes [low, high) of a segment, in pieces that a swizzle keeps together.
template <class F> static void pieces(const Segment& s, int swizzle, F each) {
  for (uint32_t at = 0; at < s.bytes;) {
    const uint32_t n = std::min(swizzle ? 16u : s.bytes, s.bytes - at);
    each(swizzled(s.shared + at, swizzle), at, n);
    at += n;
  }
}

static Holds holds(Element e) {
  if (e == Element::F16 || e == Element::BF16) return Holds::Halves;
  return e == Element::F32 ? Holds::Floats : Holds::Bits;
}

namespace {
struct Load : AsyncOp {
  CopyShape shape;
  size_t next = 0, rotation = 0;
  void step() override {
    const size_t n = shape.segments.size();
    const size_t count = run->adversarial() ? std::min(n - next, (size_t)1 + run->rng.below((uint32_t)n)) : n - next;
    uint32_t landed = 0;
    for (size_t i = 0; i < count; i++, next++) {
      const Segment& s = shape.segments[(next + rotation) % n];
      pieces(s, shape.swizzle, [&](uint32_t to, uint32_t at, uint32_t bytes) {
        uint8_t* d = block->arena + to;
        if (at >= s.low && at + bytes <= s.high) { memcpy(d, s.outside + at, bytes); return; }
        memset(d, 0, bytes);                                           // out of bounds: zero fill
        const uint32_t a = std::max(at, s.low), b = std::min(at + bytes, s.high);
        if (s.outside && a < b) memcpy(d + (a - at), s.outside + a, b - a);
      });
      landed += s.bytes;
    }
    finished = next == n;
    mbarrier_complete_tx(*this, landed);
  }
};
struct Store : AsyncOp {
  CopyShape shape;
  Reduce reduce;
  Element element;
  Clocks write_clocks;
  std::vector<uint8_t> data;
  void step() override {
    if (!source_read) {                                                // first the source is read, later the destination written
      data.resize(shape.bytes);
      uint32_t base = 0;
      for (const Segment& s : shape.segments) {
        pieces(s, shape.swizzle, [&](uint32_t from, uint32_t at, uint32_t bytes) { memcpy(data.data() + base + at, block->arena + from, bytes); });
        base += s.bytes;
      }
      source_read = true;
    } else {
      uint32_t base = 0;
      for (const Segment& s : shape.segments) {
        if (s.outside && s.low < s.high) write(s, data.data() + base);
        base += s.bytes;
      }
      finished = true;
    }
    if (issuer->wait == Wait::Bulk) wake(issuer);
  }
  void write(const Segment& s, const uint8_t* from) {
    uint8_t* to = s.outside + s.low;
    const uint32_t n = s.high - s.low;
    if (run->check()) {
      global_access(block->cluster, (uint32_t)agent, write_clocks, (uintptr_t)to, n, kWrite | kAsync | (reduce == Reduce::None ? 0u : kAtomic), pc);
      check_taint(from + s.low, n, holds(element), to, pc);
    }
    if (reduce == Reduce::None) memcpy(to, from + s.low, n);
    else reduce_bytes(reduce, element, to, from + s.low, n);
  }
  int agent = 0;
};
}  // namespace

void add_async(Cluster* c, std::unique_ptr<AsyncOp> op) {
  const bool at_once = !run->adversarial() && !op->store;
  c->async.push_back(std::move(op));
  if (at_once) while (step_async(c)) {}
}
bool step_async(Cluster* c) {
  const size_t n = c->async.size();
  const size_t first = run->adversarial() && n ? run->rng.below((uint32_t)n) : 0;
  for (size_t i = 0; i < n; i++) {
    const size_t k = (first + i) % n;
    AsyncOp* op = c->async[k].get();
    if (!op->may_step()) continue;
    run->stats.async_steps++;
    op->step();
    if (op->finished) {
      // The step may have woken threads but it never issues operations: position k still holds it.
      c->async.erase(c->async.begin() + (long)k);
    }
    return true;
  }
  return false;
}

static void check_not_barrier(Block* b, uint32_t addr, uint32_t bytes, const char* what) {
  if (addr >= b->mbarrier_high || addr + bytes <= b->mbarrier_low) return;
  for (auto& [at, m] : b->mbarriers)
    if (at + 8 > addr && at < addr + bytes) fail(EMU_ASYNC, "%s overwrites the mbarrier at %s", what, shared_name(at).c_str());
}

void issue_load(Block* to, CopyShape shape, Block* bar_block, uint32_t bar, bool from_shared, const char* what) {
  Fiber* me = self();
  Cluster* c = me->home->cluster;
  uint8_t* dst = shared_bytes_at(to, shape.shared, shape.bytes, what);
  check_not_barrier(to, shape.shared, shape.bytes, what);
  for (const Segment& s : shape.segments) {
    std::string why;
    if (!from_shared && s.outside && s.low < s.high && !run->device->inside(s.outside + s.low, s.high - s.low, &why))
      fail(EMU_OUT_OF_BOUNDS, "%s reads %s", what, why.c_str());
  }
  auto op = std::make_unique<Load>();
  op->block = to;
  op->issuer = me;
  op->pc = run->check() ? here() : 0;
  op->bar_block = bar_block;
  op->bar = bar;
  op->phase = mbarrier_for_async(bar_block, bar, what).phase;
  if (run->check()) {
    const uint32_t agent = (uint32_t)start_agent(c, me->clocks, &op->clocks);
    for (const Segment& s : shape.segments) {
      if (!s.outside || s.low >= s.high) continue;
      if (from_shared) shared_access(me->home, agent, op->clocks, (uint32_t)(s.outside + s.low - me->home->arena), s.high - s.low, kAsync, op->pc);
      else global_access(c, agent, op->clocks, (uintptr_t)(s.outside + s.low), s.high - s.low, kAsync, op->pc);
    }
    shared_access(to, agent, op->clocks, shape.shared, shape.bytes, kAsync | kWrite, op->pc);
  }
  poison(dst, shape.bytes, kInFlight);                                 // undefined until complete
  if (run->adversarial()) op->rotation = run->rng.below((uint32_t)shape.segments.size());
  op->shape = std::move(shape);
  add_async(c, std::move(op));
}

void issue_store(CopyShape shape, Reduce reduce, Element element, const char* what) {
  Fiber* me = self();
  Block* b = me->home;
  shared_bytes_at(b, shape.shared, shape.bytes, what);
  for (const Segment& s : shape.segments) {
    std::string why;
    if (s.outside && s.low < s.high && !run->device->inside(s.outside + s.low, s.high - s.low, &why))
      fail(EMU_OUT_OF_BOUNDS, "%s writes %s", what, why.c_str());
  }
  auto op = std::make_unique<Store>();
  op->block = b;
  op->issuer = me;
  op->pc = run->check() ? here() : 0;
  op->store = true;
  op->group = me->bulk_group;
  op->reduce = reduce;
  op->element = element;
  if (run->check()) {
    // Reading the source and writing the destination complete separately: an agent for each.
    const uint32_t reader = (uint32_t)start_agent(b->cluster, me->clocks, &op->clocks);
    shared_access(b, reader, op->clocks, shape.shared, shape.bytes, kAsync, op->pc);
    op->agent = start_agent(b->cluster, op->clocks, &op->write_clocks);
    me->bulk_read_clocks.push_back({op->group, op->clocks});
    me->bulk_clocks.push_back({op->group, op->write_clocks});
  }
  op->shape = std::move(shape);
  add_async(b->cluster, std::move(op));
}
}  // namespace emu
