// Router, first half: the gate's product, in f32.
//
//   for t in 0 .. T, e in 0 .. E:
//     logits[t, e] = sum over h of x[t, h] * gate[e, h]
//
// Departures:
// 1. A block computes a tile of kTokens x kExperts logits, a thread kThreadTokens x kThreadExperts of them, from
//    f32 copies in shared memory: a gate in f32 is never rounded, and 16-bit values are widened once.
// 2. The sum is made in an order that does not depend on T, on E or on the tile, so that a token's logits have the
//    same bits in every batch.  h is cut into slices of kSlice; slice s belongs to sum s % kSums, which adds its
//    products in the order of h.  The even sums are added in their order, the odd ones in theirs, and then both.
//    Sixteen short sums also round less than one long one.
// 3. kSplit groups of threads each have a slice, of kSplit neighbouring sums.  With 16 groups few tokens keep a block
//    busy (router_logits_few_*); with two, a group makes eight sums one after the other.
// 4. Rows of 16 bytes more than the slab keep shared memory free of bank conflicts; so does the order of the two
//    halves in Chunk::store.
// 5. Any number of blocks does along the tokens: they stride over the tiles.
#include "abi.h"
#include "common/types.cuh"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "tile/float16.cuh"
#include "tile/token_count.cuh"

constexpr uint32_t kSlice = 64, kSums = 16;

template <uint32_t kTokens_, uint32_t kExperts_, uint32_t kThreadTokens_, uint32_t kThreadExperts_>
struct Tile {
  static constexpr uint32_t kTokens = kTokens_, kExperts = kExperts_;
  static constexpr uint32_t kThreadTokens = kThreadTokens_, kThreadExperts = kThreadExperts_;
  static constexpr uint32_t kTokenThreads = kTokens / kThreadTokens, kExpertThreads = kExperts / kThreadExperts;
  static constexpr uint32_t kGroup = kTokenThreads * kExpertThreads, kSplit = ROUTER_THREADS / kGroup;
  static constexpr uint32_t kSlab = kSplit * kSlice, kRow = kSlab + 4;
  // Where the groups' sums meet: strides without bank conflicts, for writers and for readers.
  static constexpr uint32_t kSumRow = kExperts + kExperts / 8, kSumGroup = kTokens * kSumRow + 24;
  static_assert(kSums % kSplit == 0 && kSplit % 2 == 0, "a group's sums are all even or all odd");

  union Storage {
    struct {
      float x[kTokens * kRow], gate[kExperts * kRow];
    } slab;
    float sums[kSplit * kSumGroup];
  };
};

// 16 bytes of a row, as floats in shared memory.
template <class T> struct Chunk {
  static constexpr uint32_t kElements = 8;
  static __device__ __forceinline__ void store(uint32_t to, uint32_t index, uint4 v) {
    const uint4 low = widen(v.x, v.y), high = widen(v.z, v.w);
    const bool swap = index / 4 % 2 != 0;  // of 8 neighbours four begin with the low half, four with the high one
    ptx::st_shared_v4(to + (swap ? 16 : 0), swap ? high : low);
    ptx::st_shared_v4(to + (swap ? 0 : 16), swap ? low : high);
  }
  static __device__ __forceinline__ uint4 widen(uint32_t a, uint32_t b) {
    return make_uint4(__float_as_uint(Float16<T>::low(a)), __float_as_uint(Float16<T>::high(a)),
                      __float_as_uint(Float16<T>::low(b)), __float_as_uint(Float16<T>::high(b)));
  }
};
template <> struct Chunk<float> {
  static constexpr uint32_t kElements = 4;
  static __device__ __forceinline__ void store(uint32_t to, uint32_t, uint4 v) { ptx::st_shared_v4(to, v); }
};

// Rows first_row .. first_row + kRows and columns first .. first + kSlab of a matrix, on their way to shared memory;
// zeros where it ends.
template <class T, uint32_t kRows, uint32_t kSlab, uint32_t kRow>
struct Panel {
  static constexpr uint32_t kRowChunks = kSlab / Chunk<T>::kElements;
  static constexpr uint32_t kChunks = kRows * kRowChunks / ROUTER_THREADS;
  static_assert(kChunks * ROUTER_THREADS == kRows * kRowChunks, "every thread has as many");
  uint4 chunk[kChunks];

  __device__ __forceinline__ void load(uint64_t matrix, uint64_t stride, uint64_t first_row, uint64_t rows,
                                       uint32_t first, uint32_t columns) {
#pragma unroll
    for (uint32_t i = 0; i < kChunks; i++) {
      const uint32_t index = i * ROUTER_THREADS + threadIdx.x;
      const uint64_t row = first_row + index / kRowChunks;
      const uint32_t column = first + index % kRowChunks * Chunk<T>::kElements;
      chunk[i] = make_uint4(0, 0, 0, 0);
      if (row < rows && column < columns)
        chunk[i] = ptx::ld_global_v4_streaming(device_pointer<const T>(matrix) + row * stride + column);
    }
  }
  __device__ __forceinline__ void store(uint32_t to) const {
#pragma unroll
    for (uint32_t i = 0; i < kChunks; i++) {
      const uint32_t index = i * ROUTER_THREADS + threadIdx.x, place = index % kRowChunks;
      Chunk<T>::store(to + (index / kRowChunks * kRow + place * Chunk<T>::kElements) * 4, place, chunk[i]);
    }
  }
};

__device__ __forceinline__ void load_floats(float (&to)[4], uint32_t from) {
  const uint4 v = ptx::ld_shared_v4(from);
  to[0] = __uint_as_float(v.x);
  to[1] = __uint_as_float(v.y);
  to[2] = __uint_as_float(v.z);
  to[3] = __uint_as_float(v.w);
}

// One slice's products, in the order of h.  Addresses are of this thread's first token and first expert.
template <class Tile>
__device__ __forceinline__ void add_slice(float (&sum)[Tile::kThreadTokens][Tile::kThreadExperts], uint32_t x,
                                          uint32_t gate) {
#pragma unroll 4
  for (uint32_t h = 0; h < kSlice; h += 4) {
    float b[Tile::kThreadExperts][4];
#pragma unroll
    for (uint32_t j = 0; j < Tile::kThreadExperts; j++)
      load_floats(b[j], gate + (j * Tile::kExpertThreads * Tile::kRow + h) * 4);
#pragma unroll
    for (uint32_t i = 0; i < Tile::kThreadTokens; i++) {
      float a[4];
      load_floats(a, x + (i * Tile::kTokenThreads * Tile::kRow + h) * 4);
#pragma unroll
      for (uint32_t j = 0; j < Tile::kThreadExperts; j++) {
#pragma unroll
        for (uint32_t n = 0; n < 4; n++) sum[i][j] = __fmaf_rn(a[n], b[j][n], sum[i][j]);
      }
    }
  }
}

template <class Tile, class T, class G>
__device__ __forceinline__ void compute_logits(const RouterLogitsArgs& p) {
  auto& s = shared_storage<typename Tile::Storage>();
  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  const uint32_t group = threadIdx.x / Tile::kGroup, place = threadIdx.x % Tile::kGroup;
  const uint32_t own_token = place % Tile::kTokenThreads, own_expert = place / Tile::kTokenThreads;
  const uint32_t x_slab = shared_address(s.slab.x), gate_slab = shared_address(s.slab.gate);
  const uint32_t own_x = x_slab + (own_token * Tile::kRow + group * kSlice) * 4;
  const uint32_t own_gate = gate_slab + (own_expert * Tile::kRow + group * kSlice) * 4;
  const uint32_t num_tokens = token_count(p.num_tokens), first_expert = blockIdx.x * Tile::kExperts;

  const uint64_t step = (uint64_t)gridDim.y * Tile::kTokens;
  for (uint64_t first_token = (uint64_t)blockIdx.y * Tile::kTokens; first_token < num_tokens; first_token += step) {
    float total[Tile::kThreadTokens][Tile::kThreadExperts] = {};
#pragma unroll 1
    for (uint32_t first_sum = 0; first_sum < kSums; first_sum += Tile::kSplit) {
      float sum[Tile::kThreadTokens][Tile::kThreadExperts] = {};
#pragma unroll 1
      for (uint32_t h = first_sum * kSlice; h < p.hidden_size; h += kSums * kSlice) {
        Panel<T, Tile::kTokens, Tile::kSlab, Tile::kRow> x;
        Panel<G, Tile::kExperts, Tile::kSlab, Tile::kRow> gate;
        x.load(p.x, p.x_stride, first_token, num_tokens, h, p.hidden_size);
        gate.load(p.gate, p.hidden_size, first_expert, p.num_experts, h, p.hidden_size);
        __syncthreads();  // the last slab, or the last tile's sums, are read
        x.store(x_slab);
        gate.store(gate_slab);
        __syncthreads();
        if (h + group * kSlice < p.hidden_size) add_slice<Tile>(sum, own_x, own_gate);
      }
#pragma unroll
      for (uint32_t i = 0; i < Tile::kThreadTokens; i++) {
#pragma unroll
        for (uint32_t j = 0; j < Tile::kThreadExperts; j++) total[i][j] += sum[i][j];
      }
    }

    __syncthreads();  // the last slab is read
#pragma unroll
    for (uint32_t i = 0; i < Tile::kThreadTokens; i++) {
#pragma unroll
      for (uint32_t j = 0; j < Tile::kThreadExperts; j++) {
        const uint32_t token = own_token + i * Tile::kTokenThreads, expert = own_expert + j * Tile::kExpertThreads;
        s.sums[group * Tile::kSumGroup + token * Tile::kSumRow + expert] = total[i][j];
      }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < Tile::kTokens * Tile::kExperts; i += ROUTER_THREADS) {
      const uint64_t token = first_token + i / Tile::kExperts;
      const uint32_t expert = first_expert + i % Tile::kExperts;
      const float* sums = s.sums + i / Tile::kExperts * Tile::kSumRow + i % Tile::kExperts;
      float even = 0.f, odd = 0.f;
#pragma unroll
      for (uint32_t g = 0; g < Tile::kSplit; g += 2) {
        even += sums[g * Tile::kSumGroup];
        odd += sums[(g + 1) * Tile::kSumGroup];
      }
      if (token < num_tokens && expert < p.num_experts)
        device_pointer<float>(p.logits)[token * p.logits_stride + expert] = even + odd;
    }
  }
}

using Many = Tile<LOGITS_TOKENS, LOGITS_EXPERTS, 4, 4>;
using Few = Tile<LOGITS_FEW_TOKENS, LOGITS_FEW_EXPERTS, 2, 1>;
static_assert(sizeof(Many::Storage) == LOGITS_SHARED && sizeof(Few::Storage) == LOGITS_FEW_SHARED,
              "the host passes as much");

#define LOGITS_KERNEL(name, Tile, T, G) \
  KERNEL(name, ROUTER_THREADS, 3, const __grid_constant__ RouterLogitsArgs p) { compute_logits<Tile, T, G>(p); }
LOGITS_KERNEL(router_logits_bf16_f32, Many, bf16, float)
LOGITS_KERNEL(router_logits_bf16_model, Many, bf16, bf16)
LOGITS_KERNEL(router_logits_f16_f32, Many, f16, float)
LOGITS_KERNEL(router_logits_f16_model, Many, f16, f16)
LOGITS_KERNEL(router_logits_few_bf16_f32, Few, bf16, float)
LOGITS_KERNEL(router_logits_few_bf16_model, Few, bf16, bf16)
LOGITS_KERNEL(router_logits_few_f16_f32, Few, f16, float)
LOGITS_KERNEL(router_logits_few_f16_model, Few, f16, f16)
