// Fibers: one per CUDA thread, switched by hand.
//
// The hand-written switches save what the calling convention asks for and no signal mask; `ucontext`,
// which makes a system call per switch, is the fallback (EMU_UCONTEXT forces it).
#include "core/state.h"
#include <sys/mman.h>
#if !defined(EMU_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define EMU_UCONTEXT
#endif
#ifdef EMU_UCONTEXT
#include <ucontext.h>
#endif

namespace emu {
#if defined(EMU_UCONTEXT)
void* fresh_context(char* stack, void (*entry)()) {
  auto* u = new ucontext_t;
  getcontext(u);
  u->uc_stack.ss_sp = stack;
  u->uc_stack.ss_size = kStackBytes;
  u->uc_link = nullptr;
  makecontext(u, entry, 0);
  return u;
}
void switch_context(void** save, void* to) {
  auto* here = new ucontext_t;
  *save = here;
  swapcontext(here, static_cast<ucontext_t*>(to));
  delete here;
}
#else
extern "C" void emu_switch_context(void** save, void* to);
#if defined(__APPLE__)
#define EMU_SYMBOL "_emu_switch_context"
#else
#define EMU_SYMBOL "emu_switch_context"
#endif
#if defined(__x86_64__)
asm(".text\n.globl " EMU_SYMBOL "\n" EMU_SYMBOL ":\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
void* fresh_context(char* stack, void (*entry)()) {
  const uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + kStackBytes) & ~uintptr_t(15);
  void** sp = reinterpret_cast<void**>(top - 8);
  *sp-- = nullptr;                            // the entry has no caller; rsp is 16 n + 8 there, as after a call
  *sp = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; i++) *--sp = nullptr;
  return sp;
}
#else
asm(".text\n.globl " EMU_SYMBOL "\n" EMU_SYMBOL ":\n"
    "sub sp, sp, #160\nstp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\nret\n");
void* fresh_context(char* stack, void (*entry)()) {
  auto* sp = reinterpret_cast<uintptr_t*>((reinterpret_cast<uintptr_t>(stack) + kStackBytes - 176) & ~uintptr_t(15));
  memset(sp, 0, 160);
  sp[11] = reinterpret_cast<uintptr_t>(entry);   // x30: where the first switch returns to
  return sp;
}
#endif
void switch_context(void** save, void* to) { emu_switch_context(save, to); }
#endif

// Stacks are pooled per OS thread; a guard page below each turns an overflow into a crash there.
struct StackPool {
  std::vector<char*> free;
  ~StackPool() { for (char* s : free) munmap(s - 4096, kStackBytes + 4096); }
};
static thread_local StackPool pool;
char* take_stack() {
  if (!pool.free.empty()) {
    char* s = pool.free.back();
    pool.free.pop_back();
    return s;
  }
  auto* p = static_cast<char*>(mmap(nullptr, kStackBytes + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  mprotect(p, 4096, PROT_NONE);
  return p + 4096;
}
void give_stack(char* s) { pool.free.push_back(s); }
}  // namespace emu
