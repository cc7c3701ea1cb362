//! What the CUDA backend asks of a device, as a trait.
//!
//! Handles are plain numbers: the owning types of the backend give them lifetimes. Errors of
//! asynchronous work appear, as with CUDA, on a later call that waits for it, and stick to the device.

use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;

/// Why the driver refused, or what became of work that it had accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// There is no device or no driver. The text says which, and what to do.
    #[error("no CUDA device: {0}")]
    Unavailable(String),
    /// The driver is older than the first that serves.
    #[error("the CUDA driver is too old: it is of CUDA {has}, and {needs} is needed; update it")]
    DriverTooOld {
        /// The CUDA version that it implements, and what it lacks.
        has: String,
        /// The first CUDA version that serves.
        needs: &'static str,
    },
    /// The driver does not load these kernels on this device.
    #[error(
        "the driver (CUDA {driver}) does not load the kernels on {device}, compute capability \
         {capability}: {result}; update the driver, or build with an nvcc no newer than it"
    )]
    Image {
        /// What it returned.
        result: String,
        /// The device's name.
        device: String,
        /// Ten times major plus minor.
        capability: u32,
        /// The CUDA version that the driver implements.
        driver: String,
    },
    /// The driver refused for a reason that has no variant of its own.
    #[error("{call}: {name}")]
    Failed {
        /// The function of the driver.
        call: &'static str,
        /// What it returned.
        code: u32,
        /// The same in words.
        name: String,
    },
    /// An argument that no device accepts.
    #[error("invalid value for {what}: {why}")]
    InvalidValue {
        /// The argument.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The device has less memory than was asked for.
    #[error("out of device memory: {bytes} bytes requested")]
    OutOfMemory {
        /// The size of the request.
        bytes: usize,
    },
    /// A handle that was destroyed or never existed.
    #[error("{kind} {handle} does not exist")]
    UnknownHandle {
        /// Which kind of handle.
        kind: &'static str,
        /// Its number.
        handle: u64,
    },
    /// The crate was built without kernels.
    #[error(
        "built without kernels (build script: {built}); install nvcc (tools/cuda-toolkit.sh, or CUDA \
         12 or later) and build again"
    )]
    NoKernels {
        /// What the build script made, or why it made nothing.
        built: String,
    },
    /// The module has no kernel of this name.
    #[error("no kernel named `{name}`")]
    UnknownFunction {
        /// The name.
        name: String,
    },
    /// A launch that this device cannot run.
    #[error("cannot launch `{kernel}`: {why}")]
    Launch {
        /// The kernel.
        kernel: String,
        /// What the device lacks.
        why: String,
    },
    /// A tensor map that the driver does not encode.
    #[error("cannot encode tensor map: {why}")]
    TensorMap {
        /// The rule that it breaks.
        why: String,
    },
    /// The device lacks a feature.
    #[error("this device does not support {0}")]
    Unsupported(String),
    /// The call is not allowed while a stream records a graph.
    #[error("{0} is not permitted while a stream is capturing")]
    Capturing(&'static str),
    /// A kernel failed; the device is unusable from now on.
    #[error("kernel fault: {report}")]
    KernelFault {
        /// What happened and where.
        report: String,
    },
    /// An earlier kernel failed; every call reports it.
    #[error("the context is lost to an earlier kernel fault: {report}")]
    ContextPoisoned {
        /// What happened and where.
        report: String,
    },
}

/// The result of a driver call.
pub type Result<T> = std::result::Result<T, DriverError>;

macro_rules! handle {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u64);
    };
}
handle!(
    /// An address in device memory.
    DevicePtr
);
handle!(
    /// A loaded module.
    Module
);
handle!(
    /// A kernel of a module.
    Function
);
handle!(
    /// A queue of work.
    Stream
);
handle!(
    /// A point in a stream.
    Event
);
handle!(
    /// Work recorded from a stream, ready to be launched again.
    Graph
);

impl DevicePtr {
    /// The address `bytes` further on.
    #[must_use]
    pub fn offset(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// What a device can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceProperties {
    /// Its name.
    pub name: String,
    /// Compute capability as ten times major plus minor: 80, 86, 89, 90, 100, 120.
    pub compute_capability: u32,
    /// Streaming multiprocessors.
    pub sm_count: u32,
    /// Shared memory that one block may opt in to, in bytes.
    pub max_shared_per_block: u32,
    /// Shared memory of one multiprocessor, in bytes.
    pub max_shared_per_sm: u32,
    /// Bytes of L2.
    pub l2_bytes: u64,
    /// Bytes of device memory.
    pub memory_bytes: u64,
}

/// What the compiler made of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionAttributes {
    /// Most threads of a block.
    pub max_threads_per_block: u32,
    /// Registers of a thread at entry.
    pub registers: u32,
    /// Statically declared shared memory, in bytes.
    pub static_shared_bytes: u32,
    /// Bytes of local memory of a thread: spills.
    pub local_bytes: u32,
}

/// Three extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dim3 {
    /// Fastest.
    pub x: u32,
    /// Middle.
    pub y: u32,
    /// Slowest.
    pub z: u32,
}
impl Dim3 {
    /// `x` by one by one.
    #[must_use]
    pub const fn linear(x: u32) -> Self {
        Self { x, y: 1, z: 1 }
    }
    /// The product of the three.
    #[must_use]
    pub fn volume(self) -> u64 {
        u64::from(self.x) * u64::from(self.y) * u64::from(self.z)
    }
}

/// How to launch a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks.
    pub grid: Dim3,
    /// Threads of a block.
    pub block: Dim3,
    /// Blocks of a cluster.
    pub cluster: Dim3,
    /// Dynamic shared memory, in bytes.
    pub shared_bytes: u32,
    /// Programmatic dependent launch: the kernel may start before its predecessor in the stream has
    /// ended, and waits for it with `griddepcontrol.wait`.
    pub programmatic: bool,
}
impl LaunchConfig {
    /// `grid` blocks of `block` threads, nothing else.
    #[must_use]
    pub const fn linear(grid: u32, block: u32) -> Self {
        Self {
            grid: Dim3::linear(grid),
            block: Dim3::linear(block),
            cluster: Dim3::linear(1),
            shared_bytes: 0,
            programmatic: false,
        }
    }
    /// With this much dynamic shared memory.
    #[must_use]
    pub const fn with_shared(mut self, bytes: u32) -> Self {
        self.shared_bytes = bytes;
        self
    }
}

/// One argument of a kernel: a plain value, borrowed until the launch returns.
#[derive(Clone, Copy)]
pub struct KernelArg<'a> {
    ptr: *const c_void,
    bytes: usize,
    value: PhantomData<&'a ()>,
}
impl<'a> KernelArg<'a> {
    /// Borrows a value, whose type must be what the kernel declares: `repr(C)`, of the same size.
    pub fn new<T: Copy>(value: &'a T) -> Self {
        Self { ptr: std::ptr::from_ref(value).cast(), bytes: size_of::<T>(), value: PhantomData }
    }
    /// Where the value lies.
    #[must_use]
    pub fn as_ptr(self) -> *const c_void {
        self.ptr
    }
    /// Its size.
    #[must_use]
    pub fn size(self) -> usize {
        self.bytes
    }
}
impl fmt::Debug for KernelArg<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KernelArg({} bytes)", self.bytes)
    }
}

/// Element types of a tensor map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorElement {
    /// One byte: integers, fp8, packed 4-bit values.
    U8,
    /// Two-byte brain floats.
    Bf16,
    /// Two-byte IEEE floats.
    F16,
    /// Four-byte floats.
    F32,
    /// Four-byte signed integers.
    I32,
}
impl TensorElement {
    /// The size of an element in bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::U8 => 1,
            Self::Bf16 | Self::F16 => 2,
            Self::F32 | Self::I32 => 4,
        }
    }
}

/// How TMA permutes 16-byte chunks in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorSwizzle {
    /// Not at all.
    None,
    /// Within 32 bytes.
    B32,
    /// Within 64 bytes.
    B64,
    /// Within 128 bytes.
    B128,
}
impl TensorSwizzle {
    /// The span in bytes; 0 for none.
    #[must_use]
    pub const fn span(self) -> u32 {
        match self {
            Self::None => 0,
            Self::B32 => 32,
            Self::B64 => 64,
            Self::B128 => 128,
        }
    }
}

/// A tensor map to be: dimensions and box from the fastest to the slowest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMapDesc {
    /// Address of element (0, 0, ...), a multiple of 16.
    pub base: DevicePtr,
    /// Type of the elements.
    pub element: TensorElement,
    /// Extents, one to five.
    pub dims: Vec<u64>,
    /// Bytes between neighbours along each dimension but the fastest.
    pub strides: Vec<u64>,
    /// Extents of what one copy moves.
    pub box_dims: Vec<u32>,
    /// Permutation in shared memory.
    pub swizzle: TensorSwizzle,
}

/// An encoded tensor map, passed to kernels by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct TensorMap(pub [u64; 16]);

/// A CUDA device, real or emulated.
///
/// Calls may come from any thread. Copies to and from host slices are complete when they return;
/// everything else is asynchronous in its stream.
pub trait Driver: Send + Sync {
    /// What the device can do.
    fn properties(&self) -> &DeviceProperties;

    /// Allocates device memory, 256-byte aligned, of undefined contents.
    fn alloc(&self, bytes: usize) -> Result<DevicePtr>;
    /// Frees an allocation once all work submitted before has ended.
    fn free(&self, ptr: DevicePtr) -> Result<()>;
    /// Copies host memory to the device, after the work in `stream`.
    fn copy_to_device(&self, dst: DevicePtr, src: &[u8], stream: Stream) -> Result<()>;
    /// Copies device memory to the host, after the work in `stream`.
    fn copy_to_host(&self, dst: &mut [u8], src: DevicePtr, stream: Stream) -> Result<()>;
    /// Copies within the device.
    fn copy(&self, dst: DevicePtr, src: DevicePtr, bytes: usize, stream: Stream) -> Result<()>;
    /// Sets bytes.
    fn fill(&self, dst: DevicePtr, value: u8, bytes: usize, stream: Stream) -> Result<()>;

    /// Loads a module (a fatbin; the emulator takes any bytes: its kernels are linked in).
    fn load_module(&self, image: &[u8]) -> Result<Module>;
    /// Finds a kernel.
    fn function(&self, module: Module, name: &str) -> Result<Function>;
    /// What the compiler made of it.
    fn function_attributes(&self, function: Function) -> Result<FunctionAttributes>;
    /// Opts in to more than 48 KiB of dynamic shared memory.
    fn set_max_dynamic_shared(&self, function: Function, bytes: u32) -> Result<()>;
    /// How many blocks of this size one multiprocessor holds at once.
    fn occupancy(&self, function: Function, threads: u32, shared_bytes: u32) -> Result<u32>;

    /// Launches a kernel.
    ///
    /// # Safety
    ///
    /// - Each argument has the type that the kernel declares.
    /// - Every device address that the kernel reaches through them is live until it has ended, and no
    ///   concurrent work conflicts with its accesses.
    unsafe fn launch(
        &self,
        function: Function,
        config: &LaunchConfig,
        args: &[KernelArg<'_>],
        stream: Stream,
    ) -> Result<()>;

    /// Encodes a tensor map.
    fn encode_tensor_map(&self, desc: &TensorMapDesc) -> Result<TensorMap>;

    /// Makes a stream that does not synchronise with the default one.
    fn create_stream(&self) -> Result<Stream>;
    /// Destroys a stream after its work has ended.
    fn destroy_stream(&self, stream: Stream) -> Result<()>;
    /// Waits for all work in the stream.
    fn synchronize(&self, stream: Stream) -> Result<()>;

    /// Makes an event.
    fn create_event(&self) -> Result<Event>;
    /// Destroys an event.
    fn destroy_event(&self, event: Event) -> Result<()>;
    /// Marks this point of the stream.
    fn record_event(&self, event: Event, stream: Stream) -> Result<()>;
    /// Later work in `stream` runs after the event's last recording.
    fn wait_event(&self, stream: Stream, event: Event) -> Result<()>;
    /// Waits for the event's last recording.
    fn synchronize_event(&self, event: Event) -> Result<()>;
    /// Milliseconds between two recorded events.
    fn elapsed_ms(&self, from: Event, to: Event) -> Result<f32>;

    /// Work submitted to the stream is recorded, not run, until [`Driver::end_capture`].
    fn begin_capture(&self, stream: Stream) -> Result<()>;
    /// Ends the recording.
    fn end_capture(&self, stream: Stream) -> Result<Graph>;
    /// Runs recorded work again.
    ///
    /// # Safety
    ///
    /// What [`Driver::launch`] asks of each recorded launch must hold again.
    unsafe fn launch_graph(&self, graph: Graph, stream: Stream) -> Result<()>;
    /// Destroys a graph after its launches have ended.
    fn destroy_graph(&self, graph: Graph) -> Result<()>;
}
