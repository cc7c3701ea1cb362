// Poison that reaches global memory: a value computed from bytes that were never written, or were read
// before the operation that writes them was waited for.
#include "checks/race.h"

namespace emu {
static const char* poison_name(uint16_t half) {
  switch (half & 0x7fff) {
    case kUnwritten: return "memory that was never written";
    case kInFlight: return "memory that an asynchronous copy had not finished writing";
    case kAccumulating: return "an accumulator before wgmma.wait_group";
    default: return nullptr;
  }
}
void check_taint(const void* value, size_t bytes, size_t element, const void* dst, uint32_t pc) {
  // A float carries the mark in its high half.  Of a word that may be one f32 or a pair of 16-bit floats only
  // the high half is looked at: the low half of an f32 is any number.
  if (element == 1) return;
  for (size_t i = element == 2 ? 0 : 2; i + 2 <= bytes; i += element == 2 ? 2 : 4) {
    uint16_t half;
    memcpy(&half, (const char*)value + i, 2);
    if (const char* what = poison_name(half))
      fail(EMU_TAINT, "a value that depends on %s is stored to global memory (%p) at %s", what, dst, source_of(pc).c_str());
  }
}
// The hook of a plain store runs before the store does; its value is looked at on the thread's next visit.
void look_at_last_store(Fiber* f) {
  if (!f->stored) return;
  const uintptr_t p = f->stored;
  f->stored = 0;
  check_taint((const void*)p, f->stored_bytes, f->stored_bytes == 2 ? 2 : 4, (const void*)p, f->stored_pc);
}
}  // namespace emu
