//! Where a layer runs: the CPU, a GPU, or the emulated one.

use anyhow::{Result, anyhow, bail};
use moe_emulator::{EmulatedDriver, Options, Profile};
use moe_kernels::cuda::driver::Driver;
#[cfg(feature = "cuda")]
use moe_kernels::cuda::nvidia::NvidiaDriver;
use moe_kernels::cuda::{CudaStream, Path};
use moe_kernels::{Backend, Cpu, Cuda};

use crate::args::PathName;

/// A backend, a stream on it, and what only it can tell.
pub trait Device {
    type Backend: Backend;

    /// As `--backend` names it.
    const NAME: &'static str;

    fn backend(&self) -> &Self::Backend;

    fn stream(&self) -> &<Self::Backend as moe_kernels::memory::Memory>::Stream;

    /// Waits for the work that was submitted.
    fn finish(&self) -> Result<()>;

    /// Bytes of memory, where that is not the machine's own.
    fn memory_bytes(&self) -> Option<u64>;

    /// The warps' wgmma instructions so far, where somebody counts.
    fn wgmmas(&self) -> Option<u64>;
}

pub struct OnCpu;

impl Device for OnCpu {
    type Backend = Cpu;

    const NAME: &'static str = "cpu";

    fn backend(&self) -> &Cpu {
        &Cpu
    }

    fn stream(&self) -> &() {
        &()
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }

    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    fn wgmmas(&self) -> Option<u64> {
        None
    }
}

pub struct OnCuda<D: Driver> {
    backend: Cuda<D>,
    stream: CudaStream<D>,
}

impl<D: Driver + 'static> OnCuda<D> {
    fn new(backend: Cuda<D>) -> Result<Self> {
        let stream = backend.create_stream()?;
        Ok(Self { backend, stream })
    }
}

/// A device with few multiprocessors, under the emulator's checks.
pub fn emulated(path: PathName) -> Result<OnCuda<EmulatedDriver>> {
    let driver = EmulatedDriver::new(Profile::sm_90()).map_err(|error| anyhow!("{error}"))?;
    driver.set_options(Options::checked(1));
    OnCuda::new(Cuda::new(driver, &[&[]], path.into())?)
}

/// GPU 0 (`CUDA_VISIBLE_DEVICES` counts).
#[cfg(feature = "cuda")]
pub fn nvidia(path: PathName) -> Result<OnCuda<NvidiaDriver>> {
    OnCuda::new(Cuda::open(0, path.into())?)
}

/// Whether there is a GPU that the kernels run on, and kernels for it.
#[cfg(feature = "cuda")]
pub fn has_gpu() -> bool {
    Cuda::open(0, Path::Auto).is_ok()
}

/// What only one of the drivers can tell.
pub trait NamedDriver: Driver + 'static {
    const NAME: &'static str;

    fn memory_bytes(&self) -> Option<u64>;

    fn wgmmas(&self) -> Option<u64>;
}

#[cfg(feature = "cuda")]
impl NamedDriver for NvidiaDriver {
    const NAME: &'static str = "cuda";

    fn memory_bytes(&self) -> Option<u64> {
        Some(self.properties().memory_bytes)
    }

    fn wgmmas(&self) -> Option<u64> {
        None
    }
}

impl NamedDriver for EmulatedDriver {
    const NAME: &'static str = "emulator";

    /// The machine's own.
    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    fn wgmmas(&self) -> Option<u64> {
        Some(self.stats().wgmmas)
    }
}

impl<D: NamedDriver> Device for OnCuda<D> {
    type Backend = Cuda<D>;

    const NAME: &'static str = D::NAME;

    fn backend(&self) -> &Self::Backend {
        &self.backend
    }

    fn stream(&self) -> &CudaStream<D> {
        &self.stream
    }

    fn finish(&self) -> Result<()> {
        Ok(self.stream.synchronize()?)
    }

    fn memory_bytes(&self) -> Option<u64> {
        self.backend.driver().memory_bytes()
    }

    fn wgmmas(&self) -> Option<u64> {
        self.backend.driver().wgmmas()
    }
}

impl From<PathName> for Path {
    fn from(name: PathName) -> Self {
        match name {
            PathName::Auto => Self::Auto,
            PathName::Hopper => Self::Hopper,
            PathName::Portable => Self::Portable,
        }
    }
}

/// Refuses `--path` where there are no kernels to choose among.
pub fn check_cpu_path(path: PathName) -> Result<()> {
    if path != PathName::Auto {
        bail!("--path chooses among the kernels of cuda and emulator; the cpu backend has none");
    }
    Ok(())
}
