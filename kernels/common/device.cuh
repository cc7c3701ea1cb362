// The only place that knows how an instruction reaches the machine, and the only #ifdef in kernels/.
//
// Device build: PTX(text, outputs, inputs) is an asm statement.  Emulator build: the same text is
// decoded and executed by the emulator, so operand order, modifiers and immediates are tested where
// there is no GPU.  Operands are written with the letters below; an operand in brackets in the text is
// an address.  KERNEL(...) opens an exported kernel; shared_address() gives 32-bit addresses in the shared
// window, which are never cast back.
#pragma once
#include <stdint.h>

#define PTX_UNWRAP(...) __VA_ARGS__
#define PTX_INLINE __device__ __forceinline__

#if defined(MOE_EMULATOR)
#include "emulator_device.h"
#define I16(x) ::emu::Operand::in16(x)
#define I32(x) ::emu::Operand::in32(x)
#define I64(x) ::emu::Operand::in64(x)
#define IF32(x) ::emu::Operand::in_float(x)
#define IPTR(x) ::emu::Operand::pointer(x)
#define IMM(x) ::emu::Operand::immediate(x)
#define O16(x) ::emu::Operand::out16(&(x))
#define O32(x) ::emu::Operand::out32(&(x))
#define O64(x) ::emu::Operand::out64(&(x))
#define OF32(x) ::emu::Operand::out_float(&(x))
#define IO32(x) ::emu::Operand::inout32(&(x))
#define IOF32(x) ::emu::Operand::inout_float(&(x))
#define PTX(text, outs, ins)                                                                                 \
  do {                                                                                                       \
    static constinit ::emu::PtxSite ptx_site_{text, __func__};                                               \
    const ::emu::Operand ptx_outs_[] = {::emu::Operand{}, PTX_UNWRAP outs};                                  \
    const ::emu::Operand ptx_ins_[] = {::emu::Operand{}, PTX_UNWRAP ins};                                    \
    ::emu::execute_ptx(ptx_site_, ptx_outs_ + 1, sizeof(ptx_outs_) / sizeof(ptx_outs_[0]) - 1, ptx_ins_ + 1, \
                       sizeof(ptx_ins_) / sizeof(ptx_ins_[0]) - 1);                                          \
  } while (0)
#define KERNEL(name, max_threads, min_blocks, ...)                                                             \
  static void name(__VA_ARGS__);                                                                               \
  static const ::emu::Registrar registrar_##name(#name, MOE_EMULATOR_CHECKED, max_threads, min_blocks, &name); \
  static void name(__VA_ARGS__)
#define FAULT(id) ::emu::fault(id)
#define MOE_ARCH (::emu::arch())
// Shared memory is one struct per kernel; a launch passes at least its size.
template <class T> inline T& shared_storage() { return *static_cast<T*>(::emu::shared_storage(sizeof(T), alignof(T))); }
inline uint32_t shared_address(const void* p) { return ::emu::shared_address(p); }
#else
#define I16(x) "h"(x)
#define I32(x) "r"(x)
#define I64(x) "l"(x)
#define IF32(x) "f"(x)
#define IPTR(x) "l"(x)
#define IMM(x) "n"(x)
#define O16(x) "=h"(x)
#define O32(x) "=r"(x)
#define O64(x) "=l"(x)
#define OF32(x) "=f"(x)
#define IO32(x) "+r"(x)
#define IOF32(x) "+f"(x)
#define PTX(text, outs, ins) asm volatile(text : PTX_UNWRAP outs : PTX_UNWRAP ins : "memory")
#define KERNEL(name, max_threads, min_blocks, ...) \
  extern "C" __global__ void __launch_bounds__(max_threads, min_blocks) name(__VA_ARGS__)
#define FAULT(id) false
#if defined(__CUDA_ARCH__)
#define MOE_ARCH (__CUDA_ARCH__ / 10)
#else
#define MOE_ARCH 0
#endif
template <class T> __device__ __forceinline__ T& shared_storage() {
  extern __shared__ __align__(1024) unsigned char moe_dynamic_shared[];
  return *reinterpret_cast<T*>(moe_dynamic_shared);
}
__device__ __forceinline__ uint32_t shared_address(const void* p) { return (uint32_t)__cvta_generic_to_shared(p); }
#endif
