//! What the emulator's own tests share: devices, buffers, launches, random numbers, and the standard kernels
//! with their references.
#![allow(unreachable_pub, reason = "a test module has no outside")]
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod cases;
pub mod formats;
pub mod hazards;
pub mod micro;

use moe_emulator::{EmulatedDriver, Options, Profile};
use moe_kernels::cuda::driver::*;
use std::io::Write as _;
use std::result::Result;

/// A device, or `None` (said aloud) where the crate was built without a C++ compiler.
pub fn device(profile: Profile) -> Option<EmulatedDriver> {
    match EmulatedDriver::new(profile) {
        Ok(d) => Some(d),
        Err(e) => {
            // Past the test harness, which keeps the output of a passing test to itself.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {e}");
            None
        }
    }
}

/// `most`, or fewer where `MOE_EMULATOR_SEEDS` says so (aloud): for builds that are slow.
pub fn seeds(most: u64) -> u64 {
    let Ok(asked) = std::env::var("MOE_EMULATOR_SEEDS") else { return most };
    let n = asked.parse::<u64>().expect("MOE_EMULATOR_SEEDS is a number").clamp(1, most);
    let _ = writeln!(std::io::stderr(), "{n} of {most} seeds");
    n
}

/// A driver with one stream, and buffers that live as long as it does. What the conformance suite needs works
/// over any driver.
pub struct Rig<D: Driver = EmulatedDriver> {
    pub driver: D,
    pub stream: Stream,
    modules: Vec<Module>,
}
pub type Outcome = Result<(), String>;

pub fn text(e: DriverError) -> String {
    e.to_string()
}
impl Rig {
    pub fn new(options: Options) -> Option<Self> {
        Self::on(Profile::sm_90(), options)
    }
    pub fn on(profile: Profile, options: Options) -> Option<Self> {
        let driver = device(profile)?;
        driver.set_options(options);
        Some(Self::over(driver, &[&[]]))
    }
}
impl<D: Driver> Rig<D> {
    /// Over any driver; `images` hold the kernels.
    pub fn over(driver: D, images: &[&[u8]]) -> Self {
        let stream = driver.create_stream().unwrap();
        let modules = images.iter().map(|image| driver.load_module(image).unwrap()).collect();
        Self { driver, stream, modules }
    }
    pub fn upload<T: Plain>(&self, values: &[T]) -> DevicePtr {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.bytes()).collect();
        let p = self.driver.alloc(bytes.len().max(1)).unwrap();
        self.driver.copy_to_device(p, &bytes, self.stream).unwrap();
        p
    }
    pub fn alloc<T: Plain>(&self, n: usize) -> DevicePtr {
        self.driver.alloc(n * size_of::<T>()).unwrap()
    }
    pub fn download<T: Plain>(&self, p: DevicePtr, n: usize) -> Result<Vec<T>, String> {
        let mut bytes = vec![0; n * size_of::<T>()];
        self.driver.copy_to_host(&mut bytes, p, self.stream).map_err(text)?;
        Ok(bytes.chunks_exact(size_of::<T>()).map(T::from_bytes).collect())
    }
    pub fn launch(&self, kernel: &str, config: LaunchConfig, args: &[KernelArg<'_>]) -> Outcome {
        let found = self.modules.iter().map(|&module| self.driver.function(module, kernel));
        let missing = DriverError::UnknownFunction { name: kernel.to_owned() };
        let f = found.reduce(Result::or).unwrap_or(Err(missing)).map_err(text)?;
        if config.shared_bytes > 48 << 10 {
            self.driver.set_max_dynamic_shared(f, config.shared_bytes).map_err(text)?;
        }
        // SAFETY: the tests pass what the kernels declare, and buffers outlive the launch.
        #[allow(unsafe_code)]
        unsafe { self.driver.launch(f, &config, args, self.stream) }.map_err(text)
    }
    pub fn run(&self, kernel: &str, config: LaunchConfig, args: &[KernelArg<'_>]) -> Outcome {
        self.launch(kernel, config, args)?;
        self.driver.synchronize(self.stream).map_err(text)
    }
    /// A tensor map over a dense array, fastest dimension first.
    pub fn map(
        &self,
        base: DevicePtr,
        element: TensorElement,
        dims: &[u64],
        box_dims: &[u32],
        swizzle: TensorSwizzle,
    ) -> TensorMap {
        let mut strides = Vec::new();
        let mut at = u64::from(element.bytes());
        for d in &dims[..dims.len() - 1] {
            at *= d;
            strides.push(at);
        }
        self.driver
            .encode_tensor_map(&TensorMapDesc {
                base,
                element,
                dims: dims.to_vec(),
                strides,
                box_dims: box_dims.to_vec(),
                swizzle,
            })
            .unwrap()
    }
}

/// Values that are their bytes.
pub trait Plain: Copy {
    fn bytes(self) -> Vec<u8>;
    fn from_bytes(b: &[u8]) -> Self;
}
macro_rules! plain {
    ($($t:ty),*) => { $(impl Plain for $t {
        fn bytes(self) -> Vec<u8> { self.to_ne_bytes().to_vec() }
        fn from_bytes(b: &[u8]) -> Self { Self::from_ne_bytes(b.try_into().unwrap()) }
    })* };
}
plain!(u8, u16, u32, i32, u64, f32);

/// A small generator of its own: test inputs must not change with a dependency.
pub struct Rand(pub u64);
impl Rand {
    pub fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }
    /// In [-1, 1].
    pub fn unit(&mut self) -> f32 {
        (self.next() % 2001) as f32 / 1000.0 - 1.0
    }
    pub fn bf16s(&mut self, n: usize, scale: f32) -> Vec<u16> {
        (0..n).map(|_| to_bf16(self.unit() * scale)).collect()
    }
}
pub fn bf16(v: u16) -> f32 {
    f32::from_bits(u32::from(v) << 16)
}
pub fn to_bf16(f: f32) -> u16 {
    let u = f.to_bits();
    ((u + 0x7fff + ((u >> 16) & 1)) >> 16) as u16
}
