// The layout that src/ffi.rs repeats.
#include "emulator.h"

static_assert(sizeof(void*) == 8, "the emulator needs a 64-bit machine");
static_assert(sizeof(emu_launch) == 64);
static_assert(sizeof(emu_options) == 40);
static_assert(sizeof(emu_stats) == 40);
static_assert(sizeof(emu_tensor_map_args) == 120);
static_assert(sizeof(emu_profile) == 12);
