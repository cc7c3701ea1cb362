// The number formats of the tensor cores, bit for bit where a value is exact and round-to-nearest-even where not.
#pragma once
#include "models/async.h"

namespace emu {
inline float float_of(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
inline uint32_t bits_of(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }

inline float from_bf16(uint16_t v) { return float_of((uint32_t)v << 16); }
uint16_t to_bf16(float);
float from_f16(uint16_t);
uint16_t to_f16(float);
float from_e4m3(uint8_t);
float from_e5m2(uint8_t);
uint8_t to_e4m3(float);      // saturating, as cvt.satfinite
uint8_t to_e5m2(float);

enum class Format : uint8_t { BF16, F16, E4M3, E5M2 };
inline int bytes_of(Format f) { return f == Format::BF16 || f == Format::F16 ? 2 : 1; }
// Widens n elements.
void widen(Format, const uint8_t* from, float* to, size_t n);

void reduce_bytes(Reduce, Element, uint8_t* to, const uint8_t* from, size_t bytes);
}  // namespace emu
