// Grouped GEMM of quantised weights for Hopper: weights as M, from registers.
//
// The naive version:
//
//   for each expert e, each of its rows r, each column j:
//     g = row_weights[r] * sum_k value(gate[e, j, k]) * x[token_of_row[r], k] + gate_bias[e, j]
//     u = row_weights[r] * sum_k value(up[e, j, k]) * x[token_of_row[r], k] + up_bias[e, j]
//     out[r, j] = act(g, u)                                  (or g and u side by side; or act(u), or u)
//   where value(w[j, k]) = code[j, k] * scale[j, k / group]
//
// Departures from it:
//
//  1. Warps are specialised: four multiply, one loads, through a ring of stages of 64 in depth; two blocks share a
//     multiprocessor, so that one widens codes while the other multiplies.
//  2. Codes lie in memory as threads take them (tile/dequantise.cuh): one bulk copy fills a stage, another its scales.
//     A thread widens its 64 codes to fragments of bf16, and wgmma takes them from its registers.
//  3. A warp's two blocks of 16 rows are in two products of 64: its sums are those of the portable kernel, and so is
//     what becomes of them (tile/weights_first.cuh).
//  4. Block scales of fp8 multiply sums in f32, every 128 of depth; those of four bits multiply the widened codes.
//  5. Fragments are never written while a product may read them: each stage's products are waited for.
//  6. Rows of x are gathered by cp.async, or taken in order where they are packed.
#pragma once
#include "ptx/tma.cuh"
#include "tile/dequantise.cuh"
#include "tile/operands.cuh"
#include "tile/warpgroup.cuh"
#include "tile/weights_first.cuh"

template <class Format, uint32_t kRows, uint32_t kColumns, uint32_t kStages> class HopperQuantised {
 public:
  static constexpr uint32_t kThreads = 128 + 32;
  static_assert(kRows % 16 == 0 && kColumns == 128);

  struct Storage {
    alignas(1024) uint16_t x[kStages][kRows * 64];
    alignas(128) uint8_t codes[kStages][kColumns / 16 * Format::kCodeBytes];
    alignas(128) uint8_t scales[kStages][kColumns / 16 * Format::kScaleBytes];
    RingBarriers<kStages> ring;
  };

  static __device__ __forceinline__ void run(const GroupedGemmArgs& args, const QuantisedMatrices& weights) {
    Storage& shared = shared_storage<Storage>();
    if (threadIdx.x == 0) Ring<kStages>::init(shared.ring, 32 + 1, 4);
    __syncthreads();
    ptx::grid_dependency_wait();
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    const uint32_t blocks = (args.depth + 63) / 64;
    TileScheduler<kRows> tiles(device_pointer<const uint32_t>(args.expert_offsets), args.num_experts,
                               (args.columns + tile_columns<kColumns>(args) - 1) / tile_columns<kColumns>(args),
                               blockIdx.x, gridDim.x);
    if (warp == 4)
      produce(shared, args, weights, tiles, blocks);
    else
      consume(shared, args, weights, tiles, blocks, warp);
  }

 private:
  static constexpr uint32_t kUnits = kColumns / 32, kX = kRows * 128;
  static constexpr uint32_t kCodes = kColumns / 16 * Format::kCodeBytes;
  static constexpr uint32_t kScales = kColumns / 16 * Format::kScaleBytes;

  // One warp: its first lane issues the bulk copies, all gather.
  static __device__ __forceinline__ void produce(Storage& shared, const GroupedGemmArgs& args,
                                                 const QuantisedMatrices& weights, TileScheduler<kRows>& tiles,
                                                 uint32_t blocks) {
    Ring<kStages> ring(shared.ring);
    const uint32_t lane = threadIdx.x % 32;
    RowGather<kRows, 32> rows(args, lane);
    const uint32_t x = shared_address(shared.x), codes = shared_address(shared.codes),
                   scales = shared_address(shared.scales);
    WorkTile work;
    while (tiles.next(work)) {
      const TileBlocks<Format> from(weights, work.expert, work.column_block * kUnits, kUnits);
      const uint32_t code_bytes = from.code_bytes(), scale_bytes = from.scale_bytes(weights);
      rows.begin(args, work);
#pragma unroll 1
      for (uint32_t block = 0; block < blocks; block++) {
        const uint32_t full = ring.wait_empty();
        if (lane == 0) {
          ptx::mbarrier_arrive_expect_tx(full, code_bytes + scale_bytes);
          ptx::bulk_load(codes + ring.stage() * kCodes, from.codes(weights, block), code_bytes, full);
          ptx::bulk_load(scales + ring.stage() * kScales, from.scales(weights, block), scale_bytes, full);
        }
        rows.copy(args, x + ring.stage() * kX, block * 64);
        ptx::cp_async_arrive_noinc(full);
        ring.advance();
      }
      __syncwarp();
    }
    ptx::grid_launch_dependents();
  }

  static __device__ __forceinline__ void consume(Storage& shared, const GroupedGemmArgs& args,
                                                 const QuantisedMatrices& weights, TileScheduler<kRows>& tiles,
                                                 uint32_t blocks, uint32_t warp) {
    Ring<kStages> ring(shared.ring);
    const uint32_t x = shared_address(shared.x);
    const uint32_t codes = shared_address(shared.codes) + warp * 2 * Format::kCodeBytes;
    const bool releases = threadIdx.x % 32 == 0;
    float acc[2][kRows / 2];
    WorkTile work;
    while (tiles.next(work)) {
      const uint32_t unit = work.column_block * kUnits + warp;
      const bool exists = unit < weights.row_blocks / 2;
      if constexpr (Format::kScalesSums) {
#pragma unroll
        for (uint32_t i = 0; i < kRows; i++) acc[i / (kRows / 2)][i % (kRows / 2)] = 0.f;
      }
      float part[2][Format::kScalesSums ? kRows / 2 : 1];
#pragma unroll 1
      for (uint32_t block = 0; block < blocks; block++) {
        ring.wait_full();
        // For the rows of x, which cp.async wrote and wgmma reads.
        ptx::fence_proxy_async_shared();
        const uint8_t* scales = shared.scales[ring.stage()] + warp * 2 * weights.scale_bytes;
        uint32_t a[2][4][4];
#pragma unroll
        for (int m = 0; m < 2; m++) {
          Format of_warp;
          // A warp past the last column has no codes, and takes part in the products all the same.
          if (exists)
            of_warp.load(codes + ring.stage() * kCodes + m * Format::kCodeBytes, scales + m * weights.scale_bytes,
                         weights.scale_bytes);
          else
            of_warp.clear();
#pragma unroll
          for (int step = 0; step < 4; step++) of_warp.fragment(step, a[m][step]);
        }
        const uint64_t descriptor = ptx::k_major_128b(x + ring.stage() * kX);
        ptx::wgmma_fence();
#pragma unroll
        for (uint32_t step = 0; step < 4; step++)
#pragma unroll
          for (int m = 0; m < 2; m++) {
            if constexpr (Format::kScalesSums)
              ptx::wgmma_bf16_ra(part[m], a[m][step], descriptor + step * 2, (block % 2 | step) != 0);
            else
              ptx::wgmma_bf16_ra(acc[m], a[m][step], descriptor + step * 2, (block | step) != 0);
          }
        ptx::wgmma_commit();
        ptx::wgmma_wait<0>();
        if constexpr (Format::kScalesSums) {
          if (block % 2 == 1 || block + 1 == blocks) {
#pragma unroll
            for (int m = 0; m < 2; m++) {
              float2 scale = make_float2(0.f, 0.f);
              if (exists) scale = Format::sum_scales(scales + m * weights.scale_bytes);
#pragma unroll
              for (uint32_t i = 0; i < kRows / 2; i++) acc[m][i] += part[m][i] * (i / 2 % 2 == 0 ? scale.x : scale.y);
            }
          }
        }
        __syncwarp();  // all lanes have read
        if (releases) ring.release(ring.stage());
        ring.advance();
      }
      ColumnPlace places[2];
      unit_places(args, unit, places);
      store_weights_first<bf16, kRows / 8>(args, places, work, [&](int m, int n, int i) { return acc[m][n * 4 + i]; });
    }
  }
};
