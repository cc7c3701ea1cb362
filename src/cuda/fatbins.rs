//! The kernels that the build script compiled, embedded.

use super::driver::{DriverError, Result};

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// What the build script made, in words, or why it made nothing.
#[must_use]
pub fn built() -> &'static str {
    BUILT
}

/// Every fatbin by its name: its source's path in `kernels/` without the extension.
#[must_use]
pub fn all() -> &'static [(&'static str, &'static [u8])] {
    FATBINS
}

/// The fatbin of this name, for [`Driver::load_module`](super::driver::Driver::load_module).
///
/// # Errors
///
/// [`DriverError::NoKernels`] if the crate was built without it.
pub fn find(name: &str) -> Result<&'static [u8]> {
    let found = FATBINS.iter().find(|(fatbin, _)| *fatbin == name);
    found.map(|(_, bytes)| *bytes).ok_or_else(|| DriverError::NoKernels {
        name: name.to_owned(),
        built: BUILT.to_owned(),
    })
}
