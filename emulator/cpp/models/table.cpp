// Which PTX text reaches which model.
//
// A pattern is the instruction's name with all modifiers, in the order of the ISA's grammar: `a|b` is a
// choice, a trailing `?` makes a modifier optional, `#` stands for a number (kept in Instr::n).  Text that
// matches no pattern is an error: a modifier is never ignored.
#include "models/models.h"

namespace emu {
namespace {
constexpr int kAny = -1;

struct Row { const char* pattern; int min_args, max_args, arch; Model model; };
const Row kTable[] = {
    // mbarrier
    {"mbarrier.init.shared::cta.b64", 2, 2, 80, model_mbarrier_init},
    {"mbarrier.inval.shared::cta.b64", 1, 1, 80, model_mbarrier_inval},
    {"mbarrier.arrive.release.cta|cluster.shared::cta.b64", 2, 3, 90, model_mbarrier_arrive},
    {"mbarrier.arrive.release.cluster.shared::cluster.b64", 2, 3, 90, model_mbarrier_arrive},
    {"mbarrier.arrive.expect_tx.release.cta|cluster.shared::cta.b64", 3, 3, 90, model_mbarrier_arrive},
    {"mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64", 3, 3, 90, model_mbarrier_arrive},
    {"mbarrier.expect_tx.relaxed.cta|cluster.shared::cta|shared::cluster.b64", 2, 2, 90, model_mbarrier_expect_tx},
    {"mbarrier.try_wait.parity.acquire.cta|cluster.shared::cta.b64", 3, 4, 90, model_mbarrier_wait},
    {"mbarrier.test_wait.parity.acquire.cta|cluster.shared::cta.b64", 3, 3, 90, model_mbarrier_wait},
    {"cp.async.mbarrier.arrive.noinc?.shared::cta.b64", 1, 1, 80, model_cp_async_mbarrier_arrive},
    {"st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.u32|b32|u64|b64", 3, 3, 90, model_st_async},
    {"st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2|v4.u32|b32", 4, 6, 90, model_st_async},
    // asynchronous copies
    {"cp.async.ca|cg.shared|shared::cta.global.L2::cache_hint?.L2::128B?", 3, 5, 80, model_cp_async},
    {"cp.async.commit_group", 0, 0, 80, model_cp_async_commit},
    {"cp.async.wait_group", 1, 1, 80, model_cp_async_wait},
    {"cp.async.wait_all", 0, 0, 80, model_cp_async_wait},
    {"cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes", 4, 4, 90, model_bulk_load},
    {"cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint", 5, 5, 90, model_bulk_load},
    {"cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster", 5, 5, 90, model_bulk_load},
    {"cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes", 4, 4, 90, model_bulk_to_cluster},
    {"cp.async.bulk.global.shared::cta.bulk_group", 3, 3, 90, model_bulk_store},
    {"cp.reduce.async.bulk.global.shared::cta.bulk_group.add|min|max.noftz?.u32|s32|u64|f32|f16|bf16", 3, 3, 90, model_bulk_store},
    {"cp.async.bulk.commit_group", 0, 0, 90, model_bulk_commit},
    {"cp.async.bulk.wait_group.read?", 1, 1, 90, model_bulk_wait},
    {"cp.async.bulk.tensor.#d.shared::cluster.global.tile.mbarrier::complete_tx::bytes", 3, 8, 90, model_tile_load},
    {"cp.async.bulk.tensor.#d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint", 4, 9, 90, model_tile_load},
    {"cp.async.bulk.tensor.#d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster", 4, 9, 90, model_tile_load},
    {"cp.async.bulk.tensor.#d.global.shared::cta.tile.bulk_group", 3, 7, 90, model_tile_store},
    {"cp.reduce.async.bulk.tensor.#d.global.shared::cta.add|min|max.tile.bulk_group", 3, 7, 90, model_tile_store},
    {"prefetch.tensormap", 1, 1, 90, model_tensormap_prefetch},
    {"tensormap.replace.tile.global_address.shared::cta|global.b1024.b64", 2, 2, kOnly90, model_tensormap_replace},
    {"tensormap.replace.tile.global_dim|box_dim.shared::cta|global.b1024.b32", 3, 3, kOnly90, model_tensormap_replace},
    {"tensormap.replace.tile.global_stride.shared::cta|global.b1024.b64", 3, 3, kOnly90, model_tensormap_replace},
    {"tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned", 3, 3, 90, model_tensormap_copy},
    {"fence.proxy.tensormap::generic.acquire.cta|cluster|gpu|sys", 2, 2, 90, model_tensormap_acquire},
    // fences, barriers, clusters
    {"fence.mbarrier_init.release.cluster", 0, 0, 90, model_fence_mbarrier_init},
    {"fence.proxy.async", 0, 0, 90, model_fence_proxy_async},
    {"fence.proxy.async.global|shared::cta|shared::cluster", 0, 0, 90, model_fence_proxy_async},
    {"fence.acq_rel|sc.cta|cluster|gpu|sys", 0, 0, 80, model_fence_scope},
    {"bar.sync|arrive", 1, 2, 80, model_bar},
    {"barrier.cluster.arrive.release|relaxed.aligned", 0, 0, 90, model_cluster_barrier},
    {"barrier.cluster.wait.acquire.aligned", 0, 0, 90, model_cluster_barrier},
    {"mapa.shared::cluster.u32", 3, 3, 90, model_mapa},
    {"elect.sync", 2, 2, 90, model_elect},
    {"redux.sync.add|min|max|and|or|xor.u32|s32|b32", 3, 3, 80, model_redux},
    {"setmaxnreg.inc|dec.sync.aligned.u32", 1, 1, kOnly90, model_setmaxnreg},
    {"griddepcontrol.wait", 0, 0, 90, model_grid_wait},
    {"griddepcontrol.launch_dependents", 0, 0, 90, model_grid_launch_dependents},
    {"nanosleep.u32", 1, 1, 80, model_nanosleep},
    // memory
    {"ld.global.nc?.L1::no_allocate|L1::evict_last?.L2::cache_hint?.v2|v4?.u8|u16|b16|u32|b32|f32|u64|b64", 2, 6, 80, model_ld_global},
    {"st.global.L1::no_allocate?.L2::cache_hint?.v2|v4?.u8|u16|b16|u32|b32|f32|u64|b64", 2, 6, 80, model_st_global},
    {"ld.shared|shared::cta|shared::cluster.v2|v4?.u8|u16|u32|b32|f32|u64|b64", 2, 5, 80, model_ld_shared},
    {"st.shared|shared::cta|shared::cluster.v2|v4?.u8|u16|u32|b32|f32|u64|b64", 2, 5, 80, model_st_shared},
    {"ld.acquire|relaxed.cta|gpu|sys.global.u32|b32|u64|b64", 2, 2, 80, model_ld_strong},
    {"st.release|relaxed.cta|gpu|sys.global.u32|b32|u64|b64", 2, 2, 80, model_st_strong},
    {"atom.acquire|release|acq_rel|relaxed.cta|gpu|sys.global.add|min|max.u32|s32|u64|f32", 3, 3, 80, model_atom},
    {"atom.acquire|release|acq_rel|relaxed.cta|gpu|sys.global.exch|and|or|xor.b32|b64", 3, 3, 80, model_atom},
    {"atom.acquire|release|acq_rel|relaxed.cta|gpu|sys.global.cas.b32|b64", 4, 4, 80, model_atom},
    {"red.release|relaxed.cta|gpu|sys.global.add|min|max.u32|s32|u64|f32", 2, 2, 80, model_atom},
    {"createpolicy.fractional.L2::evict_first|L2::evict_last.b64", 2, 2, 80, model_createpolicy},
    {"prefetch.global.L1|L2", 1, 1, 80, model_prefetch},
    // matrices
    {"ldmatrix.sync.aligned.m8n8.x#.trans?.shared.b16", 2, 5, 80, model_ldmatrix},
    {"stmatrix.sync.aligned.m8n8.x#.trans?.shared.b16", 2, 5, 90, model_stmatrix},
    {"mma.sync.aligned.m16n8k#.row.col.f32.bf16|f16.bf16|f16.f32", 14, 14, 80, model_mma},
    {"mma.sync.aligned.m16n8k#.row.col.f32.e4m3|e5m2.e4m3|e5m2.f32", 14, 14, 89, model_mma},
    {"wgmma.fence.sync.aligned", 0, 0, kOnly90, model_wgmma_fence},
    {"wgmma.commit_group.sync.aligned", 0, 0, kOnly90, model_wgmma_commit},
    {"wgmma.wait_group.sync.aligned", 1, 1, kOnly90, model_wgmma_wait},
    {"wgmma.mma_async.sync.aligned.m64n#k16.f32.bf16|f16.bf16|f16", kAny, kAny, kOnly90, model_wgmma},
    {"wgmma.mma_async.sync.aligned.m64n#k32.f32.e4m3|e5m2.e4m3|e5m2", kAny, kAny, kOnly90, model_wgmma},
    // arithmetic
    {"setp.ne|eq|lt.b32|u32|s32", 3, 3, 80, model_setp},
    {"selp.b32|u32", 4, 4, 80, model_selp},
    {"mov.b32|u32|b64|u64", 2, 2, 80, model_mov},
    {"cvt.rn.bf16x2|f16x2.f32", 3, 3, 80, model_convert},
    {"cvt.rn.bf16|f16.f32", 2, 2, 80, model_convert},
    {"cvt.f32.f16", 2, 2, 80, model_convert},
    {"cvt.rn.satfinite.e4m3x2|e5m2x2.f32", 3, 3, 89, model_convert},
    {"cvt.rn.f16x2.e4m3x2|e5m2x2", 2, 2, 89, model_convert},
    {"fma.rn.bf16x2|f16x2", 4, 4, 80, model_packed},
    {"add|mul.rn?.bf16x2", 3, 3, 90, model_packed},
    {"add|mul.rn?.f16x2", 3, 3, 80, model_packed},
    {"min|max.bf16x2|f16x2", 3, 3, 80, model_packed},
    {"prmt.b32", 4, 4, 80, model_prmt},
    {"lop3.b32", 5, 5, 80, model_lop3},
    {"ex2|lg2|rcp|rsqrt.approx.ftz?.f32", 2, 2, 80, model_approx},
    {"tanh.approx.f32", 2, 2, 80, model_approx},
    {"min|max.NaN.f32", 3, 3, 80, model_min_max_nan},
};

// Does one modifier match one alternative, where `#` is a number?
bool matches_one(const std::string& mod, const std::string& alternative, int* number) {
  const size_t hash = alternative.find('#');
  if (hash == std::string::npos) return mod == alternative;
  const std::string tail = alternative.substr(hash + 1);
  if (mod.size() <= hash + tail.size() || mod.compare(0, hash, alternative, 0, hash) != 0) return false;
  if (mod.compare(mod.size() - tail.size(), tail.size(), tail) != 0) return false;
  const std::string digits = mod.substr(hash, mod.size() - hash - tail.size());
  if (digits.empty() || digits.find_first_not_of("0123456789") != std::string::npos) return false;
  *number = atoi(digits.c_str());
  return true;
}
std::vector<std::string> split(const std::string& s, char at) {
  std::vector<std::string> out;
  std::string part;
  for (char c : s + at) {
    if (c == at) { out.push_back(part); part.clear(); } else part += c;
  }
  return out;
}
bool matches(const std::vector<std::string>& mods, const char* pattern, int* number) {
  size_t next = 0;
  for (std::string token : split(pattern, '.')) {
    const bool optional = token.back() == '?';
    if (optional) token.pop_back();
    bool hit = false;
    if (next < mods.size())
      for (const std::string& a : split(token, '|')) hit |= matches_one(mods[next], a, number);
    if (hit) next++;
    else if (!optional) return false;
  }
  return next == mods.size();
}
}  // namespace

void check_arch(const Instr& i, const char* function) {
  const int have = arch();
  // sm_90a code runs on compute capability 9.0 alone, not on later ones.
  if (i.arch == kOnly90 ? have != 90 : have < i.arch)
    fail(EMU_UNSUPPORTED, "%s: %s needs sm_%s, and the device is sm_%d", function, i.name.c_str(), i.arch == kOnly90 ? "90a" : std::to_string(i.arch).c_str(), have);
}
void bind_model(Instr& i, const char* function) {
  for (const Row& r : kTable) {
    int number = 0;
    if (!matches(i.mods, r.pattern, &number)) continue;
    const int args = (int)i.args.size();
    if (r.min_args != kAny && (args < r.min_args || args > r.max_args))
      fail(EMU_PTX, "%s: %d operands where %s has %d to %d", function, args, i.name.c_str(), r.min_args, r.max_args);
    if (i.mods[0] == "wgmma" && number && (number % 8 || number < 8 || number > 256)) fail(EMU_PTX, "%s: N = %d in %s", function, number, i.name.c_str());
    if (i.name.find("cp.async.bulk.tensor") != std::string::npos || i.name.find("cp.reduce.async.bulk.tensor") != std::string::npos) {
      const bool load = i.has("complete_tx::bytes") || i.has("mbarrier::complete_tx::bytes");
      const int exact = number + (load ? 3 : 2) + i.has("L2::cache_hint") + i.has("multicast::cluster");
      if (number < 1 || number > 5 || args != exact) fail(EMU_PTX, "%s: %d operands where %s has %d", function, args, i.name.c_str(), exact);
    }
    const int bits = atoi(i.mods.back().c_str() + 1);         // of a type like b16
    if (bits == 8 || bits == 16 || bits == 64) i.bytes = bits / 8;
    i.vector = i.has("v4") ? 4 : i.has("v2") ? 2 : 1;
    i.policy = i.has("L2::cache_hint");
    i.cluster = i.has("shared::cluster");
    i.arch = r.arch;
    i.n = number;
    i.model = r.model;
    return;
  }
  fail(EMU_PTX, "%s: no model for `%s`", function, i.name.c_str());
}
}  // namespace emu
