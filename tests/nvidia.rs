//! NVIDIA's driver without a GPU: against no libcuda, and against one of our own that writes down what it
//! is asked (`fake_cuda/libcuda.c`). What a GPU does with it, only a GPU shows.
#![cfg(feature = "cuda")]
#![expect(
    unsafe_code,
    reason = "launches, and the caller's side of the driver's stack of contexts"
)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{env, fs};

use moe_kernels::cuda::driver::{
    DevicePtr, Dim3, Driver, DriverError, Function, KernelArg, LaunchConfig, Module, Stream,
    TensorElement, TensorMap, TensorMapDesc, TensorSwizzle,
};
use moe_kernels::cuda::nvidia::{self, NvidiaDriver};
use moe_kernels::cuda::{Cuda, Path as KernelPath, fatbins};
use moe_kernels::error::Error;

/// The smallest image that looks whole: a header that nothing follows.
const FATBIN: [u8; 16] = [0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// The folder of a libcuda of our own, or `None` (said aloud) without a C compiler.
fn fake(flag: &str) -> Option<PathBuf> {
    static FAKES: [OnceLock<Option<PathBuf>>; 2] = [OnceLock::new(), OnceLock::new()];
    let make = || {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fake_cuda{flag}"));
        fs::create_dir_all(&folder).unwrap();
        let compiler = env::var("CC").unwrap_or("cc".to_owned());
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_cuda/libcuda.c");
        let built = Command::new(compiler)
            .args(["-std=gnu11", "-shared", "-fPIC", flag, "-DFAKE", "-o"])
            .args([folder.join("libcuda.so.1"), source])
            .status();
        match built {
            Ok(status) => assert!(status.success(), "the fake libcuda does not compile"),
            Err(error) => {
                // Past the test harness, which keeps the output of a passing test to itself.
                let _ = writeln!(std::io::stderr(), "SKIPPED: no C compiler: {error}");
                return None;
            }
        }
        fs::copy(folder.join("libcuda.so.1"), folder.join("libcuda.so")).unwrap();
        Some(folder)
    };
    FAKES[usize::from(flag != "-DFAKE")].get_or_init(make).clone()
}

/// Runs `scenario` of [`child`] in a process that finds this libcuda; what it was asked, a call a line.
fn run(scenario: &str, libcuda: &Path, variables: &[(&str, &str)]) -> String {
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{scenario}.log"));
    fs::write(&log, "").unwrap();
    let output = Command::new(env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env("LD_LIBRARY_PATH", libcuda)
        .env("MOE_SCENARIO", scenario)
        .env("FAKE_CUDA_LOG", &log)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{scenario}: {said}");
    fs::read_to_string(&log).unwrap()
}

/// The other side of [`run`].
#[test]
fn child() {
    let Ok(scenario) = env::var("MOE_SCENARIO") else { return };
    let (_, scenario) = SCENARIOS.iter().find(|(name, _)| *name == scenario).unwrap();
    scenario();
}

const SCENARIOS: &[(&str, fn())] = &[
    ("properties", properties),
    ("no libcuda", no_libcuda),
    ("no device", no_device),
    ("old driver", old_driver),
    ("lacks a symbol", lacks_a_symbol),
    ("another device", another_device),
    ("launches", launches),
    ("launches on Ampere", launches_on_ampere),
    ("refused launch", refused_launch),
    ("memory", memory),
    ("out of memory", out_of_memory),
    ("modules", modules),
    ("refused image", refused_image),
    ("tensor maps", tensor_maps),
    ("sticky error", sticky_error),
    ("capture", capture),
    ("events", events),
    ("open", open),
    ("caller's context", callers_context),
    #[cfg(feature = "cudarc")]
    ("cudarc", cudarc_objects),
];

fn driver() -> NvidiaDriver {
    NvidiaDriver::new(0).unwrap()
}

fn function(driver: &NvidiaDriver) -> Function {
    driver.function(driver.load_module(&FATBIN).unwrap(), "kernel").unwrap()
}

fn launch(driver: &NvidiaDriver, config: LaunchConfig) -> Result<(), DriverError> {
    let function = function(driver);
    // SAFETY: nothing runs behind the fake.
    unsafe { driver.launch(function, &config, &[KernelArg::new(&77_u32)], Stream(0x2)) }
}

fn count(log: &str, call: &str) -> usize {
    log.lines().filter(|line| line.split(' ').next() == Some(call)).count()
}

#[track_caller]
fn has(log: &str, line: &str) {
    assert!(log.lines().any(|logged| logged == line), "no line `{line}` in\n{log}");
}

/// Every context that was made current was taken back.
#[track_caller]
fn is_balanced(log: &str) {
    assert!(count(log, "cuCtxPushCurrent") > 0, "{log}");
    assert_eq!(count(log, "cuCtxPushCurrent"), count(log, "cuCtxPopCurrent"), "{log}");
}

#[test]
fn without_a_driver_the_error_says_so() {
    // An empty folder hides nothing: where there is a libcuda, this says what it can.
    run("no libcuda", Path::new("/nonexistent"), &[]);
}
fn no_libcuda() {
    match NvidiaDriver::new(0) {
        Err(DriverError::Unavailable(why)) => {
            // A machine with a driver and no GPU says so, too.
            let installed = why.contains("sees no GPU") || why.contains("does not start");
            assert!(installed || why.contains("driver is not installed"), "{why}");
            assert!(installed || why.contains("libcuda.so.1: cannot open"), "{why}");
        }
        Ok(_) => assert!(nvidia::device_count().unwrap() > 0),
        Err(other) => panic!("{other}"),
    }
    let again = NvidiaDriver::new(0).map(drop);
    assert_eq!(again, NvidiaDriver::new(0).map(drop), "the same, however often one asks");
}

#[test]
fn a_device_has_its_properties() {
    let Some(fake) = fake("-DFAKE") else { return };
    let log = run("properties", &fake, &[]);
    has(&log, "cuInit 0");
    has(&log, "cuDevicePrimaryCtxRetain 0");
    has(&log, "cuDevicePrimaryCtxRelease 0");
}
fn properties() {
    assert_eq!(nvidia::device_count(), Ok(1));
    assert_eq!(nvidia::driver_version(), Ok("13.0".to_owned()));
    let driver = driver();
    let properties = driver.properties();
    assert_eq!(properties.name, "Fake GPU");
    assert_eq!(properties.compute_capability, 90);
    assert_eq!((properties.sm_count, properties.l2_bytes), (132, 50 << 20));
    assert_eq!(properties.max_shared_per_block, 227 << 10);
    assert_eq!(properties.max_shared_per_sm, 228 << 10);
    assert_eq!(properties.memory_bytes, 80 << 30);
}

#[test]
fn no_device_an_old_driver_and_a_wrong_number_are_named() {
    let Some(libcuda) = fake("-DFAKE") else { return };
    run("no device", &libcuda, &[("FAKE_CUDA_FAIL", "cuInit=100")]);
    let log = run("old driver", &libcuda, &[("FAKE_CUDA_VERSION", "11080")]);
    assert_eq!(count(&log, "cuInit"), 0, "it is not even initialised");
    run("another device", &libcuda, &[]);
    let Some(incomplete) = fake("-DWITHOUT_ELAPSED_TIME") else { return };
    run("lacks a symbol", &incomplete, &[]);
}
fn no_device() {
    let why = NvidiaDriver::new(0).unwrap_err().to_string();
    assert!(why.contains("sees no GPU") && why.contains("CUDA_VISIBLE_DEVICES"), "{why}");
}
fn old_driver() {
    let error = NvidiaDriver::new(0).unwrap_err();
    assert_eq!(error, DriverError::DriverTooOld { has: "11.8".into(), needs: "12.0" });
}
fn lacks_a_symbol() {
    let error = NvidiaDriver::new(0).unwrap_err();
    let has = "13.0, without cuEventElapsedTime".to_owned();
    assert_eq!(error, DriverError::DriverTooOld { has, needs: "12.0" });
}
fn another_device() {
    let error = NvidiaDriver::new(3).unwrap_err();
    let why = "device 3 was asked for; the driver sees 1".to_owned();
    assert_eq!(error, DriverError::Unavailable(why));
}

#[test]
fn launches_carry_their_attributes() {
    let Some(fake) = fake("-DFAKE") else { return };
    let log = run("launches", &fake, &[]);
    let line = |shared, attributes| {
        format!(
            "cuLaunchKernelEx grid 6 1 1 block 384 1 1 shared {shared} stream 0x2{attributes} \
             argument 77 extra (nil)"
        )
    };
    has(&log, &line(0, ""));
    has(&log, &line(4096, " programmatic 1"));
    has(&log, &line(0, " cluster 2 1 1"));
    has(&log, &line(0, " cluster 2 1 1 programmatic 1"));
    is_balanced(&log);
}
fn launches() {
    let driver = driver();
    let plain = LaunchConfig::linear(6, 384);
    let cluster = LaunchConfig { cluster: Dim3::linear(2), ..plain };
    launch(&driver, plain).unwrap();
    launch(&driver, LaunchConfig { programmatic: true, ..plain }.with_shared(4096)).unwrap();
    launch(&driver, cluster).unwrap();
    launch(&driver, LaunchConfig { programmatic: true, ..cluster }).unwrap();

    let many = [KernelArg::new(&0_u32); 17];
    // SAFETY: refused before anything runs.
    let error = unsafe { driver.launch(function(&driver), &plain, &many, Stream(0)) };
    let why = error.unwrap_err().to_string();
    assert_eq!(why, "cannot launch `kernel`: 17 arguments; 16 are the limit");
}

#[test]
fn what_the_device_lacks_is_refused() {
    let Some(fake) = fake("-DFAKE") else { return };
    let log = run("launches on Ampere", &fake, &[("FAKE_CUDA_CAPABILITY", "80")]);
    assert_eq!((count(&log, "cuLaunchKernelEx"), count(&log, "cuTensorMapEncodeTiled")), (1, 0));
    run("refused launch", &fake, &[("FAKE_CUDA_FAIL", "cuLaunchKernelEx=701")]);
}
fn launches_on_ampere() {
    let driver = driver();
    let plain = LaunchConfig::linear(6, 384);
    launch(&driver, plain).unwrap();
    for config in [
        LaunchConfig { programmatic: true, ..plain },
        LaunchConfig { cluster: Dim3::linear(2), ..plain },
    ] {
        let why = launch(&driver, config).unwrap_err().to_string();
        assert!(why.contains("`kernel`") && why.contains("compute capability 9.0"), "{why}");
    }
    let error = driver.encode_tensor_map(&map()).unwrap_err();
    assert!(matches!(error, DriverError::Unsupported(_)), "{error}");
}
fn refused_launch() {
    let driver = driver();
    let why = launch(&driver, LaunchConfig::linear(6, 384)).unwrap_err().to_string();
    assert!(why.starts_with("cannot launch `kernel`: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"), "{why}");
    assert!(why.contains("shared_bytes: 0"), "{why}");
    driver.synchronize(Stream(0)).expect("the context is as good as before");
}

#[test]
fn memory_is_copied_before_a_call_returns() {
    let Some(fake) = fake("-DFAKE") else { return };
    let log = run("memory", &fake, &[]);
    let lines: Vec<_> = log.lines().filter(|line| !line.contains("Ctx")).collect();
    for call in ["cuMemcpyHtoDAsync 5", "cuMemcpyDtoHAsync 5"] {
        let at = lines.iter().position(|line| line.starts_with(call)).unwrap();
        assert!(lines[at + 1].starts_with("cuStreamSynchronize"), "{log}");
    }
    is_balanced(&log);
    run("out of memory", &fake, &[("FAKE_CUDA_FAIL", "cuMemAlloc=2")]);
}
fn memory() {
    let driver = driver();
    let stream = driver.create_stream().unwrap();
    let (a, b) = (driver.alloc(5).unwrap(), driver.alloc(5).unwrap());
    driver.copy_to_device(a, &[1, 2, 3, 4, 5], stream).unwrap();
    driver.copy(b, a, 5, stream).unwrap();
    driver.fill(b.offset(1), 9, 2, stream).unwrap();
    let mut back = [0; 5];
    driver.copy_to_host(&mut back, b, stream).unwrap();
    assert_eq!(back, [1, 9, 9, 4, 5]);
    driver.free(a).unwrap();
    driver.free(b).unwrap();
    driver.destroy_stream(stream).unwrap();
    assert!(matches!(driver.alloc(0), Err(DriverError::InvalidValue { what: "bytes", .. })));
}
fn out_of_memory() {
    let driver = driver();
    assert_eq!(driver.alloc(1 << 40), Err(DriverError::OutOfMemory { bytes: 1 << 40 }));
    driver.synchronize(Stream(0)).expect("the context is as good as before");
}

#[test]
fn modules_give_functions_by_name() {
    let Some(fake) = fake("-DFAKE") else { return };
    let log = run("modules", &fake, &[]);
    has(&log, "cuModuleLoadData 0xba55ed50");
    has(&log, "cuFuncSetAttribute 8 = 65536");
    has(&log, "cuOccupancy 384 threads 65536 bytes");
    assert_eq!((count(&log, "cuModuleLoadData"), count(&log, "cuModuleUnload")), (1, 1));
    // Not at the first launch, which may be captured.
    assert_eq!(count(&log, "cuFuncLoad"), 1);
    is_balanced(&log);
    let too_new = [("FAKE_CUDA_FAIL", "cuModuleLoadData=222"), ("FAKE_CUDA_VERSION", "12040")];
    run("refused image", &fake, &too_new);
}
fn modules() {
    let driver = driver();
    let module = driver.load_module(&FATBIN).unwrap();
    let function = driver.function(module, "kernel").unwrap();
    let attributes = driver.function_attributes(function).unwrap();
    assert_eq!((attributes.registers, attributes.max_threads_per_block), (168, 384));
    driver.set_max_dynamic_shared(function, 65536).unwrap();
    assert_eq!(driver.occupancy(function, 384, 65536), Ok(2));
    let why = driver.set_max_dynamic_shared(function, 228 << 10).unwrap_err().to_string();
    assert!(why.contains("233472 bytes of shared memory; the device has 232448"), "{why}");
    for name in ["no_such_kernel", "no\0name"] {
        let error = driver.function(module, name);
        assert_eq!(error, Err(DriverError::UnknownFunction { name: name.to_owned() }));
    }
    let error = driver.function(Module(5), "kernel");
    assert_eq!(error, Err(DriverError::UnknownHandle { kind: "module", handle: 5 }));
    // The driver would read past the end of these.
    let mut longer = FATBIN;
    longer[8] = 1;
    for image in [&[][..], b"some text that is no fatbin", &FATBIN[..15], &longer] {
        let error = driver.load_module(image).unwrap_err();
        assert!(matches!(error, DriverError::InvalidValue { what: "image", .. }), "{error}");
    }
}
fn refused_image() {
    let driver = driver();
    let why = driver.load_module(&FATBIN).unwrap_err().to_string();
    for part in ["CUDA 12.4", "Fake GPU", "capability 90", "UNSUPPORTED_PTX_VERSION", "update"] {
        assert!(why.contains(part), "{why}");
    }
}

fn map() -> TensorMapDesc {
    TensorMapDesc {
        base: DevicePtr(0x7000),
        element: TensorElement::Bf16,
        dims: vec![512, 33],
        strides: vec![1024],
        box_dims: vec![64, 128],
        swizzle: TensorSwizzle::B128,
    }
}

#[test]
fn tensor_maps_are_encoded() {
    let Some(fake) = fake("-DFAKE") else { return };
    let log = run("tensor maps", &fake, &[("FAKE_CUDA_FAIL", "cuTensorMapEncodeTiled@2=1")]);
    has(
        &log,
        "cuTensorMapEncodeTiled type 9 rank 2 base 0x7000 dims 512 33 stride 1024 box 64 128 steps 1 1 \
         interleave 0 swizzle 3 promotion 3 fill 0 aligned 1",
    );
}
fn tensor_maps() {
    let driver = driver();
    assert_eq!(driver.encode_tensor_map(&map()), Ok(TensorMap([0x5a5a_5a5a_5a5a_5a5a; 16])));
    let why = driver.encode_tensor_map(&map()).unwrap_err().to_string();
    assert!(why.contains("INVALID_VALUE") && why.contains("box_dims: [64, 128]"), "{why}");
    for wrong in [
        TensorMapDesc { strides: vec![], ..map() },
        TensorMapDesc { box_dims: vec![64], ..map() },
        TensorMapDesc { dims: vec![], strides: vec![], box_dims: vec![], ..map() },
    ] {
        let error = driver.encode_tensor_map(&wrong).unwrap_err();
        assert!(matches!(error, DriverError::TensorMap { .. }), "{error}");
    }
}

#[test]
fn after_a_fault_every_call_says_so() {
    let Some(fake) = fake("-DFAKE") else { return };
    let log = run("sticky error", &fake, &[("FAKE_CUDA_FAIL", "cuStreamSynchronize=700")]);
    assert_eq!(count(&log, "cuStreamSynchronize"), 1, "the driver is left alone afterwards");
    assert_eq!(count(&log, "cuMemAlloc"), 1);
    is_balanced(&log);
}
fn sticky_error() {
    let driver = driver();
    let ptr = driver.alloc(64).unwrap();
    let function = function(&driver);
    let fault = driver.synchronize(Stream(0)).unwrap_err();
    let DriverError::KernelFault { report } = fault else { panic!("{fault}") };
    assert!(report.contains("CUDA_ERROR_ILLEGAL_ADDRESS (700)"), "{report}");
    let lost = DriverError::ContextPoisoned { report };
    assert_eq!(driver.alloc(64), Err(lost.clone()));
    assert_eq!(driver.free(ptr), Err(lost.clone()));
    assert_eq!(driver.fill(ptr, 0, 1, Stream(0)), Err(lost.clone()));
    assert_eq!(driver.copy_to_host(&mut [0], ptr, Stream(0)), Err(lost.clone()));
    assert_eq!(driver.create_stream(), Err(lost.clone()));
    assert_eq!(driver.create_event(), Err(lost.clone()));
    assert_eq!(driver.occupancy(function, 32, 0), Err(lost.clone()));
    assert_eq!(driver.encode_tensor_map(&map()), Err(lost.clone()));
    assert_eq!(driver.begin_capture(Stream(0)), Err(lost.clone()));
    assert_eq!(driver.load_module(&FATBIN), Err(lost.clone()));
    let (config, arg) = (LaunchConfig::linear(1, 1), KernelArg::new(&1_u32));
    // SAFETY: nothing runs behind the fake.
    assert_eq!(unsafe { driver.launch(function, &config, &[arg], Stream(0)) }, Err(lost));
}

#[test]
fn what_cannot_be_recorded_is_refused() {
    let Some(fake) = fake("-DFAKE") else { return };
    let fails = [("FAKE_CUDA_FAIL", "cuMemAlloc=900 cuStreamSynchronize=900")];
    let log = run("capture", &fake, &fails);
    // Other threads may allocate.
    has(&log, "cuStreamBeginCapture mode 1");
    assert_eq!((count(&log, "cuMemcpyHtoDAsync"), count(&log, "cuMemcpyDtoHAsync")), (0, 0));
    for call in ["cuStreamEndCapture", "cuGraphDestroy", "cuGraphLaunch", "cuGraphExecDestroy"] {
        assert_eq!(count(&log, call), 1, "{call}");
    }
    is_balanced(&log);
}
fn capture() {
    let driver = driver();
    let stream = driver.create_stream().unwrap();
    driver.begin_capture(stream).unwrap();
    let ptr = DevicePtr(0x7000);
    let capturing = |call| Err(DriverError::Capturing(call));
    assert_eq!(driver.copy_to_device(ptr, &[1], stream), capturing("copy_to_device"));
    assert_eq!(driver.copy_to_host(&mut [1], ptr, stream), capturing("copy_to_host"));
    assert!(matches!(driver.alloc(64), Err(DriverError::Capturing(_))));
    assert!(matches!(driver.synchronize(stream), Err(DriverError::Capturing(_))));
    let graph = driver.end_capture(stream).unwrap();
    // SAFETY: nothing runs behind the fake.
    unsafe { driver.launch_graph(graph, stream) }.unwrap();
    driver.destroy_graph(graph).unwrap();
}

#[test]
fn events_are_timed() {
    let Some(fake) = fake("-DFAKE") else { return };
    let log = run("events", &fake, &[]);
    for call in ["cuEventRecord", "cuStreamWaitEvent", "cuEventElapsedTime"] {
        assert!(count(&log, call) > 0, "{call}");
    }
    is_balanced(&log);
}
fn events() {
    let driver = driver();
    let (a, b) = (driver.create_event().unwrap(), driver.create_event().unwrap());
    driver.record_event(a, Stream(0)).unwrap();
    driver.wait_event(Stream(0), a).unwrap();
    driver.record_event(b, Stream(0)).unwrap();
    assert_eq!(driver.elapsed_ms(a, b), Ok(2.5));
    driver.destroy_event(a).unwrap();
    driver.destroy_event(b).unwrap();
}

#[test]
fn without_kernels_opening_a_device_says_so() {
    let Some(fake) = fake("-DFAKE") else { return };
    run("open", &fake, &[("FAKE_CUDA_CAPABILITY", "80")]);
}
fn open() {
    let opened = Cuda::open(0, KernelPath::Portable);
    if fatbins::all().is_empty() {
        let Err(Error::Device(error)) = opened else { panic!("{opened:?}") };
        assert!(error.to_string().contains(fatbins::built()), "{error}");
        assert!(error.to_string().contains("tools/cuda-toolkit.sh"), "{error}");
    } else {
        // Hopper's fatbins have nothing for this device, and are not loaded.
        let hoppers = fatbins::all().iter().filter(|(name, _)| name.ends_with("_sm90")).count();
        let images = fatbins::for_device(80).unwrap();
        assert_eq!(images.len() + hoppers, fatbins::all().len());
        assert_eq!(fatbins::for_device(90).unwrap().len(), fatbins::all().len());
        opened.unwrap();
    }
}

#[test]
fn the_callers_context_stays_current() {
    let Some(fake) = fake("-DFAKE") else { return };
    let log = run("caller's context", &fake, &[]);
    is_balanced(&log);
    // Where ours is current already, nothing is pushed.
    assert_eq!(count(&log, "cuMemsetD8Async"), 2, "{log}");
    assert!(!log.contains("cuCtxPushCurrent 0xc0de\ncuCtxPushCurrent"), "{log}");
}
fn callers_context() {
    use cudarc::driver::sys;
    let current = || {
        let mut context = std::ptr::null_mut();
        // SAFETY: the fake is loaded by now.
        unsafe { sys::cuCtxGetCurrent(&raw mut context) };
        context as usize
    };
    let driver = driver();
    let ptr = driver.alloc(16).unwrap();
    assert_eq!(current(), 0, "none was current");
    for theirs in [0xbeef, 0xc0de] {
        // SAFETY: the fake keeps it, and does not follow it.
        unsafe { sys::cuCtxPushCurrent_v2(theirs as sys::CUcontext) };
        driver.fill(ptr, 1, 16, Stream(0)).unwrap();
        assert_eq!(current(), theirs);
        let mut popped = std::ptr::null_mut();
        // SAFETY: as above.
        unsafe { sys::cuCtxPopCurrent_v2(&raw mut popped) };
        assert_eq!(popped as usize, theirs);
    }
}

#[cfg(feature = "cudarc")]
#[test]
fn buffers_and_streams_of_cudarcs_are_used_where_they_are() {
    let Some(fake) = fake("-DFAKE") else { return };
    let log = run("cudarc", &fake, &[]);
    let (before_end, dropped) = log.split_once("cuLaunchKernelEx").expect("the end of our work");
    // Our read waits for cudarc's write, our write for its read and its write.
    let (reading, rest) = before_end.split_once("cuMemcpyDtoHAsync 16").expect("our read");
    let (_, reading) = reading.rsplit_once("cuModuleGetFunction").expect("kernels");
    let (writing, _) = rest.split_once("cuMemcpyHtoDAsync 12").expect("our write");
    let waits = [reading, writing].map(|part| count(part, "cuStreamWaitEvent"));
    assert_eq!(waits, [1, 2], "{log}");
    // cudarc's memory and streams are left to cudarc; our driver's own stream is destroyed.
    let freed = [before_end, dropped]
        .map(|part| (count(part, "cuMemFree"), count(part, "cuStreamDestroy")));
    assert_eq!(freed, [(0, 1), (1, 2)], "{log}");
}
#[cfg(feature = "cudarc")]
fn cudarc_objects() {
    use cudarc::driver::{CudaContext, DevicePtr as _};
    use moe_kernels::cuda::{CudaBuffer, CudaStream};
    use moe_kernels::memory::{Buffer as _, Memory as _};

    let theirs = CudaContext::new(0).unwrap();
    let (writer, stream) = (theirs.new_stream().unwrap(), theirs.new_stream().unwrap());
    let mut slice = writer.clone_htod(&[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    let address = slice.device_ptr(&writer).0;

    let cuda = Cuda::new(driver(), &[&FATBIN], KernelPath::Portable).unwrap();
    // SAFETY: stream and slice outlive what borrows them; the fake does everything at once.
    let ours = unsafe { CudaStream::from_cudarc(&cuda, &stream) };
    assert_eq!(ours.raw().0, stream.cu_stream() as u64);

    // SAFETY: as above.
    let view = unsafe { CudaBuffer::<_, f32>::from_cudarc(&cuda, &slice.slice(2..), &stream) };
    let view = view.unwrap();
    assert_eq!((view.address(), view.len()), (address + 8, 4));
    let mut back = [0.0; 4];
    cuda.download(&view, &mut back, &ours).unwrap();
    assert_eq!(back, [3.0, 4.0, 5.0, 6.0]);
    drop(view);

    // SAFETY: as above.
    let whole = unsafe { CudaBuffer::<_, f32>::from_cudarc_mut(&cuda, &mut slice, &stream) };
    let mut whole = whole.unwrap();
    cuda.upload(&[7.0_f32; 3], &mut whole, &ours).unwrap();
    drop(whole);
    assert_eq!(stream.clone_dtoh(&slice).unwrap(), [7.0, 7.0, 7.0, 4.0, 5.0, 6.0]);

    // SAFETY: refused.
    let halves = unsafe { CudaBuffer::<_, half::bf16>::from_cudarc(&cuda, &slice, &stream) };
    let why = halves.unwrap_err().to_string();
    assert_eq!(why, "cudarc slice = elements of 4 bytes: expected bf16, of 2 bytes");
    // SAFETY: refused.
    let odd =
        unsafe { CudaBuffer::<_, half::f16>::from_cudarc(&cuda, &halves_of(&slice), &stream) };
    let why = odd.unwrap_err().to_string();
    assert!(why.starts_with("device address") && why.contains("a multiple of 16"), "{why}");

    drop((ours, cuda));
    launch(&driver(), LaunchConfig::linear(1, 1)).unwrap();
}

/// The slice from its second element on, as 16-bit patterns: an address that no row of bf16 may have.
#[cfg(feature = "cudarc")]
fn halves_of(slice: &cudarc::driver::CudaSlice<f32>) -> cudarc::driver::CudaView<'_, u16> {
    // SAFETY: 5 floats are 10 halves.
    unsafe { slice.slice(1..).transmute::<u16>(10) }.unwrap()
}
