// Device memory: redzones, guard pages, shadow.
#include "core/device.h"
#include "checks/race.h"
#include <cstdio>
#include <sys/mman.h>

namespace emu {
static uint8_t redzone_byte(const uint8_t* p) { return (uint8_t)(((uintptr_t)p & 1) ? kUnwritten >> 8 : kUnwritten & 0xff); }

Allocation* Device::find(uintptr_t p) {
  if (last && p - last->base < last->bytes) return last;
  auto it = allocations.upper_bound(p);
  if (it == allocations.begin()) return nullptr;
  Allocation& a = (--it)->second;
  return p - a.base < a.bytes ? last = &a : nullptr;
}
const Allocation* Device::near(uintptr_t p) {
  auto it = allocations.upper_bound(p + kRedzone);
  if (it == allocations.begin()) return nullptr;
  const Allocation& a = (--it)->second;
  return p - (a.base - kRedzone) < a.bytes + 2 * kRedzone ? &a : nullptr;
}
bool Device::inside(const void* p, size_t n, std::string* why) {
  Allocation* a = find((uintptr_t)p);
  if (a && (uintptr_t)p + n <= a->base + a->bytes) return true;
  const Allocation* x = a ? a : near((uintptr_t)p);
  char b[160];
  if (x) snprintf(b, sizeof b, "%zu bytes at offset %lld of a device buffer of %zu bytes", n, (long long)((uintptr_t)p - x->base), x->bytes);
  else snprintf(b, sizeof b, "%zu bytes at %p, which is not device memory", n, p);
  *why = b;
  return false;
}
void Device::check_redzones() {
  for (auto& [base, a] : allocations) {
    for (const uint8_t* p = a.raw; p < (uint8_t*)base; p++)
      if (*p != redzone_byte(p)) fail(EMU_OUT_OF_BOUNDS, "a write %zu bytes before the start of a device buffer of %zu bytes", (size_t)((uint8_t*)base - p), a.bytes);
    for (const uint8_t* p = (uint8_t*)base + a.bytes; p < a.raw + a.raw_bytes; p++)
      if (*p != redzone_byte(p)) fail(EMU_OUT_OF_BOUNDS, "a write past the end of a device buffer of %zu bytes, at offset %zu", a.bytes, (size_t)(p - (uint8_t*)base));
  }
}
}  // namespace emu

using namespace emu;
extern "C" {
emu_device* emu_device_new(const emu_profile* p) {
  auto* d = new emu_device;
  d->profile = *p;
  return d;
}
void* emu_alloc(emu_device* d, size_t n) {
  const size_t body = (n + 255) / 256 * 256, raw = (kRedzone + body + kRedzone + 4095) / 4096 * 4096;
  void* m = mmap(nullptr, raw + 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (m == MAP_FAILED) return nullptr;
  auto* bytes = static_cast<uint8_t*>(m);
  mprotect(bytes, 4096, PROT_NONE);
  mprotect(bytes + 4096 + raw, 4096, PROT_NONE);
  bytes += 4096;
  poison(bytes, raw, kUnwritten);
  const uintptr_t base = (uintptr_t)bytes + kRedzone;
  d->allocations[base] = {base, n, bytes, raw, map_shadow(n)};
  d->last = nullptr;
  d->low = std::min(d->low, (uintptr_t)bytes);
  d->high = std::max(d->high, (uintptr_t)bytes + raw);
  return (void*)base;
}
int emu_free(emu_device* d, void* p) {
  auto it = d->allocations.find((uintptr_t)p);
  if (it == d->allocations.end()) return 1;
  const Allocation& a = it->second;
  munmap(a.raw - 4096, a.raw_bytes + 8192);
  unmap_shadow(a.shadow, a.bytes);
  d->allocations.erase(it);
  d->last = nullptr;
  return 0;
}
void emu_device_free(emu_device* d) {
  while (!d->allocations.empty()) emu_free(d, (void*)d->allocations.begin()->first);
  delete d;
}
int emu_contains(emu_device* d, const void* p, size_t n) {
  std::string why;
  return n == 0 || d->inside(p, n, &why);
}
}
