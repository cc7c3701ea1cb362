// The models, one function per instruction family; models/table.cpp says which text reaches which.
#pragma once
#include "models/ptx.h"

namespace emu {
// models/mbarrier.cpp
void model_mbarrier_init(const Instr&, Frame&);
void model_mbarrier_inval(const Instr&, Frame&);
void model_mbarrier_arrive(const Instr&, Frame&);
void model_mbarrier_expect_tx(const Instr&, Frame&);
void model_mbarrier_wait(const Instr&, Frame&);
void model_cp_async_mbarrier_arrive(const Instr&, Frame&);
void model_st_async(const Instr&, Frame&);
// models/copies.cpp
void model_cp_async(const Instr&, Frame&);
void model_cp_async_commit(const Instr&, Frame&);
void model_cp_async_wait(const Instr&, Frame&);
void model_bulk_load(const Instr&, Frame&);
void model_bulk_store(const Instr&, Frame&);
void model_bulk_to_cluster(const Instr&, Frame&);
void model_bulk_commit(const Instr&, Frame&);
void model_bulk_wait(const Instr&, Frame&);
// models/tensor.cpp
void model_tile_load(const Instr&, Frame&);
void model_tile_store(const Instr&, Frame&);
void model_tensormap_prefetch(const Instr&, Frame&);
void model_tensormap_replace(const Instr&, Frame&);
void model_tensormap_copy(const Instr&, Frame&);
void model_tensormap_acquire(const Instr&, Frame&);
// models/matrix.cpp
void model_ldmatrix(const Instr&, Frame&);
void model_stmatrix(const Instr&, Frame&);
void model_mma(const Instr&, Frame&);
// models/wgmma.cpp
void model_wgmma(const Instr&, Frame&);
void model_wgmma_fence(const Instr&, Frame&);
void model_wgmma_commit(const Instr&, Frame&);
void model_wgmma_wait(const Instr&, Frame&);
// models/sync.cpp
void model_fence_proxy_async(const Instr&, Frame&);
void model_fence_mbarrier_init(const Instr&, Frame&);
void model_fence_scope(const Instr&, Frame&);
void model_bar(const Instr&, Frame&);
void model_cluster_barrier(const Instr&, Frame&);
void model_mapa(const Instr&, Frame&);
void model_elect(const Instr&, Frame&);
void model_redux(const Instr&, Frame&);
void model_setmaxnreg(const Instr&, Frame&);
void model_grid_wait(const Instr&, Frame&);
void model_grid_launch_dependents(const Instr&, Frame&);
void model_nanosleep(const Instr&, Frame&);
// models/memory.cpp
constexpr uint32_t kPolicyMark = 0x14f00000;   // high half of a cache policy
void model_ld_global(const Instr&, Frame&);
void model_st_global(const Instr&, Frame&);
void model_ld_shared(const Instr&, Frame&);
void model_st_shared(const Instr&, Frame&);
void model_ld_strong(const Instr&, Frame&);
void model_st_strong(const Instr&, Frame&);
void model_atom(const Instr&, Frame&);
void model_createpolicy(const Instr&, Frame&);
void model_prefetch(const Instr&, Frame&);
// models/alu.cpp
void model_setp(const Instr&, Frame&);
void model_selp(const Instr&, Frame&);
void model_mov(const Instr&, Frame&);
void model_convert(const Instr&, Frame&);
void model_packed(const Instr&, Frame&);
void model_prmt(const Instr&, Frame&);
void model_lop3(const Instr&, Frame&);
void model_approx(const Instr&, Frame&);
void model_min_max_nan(const Instr&, Frame&);
}  // namespace emu
