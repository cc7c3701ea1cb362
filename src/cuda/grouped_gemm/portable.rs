//! The portable kernels: plain addresses, no tensor map.

use crate::error::Result;

use super::super::CudaStream;
use super::super::driver::{Driver, KernelArg};
use super::Launch;

pub(super) fn run<D: Driver>(launch: &Launch<'_, D>, stream: &CudaStream<D>) -> Result<()> {
    let args = [KernelArg::new(&launch.args)];
    // SAFETY: the contract has checked that x, out, the plan and the weights hold what the arguments
    // say; they are borrowed by it, and the memory's owner keeps them until the stream's work is done.
    unsafe { launch.cuda.launch(&launch.kernel(), launch.config, &args, stream) }
}
