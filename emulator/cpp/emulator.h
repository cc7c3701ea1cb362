// C interface of the emulator: what src/ffi.rs binds.  Every function is called with the device's lock held.
#pragma once
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct emu_device emu_device;   // one emulated GPU: its memory and its limits

typedef struct {                        // what a device of this kind can do
  uint32_t arch;                        // 80, 86, 89, 90, 100, 120
  uint32_t sm_count;
  uint32_t max_shared_bytes;            // opt-in limit of one block
} emu_profile;

// How a launch came to fail; mirrored by `FaultKind` in src/fault.rs.
typedef enum {
  EMU_OK = 0, EMU_RACE, EMU_PROXY, EMU_DEADLOCK, EMU_WATCHDOG, EMU_OUT_OF_BOUNDS, EMU_MISALIGNED, EMU_UNINITIALISED,
  EMU_TAINT, EMU_BARRIER, EMU_DIVERGENCE, EMU_ASYNC, EMU_WGMMA, EMU_PTX, EMU_TENSOR_MAP, EMU_REGISTERS,
  EMU_CLUSTER, EMU_TRAP, EMU_LAUNCH, EMU_UNSUPPORTED
} emu_fault_kind;

typedef struct { uint32_t x, y, z; } emu_dim3;

typedef struct {                        // one kernel of a chain
  const void* kernel;                   // from emu_find_kernel
  emu_dim3 grid, block, cluster;
  uint32_t shared_bytes;
  uint32_t overlaps_previous;           // launched with programmatic stream serialisation
  void* const* args;
} emu_launch;

typedef struct { const char* from; const char* to; } emu_text_edit;   // a deliberate edit of PTX text (self-tests)

typedef struct {
  uint64_t seed;                        // 0: plain order, asynchronous work done at once; else adversarial
  uint32_t check;                       // 1: happens-before checks
  uint32_t lint;                        // 1: bank conflicts and sectors per source line
  uint32_t resident;                    // clusters in flight together; 0: chosen by the seed within the device's limits
  int32_t fault;                        // deliberate fault of a self-test kernel; 0: none
  emu_text_edit edit;                   // {NULL, NULL}: none
} emu_options;

typedef struct { uint64_t switches, async_steps, wgmmas, checks, blocks; } emu_stats;

emu_device* emu_device_new(const emu_profile*);
void emu_device_free(emu_device*);
void* emu_alloc(emu_device*, size_t bytes);           // 256-byte aligned, redzones, poisoned
int emu_free(emu_device*, void*);                     // 0, or 1 when the address is no allocation
int emu_contains(emu_device*, const void*, size_t);   // 1 when the range lies in one live allocation

// Finds a kernel by name; null when there is none.
const void* emu_find_kernel(const char* name, int checked);
uint32_t emu_kernel_params(const void* kernel, const uint32_t** sizes);
void emu_kernel_bounds(const void* kernel, uint32_t* max_threads, uint32_t* min_blocks);
const char* emu_kernel_at(size_t index);              // names in order of registration; null past the end

// Encodes a tensor map as the driver would; 0, or 1 with a message.
enum emu_element { EMU_U8, EMU_BF16, EMU_F16, EMU_F32, EMU_I32 };
typedef struct {
  uint32_t element, element_bytes, rank, swizzle_bytes;
  uint64_t base, dims[5], strides[4];
  uint32_t box[5];
} emu_tensor_map_args;
int emu_tensor_map(void* map128, const emu_tensor_map_args*, char* err, size_t err_len);

// Runs a chain of kernels of one stream; 0 (EMU_OK) or the kind of the first fault, with its report.
int emu_run(emu_device*, const emu_launch* chain, size_t n, const emu_options*, emu_stats*, char* report, size_t report_len);
#ifdef __cplusplus
}
#endif
