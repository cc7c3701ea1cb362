//! CUDA: the driver behind a trait.
//!
//! Nothing here needs a GPU or CUDA's headers: [`driver::Driver`] is what the CUDA backend asks of a
//! device, and the emulator (`emulator/`, a development-only crate) implements it on a CPU.
#![expect(
    unsafe_code,
    reason = "launching a kernel cannot be made safe: the device trusts its arguments"
)]

pub mod driver;
#[cfg(feature = "cuda")]
pub mod fatbins;
pub mod tiles;
