// Everything that a kernel source sees when it is built for the emulator: the CUDA language, and the
// hand-over of PTX text.  Kernels never include this directly; `common/device.cuh` does.
#pragma once
#include "cuda_lang.h"
#include "ptx_site.h"
#include "kernel_registry.h"
