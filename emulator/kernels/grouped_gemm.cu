// Self-test kernel: a persistent, warp-specialised grouped GEMM with fused SwiGLU, for sm_90a.
//   A [M, K] bf16, rows in expert order;  B [E, 2 I, K] bf16, gate rows then up rows
//   out [M, I] bf16 = silu(A gate^T) * (A up^T)
// Warpgroup 0 produces (one thread issues TMA), warpgroups 1 and 2 consume 64 rows each.
#include "common/types.cuh"
#include "ptx/convert.cuh"
#include "ptx/matrix.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"

template <int kColumns> struct GemmTile {
  static constexpr int kM = 128, kN = kColumns, kK = 64, kStages = 4, kOut = kColumns / 2;
  static constexpr uint32_t kBytesA = kM * kK * 2, kBytesB = kN * kK * 2;
};
template <class Tile> struct GemmStorage {
  alignas(1024) bf16 a[Tile::kStages][Tile::kM * Tile::kK];
  alignas(1024) bf16 b[Tile::kStages][Tile::kN * Tile::kK];
  alignas(1024) bf16 out[2][64 * Tile::kOut];
  alignas(8) uint64_t full[Tile::kStages];
  alignas(8) uint64_t empty[Tile::kStages];
};
struct GemmParams { bf16* out; const int* offsets; int E, I, K; };

template <int kRows> struct TileWalk {                      // every role walks the same tiles
  const int* offsets;
  int experts, column_tiles, tile, expert = 0, first = 0;
  int row = 0, row_end = 0, column_tile = 0;
  __device__ __forceinline__ TileWalk(const int* o, int e, int n) : offsets(o), experts(e), column_tiles(n), tile(blockIdx.x) {}
  __device__ __forceinline__ bool next() {
    while (expert < experts) {
      const int begin = __ldg(offsets + expert), end = __ldg(offsets + expert + 1);
      const int count = (end - begin + kRows - 1) / kRows * column_tiles;
      if (tile < first + count) {
        const int t = tile - first;
        row = begin + t / column_tiles * kRows;
        row_end = end;
        column_tile = t % column_tiles;
        tile += gridDim.x;
        return true;
      }
      first += count;
      expert++;
    }
    return false;
  }
};
__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.f + __expf(-x)); }

// k_major_128b with the mistakes that an encoder of descriptors may make.
__device__ __forceinline__ uint64_t descriptor(uint32_t addr) {
  if (FAULT(70)) return (uint64_t)((addr & 0x3ffff) >> 4) | (1ull << 16) | (1024ull << 32) | (1ull << 62);       // stride not in units of 16
  if (FAULT(71)) return ptx::matrix_descriptor(addr, 16, 1024, ptx::Swizzle::B64);
  if (FAULT(72)) return ptx::matrix_descriptor(addr & 0x3fff, 16, 1024, ptx::Swizzle::B128);                     // address cut to 14 bits too early
  return ptx::k_major_128b(addr);
}

template <class Tile>
__device__ __forceinline__ void produce(GemmStorage<Tile>& s, const TensorMap& map_a, const TensorMap& map_b, const GemmParams& p, TileWalk<Tile::kM>& walk, int k_tiles) {
  const uint32_t full = shared_address(s.full), empty = shared_address(s.empty);
  int stage = 0;
  uint32_t phase = 0;
  ptx::prefetch_tensor_map(&map_a);
  ptx::prefetch_tensor_map(&map_b);
  while (walk.next()) {
    for (int kt = 0; kt < k_tiles; kt++) {
      if (!FAULT(23)) ptx::mbarrier_wait(empty + 8 * stage, FAULT(24) ? phase : phase ^ 1);
      const uint32_t bar = full + 8 * stage;
      uint32_t bytes = Tile::kBytesA + Tile::kBytesB;
      if (FAULT(25)) bytes -= Tile::kBytesB / 2;            // one box forgotten
      if (FAULT(26)) bytes += 16;
      ptx::mbarrier_arrive_expect_tx(bar, bytes);
      ptx::tma_load_2d(shared_address(s.a[stage]), &map_a, kt * Tile::kK, walk.row, bar);
      ptx::tma_load_3d(shared_address(s.b[stage]), &map_b, kt * Tile::kK, walk.column_tile * Tile::kOut, walk.expert, bar);
      ptx::tma_load_3d(shared_address(s.b[stage]) + Tile::kBytesB / 2, &map_b, kt * Tile::kK, p.I + walk.column_tile * Tile::kOut, walk.expert, FAULT(27) ? full : bar);
      if (++stage == Tile::kStages) { stage = 0; phase ^= 1; }
    }
  }
}

// SwiGLU in registers, stmatrix to swizzled staging, then TMA or masked stores.
template <class Tile>
__device__ __forceinline__ void store_tile(GemmStorage<Tile>& s, const float (&acc)[Tile::kN / 2], const TensorMap& map_out, const GemmParams& p, const TileWalk<Tile::kM>& walk, int consumer) {
  constexpr int kOut = Tile::kOut;
  const int lane = threadIdx.x & 31, warp = (threadIdx.x / 32) & 3, t = threadIdx.x % 128;
  const uint32_t staging = shared_address(s.out[consumer]);
  if (t == 0 && !FAULT(41)) ptx::bulk_wait_read<0>();       // the staging buffer is free again
  if (!FAULT(47)) ptx::barrier_sync(1 + consumer, FAULT(42) ? 256 : 128);
  const int r = (lane & 7) + ((lane >> 3) & 1) * 8 + warp * 16;      // the row that this lane addresses
#pragma unroll
  for (int j = 0; j < kOut / 8; j += 2) {
    uint32_t pair[4];
#pragma unroll
    for (int q = 0; q < 4; q++) {
      const int g = (j + (q >> 1)) * 4 + (q & 1) * 2, u = g + kOut / 2;
      pair[q] = ptx::pack_bf16(silu(acc[g]) * acc[u], silu(acc[g + 1]) * acc[u + 1]);
    }
    const int column = (j + (lane >> 4)) * 8;
    const uint32_t chunk = FAULT(43) ? (column & 63) / 8 : ((column & 63) / 8) ^ (r & 7);
    ptx::stmatrix_x4(staging + (column / 64) * 64 * 128 + r * 128 + chunk * 16, pair[0], pair[1], pair[2], pair[3]);
  }
  if (!FAULT(44)) ptx::fence_proxy_async_shared();
  if (!FAULT(45)) ptx::barrier_sync(1 + consumer, 128);
  const int row = walk.row + consumer * 64, rows = FAULT(46) ? 64 : min(64, walk.row_end - row), column0 = walk.column_tile * kOut;
  if (rows == 64) {
    if (t == 0) {
      for (int c = 0; c < kOut / 64; c++)
        if (column0 + c * 64 < p.I) ptx::tma_store_2d(&map_out, column0 + c * 64, row, staging + c * 64 * 128);
      ptx::bulk_commit();
    }
    return;
  }
  for (int i = t; i < 64 * kOut / 8; i += 128) {
    const int rr = i / (kOut / 8), cc = i % (kOut / 8) * 8;
    if (rr < rows && column0 + cc < p.I)
      ptx::st_global_v4(p.out + (size_t)(row + rr) * p.I + column0 + cc, ptx::ld_shared_v4(staging + (cc / 64) * 64 * 128 + rr * 128 + (((cc & 63) / 8) ^ (rr & 7)) * 16));
  }
}

template <class Tile>
__device__ __forceinline__ void consume(GemmStorage<Tile>& s, const TensorMap& map_out, const GemmParams& p, TileWalk<Tile::kM>& walk, int k_tiles, int consumer) {
  const uint32_t full = shared_address(s.full), empty = shared_address(s.empty);
  const bool releases = FAULT(40) ? threadIdx.x % 128 == 0 : threadIdx.x % 32 == 0;     // each warp releases what it has waited for
  int stage = 0;
  uint32_t phase = 0;
  float acc[Tile::kN / 2];
  while (walk.next()) {
    int previous = -1;
    for (int kt = 0; kt < k_tiles; kt++) {
      if (!FAULT(28)) ptx::mbarrier_wait(full + 8 * stage, FAULT(29) ? phase ^ 1 : phase);
      const uint32_t a = shared_address(s.a[stage]) + consumer * 64 * 128, b = shared_address(s.b[stage]);
      if (!FAULT(30)) ptx::wgmma_fence();
#pragma unroll
      for (int k = 0; k < Tile::kK / 16; k++) {
        uint64_t da = descriptor(a + k * 32), db = descriptor(b + k * 32);
        if (FAULT(31)) db &= ~(3ull << 62);                                        // no swizzle
        if (FAULT(32)) db = (db & ~(0x3fffull << 32)) | (128ull >> 4 << 32);       // wrong stride
        if (FAULT(33)) da = descriptor(a + k * 16);                                // wrong advance along K
        if (FAULT(34)) { const uint64_t swap = da; da = db; db = swap; }
        ptx::wgmma_bf16(acc, da, db, FAULT(35) ? 1 : (kt | k) != 0);
      }
      if (!FAULT(36)) ptx::wgmma_commit();
      if (FAULT(37)) {                                      // releases the stage that is still being read
        if (releases) ptx::mbarrier_arrive(empty + 8 * stage);
        ptx::wgmma_wait<1>();
      } else {
        ptx::wgmma_wait<1>();                               // the products of the previous k-tile are complete
        if (previous >= 0 && releases && !FAULT(38)) ptx::mbarrier_arrive(empty + 8 * previous);
      }
      previous = stage;
      if (++stage == Tile::kStages) { stage = 0; phase ^= 1; }
    }
    if (!FAULT(39)) ptx::wgmma_wait<0>();
    if (!FAULT(37) && releases) ptx::mbarrier_arrive(empty + 8 * previous);
    store_tile<Tile>(s, acc, map_out, p, walk, consumer);
  }
  if (threadIdx.x % 128 == 0 && !FAULT(48)) ptx::bulk_wait<0>();
}

template <int kColumns>
__device__ __forceinline__ void grouped_gemm(const TensorMap& map_a, const TensorMap& map_b, const TensorMap& map_out, const GemmParams& p) {
  using Tile = GemmTile<kColumns>;
  auto& s = shared_storage<GemmStorage<Tile>>();
  const int warpgroup = threadIdx.x / 128, column_tiles = (p.I + Tile::kOut - 1) / Tile::kOut, k_tiles = (p.K + Tile::kK - 1) / Tile::kK;
  if (threadIdx.x == 0) {
    for (int i = 0; i < Tile::kStages; i++) {
      ptx::mbarrier_init(shared_address(&s.full[i]), 1);
      ptx::mbarrier_init(shared_address(&s.empty[i]), FAULT(20) ? 4 : FAULT(40) ? 2 : 8);       // one arrival per consumer warp
    }
    if (!FAULT(21)) ptx::fence_mbarrier_init();
  }
  if (!FAULT(22)) __syncthreads();
  TileWalk<Tile::kM> walk(p.offsets, p.E, column_tiles);
  if (warpgroup == 0) {
    ptx::setmaxnreg_dec<40>();
    if (threadIdx.x / 32 == 0 && ptx::elect_one()) produce<Tile>(s, map_a, map_b, p, walk, k_tiles);
  } else {
    ptx::setmaxnreg_inc<232>();
    consume<Tile>(s, map_out, p, walk, k_tiles, warpgroup - 1);
  }
}
KERNEL(test_gemm_n128, 384, 1, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap out, const __grid_constant__ GemmParams p) {
  grouped_gemm<128>(a, b, out, p);
}
KERNEL(test_gemm_n256, 384, 1, const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap out, const __grid_constant__ GemmParams p) {
  grouped_gemm<256>(a, b, out, p);
}
