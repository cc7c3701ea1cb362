// The tiles of the grouped GEMM, written from src/cuda/tiles.rs (MOE_WRITE_TILES=1 cargo test --test tiles).
// X(rows, columns, depth, stages, threads, blocks_per_sm, shared_bytes)
#pragma once

#define HOPPER_PREFILL_TILES(X) \
  X(128, 256, 64, 4, 384, 1, 230400) \
  X(128, 192, 64, 5, 384, 1, 230400) \
  X(128, 128, 64, 6, 384, 1, 214016)

#define HOPPER_DECODE_TILES(X) \
  X(8, 64, 64, 12, 160, 2, 111616) \
  X(8, 128, 64, 6, 160, 2, 105472) \
  X(16, 128, 64, 6, 160, 2, 111616) \
  X(32, 128, 64, 5, 160, 2, 103424) \
  X(64, 128, 64, 4, 160, 2, 99328)

#define PORTABLE_PREFILL_TILES(X) \
  X(128, 256, 32, 4, 256, 1, 98432) \
  X(128, 128, 32, 3, 128, 2, 49280) \
  X(64, 128, 32, 4, 128, 3, 49280)

#define PORTABLE_DECODE_TILES(X) \
  X(8, 64, 64, 5, 64, 4, 46208) \
  X(16, 64, 64, 4, 64, 4, 41088) \
  X(32, 128, 32, 4, 128, 4, 41088)

#define HOPPER_FP8_TILES(X) \
  X(16, 128, 64, 9, 160, 2, 97280) \
  X(48, 128, 64, 7, 160, 2, 104448)

#define HOPPER_MXFP4_TILES(X) \
  X(16, 128, 64, 12, 160, 2, 77824) \
  X(64, 128, 64, 6, 160, 2, 75776)

#define HOPPER_INT4_TILES(X) \
  X(16, 128, 64, 12, 160, 2, 80896) \
  X(64, 128, 64, 6, 160, 2, 77824)

#define PORTABLE_FP8_TILES(X) \
  X(16, 64, 64, 5, 64, 4, 32128) \
  X(48, 128, 64, 3, 128, 2, 44672)

#define PORTABLE_MXFP4_TILES(X) \
  X(16, 64, 64, 6, 64, 4, 25472) \
  X(64, 128, 64, 3, 128, 2, 37760)

#define PORTABLE_INT4_TILES(X) \
  X(16, 64, 64, 6, 64, 4, 26240) \
  X(64, 128, 64, 3, 128, 2, 38528)
