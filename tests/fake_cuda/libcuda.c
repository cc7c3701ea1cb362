// A libcuda without a GPU, for tests/nvidia.rs: it keeps the stack of contexts, writes each call to the file
// FAKE_CUDA_LOG, and fails as FAKE_CUDA_FAIL says ("cuStreamSynchronize=700 ..."; from the n-th call on with
// "cuStreamSynchronize@2=700").  Signatures are those of the driver API's documentation.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef void* Handle;

static Handle stack[16];
static int depth = 0;
static uintptr_t next_handle = 0x1000;
static int capturing = 0;

static void say(const char* text) {
  const char* path = getenv("FAKE_CUDA_LOG");
  FILE* log = path ? fopen(path, "a") : NULL;
  if (!log) return;
  fprintf(log, "%s\n", text);
  fclose(log);
}

// What this call returns.
static Result outcome(const char* call) {
  static char seen[4096] = "";
  const char* fail = getenv("FAKE_CUDA_FAIL");
  size_t n = strlen(call);
  int times = 1;
  for (const char* at = seen; (at = strstr(at, call)); at += n) times += at[n] == ' ';
  if (strlen(seen) + n + 2 < sizeof seen) strcat(strcat(seen, call), " ");
  for (const char* at = fail; at && (at = strstr(at, call)); at += n) {
    int from = 1, code = 0;
    if (sscanf(at + n, "@%d=%d", &from, &code) == 2 || sscanf(at + n, "=%d", &code) == 1)
      return times >= from ? code : 0;
  }
  return 0;
}

#define CALL(name, format, ...)                                      \
  do {                                                               \
    char line_[512];                                                 \
    snprintf(line_, sizeof line_, #name format, ##__VA_ARGS__);      \
    say(line_);                                                      \
    Result result_ = outcome(#name);                                 \
    if (result_) return result_;                                     \
  } while (0)

static Handle fresh(void) { return (Handle)(next_handle += 0x10); }

Result cuInit(unsigned flags) { CALL(cuInit, " %u", flags); return 0; }
Result cuDriverGetVersion(int* version) {
  const char* v = getenv("FAKE_CUDA_VERSION");
  *version = v ? atoi(v) : 13000;
  return 0;
}
Result cuDeviceGetCount(int* count) { CALL(cuDeviceGetCount, ""); *count = 1; return 0; }
Result cuDeviceGet(int* device, int ordinal) { CALL(cuDeviceGet, " %d", ordinal); *device = ordinal; return 0; }
Result cuDeviceGetName(char* name, int n, int d) { (void)d; snprintf(name, n, "Fake GPU"); return 0; }
Result cuDeviceTotalMem_v2(size_t* bytes, int d) { (void)d; *bytes = 80ull << 30; return 0; }
Result cuDeviceGetAttribute(int* value, int attribute, int device) {
  (void)device;
  const char* capability = getenv("FAKE_CUDA_CAPABILITY");
  int c = capability ? atoi(capability) : 90;
  switch (attribute) {
    case 16: *value = 132; return 0;            // multiprocessors
    case 38: *value = 50 << 20; return 0;       // L2
    case 75: *value = c / 10; return 0;
    case 76: *value = c % 10; return 0;
    case 81: *value = 228 << 10; return 0;      // shared memory of a multiprocessor
    case 97: *value = 227 << 10; return 0;      // shared memory of a block, opted in to
    case 115: *value = 0; return 0;             // memory pools
  }
  return 1;
}

Result cuDevicePrimaryCtxRetain(Handle* context, int device) {
  CALL(cuDevicePrimaryCtxRetain, " %d", device);
  *context = (Handle)0xc0de;
  return 0;
}
Result cuDevicePrimaryCtxRelease_v2(int device) { CALL(cuDevicePrimaryCtxRelease, " %d", device); return 0; }
Result cuCtxGetCurrent(Handle* context) { *context = depth ? stack[depth - 1] : NULL; return 0; }
Result cuCtxPushCurrent_v2(Handle context) {
  CALL(cuCtxPushCurrent, " %p", context);
  stack[depth++] = context;
  return 0;
}
Result cuCtxPopCurrent_v2(Handle* context) {
  CALL(cuCtxPopCurrent, "");
  if (!depth) return 201;
  *context = stack[--depth];
  return 0;
}
Result cuCtxSetCurrent(Handle context) {
  CALL(cuCtxSetCurrent, " %p", context);
  depth = depth ? depth : 1;
  stack[depth - 1] = context;
  return 0;
}
Result cuCtxSynchronize(void) { CALL(cuCtxSynchronize, ""); return 0; }

Result cuMemAlloc_v2(uint64_t* address, size_t bytes) {
  CALL(cuMemAlloc, " %zu", bytes);
  *address = (uint64_t)(uintptr_t)aligned_alloc(512, (bytes + 511) / 512 * 512);
  return 0;
}
Result cuMemFree_v2(uint64_t address) { CALL(cuMemFree, ""); free((void*)(uintptr_t)address); return 0; }
static Result copy(uint64_t to, uint64_t from, size_t bytes) {
  memcpy((void*)(uintptr_t)to, (const void*)(uintptr_t)from, bytes);
  return 0;
}
Result cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, Handle stream) {
  CALL(cuMemcpyHtoDAsync, " %zu on %p", bytes, stream);
  return copy(to, (uint64_t)(uintptr_t)from, bytes);
}
Result cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, Handle stream) {
  CALL(cuMemcpyDtoHAsync, " %zu on %p", bytes, stream);
  return copy((uint64_t)(uintptr_t)to, from, bytes);
}
Result cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, Handle stream) {
  CALL(cuMemcpyDtoDAsync, " %zu on %p", bytes, stream);
  return copy(to, from, bytes);
}
Result cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, Handle stream) {
  CALL(cuMemsetD8Async, " %zu on %p", bytes, stream);
  memset((void*)(uintptr_t)to, value, bytes);
  return 0;
}

Result cuModuleLoadData(Handle* module, const void* image) {
  CALL(cuModuleLoadData, " %#x", *(const unsigned*)image);
  *module = fresh();
  return 0;
}
Result cuModuleUnload(Handle module) { (void)module; CALL(cuModuleUnload, ""); return 0; }
Result cuModuleGetFunction(Handle* function, Handle module, const char* name) {
  (void)module;
  CALL(cuModuleGetFunction, " %s", name);
  if (strncmp(name, "no_such", 7) == 0) return 500;
  *function = fresh();
  return 0;
}
Result cuFuncLoad(Handle function) { (void)function; CALL(cuFuncLoad, ""); return 0; }
Result cuFuncGetAttribute(int* value, int attribute, Handle function) {
  (void)function;
  CALL(cuFuncGetAttribute, " %d", attribute);
  *value = attribute == 0 ? 384 : attribute == 4 ? 168 : 0;
  return 0;
}
Result cuFuncSetAttribute(Handle function, int attribute, int value) {
  (void)function;
  CALL(cuFuncSetAttribute, " %d = %d", attribute, value);
  return 0;
}
Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Handle function, int threads, size_t shared) {
  (void)function;
  CALL(cuOccupancy, " %d threads %zu bytes", threads, shared);
  *blocks = 2;
  return 0;
}

struct Attribute { int id; char pad[4]; union { char bytes[64]; struct { unsigned x, y, z; } cluster; int allowed; } value; };
struct Launch { unsigned grid[3], block[3], shared; Handle stream; struct Attribute* attributes; unsigned count; };
Result cuLaunchKernelEx(const struct Launch* l, Handle function, void** arguments, void** extra) {
  (void)function;
  char text[256] = "";
  for (unsigned i = 0; i < l->count; i++) {
    const struct Attribute* a = l->attributes + i;
    char one[96];
    if (a->id == 4) snprintf(one, sizeof one, " cluster %u %u %u", a->value.cluster.x, a->value.cluster.y, a->value.cluster.z);
    else if (a->id == 6) snprintf(one, sizeof one, " programmatic %d", a->value.allowed);
    else snprintf(one, sizeof one, " attribute %d", a->id);
    strcat(text, one);
  }
  CALL(cuLaunchKernelEx, " grid %u %u %u block %u %u %u shared %u stream %p%s argument %u extra %p", l->grid[0], l->grid[1],
       l->grid[2], l->block[0], l->block[1], l->block[2], l->shared, l->stream, text, *(unsigned*)arguments[0], (void*)extra);
  return 0;
}
Result cuTensorMapEncodeTiled(void* map, int type, uint32_t rank, void* base, const uint64_t* dims, const uint64_t* strides,
                              const uint32_t* box, const uint32_t* element_strides, int interleave, int swizzle, int promotion, int fill) {
  CALL(cuTensorMapEncodeTiled, " type %d rank %u base %p dims %lu %lu stride %lu box %u %u steps %u %u interleave %d swizzle %d promotion %d fill %d aligned %d",
       type, rank, base, (unsigned long)dims[0], (unsigned long)dims[1], (unsigned long)strides[0], box[0], box[1], element_strides[0],
       element_strides[1], interleave, swizzle, promotion, fill, (uintptr_t)map % 128 == 0);
  memset(map, 0x5a, 128);
  return 0;
}

Result cuStreamCreate(Handle* stream, unsigned flags) { CALL(cuStreamCreate, " %u", flags); *stream = fresh(); return 0; }
Result cuStreamDestroy_v2(Handle stream) { (void)stream; CALL(cuStreamDestroy, ""); return 0; }
Result cuStreamSynchronize(Handle stream) { CALL(cuStreamSynchronize, " %p", stream); return 0; }
Result cuStreamWaitEvent(Handle stream, Handle event, unsigned flags) {
  (void)stream, (void)event;
  CALL(cuStreamWaitEvent, " %u", flags);
  return 0;
}
Result cuStreamIsCapturing(Handle stream, int* status) { (void)stream; *status = capturing; return 0; }
Result cuStreamBeginCapture_v2(Handle stream, int mode) {
  (void)stream;
  CALL(cuStreamBeginCapture, " mode %d", mode);
  capturing = 1;
  return 0;
}
Result cuStreamEndCapture(Handle stream, Handle* graph) {
  (void)stream;
  CALL(cuStreamEndCapture, "");
  capturing = 0;
  *graph = fresh();
  return 0;
}
Result cuGraphInstantiateWithFlags(Handle* executable, Handle graph, unsigned long long flags) {
  (void)graph;
  CALL(cuGraphInstantiate, " %llu", flags);
  *executable = fresh();
  return 0;
}
Result cuGraphLaunch(Handle graph, Handle stream) { (void)graph, (void)stream; CALL(cuGraphLaunch, ""); return 0; }
Result cuGraphDestroy(Handle graph) { (void)graph; CALL(cuGraphDestroy, ""); return 0; }
Result cuGraphExecDestroy(Handle graph) { (void)graph; CALL(cuGraphExecDestroy, ""); return 0; }

Result cuEventCreate(Handle* event, unsigned flags) { CALL(cuEventCreate, " %u", flags); *event = fresh(); return 0; }
Result cuEventDestroy_v2(Handle event) { (void)event; CALL(cuEventDestroy, ""); return 0; }
Result cuEventRecord(Handle event, Handle stream) { (void)event, (void)stream; CALL(cuEventRecord, ""); return 0; }
Result cuEventSynchronize(Handle event) { (void)event; CALL(cuEventSynchronize, ""); return 0; }
#ifndef WITHOUT_ELAPSED_TIME
Result cuEventElapsedTime(float* milliseconds, Handle from, Handle to) {
  (void)from, (void)to;
  CALL(cuEventElapsedTime, "");
  *milliseconds = 2.5f;
  return 0;
}
#endif
