#pragma once
#include "models/async.h"

namespace emu {
// Bytes of `op` have landed: the transaction count of its barrier falls.
void mbarrier_complete_tx(AsyncOp& op, uint32_t bytes);
// The barrier that an asynchronous operation is about to signal.
Mbarrier& mbarrier_for_async(Block*, uint32_t addr, const char* what);
// One arrival on behalf of an asynchronous operation, with what it knows.
void mbarrier_async_arrive(AsyncOp& op);
// This thread's initialisations are now visible to the async proxy (and the cluster).
void publish_mbarrier_inits();
}  // namespace emu
