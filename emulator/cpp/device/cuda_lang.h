// The CUDA device language on the host: built-in variables, vector types, barriers, shuffles, votes,
// atomics and the arithmetic intrinsics, with the semantics that the CUDA programming guide gives them.
//
// An overload that CUDA has and this header lacks is deleted, never reached through a conversion:
// `max(unsigned, unsigned)` silently resolving to `max(int, int)` gives wrong answers on large values.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __grid_constant__
#define __align__(n) alignas(n)
// __shared__ is deliberately not defined: a C++ static would be shared by all blocks and invisible to
// the bounds, poison and race checks.  Shared memory comes only from ptx::shared_storage<T>().

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct uint3 { unsigned x, y, z; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace emu {
// The part of a CUDA thread that device code reads directly.
struct ThreadIndex { uint3 thread, block, block_dim, grid_dim; };
extern thread_local ThreadIndex* current;   // the running CUDA thread, or null on the scheduler's stack

int arch();                                 // 80, 90 ...: the emulated device's compute capability
bool fault(int id);                         // is this deliberate fault switched on? (self-tests)
void* shared_storage(size_t bytes, size_t align);
uint32_t shared_address(const void*);
void syncthreads();
int syncthreads_count(int predicate);
void syncwarp(uint32_t mask);
void threadfence(int scope);                // 0 block, 1 device, 2 system
enum class Shuffle { Index, Up, Down, Xor };
uint64_t shuffle(Shuffle, uint32_t mask, uint64_t value, int arg, int width);
enum class Vote { Ballot, MatchAny, Add, MinU, MaxU, MinS, MaxS, And, Or, Xor };
uint32_t vote(Vote, uint32_t mask, uint32_t value);
enum class Atomic { Add, MaxU, MaxS, MinU, MinS, Exchange, CompareSwap, And, Or, Xor };
uint64_t atomic_integer(Atomic, void* address, int bytes, uint64_t value, uint64_t compare);
float atomic_add_float(float* address, float value);
void nanosleep();
[[noreturn]] void trap(const char* what);
}  // namespace emu

#define threadIdx (::emu::current->thread)
#define blockIdx (::emu::current->block)
#define blockDim (::emu::current->block_dim)
#define gridDim (::emu::current->grid_dim)
constexpr int warpSize = 32;

// ---------------------------------------------------------------- barriers and fences
inline void __syncthreads() { emu::syncthreads(); }
inline int __syncthreads_count(int p) { return emu::syncthreads_count(p); }
inline int __syncthreads_or(int p) { return emu::syncthreads_count(p) != 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emu::syncwarp(mask); }
inline void __threadfence_block() { emu::threadfence(0); }
inline void __threadfence() { emu::threadfence(1); }
inline void __threadfence_system() { emu::threadfence(2); }
inline void __nanosleep(unsigned) { emu::nanosleep(); }
inline void __trap() { emu::trap("__trap()"); }

// ---------------------------------------------------------------- shuffles, votes, warp reductions
template <class T>
inline T emu_shuffle_bits(emu::Shuffle kind, unsigned mask, T value, int arg, int width) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "32- or 64-bit scalars only");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = emu::shuffle(kind, mask, bits, arg, width);
  memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T> inline T __shfl_sync(unsigned mask, T v, int lane, int width = 32) { return emu_shuffle_bits(emu::Shuffle::Index, mask, v, lane, width); }
template <class T> inline T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) { return emu_shuffle_bits(emu::Shuffle::Up, mask, v, (int)by, width); }
template <class T> inline T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) { return emu_shuffle_bits(emu::Shuffle::Down, mask, v, (int)by, width); }
template <class T> inline T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) { return emu_shuffle_bits(emu::Shuffle::Xor, mask, v, bits, width); }
inline unsigned __ballot_sync(unsigned mask, int p) { return emu::vote(emu::Vote::Ballot, mask, p != 0); }
inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, p) == mask; }
inline unsigned __match_any_sync(unsigned mask, unsigned v) { return emu::vote(emu::Vote::MatchAny, mask, v); }
inline unsigned __match_any_sync(unsigned mask, int v) { return emu::vote(emu::Vote::MatchAny, mask, (unsigned)v); }
template <class T> unsigned __match_any_sync(unsigned, T) = delete;
inline unsigned __reduce_add_sync(unsigned mask, unsigned v) { return emu::vote(emu::Vote::Add, mask, v); }
inline int __reduce_add_sync(unsigned mask, int v) { return (int)emu::vote(emu::Vote::Add, mask, (unsigned)v); }
inline unsigned __reduce_min_sync(unsigned mask, unsigned v) { return emu::vote(emu::Vote::MinU, mask, v); }
inline int __reduce_min_sync(unsigned mask, int v) { return (int)emu::vote(emu::Vote::MinS, mask, (unsigned)v); }
inline unsigned __reduce_max_sync(unsigned mask, unsigned v) { return emu::vote(emu::Vote::MaxU, mask, v); }
inline int __reduce_max_sync(unsigned mask, int v) { return (int)emu::vote(emu::Vote::MaxS, mask, (unsigned)v); }
inline unsigned __reduce_and_sync(unsigned mask, unsigned v) { return emu::vote(emu::Vote::And, mask, v); }
inline unsigned __reduce_or_sync(unsigned mask, unsigned v) { return emu::vote(emu::Vote::Or, mask, v); }
inline unsigned __reduce_xor_sync(unsigned mask, unsigned v) { return emu::vote(emu::Vote::Xor, mask, v); }
template <class T> T __reduce_add_sync(unsigned, T) = delete;
template <class T> T __reduce_min_sync(unsigned, T) = delete;
template <class T> T __reduce_max_sync(unsigned, T) = delete;

// ---------------------------------------------------------------- atomics (relaxed, device scope)
#define EMU_ATOMIC(name, type, op) \
  inline type name(type* p, type v) { return (type)emu::atomic_integer(emu::Atomic::op, p, sizeof(type), (uint64_t)v, 0); }
EMU_ATOMIC(atomicAdd, int, Add)
EMU_ATOMIC(atomicAdd, unsigned, Add)
EMU_ATOMIC(atomicAdd, unsigned long long, Add)
EMU_ATOMIC(atomicMax, int, MaxS)
EMU_ATOMIC(atomicMax, unsigned, MaxU)
EMU_ATOMIC(atomicMin, int, MinS)
EMU_ATOMIC(atomicMin, unsigned, MinU)
EMU_ATOMIC(atomicExch, int, Exchange)
EMU_ATOMIC(atomicExch, unsigned, Exchange)
EMU_ATOMIC(atomicAnd, unsigned, And)
EMU_ATOMIC(atomicOr, unsigned, Or)
EMU_ATOMIC(atomicXor, unsigned, Xor)
#undef EMU_ATOMIC
inline float atomicAdd(float* p, float v) { return emu::atomic_add_float(p, v); }
inline int atomicCAS(int* p, int c, int v) { return (int)emu::atomic_integer(emu::Atomic::CompareSwap, p, 4, (unsigned)v, (unsigned)c); }
inline unsigned atomicCAS(unsigned* p, unsigned c, unsigned v) { return (unsigned)emu::atomic_integer(emu::Atomic::CompareSwap, p, 4, v, c); }
template <class T> T atomicAdd(T*, T) = delete;
template <class T> T atomicMax(T*, T) = delete;
template <class T> T atomicMin(T*, T) = delete;

// ---------------------------------------------------------------- arithmetic
template <class T> inline T __ldg(const T* p) { return *p; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
inline float __int_as_float(int i) { float f; memcpy(&f, &i, 4); return f; }
inline int __float_as_int(float f) { int i; memcpy(&i, &f, 4); return i; }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v ? __builtin_clz((unsigned)v) : 32; }
inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; i++) r |= (v >> i & 1u) << (31 - i);
  return r;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
using std::fmaxf;
using std::fminf;
using std::isnan;
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline unsigned long long min(unsigned long long a, unsigned long long b) { return a < b ? a : b; }
inline unsigned long long max(unsigned long long a, unsigned long long b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
template <class A, class B> auto min(A, B) = delete;
template <class A, class B> auto max(A, B) = delete;
