//! The emulator as a CUDA driver.

use crate::fault::{Fault, Unavailable};
use crate::ffi::{self, Args, Device, Kernel, LaunchOp};
use crate::options::{Options, Profile, Stats};
use crate::queue::{EventState, Op, State, StreamState};
use moe_kernels::cuda::driver::{
    DeviceProperties, DevicePtr, Driver, DriverError, Event, Function, FunctionAttributes, Graph,
    KernelArg, LaunchConfig, Module, Result, Stream, TensorMap, TensorMapDesc,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shared memory that a kernel gets without opting in.
const DEFAULT_SHARED: u32 = 48 << 10;
/// Shared memory that the system keeps of each block.
const RESERVED_SHARED: u32 = 1 << 10;

/// An emulated GPU. Each has its own memory; any number may be used from any threads.
pub struct EmulatedDriver {
    properties: DeviceProperties,
    options: Mutex<Options>,
    functions: Mutex<HashMap<u64, (Kernel, u32)>>,
    state: Mutex<State>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic of another test thread leaves nothing half-done that matters here.
    m.lock().unwrap_or_else(PoisonError::into_inner)
}
fn fault_error(f: Fault) -> DriverError {
    DriverError::KernelFault { report: f.to_string() }
}
fn unknown(kind: &'static str, handle: u64) -> DriverError {
    DriverError::UnknownHandle { kind, handle }
}

impl EmulatedDriver {
    /// Makes a device of this kind.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the crate was built without a C++ compiler.
    pub fn new(profile: Profile) -> std::result::Result<Self, Unavailable> {
        let state = State::new(Device::new(&profile)?);
        Ok(Self {
            properties: profile.properties,
            options: Mutex::default(),
            functions: Mutex::default(),
            state: Mutex::new(state),
        })
    }
    /// How launches from now on are run.
    pub fn set_options(&self, options: Options) {
        *lock(&self.options) = options;
    }
    /// The fault that made the device unusable.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        lock(&self.state).poisoned.clone()
    }
    /// Counts of the last chain of kernels that ran.
    #[must_use]
    pub fn stats(&self) -> Stats {
        lock(&self.state).stats
    }
    /// Bank conflicts and sectors per source line of what ran with [`Options::lint`]; clears it.
    #[must_use]
    pub fn lint_report(&self) -> String {
        std::mem::take(&mut lock(&self.state).lint)
    }
    /// Bytes of device memory in use.
    #[must_use]
    pub fn bytes_in_use(&self) -> u64 {
        lock(&self.state).bytes_in_use
    }

    fn state(&self) -> Result<MutexGuard<'_, State>> {
        let s = lock(&self.state);
        match &s.poisoned {
            Some(f) => Err(DriverError::ContextPoisoned { report: f.to_string() }),
            None => Ok(s),
        }
    }
    /// The state, for a call that waits or allocates: CUDA refuses those while any stream captures.
    fn state_outside_capture(&self, what: &'static str) -> Result<MutexGuard<'_, State>> {
        let s = self.state()?;
        if s.streams.values().any(|s| s.capture.is_some()) {
            Err(DriverError::Capturing(what))
        } else {
            Ok(s)
        }
    }
    fn check_range(s: &mut State, what: &'static str, ptr: DevicePtr, bytes: usize) -> Result<()> {
        if s.device.contains(ptr.0, bytes) {
            return Ok(());
        }
        Err(DriverError::InvalidValue {
            what,
            why: format!("{bytes} bytes at {:#x} are not inside one allocation", ptr.0),
        })
    }
    fn finish(s: &mut State, stream: Stream) -> Result<()> {
        if !s.streams.contains_key(&stream.0) {
            return Err(unknown("stream", stream.0));
        }
        s.flush(stream.0, None).map_err(fault_error)
    }
    fn kernel(&self, f: Function) -> Result<(Kernel, u32)> {
        lock(&self.functions).get(&f.0).cloned().ok_or(unknown("function", f.0))
    }
    /// What a real driver checks when it is asked to launch.
    fn check_launch(
        &self,
        k: &Kernel,
        opted_in: u32,
        c: &LaunchConfig,
        args: &[KernelArg<'_>],
    ) -> Result<()> {
        let p = &self.properties;
        let refuse = |why: String| Err(DriverError::Launch { kernel: k.name.clone(), why });
        let given: Vec<u32> =
            args.iter().map(|a| u32::try_from(a.size()).unwrap_or(u32::MAX)).collect();
        if given != k.param_sizes {
            return refuse(format!(
                "arguments of {given:?} bytes where the kernel takes {:?}",
                k.param_sizes
            ));
        }
        let (threads, cluster) = (c.block.volume(), c.cluster.volume());
        if threads == 0 || threads > u64::from(k.max_threads).min(1024) || c.block.z > 64 {
            return refuse(format!(
                "{threads} threads per block; its launch bounds allow {}",
                k.max_threads
            ));
        }
        if c.grid.volume() == 0
            || c.grid.x > i32::MAX as u32
            || c.grid.y > 65535
            || c.grid.z > 65535
        {
            return refuse(format!("a grid of {:?}", c.grid));
        }
        if c.shared_bytes > opted_in {
            return refuse(format!(
                "{} bytes of shared memory; {opted_in} were opted in to",
                c.shared_bytes
            ));
        }
        if cluster == 0 || cluster > 8 {
            return refuse(format!("a cluster of {cluster} blocks"));
        }
        if (cluster > 1 || c.programmatic) && p.compute_capability < 90 {
            return refuse("clusters and programmatic launches need compute capability 9.0".into());
        }
        let whole = |blocks: u32, cluster: u32| blocks.is_multiple_of(cluster);
        if !(whole(c.grid.x, c.cluster.x)
            && whole(c.grid.y, c.cluster.y)
            && whole(c.grid.z, c.cluster.z))
        {
            return refuse(format!(
                "a grid of {:?} is no multiple of the cluster {:?}",
                c.grid, c.cluster
            ));
        }
        Ok(())
    }
    fn registers(k: &Kernel) -> u32 {
        (65536 / (k.max_threads * k.min_blocks.max(1)) / 8 * 8).min(255)
    }
}

#[expect(
    unsafe_code,
    reason = "the trait's launches are unsafe to call; these bodies are not unsafe"
)]
impl Driver for EmulatedDriver {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn alloc(&self, bytes: usize) -> Result<DevicePtr> {
        let mut s = self.state_outside_capture("alloc")?;
        if bytes == 0 {
            return Err(DriverError::InvalidValue {
                what: "bytes",
                why: "an allocation of nothing".into(),
            });
        }
        if s.bytes_in_use + bytes as u64 > self.properties.memory_bytes {
            return Err(DriverError::OutOfMemory { bytes });
        }
        let ptr = s.device.alloc(bytes).ok_or(DriverError::OutOfMemory { bytes })?;
        s.bytes_in_use += bytes as u64;
        s.sizes.insert(ptr, bytes as u64);
        Ok(DevicePtr(ptr))
    }
    fn free(&self, ptr: DevicePtr) -> Result<()> {
        // Freeing works on a lost context too: buffers are dropped after a fault.
        let mut s = lock(&self.state);
        let lost = s.poisoned.is_some();
        if !lost {
            s.flush_all().map_err(fault_error)?;
        }
        if !s.device.free(ptr.0) {
            return Err(DriverError::InvalidValue {
                what: "ptr",
                why: format!("{:#x} is not an allocation", ptr.0),
            });
        }
        let size = s.sizes.remove(&ptr.0).unwrap_or(0);
        s.bytes_in_use -= size;
        Ok(())
    }
    fn copy_to_device(&self, dst: DevicePtr, src: &[u8], stream: Stream) -> Result<()> {
        let mut s = self.state()?;
        Self::check_range(&mut s, "dst", dst, src.len())?;
        s.submit(stream, Op::Upload { dst: dst.0, data: src.to_vec() })
    }
    fn copy_to_host(&self, dst: &mut [u8], src: DevicePtr, stream: Stream) -> Result<()> {
        let mut s = self.state_outside_capture("copy_to_host")?;
        Self::check_range(&mut s, "src", src, dst.len())?;
        Self::finish(&mut s, stream)?;
        s.device.read(src.0, dst);
        Ok(())
    }
    fn copy(&self, dst: DevicePtr, src: DevicePtr, bytes: usize, stream: Stream) -> Result<()> {
        let mut s = self.state()?;
        Self::check_range(&mut s, "dst", dst, bytes)?;
        Self::check_range(&mut s, "src", src, bytes)?;
        s.submit(stream, Op::Copy { dst: dst.0, src: src.0, bytes })
    }
    fn fill(&self, dst: DevicePtr, value: u8, bytes: usize, stream: Stream) -> Result<()> {
        let mut s = self.state()?;
        Self::check_range(&mut s, "dst", dst, bytes)?;
        s.submit(stream, Op::Fill { dst: dst.0, value, bytes })
    }

    fn load_module(&self, _image: &[u8]) -> Result<Module> {
        Ok(Module(self.state()?.handle()))
    }
    fn function(&self, _module: Module, name: &str) -> Result<Function> {
        let kernel = ffi::find_kernel(name)
            .ok_or_else(|| DriverError::UnknownFunction { name: name.to_owned() })?;
        let handle = self.state()?.handle();
        lock(&self.functions)
            .insert(handle, (kernel, DEFAULT_SHARED.min(self.properties.max_shared_per_block)));
        Ok(Function(handle))
    }
    fn function_attributes(&self, function: Function) -> Result<FunctionAttributes> {
        let (k, _) = self.kernel(function)?;
        Ok(FunctionAttributes {
            max_threads_per_block: k.max_threads,
            registers: Self::registers(&k),
            static_shared_bytes: 0,
            local_bytes: 0,
        })
    }
    fn set_max_dynamic_shared(&self, function: Function, bytes: u32) -> Result<()> {
        let most = self.properties.max_shared_per_block;
        if bytes > most {
            return Err(DriverError::InvalidValue {
                what: "bytes",
                why: format!("{bytes} bytes of shared memory; the device has {most}"),
            });
        }
        let mut functions = lock(&self.functions);
        functions.get_mut(&function.0).ok_or(unknown("function", function.0))?.1 = bytes;
        Ok(())
    }
    fn occupancy(&self, function: Function, threads: u32, shared_bytes: u32) -> Result<u32> {
        let (k, opted_in) = self.kernel(function)?;
        if threads == 0 || threads > k.max_threads || shared_bytes > opted_in {
            return Ok(0);
        }
        let by_shared = self.properties.max_shared_per_sm / (shared_bytes + RESERVED_SHARED);
        let by_registers = 65536 / (Self::registers(&k) * threads.next_multiple_of(32));
        Ok(by_shared.min(by_registers).min(2048 / threads.next_multiple_of(32)).min(32))
    }

    unsafe fn launch(
        &self,
        function: Function,
        config: &LaunchConfig,
        args: &[KernelArg<'_>],
        stream: Stream,
    ) -> Result<()> {
        let (kernel, opted_in) = self.kernel(function)?;
        self.check_launch(&kernel, opted_in, config, args)?;
        let options = lock(&self.options).clone();
        let op = LaunchOp { kernel, config: *config, args: Args::copy(args), options };
        self.state()?.submit(stream, Op::Launch(Box::new(op)))
    }

    fn encode_tensor_map(&self, desc: &TensorMapDesc) -> Result<TensorMap> {
        if self.properties.compute_capability < 90 {
            return Err(DriverError::Unsupported("tensor maps (compute capability 9.0)".into()));
        }
        ffi::encode_tensor_map(desc).map_err(|why| DriverError::TensorMap { why })
    }

    fn create_stream(&self) -> Result<Stream> {
        let mut s = self.state()?;
        let handle = s.handle();
        s.streams.insert(handle, StreamState::default());
        Ok(Stream(handle))
    }
    fn destroy_stream(&self, stream: Stream) -> Result<()> {
        let mut s = lock(&self.state);
        if s.poisoned.is_none() {
            if s.stream(stream)?.capture.is_some() {
                return Err(DriverError::Capturing("destroy_stream"));
            }
            Self::finish(&mut s, stream)?;
        }
        s.streams.remove(&stream.0).map(drop).ok_or(unknown("stream", stream.0))
    }
    fn synchronize(&self, stream: Stream) -> Result<()> {
        let mut s = self.state_outside_capture("synchronize")?;
        Self::finish(&mut s, stream)
    }

    fn create_event(&self) -> Result<Event> {
        let mut s = self.state()?;
        let handle = s.handle();
        s.events.insert(handle, EventState::default());
        Ok(Event(handle))
    }
    fn destroy_event(&self, event: Event) -> Result<()> {
        // Waits for it that are still queued must find it recorded.
        let mut s = lock(&self.state);
        if let Some(e) = s.events.get(&event.0)
            && s.poisoned.is_none()
            && e.done < e.version
        {
            let (stream, version) = (e.stream, e.version);
            s.flush(stream, Some((event.0, version))).map_err(fault_error)?;
        }
        s.events.remove(&event.0).map(drop).ok_or(unknown("event", event.0))
    }
    fn record_event(&self, event: Event, stream: Stream) -> Result<()> {
        self.state()?.record_event(event, stream)
    }
    fn wait_event(&self, stream: Stream, event: Event) -> Result<()> {
        self.state()?.wait_event(stream, event)
    }
    fn synchronize_event(&self, event: Event) -> Result<()> {
        let mut s = self.state_outside_capture("synchronize_event")?;
        let e = s.event(event)?;
        if e.captured.is_some() {
            return Err(DriverError::InvalidValue {
                what: "event",
                why: "it was last recorded in a capture, which nothing can wait for".into(),
            });
        }
        let (stream, version, done) = (e.stream, e.version, e.done);
        if done < version {
            s.flush(stream, Some((event.0, version))).map_err(fault_error)
        } else {
            Ok(())
        }
    }
    fn elapsed_ms(&self, from: Event, to: Event) -> Result<f32> {
        self.synchronize_event(to)?;
        let s = self.state()?;
        let at = |e: Event| {
            let state = s.events.get(&e.0).ok_or(unknown("event", e.0))?;
            state.at.ok_or(DriverError::InvalidValue {
                what: "event",
                why: "it was never recorded".into(),
            })
        };
        Ok(at(to)?.saturating_duration_since(at(from)?).as_secs_f32() * 1e3)
    }

    fn begin_capture(&self, stream: Stream) -> Result<()> {
        self.state()?.begin_capture(stream)
    }
    fn end_capture(&self, stream: Stream) -> Result<Graph> {
        let mut s = self.state()?;
        let recording = s.end_capture(stream)?;
        let handle = s.handle();
        s.graphs.insert(handle, Arc::new(recording));
        Ok(Graph(handle))
    }
    unsafe fn launch_graph(&self, graph: Graph, stream: Stream) -> Result<()> {
        let mut s = self.state()?;
        let recording = s.graphs.get(&graph.0).ok_or(unknown("graph", graph.0))?.clone();
        s.submit(stream, Op::Graph(recording))
    }
    fn destroy_graph(&self, graph: Graph) -> Result<()> {
        lock(&self.state).graphs.remove(&graph.0).map(drop).ok_or(unknown("graph", graph.0))
    }
}
