// Instances of the grouped GEMM of quantised weights for Hopper.
#include "grouped_gemm/hopper_quantised.cuh"
#include "tile/tiles.h"

#define QUANTISED(name, Format, rows, columns, depth, stages, threads, blocks, shared_bytes)                \
  KERNEL(grouped_gemm_hopper_##name##_##rows##x##columns##_bf16, threads, blocks,                           \
         const __grid_constant__ GroupedGemmArgs args, const __grid_constant__ QuantisedMatrices weights) { \
    using Gemm = HopperQuantised<Format, rows, columns, stages>;                                            \
    static_assert(depth == 64 && Gemm::kThreads == threads && sizeof(Gemm::Storage) == shared_bytes);       \
    Gemm::run(args, weights);                                                                               \
  }
#define FP8_TILE(...) QUANTISED(fp8, Fp8Block, __VA_ARGS__)
#define MXFP4_TILE(...) QUANTISED(mxfp4, Mxfp4, __VA_ARGS__)
#define INT4_TILE(...) QUANTISED(int4, Int4, __VA_ARGS__)
HOPPER_FP8_TILES(FP8_TILE)
HOPPER_MXFP4_TILES(MXFP4_TILE)
HOPPER_INT4_TILES(INT4_TILE)
