//! The kernels of quantised weights: bulk copies or cp.async from plain addresses, no tensor map.

use crate::error::Result;

use super::super::CudaStream;
use super::super::driver::{Driver, KernelArg};
use super::super::quantised::QuantisedProjection;
use super::Launch;

pub(super) fn run<D: Driver + 'static>(
    launch: &Launch<'_, D>,
    weights: &QuantisedProjection<D>,
    stream: &CudaStream<D>,
) -> Result<()> {
    launch.check_x_stride()?;
    let args = [KernelArg::new(&launch.args), KernelArg::new(&weights.matrices)];
    // SAFETY: the contract has checked that x, out, the plan and the weights hold what the arguments
    // say; they are borrowed by it, and the memory's owner keeps them until the stream's work is done.
    unsafe { launch.cuda.launch(&launch.kernel(), launch.config, &args, stream) }
}
