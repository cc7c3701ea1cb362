// cp.async and the 1-D bulk copies (PTX ISA, "Data Movement and Conversion Instructions: asynchronous copy").
#include "models/async.h"
#include "models/mbarrier.h"
#include "models/models.h"

namespace emu {
// cp.async.{ca,cg}.shared.global [dst], [src], bytes{, src_bytes}
void model_cp_async(const Instr& i, Frame& f) {
  Fiber* me = self();
  CpAsync c{};
  c.dst = f.address(i.args[0]);
  c.src = f.pointer(i.args[1]);
  c.bytes = (int)f.get32(i.args[2]);
  const bool has_policy = i.has("L2::cache_hint");
  c.src_bytes = i.args.size() > (has_policy ? 4u : 3u) ? (int)f.get32(i.args[3]) : c.bytes;
  c.group = me->cp_async_group;
  c.pc = here();
  if (c.bytes != 16 && (i.has("cg") || (c.bytes != 4 && c.bytes != 8))) fail(EMU_PTX, "cp.async of %d bytes", c.bytes);
  if (c.dst % (uint32_t)c.bytes || (uintptr_t)c.src % (uintptr_t)c.bytes) fail(EMU_MISALIGNED, "cp.async: misaligned address (to %s, from %p)", shared_name(c.dst).c_str(), c.src);
  if (c.src_bytes < 0 || c.src_bytes > c.bytes) fail(EMU_PTX, "cp.async: src-size %d of %d bytes", c.src_bytes, c.bytes);
  std::string why;
  if (c.src_bytes && !run->device->inside(c.src, (size_t)c.src_bytes, &why)) fail(EMU_OUT_OF_BOUNDS, "cp.async reads %s", why.c_str());
  poison(shared_bytes_at(me->home, c.dst, (uint32_t)c.bytes, "cp.async"), (size_t)c.bytes, kInFlight);
  if (run->check()) shared_access(me->home, me->who, me->clocks, c.dst, (uint32_t)c.bytes, kWrite, c.pc);
  me->cp_async.push_back(c);
}
void model_cp_async_commit(const Instr&, Frame&) { self()->cp_async_group++; }
void model_cp_async_wait(const Instr& i, Frame& f) {
  Fiber* me = self();
  const int limit = i.mods[2] == "wait_all" ? 1 << 30 : me->cp_async_group - (int)f.get32(i.args[0]);
  size_t kept = 0;
  for (const CpAsync& c : me->cp_async) {
    if (c.group >= limit) { me->cp_async[kept++] = c; continue; }
    uint8_t* d = me->home->arena + c.dst;
    memset(d, 0, (size_t)c.bytes);
    if (c.src_bytes) memcpy(d, c.src, (size_t)c.src_bytes);
    if (!run->check()) continue;
    if (c.src_bytes) global_access(me->home->cluster, me->who, me->clocks, (uintptr_t)c.src, (size_t)c.src_bytes, kRead, c.pc);
    shared_access(me->home, me->who, me->clocks, c.dst, (uint32_t)c.bytes, kWrite, c.pc);
  }
  me->cp_async.resize(kept);
}

// ---------------------------------------------------------------- 1-D bulk copies
static CopyShape line(uint32_t shared, uint8_t* outside, uint32_t bytes, const char* what) {
  if (shared % 16 || (uintptr_t)outside % 16 || bytes % 16 || bytes == 0)
    fail(EMU_MISALIGNED, "%s: addresses and size must be multiples of 16 (%s, %p, %u bytes)", what, shared_name(shared).c_str(), outside, bytes);
  CopyShape s;
  s.shared = shared;
  s.bytes = bytes;
  for (uint32_t at = 0; at < bytes; at += 128) {
    const uint32_t n = std::min(128u, bytes - at);
    s.segments.push_back({shared + at, n, outside + at, 0, n});
  }
  return s;
}
// cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes{.multicast::cluster}{.L2::cache_hint} [dst], [src], size, [bar]{, mask}{, policy}
void model_bulk_load(const Instr& i, Frame& f) {
  const uint32_t dst = f.address(i.args[0]), bytes = f.get32(i.args[2]), bar = f.address(i.args[3]);
  auto* src = static_cast<uint8_t*>(f.pointer(i.args[1]));
  if (i.has("multicast::cluster")) {
    const uint64_t mask = f.get(i.args[4]);
    for (Block* b : home_cluster()->blocks) if (mask >> b->rank & 1) issue_load(b, line(dst, src, bytes, "cp.async.bulk"), b, bar, false, "cp.async.bulk");
    if (mask >> home_cluster()->blocks.size()) fail(EMU_CLUSTER, "cp.async.bulk: multicast mask %llx in a cluster of %zu", (unsigned long long)mask, home_cluster()->blocks.size());
    return;
  }
  const SharedRef to = resolve_cluster(dst, "cp.async.bulk"), at = resolve_cluster(bar, "cp.async.bulk");
  if (at.block != to.block) fail(EMU_CLUSTER, "cp.async.bulk: the barrier and the destination lie in different blocks");
  issue_load(to.block, line(to.addr, src, bytes, "cp.async.bulk"), at.block, at.addr, false, "cp.async.bulk");
}
// cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [dst], [src], size, [bar]
void model_bulk_to_cluster(const Instr& i, Frame& f) {
  const SharedRef to = resolve_cluster(f.address(i.args[0]), "cp.async.bulk"), bar = resolve_cluster(f.address(i.args[3]), "cp.async.bulk");
  const uint32_t src = f.address(i.args[1]), bytes = f.get32(i.args[2]);
  if (bar.block != to.block) fail(EMU_CLUSTER, "cp.async.bulk: the barrier and the destination lie in different blocks");
  if (src % 16) fail(EMU_MISALIGNED, "cp.async.bulk: %s is not 16-byte aligned", shared_name(src).c_str());
  uint8_t* from = shared_bytes_at(home(), src, bytes, "cp.async.bulk");
  issue_load(to.block, line(to.addr, from, bytes, "cp.async.bulk"), bar.block, bar.addr, true, "cp.async.bulk");
}
Reduce reduce_of(const Instr& i) {
  static const std::pair<const char*, Reduce> names[] = {{"add", Reduce::Add}, {"min", Reduce::Min}, {"max", Reduce::Max}};
  for (auto& [name, r] : names) if (i.has(name)) return r;
  return Reduce::None;
}
static Element element_of(const Instr& i) {
  static const std::pair<const char*, Element> names[] = {{"u32", Element::U32}, {"s32", Element::S32}, {"u64", Element::U64}, {"f32", Element::F32}, {"f16", Element::F16}, {"bf16", Element::BF16}};
  for (auto& [name, e] : names) if (i.mods.back() == name) return e;
  return Element::Bytes;
}
// cp{.reduce}.async.bulk.global.shared::cta.bulk_group{.op.type} [dst], [src], size
void model_bulk_store(const Instr& i, Frame& f) {
  auto* dst = static_cast<uint8_t*>(f.pointer(i.args[0]));
  const Reduce r = i.mods[1] == "reduce" ? reduce_of(i) : Reduce::None;
  issue_store(line(f.address(i.args[1]), dst, f.get32(i.args[2]), "cp.async.bulk"), r, element_of(i), "cp.async.bulk");
}
void model_bulk_commit(const Instr&, Frame&) {
  Fiber* me = self();
  for (auto& op : me->home->cluster->async) if (op->store && op->issuer == me && op->group == me->bulk_group) op->committed = true;
  me->bulk_group++;
}
static void learn(Fiber* me, std::vector<std::pair<int, Clocks>>& groups, int limit) {
  std::vector<std::pair<int, Clocks>> later;
  for (auto& g : groups) {
    if (g.first < limit) me->clocks.join(g.second);
    else later.push_back(std::move(g));
  }
  groups = std::move(later);
}
// cp.async.bulk.wait_group{.read} n: `.read` waits for the sources only.
void model_bulk_wait(const Instr& i, Frame& f) {
  Fiber* me = self();
  const int limit = me->bulk_group - (int)f.get32(i.args[0]);
  const bool sources_only = i.has("read");
  for (;;) {
    bool pending = false;
    for (auto& op : me->home->cluster->async)
      pending |= op->store && op->issuer == me && op->group < limit && !(sources_only && op->source_read);
    if (!pending) break;
    block_on(Wait::Bulk, 0, 0, "cp.async.bulk.wait_group");
  }
  me->bulk_waited = std::max(me->bulk_waited, limit);
  if (!run->check()) return;
  learn(me, me->bulk_read_clocks, limit);
  if (!sources_only) learn(me, me->bulk_clocks, limit);
}
}  // namespace emu
