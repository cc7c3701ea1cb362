//! A device, its kernels, and how they are launched.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::element::{DType, Element};
use crate::error::{Error, Result};

use super::CudaStream;
use super::buffer::Place;
use super::driver::{
    DeviceProperties, Driver, DriverError, Function, KernelArg, LaunchConfig, Stream,
};
use super::tiles::{EpilogueKind, TILES, Tile};

/// Which grouped-GEMM kernels run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Path {
    /// Hopper's on a device of compute capability 9.0, the portable ones elsewhere.
    #[default]
    Auto,
    /// TMA and wgmma: compute capability 9.0.
    Hopper,
    /// mma.sync and cp.async: compute capability 8.0 and up.
    Portable,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Hopper => "hopper",
            Self::Portable => "portable",
        })
    }
}

/// Kernels besides the grouped GEMM's.
fn stage_kernels() -> impl Iterator<Item = &'static str> {
    let stages = [
        super::router::KERNELS,
        super::plan::KERNELS,
        super::permute::KERNELS,
        super::activation::KERNELS,
        super::combine::KERNELS,
    ];
    stages.into_iter().flatten().copied()
}

struct Context<D: Driver> {
    driver: D,
    path: Path,
    tiles: &'static [Tile],
    /// Every kernel, found when the backend is made: loading one while a stream is captured is not
    /// allowed, and its first launch should cost what every other does.
    functions: HashMap<String, Function>,
    /// For what is not asked for on a stream: zeros in new buffers.
    setup: Stream,
}

impl<D: Driver> Drop for Context<D> {
    fn drop(&mut self) {
        // A lost context refuses; there is nobody left to tell.
        let _ = self.driver.destroy_stream(self.setup);
    }
}

/// A CUDA device over driver `D`, with the crate's kernels loaded. Cheap to clone.
pub struct Cuda<D: Driver> {
    context: Arc<Context<D>>,
}

impl<D: Driver> Clone for Cuda<D> {
    fn clone(&self) -> Self {
        Self { context: Arc::clone(&self.context) }
    }
}

impl<D: Driver> fmt::Debug for Cuda<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cuda")
            .field("device", &self.properties().name)
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}

impl<D: Driver> Cuda<D> {
    /// The device behind `driver`, with the kernels of `images` (fatbins).
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a device older than compute capability 8.0, or if `path` needs
    /// another device; [`Error::Device`] if an image cannot be loaded.
    pub fn new(driver: D, images: &[&[u8]], path: Path) -> Result<Self> {
        Self::with_tiles(driver, images, path, TILES)
    }

    /// The same, with the choice of grouped GEMMs narrowed to some of [`TILES`]: to measure or to
    /// test one of them.
    ///
    /// # Errors
    /// As [`Cuda::new`].
    pub fn with_tiles(
        driver: D,
        images: &[&[u8]],
        path: Path,
        tiles: &'static [Tile],
    ) -> Result<Self> {
        let DeviceProperties { name, compute_capability, .. } = driver.properties();
        let (major, minor) = (compute_capability / 10, compute_capability % 10);
        if *compute_capability < 80 {
            return Err(Error::Unsupported {
                what: format!("{name}, compute capability {major}.{minor}"),
                supported: "compute capability 8.0 and up".to_owned(),
            });
        }
        if path == Path::Hopper && *compute_capability != 90 {
            return Err(Error::Unsupported {
                what: format!("path hopper on {name}, compute capability {major}.{minor}"),
                supported: "compute capability 9.0; path portable runs here".to_owned(),
            });
        }
        let modules = images
            .iter()
            .map(|image| driver.load_module(image))
            .collect::<Result<Vec<_>, DriverError>>()?;
        let find = |name: &str| {
            modules.iter().find_map(|&module| match driver.function(module, name) {
                Err(DriverError::UnknownFunction { .. }) => None,
                found => Some(found),
            })
        };
        let mut functions = HashMap::new();
        for name in stage_kernels() {
            if let Some(function) = find(name) {
                functions.insert(name.to_owned(), function?);
            }
        }
        let fitting = tiles.iter().filter(|tile| tile.fits(driver.properties()));
        for tile in fitting {
            for (epilogue, dtype) in EpilogueKind::ALL
                .into_iter()
                .flat_map(|epilogue| [DType::Bf16, DType::F16].map(|dtype| (epilogue, dtype)))
            {
                let name = tile.kernel(epilogue, dtype);
                if let Some(function) = find(&name) {
                    let function = function?;
                    driver.set_max_dynamic_shared(function, tile.shared_bytes)?;
                    functions.insert(name, function);
                }
            }
        }
        let setup = driver.create_stream()?;
        Ok(Self { context: Arc::new(Context { driver, path, tiles, functions, setup }) })
    }

    /// The driver.
    pub fn driver(&self) -> &D {
        &self.context.driver
    }

    /// What the device can do.
    pub fn properties(&self) -> &DeviceProperties {
        self.driver().properties()
    }

    /// Which grouped-GEMM kernels were asked for.
    pub fn path(&self) -> Path {
        self.context.path
    }

    pub(super) fn tiles(&self) -> &'static [Tile] {
        self.context.tiles
    }

    pub(super) fn setup(&self) -> Stream {
        self.context.setup
    }

    /// A new stream on the device.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn create_stream(&self) -> Result<CudaStream<D>> {
        CudaStream::new(self)
    }

    /// Refuses operands of another backend: their addresses may mean something else here.
    pub(super) fn check_places<'a>(
        &self,
        places: impl IntoIterator<Item = Place<'a, D>>,
    ) -> Result<()>
    where
        D: 'a,
    {
        for Place { operand, cuda } in places {
            if !Arc::ptr_eq(&cuda.context, &self.context) {
                return Err(Error::value(
                    operand,
                    format!("of another backend, on {}", cuda.properties().name),
                    format!("of this backend, on {}", self.properties().name),
                ));
            }
        }
        Ok(())
    }

    /// Launches a kernel by name.
    ///
    /// Kernels wait for their predecessors themselves (`griddepcontrol.wait`), so that from compute
    /// capability 9.0 on each may start while the one before it still runs.
    ///
    /// # Safety
    /// As [`Driver::launch`].
    pub(super) unsafe fn launch(
        &self,
        kernel: &str,
        config: LaunchConfig,
        args: &[KernelArg<'_>],
        stream: &CudaStream<D>,
    ) -> Result<()> {
        let unknown = || DriverError::UnknownFunction { name: kernel.to_owned() };
        let function = *self.context.functions.get(kernel).ok_or_else(unknown)?;
        let programmatic = self.properties().compute_capability >= 90;
        let config = LaunchConfig { programmatic, ..config };
        tracing::trace!(kernel, blocks = config.grid.volume(), shared_bytes = config.shared_bytes);
        // SAFETY: the caller's promise.
        Ok(unsafe { self.driver().launch(function, &config, args, stream.raw()) }?)
    }
}

/// The name of a 16-bit float type in the kernels' names.
pub(super) fn float16<T: Element>(what: &str) -> Result<DType> {
    match T::DTYPE {
        DType::Bf16 | DType::F16 => Ok(T::DTYPE),
        other => Err(Error::Unsupported {
            what: format!("{what} in {other} on CUDA"),
            supported: "bf16, f16".to_owned(),
        }),
    }
}
