// What a thread and a cluster may not leave behind.
#pragma once
#include "core/state.h"
namespace emu {
void check_thread_exit(Fiber*);
void check_cluster_exit(Cluster*);
bool wgmma_in_flight(const Warp&);
uint64_t wgmmas_issued(const Warp&);
}  // namespace emu
