// Kernels by name.
#include "core/state.h"
#include <cstring>

namespace emu {
static KernelEntry* head = nullptr;
static KernelEntry** tail = &head;
void register_kernel(KernelEntry* k) {
  *tail = k;
  tail = &k->next;
}
}  // namespace emu

using namespace emu;
extern "C" {
const void* emu_find_kernel(const char* name, int checked) {
  for (KernelEntry* k = head; k; k = k->next)
    if (k->checked == checked && !strcmp(k->name, name)) return k;
  return nullptr;
}
const char* emu_kernel_at(size_t i) {
  for (KernelEntry* k = head; k; k = k->next)
    if (!k->checked && i-- == 0) return k->name;
  return nullptr;
}
uint32_t emu_kernel_params(const void* kernel, const uint32_t** sizes) {
  auto* k = static_cast<const KernelEntry*>(kernel);
  *sizes = k->param_sizes;
  return (uint32_t)k->n_params;
}
void emu_kernel_bounds(const void* kernel, uint32_t* max_threads, uint32_t* min_blocks) {
  auto* k = static_cast<const KernelEntry*>(kernel);
  *max_threads = (uint32_t)k->max_threads;
  *min_blocks = (uint32_t)k->min_blocks;
}
}
