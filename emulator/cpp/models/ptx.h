// A decoded PTX instruction and the operands it runs with.
#pragma once
#include "core/state.h"

namespace emu {
enum class Special : uint8_t { ClusterCtaRank, ClusterNumCtas, SmId, LaneId };

struct PtxArg {
  enum Kind : uint8_t { AsmOperand, Register, Immediate, Sink, SpecialRegister };
  Kind kind;
  int index;          // %n, or the register's number
  int64_t value;      // of an immediate
};
struct Instr;
struct Frame;
using Model = void (*)(const Instr&, Frame&);

struct Instr {
  Model model = nullptr;
  std::string name;                       // as written, with all modifiers
  std::vector<std::string> mods;          // name, split at dots
  std::vector<PtxArg> args;
  std::vector<int> slot;                  // slot[i]: the comma-separated operand that args[i] belongs to
  int predicate = -1;                     // register number of @p
  bool negated = false;
  int arch = 80;                          // compute capability that has it; kOnly90: sm_90a alone
  int n = 0;                              // a number in the name: dimensions, matrices, columns
  // What the models of loads and stores ask for at every execution.
  int bytes = 4, vector = 1;              // of an element, by its type; elements
  bool policy = false, cluster = false;   // has a cache policy; names shared::cluster
  bool has(const char* m) const {
    for (auto& s : mods) if (s == m) return true;
    return false;
  }
  int count_in_slot(int s) const {
    int c = 0;
    for (int x : slot) c += x == s;
    return c;
  }
};
struct Program {
  std::string function;                   // the wrapper
  std::vector<Instr> instrs;
};
constexpr int kMaxRegisters = 8;
constexpr int kOnly90 = 900;

// The operands of one execution.
struct Frame {
  const Operand* outs;
  int n_outs;
  const Operand* ins;
  int n_ins;
  const Program* program;
  uint64_t registers[kMaxRegisters];

  const Operand& operand(int i) const {
    if (i >= n_outs + n_ins) fail(EMU_PTX, "%s: operand %%%d does not exist", program->function.c_str(), i);
    return i < n_outs ? outs[i] : ins[i - n_outs];
  }
  uint64_t get(const PtxArg&) const;
  uint32_t get32(const PtxArg&) const;          // a 32-bit operand, register or immediate
  void set(const PtxArg&, uint64_t);
  uint32_t address(const PtxArg&) const;        // in the shared window
  void* pointer(const PtxArg&) const;           // 64 bits
  float get_float(const PtxArg&) const;
};
// Finds the model of a decoded instruction; fails with the wrapper's name when there is none or when it has the
// wrong number of operands.
void bind_model(Instr&, const char* function);
void check_arch(const Instr&, const char* function);   // fails when the emulated device lacks the instruction

inline Block* home() { return self()->home; }
inline Cluster* home_cluster() { return self()->home->cluster; }
}  // namespace emu
