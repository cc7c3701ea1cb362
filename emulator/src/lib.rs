//! Runs the CUDA kernels of `moe-kernels` on a CPU.
//!
//! The kernel sources of the workspace are compiled as host C++ and run on a functional, adversarial
//! model of the GPU: threads are fibers under seeded schedules, asynchronous operations land as late and
//! in as bad an order as the hardware may choose, and every access is checked for races, bounds,
//! alignment and use of unwritten memory. `docs/emulator.md` says what is modelled and what cannot be.
//!
//! [`EmulatedDriver`] implements the same [`Driver`](moe_kernels::cuda::driver::Driver) trait as a GPU,
//! so that tests of the CUDA backend run without one:
//!
//! ```
//! use moe_emulator::{EmulatedDriver, Options, Profile};
//! use moe_kernels::cuda::driver::{Driver, LaunchConfig, KernelArg};
//!
//! let Ok(driver) = EmulatedDriver::new(Profile::sm_90()) else {
//!     return Ok(()); // built without a C++ compiler
//! };
//! driver.set_options(Options::checked(7));
//! let stream = driver.create_stream()?;
//! let buffer = driver.alloc(4 * 64)?;
//! let module = driver.load_module(&[])?;
//! let kernel = driver.function(module, "iota")?;
//! let (ptr, n) = (buffer.0, 64_u32);
//! // SAFETY: `iota` takes a pointer to n u32 and n; the buffer holds 64.
//! unsafe { driver.launch(kernel, &LaunchConfig::linear(2, 32), &[KernelArg::new(&ptr), KernelArg::new(&n)], stream)? };
//! let mut out = [0; 4 * 64];
//! driver.copy_to_host(&mut out, buffer, stream)?;
//! assert_eq!(out[4 * 63], 63);
//! # Ok::<(), moe_kernels::cuda::driver::DriverError>(())
//! ```
#![deny(unsafe_code)]
#![cfg_attr(
    no_cxx,
    allow(dead_code, unused, unreachable_code, reason = "without models no device can be made")
)]

mod capture;
mod driver;
mod fault;
mod ffi;
mod options;
mod queue;

pub use driver::EmulatedDriver;
pub use fault::{Fault, FaultKind, Unavailable};
pub use options::{Checks, Options, Profile, Stats, TextEdit};

/// Names of the kernels that are linked in.
#[must_use]
pub fn kernel_names() -> Vec<String> {
    ffi::kernel_names()
}
