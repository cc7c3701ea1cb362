#include "models/numeric.h"

namespace emu {
// A poison mark survives narrowing: see `Poison`.
static bool marked(uint32_t u, uint16_t* half) {
  const uint16_t h = (uint16_t)(u >> 16), code = h & 0x7fff;
  *half = h;
  return code == kUnwritten || code == kInFlight || code == kAccumulating;
}
uint16_t to_bf16(float f) {
  const uint32_t u = bits_of(f);
  uint16_t half;
  if (marked(u, &half)) return half;
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
float from_f16(uint16_t v) {
  const uint32_t sign = (uint32_t)(v & 0x8000) << 16, e = v >> 10 & 31, m = v & 0x3ff;
  if (e == 31) {
    const uint16_t code = v & 0x7fff;
    if (code == kUnwritten || code == kInFlight || code == kAccumulating) return float_of((uint32_t)v << 16);
    return float_of(sign | 0x7f800000 | m << 13);
  }
  if (e == 0) return (sign ? -1.f : 1.f) * std::ldexp((float)m, -24);
  return float_of(sign | (e + 112) << 23 | m << 13);
}
// Round to nearest even into a format with `mant` mantissa bits, whose smallest normal is 2^emin.
static double round_to(double x, int mant, int emin) {
  if (x == 0 || !std::isfinite(x)) return x;
  int e;
  std::frexp(x, &e);                                   // |x| in [2^(e-1), 2^e)
  const int quantum = std::max(e - 1, emin) - mant;
  return std::ldexp(std::nearbyint(std::ldexp(x, -quantum)), quantum);
}
uint16_t to_f16(float f) {
  const uint32_t u = bits_of(f);
  uint16_t half;
  if (marked(u, &half)) return half;
  const uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
  if (f != f) return 0x7fff;
  const double r = std::fabs(round_to(f, 10, -14));
  if (r >= 65520) return sign | 0x7c00;
  if (r == 0) return sign;
  if (r < std::ldexp(1.0, -14)) return sign | (uint16_t)std::ldexp(r, 24);
  int e;
  const double m = std::frexp(r, &e);                  // r = m 2^e, m in [0.5, 1)
  return sign | (uint16_t)((e + 14) << 10) | (uint16_t)((int)std::ldexp(m, 11) & 0x3ff);
}
float from_e4m3(uint8_t v) {
  const int e = v >> 3 & 15, m = v & 7;
  if (e == 15 && m == 7) return float_of(0x7fc00000);
  const float x = e ? std::ldexp(1.f + (float)m / 8, e - 7) : std::ldexp((float)m / 8, -6);
  return v & 128 ? -x : x;
}
float from_e5m2(uint8_t v) { return from_f16((uint16_t)(v << 8)); }
template <class F> static uint8_t to_fp8(float f, int mant, int emin, float largest, uint8_t largest_code, uint8_t nan, F decode) {
  if (f != f) return nan;
  const uint8_t sign = std::signbit(f) ? 128 : 0;
  const double r = std::fabs(round_to(f, mant, emin));
  if (r >= largest) return sign | largest_code;
  // Codes of one sign are in the order of their values.
  uint8_t lo = 0, hi = largest_code;
  while (lo < hi) {
    const uint8_t mid = (uint8_t)((lo + hi) / 2);
    if (decode(mid) < r) lo = (uint8_t)(mid + 1); else hi = mid;
  }
  return sign | lo;
}
uint8_t to_e4m3(float f) { return to_fp8(f, 3, -6, 448.f, 0x7e, 0x7f, from_e4m3); }
uint8_t to_e5m2(float f) { return to_fp8(f, 2, -14, 57344.f, 0x7b, 0x7f, from_e5m2); }

void widen(Format format, const uint8_t* from, float* to, size_t n) {
  static const auto tables = [] {
    std::vector<float> t(512);
    for (int i = 0; i < 256; i++) { t[(size_t)i] = from_e4m3((uint8_t)i); t[256 + (size_t)i] = from_e5m2((uint8_t)i); }
    return t;
  }();
  switch (format) {
    case Format::BF16:
      for (size_t i = 0; i < n; i++) { uint16_t v; memcpy(&v, from + 2 * i, 2); to[i] = from_bf16(v); }
      break;
    case Format::F16:
      for (size_t i = 0; i < n; i++) { uint16_t v; memcpy(&v, from + 2 * i, 2); to[i] = from_f16(v); }
      break;
    case Format::E4M3: case Format::E5M2: {
      const float* t = tables.data() + (format == Format::E5M2 ? 256 : 0);
      for (size_t i = 0; i < n; i++) to[i] = t[from[i]];
      // The high byte of a mark is a NaN in both formats; the pair of bytes tells it from any other NaN.
      for (size_t i = 1; i < n; i += 2) {
        const uint16_t pair = (uint16_t)(from[i - 1] | from[i] << 8);
        if (pair == kUnwritten || pair == kInFlight || pair == kAccumulating) to[i] = float_of((uint32_t)pair << 16);
      }
      break;
    }
  }
}

template <class T> static T combine(Reduce r, T a, T b) {
  switch (r) {
    case Reduce::Add: return (T)(a + b);
    case Reduce::Min: return a < b ? a : b;
    case Reduce::Max: return a > b ? a : b;
    default: fail(EMU_PTX, "this reduction is not defined for its type");
  }
}
template <class T> static void reduce_as(Reduce r, uint8_t* to, const uint8_t* from, size_t bytes) {
  for (size_t i = 0; i + sizeof(T) <= bytes; i += sizeof(T)) {
    T a, b;
    memcpy(&a, to + i, sizeof(T));
    memcpy(&b, from + i, sizeof(T));
    a = combine(r, a, b);
    memcpy(to + i, &a, sizeof(T));
  }
}
void reduce_bytes(Reduce r, Element e, uint8_t* to, const uint8_t* from, size_t bytes) {
  switch (e) {
    case Element::U32: return reduce_as<uint32_t>(r, to, from, bytes);
    case Element::S32: return r == Reduce::Add ? reduce_as<uint32_t>(r, to, from, bytes) : reduce_as<int32_t>(r, to, from, bytes);
    case Element::U64: return reduce_as<uint64_t>(r, to, from, bytes);
    case Element::F32: return reduce_as<float>(r, to, from, bytes);
    case Element::F16: case Element::BF16:
      for (size_t i = 0; i + 2 <= bytes; i += 2) {
        uint16_t a, b;
        memcpy(&a, to + i, 2);
        memcpy(&b, from + i, 2);
        a = e == Element::F16 ? to_f16(combine(r, from_f16(a), from_f16(b))) : to_bf16(combine(r, from_bf16(a), from_bf16(b)));
        memcpy(to + i, &a, 2);
      }
      return;
    case Element::Bytes: fail(EMU_PTX, "a reduction without an element type");
  }
}
}  // namespace emu
