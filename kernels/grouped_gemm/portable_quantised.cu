// The kernels grouped_gemm_portable_<format>_<rows>x<columns>_bf16, one for each row of the table.
#include "grouped_gemm/portable_quantised.cuh"
#include "tile/tiles.h"

#define QUANTISED(name, Format, rows, columns, depth, stages, threads, blocks, shared)                      \
  KERNEL(grouped_gemm_portable_##name##_##rows##x##columns##_bf16, threads, blocks,                         \
         const __grid_constant__ GroupedGemmArgs args, const __grid_constant__ QuantisedMatrices weights) { \
    using Gemm = PortableQuantised<CopyTile{rows, columns, depth, stages, threads}, Format>;                \
    static_assert(sizeof(Gemm::Storage) == shared);                                                         \
    Gemm::run(args, weights);                                                                               \
  }
#define FP8_TILE(...) QUANTISED(fp8, Fp8Block, __VA_ARGS__)
#define MXFP4_TILE(...) QUANTISED(mxfp4, Mxfp4, __VA_ARGS__)
#define INT4_TILE(...) QUANTISED(int4, Int4, __VA_ARGS__)
PORTABLE_FP8_TILES(FP8_TILE)
PORTABLE_MXFP4_TILES(MXFP4_TILE)
PORTABLE_INT4_TILES(INT4_TILE)
