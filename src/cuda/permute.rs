//! Permute: from a checked contract to launches.

use crate::element::Float;
use crate::error::Result;
use crate::ops::Permute;

use super::driver::Driver;
use super::{Cuda, CudaStream};

/// Names of the stage's kernels.
pub(super) const KERNELS: &[&str] = &[];

pub(super) fn run<D: Driver + 'static, T: Float>(
    _cuda: &Cuda<D>,
    _op: Permute<'_, Cuda<D>, T>,
    _stream: &CudaStream<D>,
) -> Result<()> {
    todo!()
}
