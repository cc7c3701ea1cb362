// Self-test kernels: hand-overs between proxies, blocks and kernels, and the edges of memory.  The FAULTs are
// listed in tests/faults.rs.
#include "common/types.cuh"
#include "ptx/convert.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"

// ---------------------------------------------------------------- cp.async to wgmma
// out [64, 64] f32 = A B^T, both [64, 64] bf16.  A's rows are gathered by the first warpgroup through cp.async,
// straight into the 128B swizzle; B comes by TMA.  Between the copies and the product somebody must fence the
// proxies: the consumers after their wait, or each producer once its own copies have landed.
struct GatherStorage { alignas(1024) bf16 a[64 * 64]; alignas(1024) bf16 b[64 * 64]; alignas(8) uint64_t full; };
template <bool kProducersFence>
__device__ __forceinline__ void gathered_product(const TensorMap& map_b, const bf16* a, const int* row_of, float* out) {
  auto& s = shared_storage<GatherStorage>();
  const uint32_t full = shared_address(&s.full);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, 128 + 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x < 128) {
    if (threadIdx.x == 0) {
      ptx::mbarrier_arrive_expect_tx(full, sizeof(s.b));
      ptx::tma_load_2d(shared_address(s.b), &map_b, 0, 0, full);
    }
    for (int i = threadIdx.x; i < 64 * 8; i += 128) {
      const int r = i / 8, c = i % 8;
      ptx::cp_async_16(shared_address(s.a) + r * 128 + (c ^ (r & 7)) * 16, a + __ldg(row_of + r) * 64 + c * 8, 16);
    }
    if (kProducersFence) {
      ptx::cp_async_commit();
      ptx::cp_async_wait<0>();
      ptx::fence_proxy_async_shared();
      ptx::mbarrier_arrive(full);
    } else {
      ptx::cp_async_arrive_noinc(full);
    }
    return;
  }
  if (!FAULT(91)) ptx::mbarrier_wait(full, 0);
  if (!kProducersFence && !FAULT(90)) ptx::fence_proxy_async_shared();
  float acc[32];
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; k++) ptx::wgmma_bf16(acc, ptx::k_major_128b(shared_address(s.a)) + 2 * k, ptx::k_major_128b(shared_address(s.b)) + 2 * k, k != 0);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32 - 4;
#pragma unroll
  for (int i = 0; i < 32; i++) out[(warp * 16 + (lane >> 2) + ((i >> 1) & 1) * 8) * 64 + (i >> 2) * 8 + (lane & 3) * 2 + (i & 1)] = acc[i];
}
KERNEL(test_gathered_product, 256, 1, const __grid_constant__ TensorMap map_b, const bf16* a, const int* row_of, float* out) {
  gathered_product<false>(map_b, a, row_of, out);
}
KERNEL(test_gathered_product_producers_fence, 256, 1, const __grid_constant__ TensorMap map_b, const bf16* a, const int* row_of, float* out) {
  gathered_product<true>(map_b, a, row_of, out);
}

// ---------------------------------------------------------------- a tile of which half the rows exist
// out [32, 64] f32: A has 32 rows; the other half of its tile is never written, and its products are masked.
KERNEL(test_partial_tile, 128, 1, const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b, float* out) {
  auto& s = shared_storage<GatherStorage>();
  const uint32_t full = shared_address(&s.full);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(full, 32 * 128 + 64 * 128);
    ptx::tma_load_2d(shared_address(s.a), &map_a, 0, 0, full);
    ptx::tma_load_2d(shared_address(s.b), &map_b, 0, 0, full);
  }
  ptx::mbarrier_wait(full, 0);
  float acc[32];
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; k++) ptx::wgmma_bf16(acc, ptx::k_major_128b(shared_address(s.a)) + 2 * k, ptx::k_major_128b(shared_address(s.b)) + 2 * k, k != 0);
  ptx::wgmma_commit();
  ptx::wgmma_wait<0>();
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
#pragma unroll
  for (int i = 0; i < 32; i++) {
    const int row = warp * 16 + (lane >> 2) + ((i >> 1) & 1) * 8;
    if (row < 32 || FAULT(99)) out[row * 64 + (i >> 2) * 8 + (lane & 3) * 2 + (i & 1)] = acc[i];
  }
}

// ---------------------------------------------------------------- blocks that hand over through device memory
// A ticket tells blocks apart in the order in which they start: all but the last produce 32 words each, the last
// waits for them and adds them up.  It waits only for blocks that have started before it.
struct FlagStorage { alignas(16) uint32_t words[32 * 32]; uint32_t ticket; alignas(8) uint64_t bar; };
KERNEL(test_flag, 64, 1, uint32_t* ticket, uint32_t* flag, uint32_t* words, uint32_t* sums) {
  auto& s = shared_storage<FlagStorage>();
  if (threadIdx.x == 0) s.ticket = ptx::atom_add_relaxed(ticket, 1);
  __syncthreads();
  const uint32_t mine = s.ticket, producers = gridDim.x - 1;
  if (mine < producers) {
    if (threadIdx.x >= 32) words[mine * 32 + threadIdx.x - 32] = mine * 1000 + threadIdx.x;
    if (!FAULT(94)) __syncthreads();
    if (threadIdx.x == 0) {
      if (FAULT(92)) ptx::atom_add_relaxed(flag, 1);
      else ptx::red_add_release(flag, 1);
    }
    return;
  }
  const uint32_t bar = shared_address(&s.bar);
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(bar, 1);
    ptx::fence_mbarrier_init();
    if (FAULT(93)) while (ptx::ld_relaxed(flag) != producers) {}
    else while (ptx::ld_acquire(flag) != producers) {}
    // Generic stores of other blocks are about to be read by TMA.
    if (!FAULT(96)) ptx::fence_proxy_async_global();
    ptx::mbarrier_arrive_expect_tx(bar, producers * 128);
    ptx::bulk_load(shared_address(s.words), words, producers * 128, bar);
  }
  __syncthreads();
  ptx::mbarrier_wait(bar, 0);
  if (threadIdx.x < 32) {
    uint32_t sum = 0;
    for (uint32_t b = 0; b < producers; b++) sum += s.words[b * 32 + threadIdx.x];
    sums[threadIdx.x] = sum;
  }
}
// The classic form: fence, then a relaxed counter; the last block to arrive adds up.
KERNEL(test_last_block, 32, 1, uint32_t* counter, uint32_t* words, uint32_t* sums) {
  auto& s = shared_storage<FlagStorage>();
  words[blockIdx.x * 32 + threadIdx.x] = blockIdx.x * 1000 + threadIdx.x;
  if (!FAULT(95)) __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) s.ticket = atomicAdd(counter, 1u);
  __syncthreads();
  if (s.ticket != gridDim.x - 1) return;
  __threadfence();
  uint32_t sum = 0;
  for (unsigned b = 0; b < gridDim.x; b++) sum += words[b * 32 + threadIdx.x];
  sums[threadIdx.x] = sum;
}

// ---------------------------------------------------------------- kernels that overlap
KERNEL(test_first, 64, 1, const uint32_t* in, uint32_t* middle) {
  ptx::grid_launch_dependents();
  ptx::nanosleep(100);
  const uint32_t i = blockIdx.x * 64 + threadIdx.x;
  middle[i] = in[i] * 2;
}
KERNEL(test_second, 64, 1, uint32_t* in, const uint32_t* middle, uint32_t* out) {
  const uint32_t i = blockIdx.x * 64 + threadIdx.x;
  if (FAULT(98)) in[i] = 0;
  if (!FAULT(97)) ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  out[i] = middle[i] + 1;
  in[i] = out[i];
}

// ---------------------------------------------------------------- the edges of memory and of barriers
struct EdgeStorage { uint32_t words[64]; alignas(8) uint64_t bar; };
KERNEL(test_edges, 64, 1, uint32_t* out) {
  auto& s = shared_storage<EdgeStorage>();
  const uint32_t bar = shared_address(&s.bar);
  if (threadIdx.x == 0) ptx::mbarrier_init(bar, 64);
  if (!FAULT(101) || threadIdx.x != 7) s.words[threadIdx.x] = threadIdx.x;
  __syncthreads();
  if (FAULT(104) && threadIdx.x == 5) s.bar = 0;
  if (FAULT(105) && threadIdx.x % 32 < 16) __syncthreads();
  if (FAULT(106) && threadIdx.x == 3) __trap();
  if (FAULT(107)) ptx::setmaxnreg_inc<256>();
  const uint32_t* words = s.words;
  const uint32_t v = words[63 - threadIdx.x] + (FAULT(103) && threadIdx.x == 9 ? words[66 + threadIdx.x] : 0);
  out[threadIdx.x + (FAULT(102) ? 1 : 0)] = v;
  __syncthreads();
  if (threadIdx.x < 16) ptx::st_global_v4(out + threadIdx.x * 4 + (FAULT(100) ? 1 : 0), make_uint4(out[threadIdx.x * 4], 1, 2, 3));
}

// ---------------------------------------------------------------- stores of every type
// The first half KiB of `in` holds integers that look like marks in part, the second floats; the last KiB was never
// written, and each FAULT reads it instead.  Every store has 512 bytes of `out`.
struct TypedStorage { alignas(128) uint8_t tile[512]; alignas(16) uint8_t staging[512]; alignas(8) uint64_t bar; };
__device__ __forceinline__ const uint8_t* unwritten_if(bool fault, const uint8_t* in, int offset) { return in + (fault ? 1024 : offset); }
KERNEL(test_typed_stores, 32, 1, const __grid_constant__ TensorMap halves, const __grid_constant__ TensorMap floats, const __grid_constant__ TensorMap integers,
       const uint8_t* in, uint8_t* out) {
  auto& s = shared_storage<TypedStorage>();
  const uint32_t bar = shared_address(&s.bar), tile = shared_address(s.tile), lane = threadIdx.x;
  ptx::st_global_b16(out + lane * 2, *reinterpret_cast<const uint16_t*>(unwritten_if(FAULT(113), in, 512) + lane * 2));
  ptx::st_global_v4_b32(out + 512 + lane * 16, ptx::ld_global_nc_v4(unwritten_if(FAULT(114), in, 0) + lane * 16));
  ptx::st_global_b64(out + 1024 + lane * 8, *reinterpret_cast<const uint64_t*>(unwritten_if(FAULT(115), in, 0) + lane * 8));
  ptx::red_add_float(reinterpret_cast<float*>(out + 1536) + lane, *reinterpret_cast<const float*>(unwritten_if(FAULT(116), in, 512) + lane * 4));
  // A plain store of what may be two floats or an address.
  reinterpret_cast<uint64_t*>(out + 4096)[lane] = 0x00007f00'7fda1230ull + lane;
  // Shared memory may hold what was never written, as long as nobody takes it from there to global memory.
  const uint32_t row = shared_address(s.staging) + lane * 16;
  ptx::st_shared_v4(row, ptx::ld_global_nc_v4(in + (lane < 16 ? 512 : 1024) + lane * 16));
  if (lane < 16 || FAULT(117)) ptx::st_global_v4(out + 4608 + lane * 16, ptx::ld_shared_v4(row));

  if (lane != 0) return;
  ptx::mbarrier_init(bar, 1);
  ptx::fence_mbarrier_init();
  for (uint32_t i = 0; i < 4; i++) {
    ptx::mbarrier_arrive_expect_tx(bar, 512);
    ptx::bulk_load(tile, unwritten_if(FAULT(118 + (int)i), in, i == 1 || i == 2 ? 512 : 0), 512, bar);
    ptx::mbarrier_wait(bar, i & 1);
    if (i == 0) ptx::bulk_store(out + 2048, tile, 512);
    else ptx::tma_store_2d(i == 1 ? &halves : i == 2 ? &floats : &integers, 0, 0, tile);
    ptx::bulk_commit();
    ptx::bulk_wait<0>();
  }
}
