// The emulator's own contents of a 128-byte tensor map.
#pragma once
#include "models/async.h"

namespace emu {
constexpr uint32_t kTensorMapMagic = 0x50414d54;
struct TensorMapBits {
  uint32_t magic;
  uint8_t rank, element_bytes, swizzle;
  Element element;
  uint64_t base, dims[5], strides[4];
  uint32_t box[5];
};
static_assert(sizeof(TensorMapBits) <= 128);
TensorMapBits read_tensor_map(const void*);
}  // namespace emu
