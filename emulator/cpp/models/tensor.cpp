// Tensor maps and the tile copies that use them (PTX ISA, "Tensor Memory Access").
#include "models/async.h"
#include "models/mbarrier.h"
#include "models/models.h"
#include "models/tensor_map.h"
#include <cstdio>

namespace emu {
TensorMapBits read_tensor_map(const void* p) {
  if ((uintptr_t)p % 64) fail(EMU_TENSOR_MAP, "the tensor map at %p is not 64-byte aligned", p);
  TensorMapBits m;
  memcpy(&m, p, sizeof m);
  if (m.magic != kTensorMapMagic) fail(EMU_TENSOR_MAP, "the tensor map at %p was never encoded", p);
  // A map in device memory that this kernel has modified is read through a proxy of its own.
  if (run->check() && run->device->find((uintptr_t)p)) {
    auto it = run->tensor_map_versions.find((uintptr_t)p);
    if (it != run->tensor_map_versions.end() && self()->tensor_maps_acquired[(uintptr_t)p] != it->second)
      fail(EMU_PROXY, "the tensor map at %p was modified in this kernel and is used without fence.proxy.tensormap::generic.acquire", p);
  }
  return m;
}
static CopyShape box(const TensorMapBits& m, const int32_t* c, uint32_t shared) {
  const uint32_t inner = m.box[0] * m.element_bytes;
  uint32_t rows = 1;
  for (int d = 1; d < m.rank; d++) rows *= m.box[d];
  if (shared % 128) fail(EMU_MISALIGNED, "TMA: %s is not 128-byte aligned", shared_name(shared).c_str());
  if (m.swizzle && (shared - kSharedBase) % (m.swizzle * 8u)) fail(EMU_MISALIGNED, "TMA: the %dB swizzle needs a %d-byte aligned box; %s is not", m.swizzle, m.swizzle * 8, shared_name(shared).c_str());
  if (m.swizzle && inner != m.swizzle) fail(EMU_UNSUPPORTED, "TMA: a box of %u bytes under a %dB swizzle is not modelled", inner, m.swizzle);
  CopyShape s;
  s.shared = shared;
  s.bytes = rows * inner;
  s.swizzle = m.swizzle;
  s.segments.reserve(rows);
  const int64_t e = m.element_bytes, low = std::max<int64_t>(0, -(int64_t)c[0]), high = std::min<int64_t>(m.box[0], (int64_t)m.dims[0] - c[0]);
  for (uint32_t row = 0; row < rows; row++) {
    // Addresses wrap at 64 bits, which is what ragged maps rely on.
    uint64_t address = m.base + (uint64_t)((int64_t)c[0] * e);
    bool inside = high > low;
    uint32_t r = row;
    for (int d = 1; d < m.rank; d++) {
      const int64_t x = (int64_t)c[d] + r % m.box[d];
      r /= m.box[d];
      inside &= x >= 0 && x < (int64_t)m.dims[d];
      address += (uint64_t)x * m.strides[d - 1];
    }
    s.segments.push_back({shared + row * inner, inner, inside ? (uint8_t*)address : nullptr, inside ? (uint32_t)(low * e) : 0, inside ? (uint32_t)(high * e) : 0});
  }
  return s;
}
// cp.async.bulk.tensor.Nd.shared::cluster.global.tile.mbarrier::complete_tx::bytes{.multicast::cluster}{.L2::cache_hint}
//   [dst], [map, {coordinates}], [bar]{, mask}{, policy}
void model_tile_load(const Instr& i, Frame& f) {
  const uint32_t dst = f.address(i.args[0]);
  const TensorMapBits m = read_tensor_map(f.pointer(i.args[1]));
  if (m.rank != i.n) fail(EMU_TENSOR_MAP, "a %dD copy with a tensor map of rank %d", i.n, m.rank);
  int32_t c[5];
  for (int d = 0; d < i.n; d++) c[d] = (int32_t)f.get32(i.args[2 + (size_t)d]);
  const size_t next = 2 + (size_t)i.n;
  const uint32_t bar = f.address(i.args[next]);
  if (i.has("multicast::cluster")) {
    const uint64_t mask = f.get(i.args[next + 1]);
    if (!mask || mask >> home_cluster()->blocks.size()) fail(EMU_CLUSTER, "TMA: multicast mask %llx in a cluster of %zu", (unsigned long long)mask, home_cluster()->blocks.size());
    for (Block* b : home_cluster()->blocks) if (mask >> b->rank & 1) issue_load(b, box(m, c, dst), b, bar, false, "TMA load");
    return;
  }
  const SharedRef to = resolve_cluster(dst, "TMA load"), at = resolve_cluster(bar, "TMA load");
  if (at.block != to.block) fail(EMU_CLUSTER, "TMA load: the barrier and the destination lie in different blocks");
  issue_load(to.block, box(m, c, to.addr), at.block, at.addr, false, "TMA load");
}
// cp{.reduce}.async.bulk.tensor.Nd.global.shared::cta{.op}.tile.bulk_group [map, {coordinates}], [src]
Reduce reduce_of(const Instr&);
void model_tile_store(const Instr& i, Frame& f) {
  const TensorMapBits m = read_tensor_map(f.pointer(i.args[0]));
  if (m.rank != i.n) fail(EMU_TENSOR_MAP, "a %dD copy with a tensor map of rank %d", i.n, m.rank);
  int32_t c[5];
  for (int d = 0; d < i.n; d++) c[d] = (int32_t)f.get32(i.args[1 + (size_t)d]);
  const Reduce r = i.mods[1] == "reduce" ? reduce_of(i) : Reduce::None;
  issue_store(box(m, c, f.address(i.args[1 + (size_t)i.n])), r, m.element, "TMA store");
}
void model_tensormap_prefetch(const Instr& i, Frame& f) { read_tensor_map(f.pointer(i.args[0])); }

// ---------------------------------------------------------------- tensormap.replace
// tensormap.replace.tile.FIELD.{shared::cta,global}.b1024.TYPE [map], {ordinal,} value
void model_tensormap_replace(const Instr& i, Frame& f) {
  Fiber* me = self();
  const bool shared = i.has("shared::cta");
  uint8_t* at;
  if (shared) {
    const uint32_t a = f.address(i.args[0]);
    at = shared_bytes_at(me->home, a, 128, "tensormap.replace");
    if (a % 128) fail(EMU_MISALIGNED, "tensormap.replace: %s is not 128-byte aligned", shared_name(a).c_str());
    if (run->check()) shared_access(me->home, me->who, me->clocks, a, 128, kWrite, here());
  } else {
    at = static_cast<uint8_t*>(f.pointer(i.args[0]));
    if ((uintptr_t)at % 128) fail(EMU_MISALIGNED, "tensormap.replace: %p is not 128-byte aligned", at);
    std::string why;
    if (!run->device->inside(at, 128, &why)) fail(EMU_OUT_OF_BOUNDS, "tensormap.replace of %s", why.c_str());
    if (run->check()) global_access(me->home->cluster, me->who, me->clocks, (uintptr_t)at, 128, kWrite, here());
    run->tensor_map_versions[(uintptr_t)at]++;
  }
  TensorMapBits m;
  memcpy(&m, at, sizeof m);
  if (m.magic != kTensorMapMagic) fail(EMU_TENSOR_MAP, "tensormap.replace on 128 bytes that are not a tensor map");
  const bool has_ordinal = i.args.size() == 3;
  const uint64_t ordinal = has_ordinal ? f.get(i.args[1]) : 0, value = f.get(i.args.back());
  const std::string& field = i.mods[3];
  if (field == "global_address") {
    if (value % 16) fail(EMU_TENSOR_MAP, "tensormap.replace: the address %llx is not 16-byte aligned", (unsigned long long)value);
    m.base = value;
  } else if (field == "global_dim") {
    if (ordinal >= m.rank || !value) fail(EMU_TENSOR_MAP, "tensormap.replace.global_dim: dimension %llu of %d to %llu", (unsigned long long)ordinal, m.rank, (unsigned long long)value);
    m.dims[ordinal] = (uint32_t)value;
  } else if (field == "global_stride") {
    if (ordinal + 1 >= m.rank || value % 16) fail(EMU_TENSOR_MAP, "tensormap.replace.global_stride: stride %llu of %d to %llu", (unsigned long long)ordinal, m.rank - 1, (unsigned long long)value);
    m.strides[ordinal] = value;
  } else if (field == "box_dim") {
    if (ordinal >= m.rank || !value || value > 256) fail(EMU_TENSOR_MAP, "tensormap.replace.box_dim: %llu of %d to %llu", (unsigned long long)ordinal, m.rank, (unsigned long long)value);
    m.box[ordinal] = (uint32_t)value;
  } else {
    fail(EMU_PTX, "tensormap.replace.%s is not modelled", field.c_str());
  }
  memcpy(at, &m, sizeof m);
}
// tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [dst], [src], 128
void model_tensormap_copy(const Instr& i, Frame& f) {
  struct Lane { uint8_t* dst; uint32_t src; } lane{static_cast<uint8_t*>(f.pointer(i.args[0])), f.address(i.args[1])};
  if (f.get(i.args[2]) != 128) fail(EMU_PTX, "tensormap.cp_fenceproxy copies 128 bytes");
  collective(~0u, &i, "tensormap.cp_fenceproxy", &lane, [&](Collective& c) {
    Fiber* me = self();
    Lane& a = *static_cast<Lane*>(c.arg[0]);
    std::string why;
    if ((uintptr_t)a.dst % 128 || a.src % 128) fail(EMU_MISALIGNED, "tensormap.cp_fenceproxy: addresses must be 128-byte aligned");
    if (!run->device->inside(a.dst, 128, &why)) fail(EMU_OUT_OF_BOUNDS, "tensormap.cp_fenceproxy writes %s", why.c_str());
    const uint8_t* from = shared_bytes_at(me->home, a.src, 128, "tensormap.cp_fenceproxy");
    if (run->check()) {
      shared_access(me->home, me->who, me->clocks, a.src, 128, kRead, here());
      global_access(me->home->cluster, me->who, me->clocks, (uintptr_t)a.dst, 128, kWrite, here());
    }
    memcpy(a.dst, from, 128);
    run->tensor_map_versions[(uintptr_t)a.dst]++;
  });
}
// fence.proxy.tensormap::generic.acquire.gpu [map], 128
void model_tensormap_acquire(const Instr& i, Frame& f) {
  const auto p = (uintptr_t)f.pointer(i.args[0]);
  if (f.get(i.args[1]) != 128) fail(EMU_PTX, "fence.proxy.tensormap covers 128 bytes");
  self()->tensor_maps_acquired[p] = run->tensor_map_versions[p];
}
}  // namespace emu

extern "C" int emu_tensor_map(void* out, const emu_tensor_map_args* a, char* err, size_t err_len) {
  auto bad = [&](const char* why) { snprintf(err, err_len, "%s", why); return 1; };
  emu::TensorMapBits m{};
  m.magic = emu::kTensorMapMagic;
  m.rank = (uint8_t)a->rank;
  m.element_bytes = (uint8_t)a->element_bytes;
  m.swizzle = (uint8_t)a->swizzle_bytes;
  m.base = a->base;
  static const emu::Element elements[] = {emu::Element::Bytes, emu::Element::BF16, emu::Element::F16, emu::Element::F32, emu::Element::S32};
  if (a->element > EMU_I32) return bad("the element type is unknown");
  m.element = elements[a->element];
  if (a->rank < 1 || a->rank > 5) return bad("the rank is outside 1..5");
  const uint32_t e = a->element_bytes, s = a->swizzle_bytes;
  if (e != 1 && e != 2 && e != 4 && e != 8) return bad("the element size is not 1, 2, 4 or 8 bytes");
  if (s != 0 && s != 32 && s != 64 && s != 128) return bad("the swizzle is not 0, 32, 64 or 128 bytes");
  if (a->base % 16) return bad("the base address is not 16-byte aligned");
  for (uint32_t d = 0; d < a->rank; d++) {
    if (a->dims[d] == 0 || a->dims[d] > 1ull << 32) return bad("a dimension is zero or above 2^32");
    if (a->box[d] == 0 || a->box[d] > 256) return bad("a box dimension is outside 1..256");
    m.dims[d] = a->dims[d];
    m.box[d] = a->box[d];
    if (d == 0) continue;
    if (a->strides[d - 1] % 16) return bad("a stride is not a multiple of 16 bytes");
    if (a->strides[d - 1] >= 1ull << 40) return bad("a stride is 2^40 or more");
    m.strides[d - 1] = a->strides[d - 1];
  }
  if (a->box[0] * e % 16) return bad("the inner box is not a multiple of 16 bytes");
  if (s && a->box[0] * e > s) return bad("the inner box is wider than the swizzle span");
  memset(out, 0, 128);
  memcpy(out, &m, sizeof m);
  return 0;
}
