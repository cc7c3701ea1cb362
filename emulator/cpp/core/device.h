// An emulated GPU: its memory and its limits.
#pragma once
#include "core/state.h"

namespace emu {
constexpr size_t kRedzone = 4096;
struct Allocation {
  uintptr_t base;
  size_t bytes;
  uint8_t* raw;              // [redzone | body | redzone], with guard pages outside
  size_t raw_bytes;
  struct Granule* shadow;
};
struct Device {
  emu_profile profile;
  std::map<uintptr_t, Allocation> allocations;     // by base
  Allocation* last = nullptr;
  uintptr_t low = ~(uintptr_t)0, high = 0;         // all of device memory lies between

  Allocation* find(uintptr_t p);                   // the allocation that holds p, or null
  const Allocation* near(uintptr_t p);             // one whose redzone holds p
  bool inside(const void* p, size_t bytes, std::string* why);
  void check_redzones();
};
}  // namespace emu
struct emu_device : emu::Device {};
