// Asynchronous operations in flight: they land at random times, in random pieces.
#pragma once
#include "checks/race.h"
#include "core/device.h"

namespace emu {
struct AsyncOp {
  Block* block = nullptr;          // whose shared memory is written (loads) or read (stores)
  Fiber* issuer = nullptr;
  uint32_t pc = 0;
  bool store = false;              // belongs to a bulk group rather than to an mbarrier
  int group = 0;
  bool committed = false, source_read = false, finished = false;
  Block* bar_block = nullptr;      // the mbarrier that is told of the bytes, and in which of its phases
  uint32_t bar = 0;
  uint64_t phase = 0;
  Clocks clocks;
  virtual ~AsyncOp() = default;
  virtual void step() = 0;         // moves some bytes; sets `finished`
  virtual bool may_step() const { return !store || committed; }
};
// Advances one operation of the cluster; false when there is none that can.
bool step_async(Cluster*);
void add_async(Cluster*, std::unique_ptr<AsyncOp>);

// A run of bytes between global memory (or another source) and a box of shared memory.
struct Segment { uint32_t shared; uint32_t bytes; uint8_t* outside; uint32_t low, high; };   // [low, high) of it lies inside the tensor
uint32_t swizzled(uint32_t addr, int span);

enum class Reduce : uint8_t { None, Add, Min, Max, Inc, Dec, And, Or, Xor };
enum class Element : uint8_t { Bytes, U32, S32, U64, F32, F16, BF16 };
struct CopyShape { std::vector<Segment> segments; int swizzle = 0; uint32_t shared, bytes; };

// Issues a copy into the shared memory of `to` that signals `bar` there.
void issue_load(Block* to, CopyShape, Block* bar_block, uint32_t bar, bool from_shared, const char* what);
// Issues a copy (or reduction) from this block's shared memory to global memory, in the current bulk group.
void issue_store(CopyShape, Reduce, Element, const char* what);
}  // namespace emu
