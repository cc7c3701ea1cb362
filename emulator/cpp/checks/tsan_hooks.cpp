// The functions that -fsanitize=thread makes instrumented kernels call before every load and store.
// These definitions take the place of the sanitizer's own run-time library.
#include "checks/lint.h"
#include "checks/race.h"
#include "core/device.h"

using namespace emu;

static inline void access(const void* p, size_t n, uint32_t flags, void* pc, bool aligned) {
  if (!current || !run || run->fault_kind != EMU_OK) return;
  Fiber* f = self();
  Block* b = f->home;
  const uintptr_t d = (uintptr_t)p - (uintptr_t)b->arena;
  const bool shared = d < kSharedBase + (uintptr_t)b->shared_bytes;
  if (!shared) {
    if (d < (kSharedBase + (uintptr_t)b->shared_bytes + 8191) / 4096 * 4096) {
      f->pc = pc;
      fail(EMU_OUT_OF_BOUNDS, "shared memory %s at offset %lld, past the %u bytes of the launch", access_name(flags), (long long)(d - kSharedBase), b->shared_bytes);
    }
    const Device* device = run->device;
    if ((uintptr_t)p < device->low || (uintptr_t)p >= device->high) return;    // local variables, parameters
    // threadIdx and its like, which may lie between device allocations.
    if ((uintptr_t)p - (uintptr_t)f->stack < kStackBytes || (uintptr_t)p - (uintptr_t)f < sizeof(Fiber) || p == &current) return;
  }
  if (!run->check() && !run->lint()) return;
  f->pc = pc;
  if (f->stored) look_at_last_store(f);
  if (aligned && (uintptr_t)p % n) fail(EMU_MISALIGNED, "misaligned %zu-byte %s", n, access_name(flags));
  if (shared && d + n > kSharedBase + (uintptr_t)b->shared_bytes)
    fail(EMU_OUT_OF_BOUNDS, "shared memory %s across the end of the launch's %u bytes", access_name(flags), b->shared_bytes);
  const uint32_t at = here();
  if (run->lint() && (shared || run->device->find((uintptr_t)p))) lint_access(f, shared ? d : (uintptr_t)p, (int)n, flags & kWrite, at, shared);
  if (!run->check()) return;
  if (shared) {
    shared_access(b, f->who, f->clocks, (uint32_t)d, (uint32_t)n, flags, at);
  } else {
    global_access(b->cluster, f->who, f->clocks, (uintptr_t)p, n, flags, at);
    if ((flags & kWrite) && n >= 2 && n <= 16) {
      f->stored = (uintptr_t)p;
      f->stored_bytes = (uint32_t)n;
      f->stored_pc = at;
    }
  }
}

#define PC __builtin_return_address(0)
#define HOOKS(n)                                                                        \
  void __tsan_read##n(void* p) { access(p, n, kRead, PC, true); }                       \
  void __tsan_write##n(void* p) { access(p, n, kWrite, PC, true); }                     \
  void __tsan_read_write##n(void* p) { access(p, n, kRead, PC, true); access(p, n, kWrite, PC, true); } \
  void __tsan_unaligned_read##n(void* p) { access(p, n, kRead, PC, false); }            \
  void __tsan_unaligned_write##n(void* p) { access(p, n, kWrite, PC, false); }          \
  void __tsan_unaligned_read_write##n(void* p) { access(p, n, kRead, PC, false); access(p, n, kWrite, PC, false); }
extern "C" {
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
void __tsan_read_range(void* p, size_t n) { access(p, n, kRead, PC, false); }
void __tsan_write_range(void* p, size_t n) { access(p, n, kWrite, PC, false); }
void* __tsan_memcpy(void* to, const void* from, size_t n) {
  access(from, n, kRead, PC, false);
  access(to, n, kWrite, PC, false);
  return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, size_t n) {
  access(from, n, kRead, PC, false);
  access(to, n, kWrite, PC, false);
  return memmove(to, from, n);
}
void* __tsan_memset(void* to, int v, size_t n) {
  access(to, n, kWrite, PC, false);
  return memset(to, v, n);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
// Function-local statics (decoded PTX sites are constant-initialised, so these are rarely met).
}
