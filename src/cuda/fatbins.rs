//! The kernels that the build script compiled, embedded.

use super::driver::{DriverError, Result};

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// What the build script made, in words, or why it made nothing.
#[must_use]
pub fn built() -> &'static str {
    BUILT
}

/// The compute capabilities (80, 90 ...) that there is machine code for. Others run the PTX of 8.0.
#[must_use]
pub fn sass() -> &'static [u32] {
    SASS
}

/// Every fatbin by its name: its source's path in `kernels/` without the extension.
#[must_use]
pub fn all() -> &'static [(&'static str, &'static [u8])] {
    FATBINS
}

/// The fatbins for a device of this compute capability (80, 90 ...), for
/// [`Cuda::new`](super::Cuda::new).
///
/// # Errors
///
/// [`DriverError::NoKernels`] if there are none.
pub fn for_device(compute_capability: u32) -> Result<Vec<&'static [u8]>> {
    if FATBINS.is_empty() {
        return Err(DriverError::NoKernels { built: BUILT.to_owned() });
    }
    // The driver refuses a fatbin without any code for its device.
    let suits = |name: &str| compute_capability == 90 || !name.ends_with("_sm90");
    Ok(FATBINS.iter().filter(|(name, _)| suits(name)).map(|(_, bytes)| *bytes).collect())
}
