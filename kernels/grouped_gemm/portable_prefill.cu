// The kernels grouped_gemm_portable_prefill_<rows>x<columns>_<dtype>, one for each row of the table.
#include "grouped_gemm/portable_prefill.cuh"
#include "tile/tiles.h"

#define PREFILL(rows, columns, depth, stages, threads, blocks, shared, dtype)         \
  KERNEL(grouped_gemm_portable_prefill_##rows##x##columns##_##dtype, threads, blocks, \
         const __grid_constant__ GroupedGemmArgs args) {                              \
    constexpr CopyTile kTile{rows, columns, depth, stages, threads};                  \
    static_assert(sizeof(CopyStorage<kTile>) == shared);                              \
    portable_prefill<kTile, dtype>(args);                                             \
  }
#define PREFILL_TILE(...)    \
  PREFILL(__VA_ARGS__, bf16) \
  PREFILL(__VA_ARGS__, f16)
PORTABLE_PREFILL_TILES(PREFILL_TILE)
