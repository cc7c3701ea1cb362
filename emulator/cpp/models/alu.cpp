// Arithmetic that wrappers write as PTX: predicates, conversions, packed halves, byte and bit selection.
#include "models/models.h"
#include "models/numeric.h"

namespace emu {
void model_setp(const Instr& i, Frame& f) {
  const uint32_t a = f.get32(i.args[1]), b = f.get32(i.args[2]);
  const std::string& op = i.mods[1];
  bool r = false;
  if (op == "ne") r = a != b;
  else if (op == "eq") r = a == b;
  else if (op == "lt") r = i.mods[2] == "s32" ? (int32_t)a < (int32_t)b : a < b;
  else fail(EMU_PTX, "%s: setp.%s is not modelled", f.program->function.c_str(), op.c_str());
  f.set(i.args[0], r);
}
void model_selp(const Instr& i, Frame& f) { f.set(i.args[0], f.get(i.args[3]) ? f.get(i.args[1]) : f.get(i.args[2])); }
void model_mov(const Instr& i, Frame& f) { f.set(i.args[0], f.get(i.args[1])); }

// cvt.rn{.satfinite}.TO.FROM: the first source of a pair is the high half of the result.
void model_convert(const Instr& i, Frame& f) {
  const std::string &to = i.mods[i.mods.size() - 2], &from = i.mods.back();
  auto pair = [&](auto narrow, int bits) {
    const uint32_t high = narrow(f.get_float(i.args[1])), low = narrow(f.get_float(i.args[2]));
    f.set(i.args[0], high << bits | low);
  };
  if (from == "f32" && to == "bf16x2") return pair(to_bf16, 16);
  if (from == "f32" && to == "f16x2") return pair(to_f16, 16);
  if (from == "f32" && to == "e4m3x2") return pair(to_e4m3, 8);
  if (from == "f32" && to == "e5m2x2") return pair(to_e5m2, 8);
  if (to == "f16x2" && (from == "e4m3x2" || from == "e5m2x2")) {
    const uint16_t v = (uint16_t)f.get(i.args[1]);
    auto wide = [&](uint8_t b) { return (uint32_t)to_f16(from == "e4m3x2" ? from_e4m3(b) : from_e5m2(b)); };
    return f.set(i.args[0], wide((uint8_t)(v >> 8)) << 16 | wide((uint8_t)v));
  }
  if (to == "f32" && from == "f16") return f.set(i.args[0], bits_of(from_f16((uint16_t)f.get(i.args[1]))));
  if (to == "f16" && from == "f32") return f.set(i.args[0], to_f16(f.get_float(i.args[1])));
  if (to == "bf16" && from == "f32") return f.set(i.args[0], to_bf16(f.get_float(i.args[1])));
  fail(EMU_PTX, "%s: %s is not modelled", f.program->function.c_str(), i.name.c_str());
}
// {add,mul,fma,min,max}{.rn}.{bf16x2,f16x2}: each half on its own, rounded once.
void model_packed(const Instr& i, Frame& f) {
  const std::string &op = i.mods[0], &type = i.mods.back();
  const bool bf = type == "bf16x2";
  if (i.args.size() != (op == "fma" ? 4u : 3u)) fail(EMU_PTX, "%s: wrong number of operands", i.name.c_str());
  const uint32_t a = f.get32(i.args[1]), b = f.get32(i.args[2]), c = op == "fma" ? f.get32(i.args[3]) : 0;
  uint32_t out = 0;
  for (int h = 0; h < 32; h += 16) {
    auto wide = [&](uint32_t x) { const auto v = (uint16_t)(x >> h); return bf ? from_bf16(v) : from_f16(v); };
    // Exact in double (products of 11-bit significands, one sum of like magnitude), then rounded once.
    const double x = wide(a), y = wide(b), z = wide(c);
    const double r = op == "add" ? x + y : op == "mul" ? x * y : op == "fma" ? std::fma(x, y, z) : op == "min" ? std::fmin(x, y) : std::fmax(x, y);
    // A double is narrowed by way of f32 without double rounding: round to odd first.
    float n = (float)r;
    if (std::isfinite(n) && (double)n != r && !(bits_of(n) & 1)) n = std::nextafterf(n, r > n ? INFINITY : -INFINITY);
    out |= (uint32_t)(bf ? to_bf16(n) : to_f16(n)) << h;
  }
  f.set(i.args[0], out);
}
// prmt.b32 d, a, b, selector: four bytes out of eight.
void model_prmt(const Instr& i, Frame& f) {
  const uint64_t bytes = f.get32(i.args[1]) | (uint64_t)f.get32(i.args[2]) << 32;
  const uint32_t selector = f.get32(i.args[3]);
  uint32_t out = 0;
  for (int k = 0; k < 4; k++) {
    const uint32_t s = selector >> (4 * k) & 15;
    uint32_t b = (uint32_t)(bytes >> (8 * (s & 7))) & 255;
    if (s & 8) b = b & 128 ? 255 : 0;                    // replicate the sign
    out |= b << (8 * k);
  }
  f.set(i.args[0], out);
}
// lop3.b32 d, a, b, c, table: bit by bit, the table's entry number abc.
void model_lop3(const Instr& i, Frame& f) {
  const uint32_t a = f.get32(i.args[1]), b = f.get32(i.args[2]), c = f.get32(i.args[3]), table = f.get32(i.args[4]);
  if (table > 255) fail(EMU_PTX, "lop3: the table %x has more than eight bits", table);
  uint32_t out = 0;
  for (int k = 0; k < 8; k++)
    if (table >> k & 1) out |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
  f.set(i.args[0], out);
}
// Approximations: the exact value; tests of their users need tolerances anyway.
void model_approx(const Instr& i, Frame& f) {
  const float x = f.get_float(i.args[1]);
  const std::string& op = i.mods[0];
  const float r = op == "ex2" ? std::exp2(x) : op == "lg2" ? std::log2(x) : op == "rcp" ? 1 / x : op == "rsqrt" ? 1 / std::sqrt(x) : std::tanh(x);
  f.set(i.args[0], bits_of(r));
}
// {min,max}.NaN.f32 d, a, b: the canonical NaN if either is one, but a poison mark survives; -0 is less than +0.
void model_min_max_nan(const Instr& i, Frame& f) {
  const float a = f.get_float(i.args[1]), b = f.get_float(i.args[2]);
  const bool least = i.mods[0] == "min";
  for (float v : {a, b}) {
    const uint32_t high = bits_of(v) >> 16 & 0x7fff;
    if (high >= kUnwritten && high <= kAccumulating) return f.set(i.args[0], bits_of(v));
  }
  if (std::isnan(a) || std::isnan(b)) return f.set(i.args[0], 0x7fffffffu);
  const bool first_is_less = a < b || (a == b && std::signbit(a));
  f.set(i.args[0], bits_of(first_is_less == least ? a : b));
}
}  // namespace emu
