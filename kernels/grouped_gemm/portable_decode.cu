// The kernels grouped_gemm_portable_decode_<rows>x<columns>_<dtype>, one for each row of the table.
#include "grouped_gemm/portable_decode.cuh"
#include "tile/tiles.h"

#define DECODE(rows, columns, depth, stages, threads, blocks, shared, dtype)         \
  KERNEL(grouped_gemm_portable_decode_##rows##x##columns##_##dtype, threads, blocks, \
         const __grid_constant__ GroupedGemmArgs args) {                             \
    constexpr CopyTile kTile{rows, columns, depth, stages, threads};                 \
    static_assert(sizeof(CopyStorage<kTile>) == shared);                             \
    portable_decode<kTile, dtype>(args);                                             \
  }
#define DECODE_TILE(...)    \
  DECODE(__VA_ARGS__, bf16) \
  DECODE(__VA_ARGS__, f16)
PORTABLE_DECODE_TILES(DECODE_TILE)
