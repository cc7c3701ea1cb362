// Faults and where they happened.
#include "core/state.h"
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>

namespace emu {
void record_fault(emu_fault_kind kind, const std::string& text) {
  if (run->fault_kind != EMU_OK) return;      // the first fault is the one to report
  run->fault_kind = kind;
  run->report = text;
}

void fail(emu_fault_kind kind, const char* fmt, ...) {
  char text[4096];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(text, sizeof text, fmt, ap);
  va_end(ap);
  std::string report = text;
  if (Fiber* f = self()) {
    char who[256];
    snprintf(who, sizeof who, "\n  in kernel %s, block (%u,%u,%u), thread %d (warp %d lane %d), at ", f->home->cluster->grid->kernel->name,
             f->home->index.x, f->home->index.y, f->home->index.z, f->t, f->t / 32, f->lane);
    report += who + source_of(f->pc);
  }
  record_fault(kind, report);
  if (!current) throw kind;                   // already on the scheduler's stack
  void* never;
  switch_context(&never, run->scheduler_sp);
  abort();
}
void trap(const char* what) {
  EMU_ENTRY();
  fail(EMU_TRAP, "%s", what);
}

// ---- program counters: 32 bits relative to this module, so that a shadow record stays small
uint32_t compact_pc(void* pc) { return (uint32_t)((char*)pc - (char*)&emu_run); }
std::string source_of(uint32_t pc) { return source_of((char*)&emu_run + (int32_t)pc); }

static std::string base_name(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}
// Lines of `addr2line -i -f -C`: function and file:line, innermost first.  Absent tool: no lines.
static std::vector<std::pair<std::string, std::string>> inline_chain(const char* file, size_t offset) {
  std::vector<std::pair<std::string, std::string>> out;
  char command[1024], line[1024];
  snprintf(command, sizeof command, "addr2line -i -f -C -e '%s' 0x%zx 2>/dev/null", file, offset);
  FILE* p = popen(command, "r");
  if (!p) return out;
  std::string function;
  for (bool odd = true; fgets(line, sizeof line, p); odd = !odd) {
    std::string s = line;
    while (!s.empty() && (s.back() == '\n' || s.back() == '\r')) s.pop_back();
    if (odd) function = s.substr(0, s.find('('));
    else out.push_back({function, base_name(s.substr(0, s.find(" (")))});
  }
  pclose(p);
  return out;
}
std::string source_of(void* pc) {
  static thread_local std::map<void*, std::string> known;
  auto it = known.find(pc);
  if (it != known.end()) return it->second;
  Dl_info info{};
  std::string s = "an unknown place";
  if (pc && dladdr(pc, &info) && info.dli_fname) {
    char b[512];
    snprintf(b, sizeof b, "%s+0x%zx", info.dli_sname ? info.dli_sname : base_name(info.dli_fname).c_str(),
             (size_t)((char*)pc - (char*)(info.dli_sname ? info.dli_saddr : info.dli_fbase)));
    s = b;
    // The return address lies after the call; one byte back is inside it.
    auto chain = inline_chain(info.dli_fname, (size_t)((char*)pc - (char*)info.dli_fbase - 1));
    std::string lines;
    for (auto& [function, where] : chain) {
      if (where.find("??") != std::string::npos || where.rfind("cuda_lang.h", 0) == 0 || where.rfind("kernel_registry.h", 0) == 0) continue;
      lines += (lines.empty() ? "" : ", inlined at ") + where + " (" + function + ")";
    }
    if (!lines.empty()) s = lines;
  }
  return known[pc] = s;
}
}  // namespace emu
