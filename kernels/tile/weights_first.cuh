// What becomes of a warp's sums where weights are the rows of the product and tokens its columns.
#pragma once
#include "tile/epilogue.cuh"
#include "tile/float16.cuh"
#include "tile/scheduler.cuh"

// 32 weight rows by 8 kN tokens, in two blocks of 16 rows.  sum(m, n, 2 h + b) of a lane: of column places[h] + m and
// of row work.row + 8 n + 2 (lane % 4) + b.  A lane has two neighbouring columns of both halves, and the eight lanes of
// a token 32 bytes of each.
template <class T, int kN, class Sum>
__device__ __forceinline__ void store_weights_first(const GroupedGemmArgs& args, const ColumnPlace (&places)[2],
                                                    const WorkTile& work, Sum sum) {
  const uint32_t row = work.row + threadIdx.x % 4 * 2;
  const Biases biases(args, work.expert);
#pragma unroll
  for (int n = 0; n < kN; n++) {
    const uint32_t r = row + n * 8;
    float sums[2][4];  // of a half: two columns of row r, two of the next
#pragma unroll
    for (int i = 0; i < 8; i++) sums[i / 4][i % 4] = sum(i % 2, n, i / 4 * 2 + i / 2 % 2);
    if (!is_plain(args)) {
      const float weights[2] = {row_weight(args, r, work.row_end), row_weight(args, r + 1, work.row_end)};
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float2 bias = biases.two(places[half]);
#pragma unroll
        for (int i = 0; i < 4; i++) sums[half][i] = sums[half][i] * weights[i / 2] + (i % 2 == 0 ? bias.x : bias.y);
      }
    }
    activate_halves(args, sums[0], sums[1]);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      if (!places[half].exists || (half == 1 && !stores_both(args))) continue;
#pragma unroll
      for (int b = 0; b < 2; b++)
        if (r + b < work.row_end)
          *reinterpret_cast<uint32_t*>(device_pointer<T>(args.out) + (r + b) * args.out_stride + places[half].at) =
              Float16<T>::pack(sums[half][2 * b], sums[half][2 * b + 1]);
    }
  }
}
