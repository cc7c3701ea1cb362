// The tiles of the grouped GEMM, written from src/cuda/tiles.rs (MOE_WRITE_TILES=1 cargo test --test tiles).
// X(rows, columns, depth, stages, threads, blocks_per_sm, shared_bytes)
#pragma once

#define HOPPER_PREFILL_TILES(X) \
  X(128, 256, 64, 4, 384, 1, 229440)

#define HOPPER_DECODE_TILES(X)

#define PORTABLE_PREFILL_TILES(X)

#define PORTABLE_DECODE_TILES(X)
