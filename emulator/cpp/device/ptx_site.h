// What a PTX(...) statement becomes on the host: its text and its operands, handed to the emulator.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstring>

namespace emu {
// One operand of an asm statement.  The class mirrors the constraint letters of the device build, so
// that a 32-bit value in a place where PTX wants a pointer is an error here as it is for ptxas.
struct Operand {
  enum Class : uint8_t { None, In16, In32, In64, InFloat, Pointer, Immediate, Out16, Out32, Out64, OutFloat, InOut32, InOutFloat };
  Class cls = None;
  union { uint64_t bits; void* target; };
  Operand() : bits(0) {}
  Operand(Class c, uint64_t b) : cls(c), bits(b) {}
  static Operand in16(uint16_t v) { return {In16, v}; }
  static Operand in32(uint32_t v) { return {In32, v}; }
  static Operand in64(uint64_t v) { return {In64, v}; }
  static Operand in_float(float v) { uint32_t b; memcpy(&b, &v, 4); return {InFloat, b}; }
  static Operand pointer(const void* v) { return {Pointer, (uint64_t)(uintptr_t)v}; }
  static Operand immediate(long long v) { return {Immediate, (uint64_t)v}; }
  static Operand out16(uint16_t* v) { return {Out16, (uint64_t)(uintptr_t)v}; }
  static Operand out32(uint32_t* v) { return {Out32, (uint64_t)(uintptr_t)v}; }
  static Operand out64(uint64_t* v) { return {Out64, (uint64_t)(uintptr_t)v}; }
  static Operand out_float(float* v) { return {OutFloat, (uint64_t)(uintptr_t)v}; }
  static Operand inout32(uint32_t* v) { return {InOut32, (uint64_t)(uintptr_t)v}; }
  static Operand inout_float(float* v) { return {InOutFloat, (uint64_t)(uintptr_t)v}; }
};
// One PTX(...) statement of the source; decoded once, at its first execution.
struct PtxSite {
  const char* text;
  const char* function;
  std::atomic<const void*> decoded{nullptr};
  constexpr PtxSite(const char* t, const char* f) : text(t), function(f) {}
};
void execute_ptx(PtxSite&, const Operand* outs, int n_outs, const Operand* ins, int n_ins);
}  // namespace emu
