// Optional performance lint: shared-memory bank conflicts and global sectors, per source line.
#pragma once
#include "core/state.h"

namespace emu {
void lint_access(Fiber*, uint64_t addr, int bytes, bool write, uint32_t pc, bool shared);
void lint_matrix(uint32_t pc, const uint32_t* rows, int matrices, bool write);   // ldmatrix, stmatrix
void lint_flush(Block*);
std::string lint_report();
}  // namespace emu
