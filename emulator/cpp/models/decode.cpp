// From PTX text to instructions.  The text is the one that ptxas sees; it is decoded once per site.
#include "checks/race.h"
#include "core/device.h"
#include "models/ptx.h"
#include <cctype>
#include <cstdlib>

namespace emu {
static uint64_t special(Special s) {
  Fiber* f = self();
  switch (s) {
    case Special::ClusterCtaRank: return f->home->rank;
    case Special::ClusterNumCtas: return f->home->cluster->blocks.size();
    case Special::SmId: return (f->home->cluster->seq - run->first_seq) % run->device->profile.sm_count;
    case Special::LaneId: return (uint64_t)f->lane;
  }
  return 0;
}
uint64_t Frame::get(const PtxArg& a) const {
  switch (a.kind) {
    case PtxArg::Immediate: return (uint64_t)a.value;
    case PtxArg::Register: return registers[a.index];
    case PtxArg::SpecialRegister: return special((Special)a.index);
    case PtxArg::Sink: fail(EMU_PTX, "%s: `_` is read", program->function.c_str());
    case PtxArg::AsmOperand: break;
  }
  const Operand& p = operand(a.index);
  switch (p.cls) {
    case Operand::InOutFloat: case Operand::InOut32: { uint32_t v; memcpy(&v, p.target, 4); return v; }
    case Operand::Out16: case Operand::Out32: case Operand::Out64: case Operand::OutFloat:
      fail(EMU_PTX, "%s: output operand %%%d is read", program->function.c_str(), a.index);
    default: return p.bits;
  }
}
uint32_t Frame::get32(const PtxArg& a) const {
  if (a.kind == PtxArg::AsmOperand) {
    const auto c = operand(a.index).cls;
    if (c == Operand::In64 || c == Operand::Pointer || c == Operand::In16)
      fail(EMU_PTX, "%s: operand %%%d should have 32 bits", program->function.c_str(), a.index);
  }
  return (uint32_t)get(a);
}
float Frame::get_float(const PtxArg& a) const {
  const uint32_t u = get32(a);
  float v;
  memcpy(&v, &u, 4);
  return v;
}
void Frame::set(const PtxArg& a, uint64_t v) {
  if (a.kind == PtxArg::Sink) return;
  if (a.kind == PtxArg::Register) { registers[a.index] = v; return; }
  if (a.kind != PtxArg::AsmOperand) fail(EMU_PTX, "%s: an immediate or special register is written", program->function.c_str());
  const Operand& p = operand(a.index);
  const size_t bytes = p.cls == Operand::Out16 ? 2 : p.cls == Operand::Out64 ? 8 : p.cls >= Operand::Out32 ? 4 : 0;
  if (!bytes) fail(EMU_PTX, "%s: input operand %%%d is written", program->function.c_str(), a.index);
  memcpy(p.target, &v, bytes);
}
uint32_t Frame::address(const PtxArg& a) const {
  if (a.kind == PtxArg::AsmOperand && operand(a.index).cls != Operand::In32)
    fail(EMU_PTX, "%s: operand %%%d should be a 32-bit shared address", program->function.c_str(), a.index);
  return (uint32_t)get(a);
}
void* Frame::pointer(const PtxArg& a) const {
  if (a.kind == PtxArg::AsmOperand && operand(a.index).cls != Operand::Pointer && operand(a.index).cls != Operand::In64)
    fail(EMU_PTX, "%s: operand %%%d should be a 64-bit pointer", program->function.c_str(), a.index);
  return (void*)(uintptr_t)get(a);
}

namespace {
class Decoder {
 public:
  Decoder(const std::string& text, const char* function) : text_(text), program_(new Program{function, {}}) {}
  std::shared_ptr<const Program> decode() {
    for (const std::string& s : statements()) statement(s);
    return program_;
  }

 private:
  [[noreturn]] void bad(const std::string& what) { fail(EMU_PTX, "%s: cannot decode PTX: %s", program_->function.c_str(), what.c_str()); }

  // At ';', outside operand braces; the braces of the outer scope are dropped.
  std::vector<std::string> statements() {
    std::string t = text_;
    const size_t first = t.find_first_not_of(" \n\t");
    if (first != std::string::npos && t[first] == '{') {
      const size_t last = t.rfind('}');
      if (last == std::string::npos || last <= first) bad("unbalanced braces");
      t = t.substr(first + 1, last - first - 1);
    }
    std::vector<std::string> out;
    std::string s;
    int depth = 0;
    for (char c : t) {
      if (c == '{') depth++;
      if (c == '}') depth--;
      if (c == ';' && depth == 0) { out.push_back(s); s.clear(); }
      else s += c == '\n' || c == '\t' ? ' ' : c;
    }
    if (s.find_first_not_of(' ') != std::string::npos) bad("missing ';' after" + s);
    return out;
  }
  int find_register(const std::string& name) {
    for (size_t i = 0; i < registers_.size(); i++) if (registers_[i] == name) return (int)i;
    bad("unknown register " + name);
  }
  void declare(const std::string& names) {
    std::string n;
    for (char c : names + ",") {
      if (c == ',') { registers_.push_back(n); n.clear(); }
      else if (c != ' ') n += c;
    }
    if ((int)registers_.size() > kMaxRegisters) bad("too many registers");
  }
  PtxArg argument(std::string t) {
    const size_t bar = t.find('|');                       // "_|p": the second result of a pair
    if (bar != std::string::npos) t = t.substr(bar + 1);
    if (t.rfind("%%", 0) == 0) {
      static const std::pair<const char*, Special> names[] = {{"%%cluster_ctarank", Special::ClusterCtaRank}, {"%%cluster_nctarank", Special::ClusterNumCtas},
                                                              {"%%smid", Special::SmId}, {"%%laneid", Special::LaneId}};
      for (auto& [name, s] : names) if (t == name) return {PtxArg::SpecialRegister, (int)s, 0};
      bad("no model for special register " + t);
    }
    if (t[0] == '%') return {PtxArg::AsmOperand, atoi(t.c_str() + 1), 0};
    if (t == "_") return {PtxArg::Sink, 0, 0};
    if (isdigit((unsigned char)t[0]) || t[0] == '-') {
      if (t.find('.') == std::string::npos) return {PtxArg::Immediate, 0, strtoll(t.c_str(), nullptr, 0)};
      const float v = strtof(t.c_str(), nullptr);
      uint32_t u;
      memcpy(&u, &v, 4);
      return {PtxArg::Immediate, 0, (int64_t)u};
    }
    return {PtxArg::Register, find_register(t), 0};
  }
  void statement(const std::string& x) {
    size_t p = x.find_first_not_of(' ');
    if (p == std::string::npos) return;
    Instr in;
    if (x[p] == '@') {
      const size_t q = x.find(' ', p);
      std::string r = x.substr(p + 1, q - p - 1);
      if (!r.empty() && r[0] == '!') { in.negated = true; r = r.substr(1); }
      in.predicate = find_register(r);
      p = x.find_first_not_of(' ', q);
    }
    size_t q = x.find(' ', p);
    if (q == std::string::npos) q = x.size();
    in.name = x.substr(p, q - p);
    if (in.name == ".reg") {                              // .reg .pred p, q
      const size_t type_end = x.find(' ', x.find_first_not_of(' ', q));
      if (type_end == std::string::npos) bad("malformed declaration:" + x);
      return declare(x.substr(type_end));
    }
    std::string m;
    for (char c : in.name + ".") {
      if (c == '.') { in.mods.push_back(m); m.clear(); } else m += c;
    }
    operands(in, x.substr(q));
    bind_model(in, program_->function.c_str());
    program_->instrs.push_back(std::move(in));
  }
  void operands(Instr& in, const std::string& list) {
    int slot = 0, depth = 0;
    std::string t;
    auto flush = [&] {
      if (t.empty()) return;
      in.args.push_back(argument(t));
      in.slot.push_back(slot);
      t.clear();
    };
    for (char c : list) {
      if (c == '{' || c == '[') depth++;
      else if (c == '}' || c == ']') { flush(); depth--; }
      else if (c == ',') { flush(); if (depth == 0) slot++; }
      else if (c != ' ') t += c;
    }
    flush();
  }

  std::string text_;
  std::shared_ptr<Program> program_;
  std::vector<std::string> registers_;
};
}  // namespace

// A self-test may edit the text of every site that contains `from`.
static const Program* program_of(PtxSite& s) {
  const emu_text_edit& e = run->options.edit;
  if (e.from && strstr(s.text, e.from)) {
    auto& slot = run->edited_sites[&s];
    if (!slot) {
      std::string t = s.text;
      for (size_t at = 0; (at = t.find(e.from, at)) != std::string::npos; at += strlen(e.to)) t.replace(at, strlen(e.from), e.to);
      slot = Decoder(t, s.function).decode();
    }
    return static_cast<const Program*>(slot.get());
  }
  const void* known = s.decoded.load(std::memory_order_acquire);
  if (!known) {
    // Two OS threads may decode the same site; the loser's copy is dropped.  Programs live as long as the process.
    auto fresh = Decoder(s.text, s.function).decode();
    auto* kept = new std::shared_ptr<const Program>(fresh);
    if (s.decoded.compare_exchange_strong(known, kept->get())) known = kept->get();
    else delete kept;
  }
  return static_cast<const Program*>(known);
}
void execute_ptx(PtxSite& s, const Operand* outs, int n_outs, const Operand* ins, int n_ins) {
  Fiber* f = self();
  f->pc = __builtin_return_address(0);
  if (f->stored) look_at_last_store(f);
  Frame frame{outs, n_outs, ins, n_ins, program_of(s), {}};
  for (const Instr& i : frame.program->instrs) {
    if (i.arch != 80) check_arch(i, s.function);
    if (i.predicate >= 0 && (frame.registers[i.predicate] != 0) == i.negated) continue;
    i.model(i, frame);
  }
}
}  // namespace emu
