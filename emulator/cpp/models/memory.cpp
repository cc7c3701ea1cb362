// Loads, stores and atomics written as PTX: wide accesses, cache policies, memory order and scope.
#include "checks/lint.h"
#include "checks/race.h"
#include "core/device.h"
#include "models/models.h"
#include "models/numeric.h"

namespace emu {
// The ISA has no type for 16-bit floats but `.b16`, and kernels pack them into words of `.u32` and `.b32`.
static Holds holds(const Instr& i) {
  const std::string& t = i.mods.back();
  if (t == "u8" || t == "b8") return Holds::Nothing;
  if (t == "u16" || t == "b16") return Holds::Halves;
  return t == "f32" || t == "u32" ? Holds::Floats : Holds::Bits;
}
static void check_policy(const Instr& i, Frame& f, size_t values) {
  const size_t expected = values + 1 + i.policy;
  if (i.args.size() != expected) fail(EMU_PTX, "%s: %zu operands where %s has %zu", f.program->function.c_str(), i.args.size(), i.name.c_str(), expected);
  if (i.policy && f.get(i.args.back()) >> 32 != kPolicyMark) fail(EMU_PTX, "%s: the cache policy was not made by createpolicy", f.program->function.c_str());
}
void model_createpolicy(const Instr& i, Frame& f) { f.set(i.args[0], (uint64_t)kPolicyMark << 32 | (i.has("L2::evict_first") ? 1 : 2)); }

// ld.global{.nc}{.L1::no_allocate}{.L2::cache_hint}{.v2,.v4}.type {results}, [address]{, policy}
void model_ld_global(const Instr& i, Frame& f) {
  const int n = i.vector, bytes = i.bytes;
  check_policy(i, f, (size_t)n);
  auto* p = static_cast<uint8_t*>(f.pointer(i.args[(size_t)n]));
  checked_global(p, (size_t)(n * bytes), kRead);
  for (int k = 0; k < n; k++) {
    uint64_t v = 0;
    memcpy(&v, p + k * bytes, (size_t)bytes);
    f.set(i.args[(size_t)k], v);
  }
}
// st.global{.L1::no_allocate}{.L2::cache_hint}{.v2,.v4}.type [address], {values}{, policy}
void model_st_global(const Instr& i, Frame& f) {
  const int n = i.vector, bytes = i.bytes;
  check_policy(i, f, (size_t)n);
  auto* p = static_cast<uint8_t*>(f.pointer(i.args[0]));
  checked_global(p, (size_t)(n * bytes), kWrite);
  for (int k = 0; k < n; k++) {
    const uint64_t v = f.get(i.args[1 + (size_t)k]);
    memcpy(p + k * bytes, &v, (size_t)bytes);
  }
  if (run->check()) check_taint(p, (size_t)(n * bytes), holds(i), p, here());
}

// ---------------------------------------------------------------- shared memory, the cluster's included
static uint8_t* shared_at(const Instr& i, uint32_t addr, uint32_t bytes, uint32_t flags) {
  Fiber* me = self();
  if (!i.cluster && addr >> kRankShift) fail(EMU_CLUSTER, "%s: a shared::cluster address where shared::cta is meant", i.name.c_str());
  const SharedRef r = resolve_cluster(addr, i.name.c_str());
  if (r.addr % bytes) fail(EMU_MISALIGNED, "%s: %s is not %u-byte aligned", i.name.c_str(), shared_name(r.addr).c_str(), bytes);
  uint8_t* p = shared_bytes_at(r.block, r.addr, bytes, i.name.c_str());
  if (run->lint() && r.block == me->home) lint_access(me, r.addr, (int)bytes, flags & kWrite, here(), true);
  if (run->check()) shared_access(r.block, me->who, me->clocks, r.addr, bytes, flags, here());
  return p;
}
// ld.shared{::cta,::cluster}{.v2,.v4}.type {results}, [address]
void model_ld_shared(const Instr& i, Frame& f) {
  const int n = i.vector, bytes = i.bytes;
  if ((int)i.args.size() != n + 1) fail(EMU_PTX, "%s: wrong number of operands", i.name.c_str());
  const uint8_t* p = shared_at(i, f.address(i.args[(size_t)n]), (uint32_t)(n * bytes), kRead);
  for (int k = 0; k < n; k++) {
    uint64_t v = 0;
    memcpy(&v, p + k * bytes, (size_t)bytes);
    f.set(i.args[(size_t)k], v);
  }
}
void model_st_shared(const Instr& i, Frame& f) {
  const int n = i.vector, bytes = i.bytes;
  if ((int)i.args.size() != n + 1) fail(EMU_PTX, "%s: wrong number of operands", i.name.c_str());
  uint8_t* p = shared_at(i, f.address(i.args[0]), (uint32_t)(n * bytes), kWrite);
  for (int k = 0; k < n; k++) {
    const uint64_t v = f.get(i.args[1 + (size_t)k]);
    memcpy(p + k * bytes, &v, (size_t)bytes);
  }
}

// ---------------------------------------------------------------- memory order
// Knowledge leaves a cluster only through device-scope releases: an atomic variable keeps what was released into it.
struct Order { bool acquire, release, block_scope; };
static Order order_of(const Instr& i) {
  const bool both = i.has("acq_rel");
  return {both || i.has("acquire"), both || i.has("release"), i.has("cta")};
}
static Release knowledge(Fiber* f) { return {with_cluster(f->clocks.foreign, f->home->cluster->seq, f->clocks.seen), f->clocks.grids}; }
static void after_read(Fiber* f, uintptr_t p, bool acquire) {
  auto it = run->releases.find(p);
  if (it == run->releases.end()) return;
  if (acquire) {
    f->clocks.foreign = join_foreign(f->clocks.foreign, it->second.foreign);
    f->clocks.grids |= it->second.grids;
    // What the same cluster released through device memory is knowledge of our own clock domain.
    join_own(f->clocks.seen, it->second.foreign, f->home->cluster->seq);
  } else {
    f->clocks.met = join_foreign(f->clocks.met, it->second.foreign);
    f->clocks.met_grids |= it->second.grids;
  }
}
static void after_write(Fiber* f, uintptr_t p, bool release, bool continues) {
  Release r = release ? knowledge(f) : Release{f->clocks.fenced, f->clocks.fenced_grids};
  if (continues) r.join(run->releases[p]);               // a read-modify-write continues a release sequence
  if (r.empty()) run->releases.erase(p); else run->releases[p] = std::move(r);
  if (release) tick(f);
}
// ld.{acquire,relaxed}.{cta,gpu,sys}.global.type d, [p]
void model_ld_strong(const Instr& i, Frame& f) {
  Fiber* me = self();
  const Order o = order_of(i);
  auto* p = static_cast<uint8_t*>(f.pointer(i.args[1]));
  const int bytes = i.bytes;
  // A poller lets others run first: it must see a change, and must not be starved of it.
  block_on(Wait::Yield, 0, 0, i.name.c_str());
  checked_global(p, (size_t)bytes, kRead | kAtomic | (o.block_scope ? kBlockScope : 0u));
  uint64_t v = 0;
  memcpy(&v, p, (size_t)bytes);
  if (run->check() && !o.block_scope) after_read(me, (uintptr_t)p, o.acquire);
  f.set(i.args[0], v);
}
// st.{release,relaxed}.{cta,gpu,sys}.global.type [p], v
void model_st_strong(const Instr& i, Frame& f) {
  Fiber* me = self();
  const Order o = order_of(i);
  auto* p = static_cast<uint8_t*>(f.pointer(i.args[0]));
  const int bytes = i.bytes;
  checked_global(p, (size_t)bytes, kWrite | kAtomic | (o.block_scope ? kBlockScope : 0u));
  const uint64_t v = f.get(i.args[1]);
  memcpy(p, &v, (size_t)bytes);
  if (run->check()) check_taint(p, (size_t)bytes, Holds::Bits, p, here());
  if (run->check() && !o.block_scope) after_write(me, (uintptr_t)p, o.release, false);
}

// ---------------------------------------------------------------- read-modify-write
static uint64_t apply(Atomic op, uint64_t old, uint64_t v, uint64_t compare, int bytes) {
  auto s = [bytes](uint64_t x) { return bytes == 8 ? (int64_t)x : (int64_t)(int32_t)x; };
  switch (op) {
    case Atomic::Add: return old + v;
    case Atomic::MaxU: return old > v ? old : v;
    case Atomic::MinU: return old < v ? old : v;
    case Atomic::MaxS: return s(old) > s(v) ? old : v;
    case Atomic::MinS: return s(old) < s(v) ? old : v;
    case Atomic::Exchange: return v;
    case Atomic::CompareSwap: return old == compare ? v : old;
    case Atomic::And: return old & v;
    case Atomic::Or: return old | v;
    case Atomic::Xor: return old ^ v;
  }
  return old;
}
static bool is_shared(const void* p) {
  Block* b = home();
  return (uintptr_t)p - (uintptr_t)b->arena < kSharedBase + (uintptr_t)b->shared_bytes;
}
static void touch_atomic(void* p, int bytes, bool block_scope) {
  Fiber* me = self();
  const uint32_t flags = kWrite | kAtomic | (block_scope ? kBlockScope : 0u);
  if (!is_shared(p)) return checked_global(p, (size_t)bytes, flags);
  if ((uintptr_t)p % (uintptr_t)bytes) fail(EMU_MISALIGNED, "misaligned %d-byte atomic", bytes);
  if (run->check()) shared_access(me->home, me->who, me->clocks, (uint32_t)((uintptr_t)p - (uintptr_t)me->home->arena), (uint32_t)bytes, flags, here());
}
uint64_t atomic_integer(Atomic op, void* p, int bytes, uint64_t value, uint64_t compare) {
  EMU_ENTRY();
  Fiber* me = self();
  touch_atomic(p, bytes, false);
  uint64_t old = 0;
  memcpy(&old, p, (size_t)bytes);
  const uint64_t mask = bytes == 8 ? ~0ull : 0xffffffffull;
  const uint64_t now = apply(op, old, value & mask, compare & mask, bytes);
  memcpy(p, &now, (size_t)bytes);
  if (run->check() && !is_shared(p)) {
    after_read(me, (uintptr_t)p, false);
    after_write(me, (uintptr_t)p, false, true);
  }
  // A lock or a counter may be polled with atomics: others must get to run.
  if (op == Atomic::CompareSwap || op == Atomic::Exchange) block_on(Wait::Yield, 0, 0, "atomic");
  return old;
}
float atomic_add_float(float* p, float v) {
  EMU_ENTRY();
  touch_atomic(p, 4, false);
  if (run->check()) check_taint(&v, 4, Holds::Floats, p, here());
  const float old = *p;
  *p = old + v;
  return old;
}
// {atom,red}{.acquire,.release,.acq_rel,.relaxed}.{cta,gpu,sys}.global.op.type {d,} [p], v{, v2}
void model_atom(const Instr& i, Frame& f) {
  Fiber* me = self();
  const bool red = i.mods[0] == "red";
  const Order o = order_of(i);
  const int bytes = i.bytes;
  const std::string &op = i.mods[i.mods.size() - 2], &type = i.mods.back();
  auto* p = static_cast<uint8_t*>(f.pointer(i.args[red ? 0 : 1]));
  const uint64_t v = f.get(i.args[red ? 1 : 2]), v2 = i.args.size() > 3 ? f.get(i.args[3]) : 0;
  if ((op == "cas") != (!red && i.args.size() == 4)) fail(EMU_PTX, "%s: wrong number of operands", i.name.c_str());
  touch_atomic(p, bytes, o.block_scope);
  uint64_t old = 0, now;
  memcpy(&old, p, (size_t)bytes);
  const bool is_signed = type == "s32" || type == "s64";
  if (type == "f32") {
    if (op != "add") fail(EMU_PTX, "%s is not modelled", i.name.c_str());
    if (run->check()) check_taint(&v, 4, Holds::Floats, p, here());
    now = bits_of(float_of((uint32_t)old) + float_of((uint32_t)v));
  } else {
    static const std::pair<const char*, Atomic> ops[] = {{"add", Atomic::Add}, {"exch", Atomic::Exchange}, {"cas", Atomic::CompareSwap}, {"and", Atomic::And}, {"or", Atomic::Or}, {"xor", Atomic::Xor}};
    Atomic a = op == "max" ? (is_signed ? Atomic::MaxS : Atomic::MaxU) : is_signed ? Atomic::MinS : Atomic::MinU;
    for (auto& [name, which] : ops) if (op == name) a = which;
    // cas: [p], compare, value
    now = op == "cas" ? apply(a, old, v2, v, bytes) : apply(a, old, v, 0, bytes);
  }
  memcpy(p, &now, (size_t)bytes);
  if (!red) f.set(i.args[0], old);
  if (run->check() && !o.block_scope && !is_shared(p)) {
    after_read(me, (uintptr_t)p, o.acquire);
    after_write(me, (uintptr_t)p, o.release, true);
  }
  block_on(Wait::Yield, 0, 0, i.mods[0].c_str());
}
// prefetch.global.L2 [p]: changes nothing that a program can see, but the address must exist.
void model_prefetch(const Instr& i, Frame& f) {
  std::string why;
  if (!run->device->inside(f.pointer(i.args[0]), 1, &why)) fail(EMU_OUT_OF_BOUNDS, "prefetch of %s", why.c_str());
}
}  // namespace emu
