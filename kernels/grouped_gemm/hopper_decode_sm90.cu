// Instances of the grouped GEMM for Hopper with weights as M.
#include "grouped_gemm/hopper_decode.cuh"
#include "tile/tiles.h"

#define GATE_UP(rows, columns, depth, stages, threads, blocks, shared_bytes, type)                    \
  KERNEL(grouped_gemm_hopper_decode_##rows##x##columns##_gate_up_##type, threads, blocks,             \
         const __grid_constant__ TensorMap weights, const __grid_constant__ GroupedGemmArgs args) {   \
    using Gemm = HopperDecode<type, Epilogue::GateUp, rows, columns, stages>;                         \
    static_assert(depth == 64 && Gemm::kThreads == threads && sizeof(Gemm::Storage) == shared_bytes); \
    Gemm::run(nullptr, weights, args);                                                                \
  }
#define DOWN(rows, columns, depth, stages, threads, blocks, shared_bytes, type)                       \
  KERNEL(grouped_gemm_hopper_decode_##rows##x##columns##_store_##type, threads, blocks,               \
         const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weights,              \
         const __grid_constant__ GroupedGemmArgs args) {                                              \
    using Gemm = HopperDecode<type, Epilogue::Store, rows, columns, stages>;                          \
    static_assert(depth == 64 && Gemm::kThreads == threads && sizeof(Gemm::Storage) == shared_bytes); \
    Gemm::run(&x, weights, args);                                                                     \
  }
#define TILE(...)            \
  GATE_UP(__VA_ARGS__, bf16) \
  GATE_UP(__VA_ARGS__, f16)  \
  DOWN(__VA_ARGS__, bf16)    \
  DOWN(__VA_ARGS__, f16)

HOPPER_DECODE_TILES(TILE)
