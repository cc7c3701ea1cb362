// How a kernel becomes launchable by name.
//
// Each kernel source is compiled twice, in two namespaces: plain, and instrumented.  A `Registrar`
// per kernel and variant files its entry; the library is linked whole so that none is dropped.
#pragma once
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace emu {
struct KernelEntry {
  const char* name;
  int checked;               // 1: memory accesses are instrumented
  int max_threads;           // __launch_bounds__
  int min_blocks;
  int n_params;
  const uint32_t* param_sizes;
  void (*call)(void (*fn)(), void* const* args);
  void (*fn)();
  KernelEntry* next;
};
void register_kernel(KernelEntry*);

template <class... A> struct KernelCall {
  static constexpr uint32_t sizes[sizeof...(A) + 1] = {(uint32_t)sizeof(A)..., 0};
  template <size_t... I> static void apply(void (*f)(A...), void* const* args, std::index_sequence<I...>) {
    (void)args;
    f(*static_cast<std::remove_cv_t<std::remove_reference_t<A>>*>(args[I])...);
  }
  static void call(void (*fn)(), void* const* args) {
    apply(reinterpret_cast<void (*)(A...)>(fn), args, std::index_sequence_for<A...>{});
  }
};
struct Registrar {
  KernelEntry entry;
  template <class... A>
  Registrar(const char* name, int checked, int max_threads, int min_blocks, void (*fn)(A...))
      : entry{name, checked, max_threads, min_blocks, (int)sizeof...(A), KernelCall<A...>::sizes,
              &KernelCall<A...>::call, reinterpret_cast<void (*)()>(fn), nullptr} {
    register_kernel(&entry);
  }
};
}  // namespace emu
