//! NVIDIA's driver library: found, old enough to know, and named errors.
//!
//! cudarc panics where there is no libcuda, where libcuda lacks a symbol, and when it prints an error
//! without a driver. So the library is looked at before cudarc touches it.

use std::error::Error as _;
use std::ffi::c_int;
use std::sync::OnceLock;

use cudarc::driver::sys;
use libloading::Library;

use crate::cuda::driver::{DriverError, Result};

/// The driver of CUDA 12.0: the first with tensor maps.
const OLDEST_DRIVER: u32 = 12_000;

#[cfg(windows)]
const NAMES: [&str; 1] = ["nvcuda.dll"];
#[cfg(not(windows))]
const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];

/// Every function of the library that `super` calls.
const SYMBOLS: &[&str] = &[
    "cuCtxGetCurrent",
    "cuCtxPopCurrent_v2",
    "cuCtxPushCurrent_v2",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuInit",
    "cuLaunchKernelEx",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamIsCapturing",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuTensorMapEncodeTiled",
];

type ElapsedTime = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> u32;
type FunctionLoad = unsafe extern "C" fn(sys::CUfunction) -> u32;

/// The library, initialised, with all that is called of it.
pub(super) struct Cuda {
    /// The CUDA version that the driver implements: 1000 times major plus 10 times minor.
    pub(super) version: u32,
    /// cudarc has `_v2` of it, and only from 12.8 on, which a driver of 12.0 lacks.
    pub(super) event_elapsed_time: ElapsedTime,
    /// From 12.4 on, where the driver may put off loading a kernel's code to its first launch.
    pub(super) function_load: Option<FunctionLoad>,
}

/// The library, looked for once in a process.
pub(super) fn cuda() -> Result<&'static Cuda> {
    static CUDA: OnceLock<Result<Cuda>> = OnceLock::new();
    CUDA.get_or_init(find).as_ref().map_err(Clone::clone)
}

fn find() -> Result<Cuda> {
    let mut why = Vec::new();
    let library = NAMES.iter().find_map(|name| {
        // SAFETY: NVIDIA's library has no precondition to be loaded.
        let loaded = unsafe { Library::new(*name) };
        // The error's own text leaves out which file, and why.
        let reason =
            |error: &libloading::Error| error.source().map_or(String::new(), |e| e.to_string());
        loaded.map_err(|error| why.push(reason(&error))).ok()
    });
    let library = library.ok_or_else(|| {
        DriverError::Unavailable(format!(
            "NVIDIA's driver is not installed ({}); a container needs it passed in (--gpus all)",
            why.join("; ")
        ))
    })?;

    let mut version: c_int = 0;
    // SAFETY: the signature is that of cuda.h, and the function needs no initialisation.
    let code = unsafe {
        library
            .get::<unsafe extern "C" fn(*mut c_int) -> u32>(b"cuDriverGetVersion\0")
            .map(|get_version| get_version(&raw mut version))
    };
    let version = u32::try_from(version).unwrap_or(0);
    if code.is_err() || version < OLDEST_DRIVER {
        return Err(DriverError::DriverTooOld { has: version_name(version), needs: "12.0" });
    }
    for symbol in SYMBOLS {
        // SAFETY: only its presence is asked for.
        if unsafe { library.get::<*const ()>(symbol.as_bytes()) }.is_err() {
            let has = format!("{}, without {symbol}", version_name(version));
            return Err(DriverError::DriverTooOld { has, needs: "12.0" });
        }
    }
    // SAFETY: the signature is that of cuda.h.
    let event_elapsed_time =
        unsafe { library.get::<ElapsedTime>(b"cuEventElapsedTime\0") }.map(|symbol| *symbol);
    let event_elapsed_time = event_elapsed_time
        .map_err(|error| DriverError::Unavailable(format!("NVIDIA's driver: {error}")))?;
    // SAFETY: as above.
    let function_load =
        unsafe { library.get::<FunctionLoad>(b"cuFuncLoad\0") }.ok().map(|symbol| *symbol);
    // Its functions are called until the process ends.
    std::mem::forget(library);

    // SAFETY: the library is there, and has the symbol.
    match unsafe { sys::cuInit(0) } as u32 {
        0 => Ok(Cuda { version, event_elapsed_time, function_load }),
        100 => Err(DriverError::Unavailable(
            "NVIDIA's driver is installed, but sees no GPU (CUDA_VISIBLE_DEVICES may hide it)"
                .to_owned(),
        )),
        code => Err(DriverError::Unavailable(format!(
            "NVIDIA's driver does not start: {} (`nvidia-smi` may say why)",
            result_name(code)
        ))),
    }
}

/// `12.4` of 12040.
pub(super) fn version_name(version: u32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// The name of a `CUresult`, with its number.
pub(super) fn result_name(code: u32) -> String {
    let name = match code {
        0 => "SUCCESS",
        1 => "INVALID_VALUE",
        2 => "OUT_OF_MEMORY",
        3 => "NOT_INITIALIZED",
        4 => "DEINITIALIZED",
        34 => "STUB_LIBRARY",
        46 => "DEVICE_UNAVAILABLE",
        100 => "NO_DEVICE",
        101 => "INVALID_DEVICE",
        200 => "INVALID_IMAGE",
        201 => "INVALID_CONTEXT",
        209 => "NO_BINARY_FOR_GPU",
        214 => "ECC_UNCORRECTABLE",
        218 => "INVALID_PTX",
        220 => "NVLINK_UNCORRECTABLE",
        221 => "JIT_COMPILER_NOT_FOUND",
        222 => "UNSUPPORTED_PTX_VERSION",
        223 => "JIT_COMPILATION_DISABLED",
        304 => "OPERATING_SYSTEM",
        400 => "INVALID_HANDLE",
        500 => "NOT_FOUND",
        600 => "NOT_READY",
        700 => "ILLEGAL_ADDRESS",
        701 => "LAUNCH_OUT_OF_RESOURCES",
        702 => "LAUNCH_TIMEOUT",
        709 => "CONTEXT_IS_DESTROYED",
        710 => "ASSERT",
        714 => "HARDWARE_STACK_ERROR",
        715 => "ILLEGAL_INSTRUCTION",
        716 => "MISALIGNED_ADDRESS",
        717 => "INVALID_ADDRESS_SPACE",
        718 => "INVALID_PC",
        719 => "LAUNCH_FAILED",
        720 => "COOPERATIVE_LAUNCH_TOO_LARGE",
        800 => "NOT_PERMITTED",
        801 => "NOT_SUPPORTED",
        802 => "SYSTEM_NOT_READY",
        803 => "SYSTEM_DRIVER_MISMATCH",
        804 => "COMPAT_NOT_SUPPORTED_ON_DEVICE",
        900 => "STREAM_CAPTURE_UNSUPPORTED",
        901 => "STREAM_CAPTURE_INVALIDATED",
        902 => "STREAM_CAPTURE_MERGE",
        903 => "STREAM_CAPTURE_UNMATCHED",
        904 => "STREAM_CAPTURE_UNJOINED",
        905 => "STREAM_CAPTURE_ISOLATION",
        906 => "STREAM_CAPTURE_IMPLICIT",
        907 => "CAPTURED_EVENT",
        908 => "STREAM_CAPTURE_WRONG_THREAD",
        999 => "UNKNOWN",
        _ => return format!("CUresult {code}"),
    };
    format!("CUDA_ERROR_{name} ({code})")
}
