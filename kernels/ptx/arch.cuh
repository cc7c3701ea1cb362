// The only test of the architecture in device code.
#pragma once
#include "common/device.cuh"

namespace ptx {
// 80, 90 ...; a constant on the device, so that a branch on it costs nothing.
PTX_INLINE int arch() { return MOE_ARCH; }
}  // namespace ptx
