// Activation: between an expert's two products, as a stage of its own.
//
//   for r in 0 .. num_rows:
//     for i in 0 .. I:
//       out[r, i] = act(gate_up[r, i], gate_up[r, I + i])       (or act(gate_up[r, i]), without a gate)
//
// Departures:
// 1. A thread computes 8 columns, in 16-byte loads and stores, of ACTIVATION_ROWS neighbouring rows; all loads are on
//    their way before the first result.
// 2. Any number of blocks does: they stride over the rows, whose number only the device knows.
#include "abi.h"
#include "common/types.cuh"
#include "ptx/memory.cuh"
#include "ptx/sync.cuh"
#include "tile/activation.cuh"
#include "tile/float16.cuh"

template <class T>
__device__ __forceinline__ uint32_t activate_pair(const ActivationParams& p, uint32_t gate, uint32_t up) {
  return Float16<T>::pack(activate(p, Float16<T>::low(gate), Float16<T>::low(up)),
                          activate(p, Float16<T>::high(gate), Float16<T>::high(up)));
}

template <class T>
__device__ __forceinline__ void activate_rows(const ActivationArgs& p) {
  ptx::grid_launch_dependents();
  ptx::grid_dependency_wait();
  const uint32_t column = (blockIdx.y * ROW_THREADS + threadIdx.x) * 8;
  if (column >= p.columns) return;
  const uint16_t* gates = device_pointer<const uint16_t>(p.gate_up) + column;
  // Without a gate the only product is both.
  const uint16_t* ups = gates + (p.gated != 0 ? p.columns : 0);
  uint16_t* out = device_pointer<uint16_t>(p.out) + column;
  const uint32_t num_rows = *device_pointer<const uint32_t>(p.num_rows);

  const uint64_t step = (uint64_t)gridDim.x * ACTIVATION_ROWS;
  for (uint64_t first = (uint64_t)blockIdx.x * ACTIVATION_ROWS; first < num_rows; first += step) {
    uint4 gate[ACTIVATION_ROWS], up[ACTIVATION_ROWS];
#pragma unroll
    for (uint32_t i = 0; i < ACTIVATION_ROWS; i++) {
      if (first + i < num_rows) {
        gate[i] = ptx::ld_global_v4_streaming(gates + (first + i) * p.gate_up_stride);
        up[i] = ptx::ld_global_v4_streaming(ups + (first + i) * p.gate_up_stride);
      }
    }
#pragma unroll
    for (uint32_t i = 0; i < ACTIVATION_ROWS; i++) {
      if (first + i < num_rows) {
        const uint4 g = gate[i], u = up[i];
        const uint4 activated =
            make_uint4(activate_pair<T>(p.activation, g.x, u.x), activate_pair<T>(p.activation, g.y, u.y),
                       activate_pair<T>(p.activation, g.z, u.z), activate_pair<T>(p.activation, g.w, u.w));
        ptx::st_global_v4(out + (first + i) * p.out_stride, activated);
      }
    }
  }
}

KERNEL(activation_bf16, ROW_THREADS, 1, const __grid_constant__ ActivationArgs p) { activate_rows<bf16>(p); }
KERNEL(activation_f16, ROW_THREADS, 1, const __grid_constant__ ActivationArgs p) { activate_rows<f16>(p); }
