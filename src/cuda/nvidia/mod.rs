//! NVIDIA's driver.

mod library;

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use cudarc::driver::sys;

use super::driver::{
    DeviceProperties, DevicePtr, Driver, DriverError, Event, Function, FunctionAttributes, Graph,
    KernelArg, LaunchConfig, Module, Result, Stream, TensorElement, TensorMap, TensorMapDesc,
    TensorSwizzle,
};
use super::{Cuda, Path, fatbins};
use library::{cuda, result_name, version_name};

const OUT_OF_MEMORY: u32 = 2;
const NOT_FOUND: u32 = 500;

/// A GPU behind NVIDIA's driver.
///
/// It uses the device's primary context, which every library in a process shares. The context that is
/// current when a method is called is current when it returns.
///
/// Handles are the driver's own: a [`Stream`] is a `CUstream`, whoever made it, and so on. The driver
/// does not check them: a handle that is not alive, or of another kind, is undefined behaviour.
#[derive(Debug)]
pub struct NvidiaDriver {
    device: sys::CUdevice,
    context: sys::CUcontext,
    properties: DeviceProperties,
    /// What made the context unusable.
    poisoned: OnceLock<String>,
    modules: Mutex<Vec<Module>>,
    /// For messages.
    names: Mutex<HashMap<Function, String>>,
}

// SAFETY: contexts may be used from any thread, and the driver locks what it shares.
unsafe impl Send for NvidiaDriver {}
// SAFETY: as above; the pointers are never followed here.
unsafe impl Sync for NvidiaDriver {}

/// Makes the context current, calls the driver, and restores what was current.
macro_rules! call {
    ($driver:expr, $name:ident($($argument:expr),* $(,)?)) => {{
        let driver: &NvidiaDriver = $driver;
        let _current = driver.enter()?;
        // SAFETY: `cuda()` has found every symbol before a driver was made. Pointers are those of
        // locals and slices that outlive the call; handles are what the type's documentation asks for.
        let code = unsafe { sys::$name($($argument),*) } as u32;
        driver.check(stringify!($name), code)
    }};
}

/// Restores the context that was current.
struct Current {
    pushed: bool,
}

impl Drop for Current {
    fn drop(&mut self) {
        if self.pushed {
            let mut ours = ptr::null_mut();
            // SAFETY: what `enter` pushed is on top: every callee leaves the stack as it was.
            unsafe { sys::cuCtxPopCurrent_v2(&raw mut ours) };
        }
    }
}

/// The number of GPUs that the driver sees.
///
/// # Errors
///
/// [`DriverError::Unavailable`] and [`DriverError::DriverTooOld`].
pub fn device_count() -> Result<u32> {
    cuda()?;
    let mut count: c_int = 0;
    // SAFETY: `cuda()` has initialised the driver.
    match unsafe { sys::cuDeviceGetCount(&raw mut count) } as u32 {
        0 => Ok(u32::try_from(count).unwrap_or(0)),
        code => Err(failed("cuDeviceGetCount", code)),
    }
}

/// The CUDA version that the driver implements, as `13.0`.
///
/// # Errors
///
/// As [`device_count`].
pub fn driver_version() -> Result<String> {
    Ok(version_name(cuda()?.version))
}

impl Cuda<NvidiaDriver> {
    /// GPU `ordinal` with the kernels that this crate was built with.
    ///
    /// # Errors
    ///
    /// [`Error::Device`](crate::Error::Device) without a driver, a GPU of this number, or kernels, and
    /// where the driver cannot load them; otherwise as [`Cuda::new`].
    pub fn open(ordinal: u32, path: Path) -> crate::Result<Self> {
        let driver = NvidiaDriver::new(ordinal)?;
        let images = match path {
            // No code for Hopper, so that the driver may be told to compile the PTX (CUDA_FORCE_PTX_JIT).
            Path::Portable => fatbins::for_device(80)?,
            Path::Auto | Path::Hopper => fatbins::for_device(driver.properties.compute_capability)?,
        };
        Self::new(driver, &images, path)
    }
}

impl NvidiaDriver {
    /// GPU `ordinal`, counted as the driver does (`CUDA_VISIBLE_DEVICES` applies).
    ///
    /// # Errors
    ///
    /// [`DriverError::Unavailable`] where there is no driver or no such GPU,
    /// [`DriverError::DriverTooOld`] before CUDA 12.0, [`DriverError::Failed`] where the GPU refuses a
    /// context.
    pub fn new(ordinal: u32) -> Result<Self> {
        let count = device_count()?;
        if ordinal >= count {
            return Err(DriverError::Unavailable(format!(
                "device {ordinal} was asked for; the driver sees {count}"
            )));
        }
        let check = |call, code: sys::CUresult| match code as u32 {
            0 => Ok(()),
            code => Err(failed(call, code)),
        };
        let (mut device, mut context) = (0, ptr::null_mut());
        // SAFETY: the driver is initialised, and has this many devices.
        let code = unsafe { sys::cuDeviceGet(&raw mut device, ordinal as c_int) };
        check("cuDeviceGet", code)?;
        let properties = properties(device)?;
        // SAFETY: `device` is one of the driver's. Released when this object is dropped.
        let code = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, device) };
        check("cuDevicePrimaryCtxRetain", code)?;
        let (poisoned, modules, names) = (OnceLock::new(), Mutex::default(), Mutex::default());
        Ok(Self { device, context, properties, poisoned, modules, names })
    }

    fn enter(&self) -> Result<Current> {
        if let Some(report) = self.poisoned.get() {
            return Err(DriverError::ContextPoisoned { report: report.clone() });
        }
        let mut current = ptr::null_mut();
        // SAFETY: the driver is initialised, and `context` retained.
        let code = unsafe {
            match sys::cuCtxGetCurrent(&raw mut current) as u32 {
                0 if current == self.context => return Ok(Current { pushed: false }),
                _ => sys::cuCtxPushCurrent_v2(self.context) as u32,
            }
        };
        self.check("cuCtxPushCurrent", code)?;
        Ok(Current { pushed: true })
    }

    fn check(&self, call: &'static str, code: u32) -> Result<()> {
        match code {
            0 => Ok(()),
            // Nothing works in the context after these.
            214 | 220 | 700 | 702 | 709 | 710 | 714..=719 => {
                let report = format!(
                    "{} came back from {call}, from this or from earlier work; compute-sanitizer \
                     finds the kernel and the line",
                    result_name(code)
                );
                let report = self.poisoned.get_or_init(|| report).clone();
                Err(DriverError::KernelFault { report })
            }
            900..=908 => Err(DriverError::Capturing(call)),
            code => Err(failed(call, code)),
        }
    }

    /// Refuses what cannot be recorded, and would make the recording unusable.
    fn refuse_capture(&self, call: &'static str, stream: Stream) -> Result<()> {
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        call!(self, cuStreamIsCapturing(handle(stream.0), &raw mut status))?;
        match status {
            sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE => Ok(()),
            _ => Err(DriverError::Capturing(call)),
        }
    }

    fn function_attribute(
        &self,
        function: Function,
        attribute: sys::CUfunction_attribute,
    ) -> Result<u32> {
        let mut value: c_int = 0;
        call!(self, cuFuncGetAttribute(&raw mut value, attribute, handle(function.0)))?;
        Ok(u32::try_from(value).unwrap_or(0))
    }
}

impl Drop for NvidiaDriver {
    fn drop(&mut self) {
        // A lost context refuses, and has taken the modules with it.
        for module in std::mem::take(&mut *lock(&self.modules)) {
            let unload = || call!(self, cuModuleUnload(handle(module.0)));
            let _ = unload();
        }
        // SAFETY: `new` has retained it once.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

fn failed(call: &'static str, code: u32) -> DriverError {
    DriverError::Failed { call, code, name: result_name(code) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is left half-done under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The driver's pointer of one of our handles.
fn handle<T>(number: u64) -> *mut T {
    ptr::with_exposed_provenance_mut(number as usize)
}

/// Our number of one of the driver's pointers.
fn number<T>(handle: *mut T) -> u64 {
    handle.expose_provenance() as u64
}

fn properties(device: sys::CUdevice) -> Result<DeviceProperties> {
    use sys::CUdevice_attribute as Attribute;
    let attribute = |attribute: Attribute| {
        let mut value: c_int = 0;
        // SAFETY: `device` is one of the driver's, which is initialised.
        match unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) } as u32 {
            0 => Ok(u32::try_from(value).unwrap_or(0)),
            code => Err(failed("cuDeviceGetAttribute", code)),
        }
    };
    let (mut name, mut memory_bytes) = ([0_u8; 256], 0);
    // SAFETY: as above; at most 255 characters and a zero fit.
    let code = unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), 255, device) } as u32;
    if code != 0 {
        return Err(failed("cuDeviceGetName", code));
    }
    // SAFETY: as above.
    let code = unsafe { sys::cuDeviceTotalMem_v2(&raw mut memory_bytes, device) } as u32;
    if code != 0 {
        return Err(failed("cuDeviceTotalMem", code));
    }
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(0);
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(DeviceProperties {
        name: String::from_utf8_lossy(&name[..end]).into_owned(),
        compute_capability: major * 10 + minor,
        sm_count: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        max_shared_per_block: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?,
        max_shared_per_sm: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
        )?,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.into(),
        memory_bytes: memory_bytes as u64,
    })
}

impl Driver for NvidiaDriver {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        if bytes == 0 {
            let why = "an allocation of nothing".to_owned();
            return Err(DriverError::InvalidValue { what: "bytes", why });
        }
        let mut address = 0;
        call!(self, cuMemAlloc_v2(&raw mut address, bytes)).map_err(|error| match error {
            DriverError::Failed { code: OUT_OF_MEMORY, .. } => DriverError::OutOfMemory { bytes },
            other => other,
        })?;
        Ok(DevicePtr(address))
    }
    fn free(&self, ptr: DevicePtr) -> Result<()> {
        call!(self, cuMemFree_v2(ptr.0))
    }
    fn copy_to_device(&self, dst: DevicePtr, src: &[u8], stream: Stream) -> Result<()> {
        // A recorded copy would read `src` at each launch of the graph.
        self.refuse_capture("copy_to_device", stream)?;
        let (from, bytes, queue) = (src.as_ptr().cast(), src.len(), handle(stream.0));
        call!(self, cuMemcpyHtoDAsync_v2(dst.0, from, bytes, queue))?;
        // Only pageable memory is staged; `src` may be pinned.
        self.synchronize(stream)
    }
    fn copy_to_host(&self, dst: &mut [u8], src: DevicePtr, stream: Stream) -> Result<()> {
        self.refuse_capture("copy_to_host", stream)?;
        let (to, bytes, queue) = (dst.as_mut_ptr().cast(), dst.len(), handle(stream.0));
        call!(self, cuMemcpyDtoHAsync_v2(to, src.0, bytes, queue))?;
        self.synchronize(stream)
    }
    fn copy(&self, dst: DevicePtr, src: DevicePtr, bytes: usize, stream: Stream) -> Result<()> {
        call!(self, cuMemcpyDtoDAsync_v2(dst.0, src.0, bytes, handle(stream.0)))
    }
    fn fill(&self, dst: DevicePtr, value: u8, bytes: usize, stream: Stream) -> Result<()> {
        call!(self, cuMemsetD8Async(dst.0, value, bytes, handle(stream.0)))
    }

    fn load_module(&self, image: &[u8]) -> Result<Module> {
        // The driver reads as much as the image's header says.
        if !is_whole_fatbin(image) {
            let why = format!("{} bytes that are no whole fatbin", image.len());
            return Err(DriverError::InvalidValue { what: "image", why });
        }
        let (mut module, image) = (ptr::null_mut(), image.as_ptr().cast());
        call!(self, cuModuleLoadData(&raw mut module, image)).map_err(|error| match error {
            DriverError::Failed { name, .. } => DriverError::Image {
                result: name,
                device: self.properties.name.clone(),
                capability: self.properties.compute_capability,
                driver: driver_version().unwrap_or_default(),
            },
            other => other,
        })?;
        let module = Module(number(module));
        lock(&self.modules).push(module);
        Ok(module)
    }
    fn function(&self, module: Module, name: &str) -> Result<Function> {
        if !lock(&self.modules).contains(&module) {
            return Err(DriverError::UnknownHandle { kind: "module", handle: module.0 });
        }
        let unknown = || DriverError::UnknownFunction { name: name.to_owned() };
        let c_name = CString::new(name).map_err(|_| unknown())?;
        let (mut function, c_name) = (ptr::null_mut(), c_name.as_ptr());
        let found = call!(self, cuModuleGetFunction(&raw mut function, handle(module.0), c_name));
        found.map_err(|error| match error {
            DriverError::Failed { code: NOT_FOUND, .. } => unknown(),
            other => other,
        })?;
        // Lazily, the first launch would load the code, which a capture does not permit.
        if let Some(load) = cuda()?.function_load {
            let _current = self.enter()?;
            // SAFETY: the function was found by its name, and is of a module that is loaded.
            self.check("cuFuncLoad", unsafe { load(function) })?;
        }
        let function = Function(number(function));
        lock(&self.names).insert(function, name.to_owned());
        Ok(function)
    }
    fn function_attributes(&self, function: Function) -> Result<FunctionAttributes> {
        use sys::CUfunction_attribute as Attribute;
        let get = |attribute| self.function_attribute(function, attribute);
        Ok(FunctionAttributes {
            max_threads_per_block: get(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
            registers: get(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            static_shared_bytes: get(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            local_bytes: get(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
        })
    }
    fn set_max_dynamic_shared(&self, function: Function, bytes: u32) -> Result<()> {
        let most = self.properties.max_shared_per_block;
        if bytes > most {
            let why = format!("{bytes} bytes of shared memory; the device has {most}");
            return Err(DriverError::InvalidValue { what: "bytes", why });
        }
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        call!(self, cuFuncSetAttribute(handle(function.0), attribute, bytes as c_int))
    }
    fn occupancy(&self, function: Function, threads: u32, shared_bytes: u32) -> Result<u32> {
        let mut blocks: c_int = 0;
        let (function, threads) = (handle(function.0), threads.min(1 << 16) as c_int);
        let shared = shared_bytes as usize;
        let at = &raw mut blocks;
        call!(self, cuOccupancyMaxActiveBlocksPerMultiprocessor(at, function, threads, shared))?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }

    unsafe fn launch(
        &self,
        function: Function,
        config: &LaunchConfig,
        args: &[KernelArg<'_>],
        stream: Stream,
    ) -> Result<()> {
        let (grid, block, cluster) = (config.grid, config.block, config.cluster);
        let hopper = self.properties.compute_capability >= 90;
        let refuse = |why: String| {
            let kernel = lock(&self.names).get(&function).cloned().unwrap_or_default();
            Err(DriverError::Launch { kernel, why })
        };
        if !hopper && (cluster.volume() > 1 || config.programmatic) {
            let needs = "clusters and programmatic launches need compute capability 9.0";
            return refuse(needs.to_owned());
        }
        let mut attributes = [attribute(None); 2];
        let mut count = 0;
        if cluster.volume() > 1 {
            attributes[count] = attribute(Some([cluster.x, cluster.y, cluster.z]));
            count += 1;
        }
        if config.programmatic {
            attributes[count] = attribute(None);
            count += 1;
        }
        let launch = sys::CUlaunchConfig {
            gridDimX: grid.x,
            gridDimY: grid.y,
            gridDimZ: grid.z,
            blockDimX: block.x,
            blockDimY: block.y,
            blockDimZ: block.z,
            sharedMemBytes: config.shared_bytes,
            hStream: handle(stream.0),
            attrs: attributes.as_mut_ptr(),
            numAttrs: count as u32,
        };
        let mut pointers = [ptr::null_mut::<c_void>(); MOST_ARGUMENTS];
        let Some(pointers) = pointers.get_mut(..args.len()) else {
            return refuse(format!("{} arguments; {MOST_ARGUMENTS} are the limit", args.len()));
        };
        for (pointer, arg) in pointers.iter_mut().zip(args) {
            *pointer = arg.as_ptr().cast_mut();
        }
        let (launch, pointers) = (&raw const launch, pointers.as_mut_ptr());
        let launched =
            call!(self, cuLaunchKernelEx(launch, handle(function.0), pointers, ptr::null_mut()));
        match launched {
            Err(DriverError::Failed { name, .. }) => refuse(format!("{name}, for {config:?}")),
            other => other,
        }
    }

    fn encode_tensor_map(&self, desc: &TensorMapDesc) -> Result<TensorMap> {
        if self.properties.compute_capability < 90 {
            return Err(DriverError::Unsupported("tensor maps (compute capability 9.0)".into()));
        }
        let rank = desc.dims.len();
        if !(1..=5).contains(&rank) || desc.strides.len() != rank - 1 || desc.box_dims.len() != rank
        {
            let why =
                format!("one to five dimensions, as many in the box, a stride less: {desc:?}");
            return Err(DriverError::TensorMap { why });
        }
        use sys::{CUtensorMapDataType as Type, CUtensorMapSwizzle as Swizzle};
        let element = match desc.element {
            TensorElement::U8 => Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            TensorElement::Bf16 => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            TensorElement::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            TensorElement::F32 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            TensorElement::I32 => Type::CU_TENSOR_MAP_DATA_TYPE_INT32,
        };
        let swizzle = match desc.swizzle {
            TensorSwizzle::None => Swizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            TensorSwizzle::B32 => Swizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            TensorSwizzle::B64 => Swizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            TensorSwizzle::B128 => Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        };
        let mut map = AlignedMap(TensorMap([0; 16]));
        let encoded = call!(
            self,
            cuTensorMapEncodeTiled(
                (&raw mut map).cast(),
                element,
                rank as u32,
                ptr::with_exposed_provenance_mut(desc.base.0 as usize),
                desc.dims.as_ptr(),
                desc.strides.as_ptr(),
                desc.box_dims.as_ptr(),
                [1_u32; 5].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        );
        match encoded {
            Ok(()) => Ok(map.0),
            Err(DriverError::Failed { name, .. }) => {
                Err(DriverError::TensorMap { why: format!("{name} for {desc:?}") })
            }
            Err(other) => Err(other),
        }
    }

    fn create_stream(&self) -> Result<Stream> {
        let mut stream = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        call!(self, cuStreamCreate(&raw mut stream, flags))?;
        Ok(Stream(number(stream)))
    }
    fn destroy_stream(&self, stream: Stream) -> Result<()> {
        call!(self, cuStreamDestroy_v2(handle(stream.0)))
    }
    fn synchronize(&self, stream: Stream) -> Result<()> {
        call!(self, cuStreamSynchronize(handle(stream.0)))
    }

    fn create_event(&self) -> Result<Event> {
        let mut event = ptr::null_mut();
        call!(self, cuEventCreate(&raw mut event, 0))?;
        Ok(Event(number(event)))
    }
    fn destroy_event(&self, event: Event) -> Result<()> {
        call!(self, cuEventDestroy_v2(handle(event.0)))
    }
    fn record_event(&self, event: Event, stream: Stream) -> Result<()> {
        call!(self, cuEventRecord(handle(event.0), handle(stream.0)))
    }
    fn wait_event(&self, stream: Stream, event: Event) -> Result<()> {
        call!(self, cuStreamWaitEvent(handle(stream.0), handle(event.0), 0))
    }
    fn synchronize_event(&self, event: Event) -> Result<()> {
        call!(self, cuEventSynchronize(handle(event.0)))
    }
    fn elapsed_ms(&self, from: Event, to: Event) -> Result<f32> {
        self.synchronize_event(to)?;
        let mut milliseconds = 0.0;
        let _current = self.enter()?;
        let elapsed_time = cuda()?.event_elapsed_time;
        // SAFETY: as in `call!`; the function was found by its name.
        let code = unsafe { elapsed_time(&raw mut milliseconds, handle(from.0), handle(to.0)) };
        self.check("cuEventElapsedTime", code)?;
        Ok(milliseconds)
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        // Other threads may go on allocating.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        call!(self, cuStreamBeginCapture_v2(handle(stream.0), mode))
    }
    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        let (mut graph, mut executable) = (ptr::null_mut(), ptr::null_mut());
        call!(self, cuStreamEndCapture(handle(stream.0), &raw mut graph))?;
        let made = call!(self, cuGraphInstantiateWithFlags(&raw mut executable, graph, 0));
        call!(self, cuGraphDestroy(graph))?;
        made.map(|()| Graph(number(executable)))
    }
    unsafe fn launch_graph(&self, graph: Graph, stream: Stream) -> Result<()> {
        call!(self, cuGraphLaunch(handle(graph.0), handle(stream.0)))
    }
    fn destroy_graph(&self, graph: Graph) -> Result<()> {
        call!(self, cuGraphExecDestroy(handle(graph.0)))
    }
}

/// More than any kernel takes: a launch allocates nothing.
const MOST_ARGUMENTS: usize = 16;

/// As the newest bindings align a `CUtensorMap`.
#[repr(align(128))]
struct AlignedMap(TensorMap);

/// A cluster of this size, or the permission to start before the predecessor in the stream has ended.
fn attribute(cluster: Option<[u32; 3]>) -> sys::CUlaunchAttribute {
    use sys::CUlaunchAttributeID as Id;
    let mut value = sys::CUlaunchAttributeValue { pad: [0; 64] };
    let id = match cluster {
        Some([x, y, z]) => {
            value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z };
            Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        }
        None => {
            value.programmaticStreamSerializationAllowed = 1;
            Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        }
    };
    sys::CUlaunchAttribute { id, pad: [0; 4], value }
}

/// Whether the image is as long as its header says: the magic number, a version, the header's size and
/// the size of what follows.
fn is_whole_fatbin(image: &[u8]) -> bool {
    let number = |range: std::ops::Range<usize>| {
        let bytes = image.get(range)?;
        Some(bytes.iter().rev().fold(0_u64, |number, &byte| number << 8 | u64::from(byte)))
    };
    let (Some(0xba55_ed50), Some(header), Some(rest)) = (number(0..4), number(6..8), number(8..16))
    else {
        return false;
    };
    header.checked_add(rest).is_some_and(|bytes| bytes <= image.len() as u64)
}
