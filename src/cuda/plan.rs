//! Plan: from a checked contract to launches.

use crate::error::Result;
use crate::ops::Plan;

use super::driver::Driver;
use super::{Cuda, CudaStream};

/// Names of the stage's kernels.
pub(super) const KERNELS: &[&str] = &[];

pub(super) fn run<D: Driver + 'static>(
    _cuda: &Cuda<D>,
    _op: Plan<'_, Cuda<D>>,
    _stream: &CudaStream<D>,
) -> Result<()> {
    todo!()
}

/// u32 of scratch for up to `max_assignments`.
pub(super) fn scratch_len(_num_experts: usize, _max_assignments: usize) -> usize {
    0
}
