// The kernels grouped_gemm_portable_decode_<rows>x<columns>_<epilogue>_<dtype>, one for each row of the table.
#include "grouped_gemm/portable_decode.cuh"
#include "tile/tiles.h"

#define DECODE(rows, columns, depth, stages, threads, blocks, shared, name, epilogue, dtype)  \
  KERNEL(grouped_gemm_portable_decode_##rows##x##columns##_##name##_##dtype, threads, blocks, \
         const __grid_constant__ GroupedGemmArgs args) {                                      \
    constexpr CopyTile kTile{rows, columns, depth, stages, threads};                          \
    static_assert(sizeof(CopyStorage<kTile>) == shared);                                      \
    portable_decode<kTile, Epilogue::epilogue, dtype>(args);                                  \
  }
#define DECODE_TILE(...)                            \
  DECODE(__VA_ARGS__, store, Store, bf16)           \
  DECODE(__VA_ARGS__, store, Store, f16)            \
  DECODE(__VA_ARGS__, activation, Activation, bf16) \
  DECODE(__VA_ARGS__, activation, Activation, f16)  \
  DECODE(__VA_ARGS__, pair, Pair, bf16)             \
  DECODE(__VA_ARGS__, pair, Pair, f16)
PORTABLE_DECODE_TILES(DECODE_TILE)
