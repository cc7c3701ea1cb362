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
// A float carries the mark in its high half: the low half of an f32 is any number.  An integer may look like that
// by chance; that both of its halves look like the same mark happens to 6 words of 2^32.
void check_taint(const void* value, size_t bytes, Holds holds, const void* dst, uint32_t pc) {
  if (holds == Holds::Nothing) return;
  const size_t step = holds == Holds::Halves ? 2 : 4;
  for (size_t i = -(uintptr_t)value & (step - 1); i + step <= bytes; i += step) {
    uint16_t low, high;
    memcpy(&low, (const char*)value + i, 2);
    memcpy(&high, (const char*)value + i + step - 2, 2);
    if (holds == Holds::Bits && low != high) continue;
    if (const char* what = poison_name(high))
      fail(EMU_TAINT, "a value that depends on %s is stored to global memory (%p) at %s", what, dst, source_of(pc).c_str());
  }
}
// The hook of a plain store runs before the store does; its value is looked at on the thread's next visit.
void look_at_last_store(Fiber* f) {
  if (!f->stored) return;
  const uintptr_t p = f->stored;
  f->stored = 0;
  const uint32_t n = f->stored_bytes;
  if (n < 8) return check_taint((const void*)p, n, n == 2 ? Holds::Halves : Holds::Floats, (const void*)p, f->stored_pc);
  for (uintptr_t at = p; at < p + n; at += 8) {
    uint64_t pair;                            // two floats, or an address: its high word is no sensible float
    memcpy(&pair, (const void*)at, 8);
    const bool address = pair >> 48 == 0 && pair >> 32 != 0;
    check_taint((const void*)at, 8, address ? Holds::Bits : Holds::Floats, (const void*)at, f->stored_pc);
  }
}
}  // namespace emu
