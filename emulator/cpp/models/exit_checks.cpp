#include "models/exit_checks.h"
#include "models/async.h"

namespace emu {
void check_thread_exit(Fiber* f) {
  if (!f->cp_async.empty() && f->cp_async.back().group == f->cp_async_group) fail(EMU_ASYNC, "thread exits with uncommitted cp.async");
  if (f->bulk_waited < f->bulk_group) fail(EMU_ASYNC, "thread exits without cp.async.bulk.wait_group for its last bulk store group");
  for (auto& op : f->home->cluster->async)
    if (op->store && op->issuer == f && !op->committed) fail(EMU_ASYNC, "thread exits with an uncommitted bulk store, issued at %s", source_of(op->pc).c_str());
}
void check_cluster_exit(Cluster* c) {
  if (run->fault_kind != EMU_OK) return;
  for (auto& op : c->async)
    if (!op->store) return record_fault(EMU_ASYNC, "block exits with a copy into its shared memory in flight, issued at " + source_of(op->pc));
  while (step_async(c)) {}
  for (Block* b : c->blocks) {
    for (size_t g = 0; g + 4 <= b->warps.size(); g += 4)
      for (size_t k = 1; k < 4; k++)
        if (wgmmas_issued(b->warps[g + k]) != wgmmas_issued(b->warps[g])) return record_fault(EMU_WGMMA, "the warps of a warpgroup issued different numbers of wgmma");
    for (auto& w : b->warps)
      if (wgmma_in_flight(w)) return record_fault(EMU_WGMMA, "block exits with wgmma operations never waited for (missing commit_group or wait_group)");
    for (auto& [addr, m] : b->mbarriers)
      if (m.tx != 0) return record_fault(EMU_ASYNC, "block exits with tx-count " + std::to_string(m.tx) + " on mbarrier " + shared_name(addr));
  }
}
}  // namespace emu
