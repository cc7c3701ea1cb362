//! The CUDA backend on the emulator: the kernels' own sources, on a CPU.

use std::io::Write as _;

use moe_emulator::{EmulatedDriver, Options, Profile};
use moe_kernels::Cuda;
use moe_kernels::cuda::Path;
use moe_kernels::cuda::tiles::{TILES, Tile};

use super::Device;

pub(crate) type Emulated = Device<Cuda<EmulatedDriver>>;

/// An emulated device, or `None` (said aloud) where the emulator was built without a C++ compiler.
pub(crate) fn emulated(profile: Profile, path: Path, options: Options) -> Option<Emulated> {
    emulated_with(profile, path, options, TILES)
}

/// The same, with some of the tiles.
pub(crate) fn emulated_with(
    profile: Profile,
    path: Path,
    options: Options,
    tiles: &'static [Tile],
) -> Option<Emulated> {
    match EmulatedDriver::new(profile) {
        Ok(driver) => {
            driver.set_options(options);
            let backend = Cuda::with_tiles(driver, &[&[]], path, tiles).unwrap();
            let stream = backend.create_stream().unwrap();
            Some(Device { backend, stream })
        }
        Err(error) => {
            // Past the test harness, which keeps the output of a passing test to itself.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {error}");
            None
        }
    }
}
