//! The CUDA backend: hand-written kernels, launched over the [`Driver`] trait.
//!
//! Nothing here needs a GPU or CUDA's headers: the emulator (`emulator/`, a development-only crate)
//! implements [`Driver`] on a CPU, and runs the same kernels.
//!
//! Three ways in: [`MoeLayer`](crate::MoeLayer) over [`Cuda`]; single stages, with the contracts of
//! [`crate::ops`]; and buffers and streams that the caller owns ([`CudaBuffer::from_raw`],
//! [`CudaStream::from_raw`]), for engines that have pointers already.
#![expect(
    unsafe_code,
    reason = "launching a kernel cannot be made safe: the device trusts its arguments"
)]

mod abi;
mod activation;
mod buffer;
mod combine;
mod context;
pub mod driver;
mod grouped_gemm;
mod permute;
mod plan;
mod router;
pub mod tiles;
mod weights;

pub use buffer::{CudaBuffer, CudaStream};
pub use context::{Cuda, Path};
pub use weights::{CudaExperts, CudaGate};

use crate::backend::{Backend, sealed};
use crate::element::Float;
use crate::error::{Error, Result};
use crate::ops::{Activation, Combine, GroupedGemm, Permute, Plan, Router};
use crate::weights::{ExpertWeights, Format, RouterWeights};

use driver::{Driver, DriverError};

impl From<DriverError> for Error {
    fn from(error: DriverError) -> Self {
        Self::Device(Box::new(error))
    }
}

impl<D: Driver + 'static> sealed::Sealed for Cuda<D> {}

impl<D: Driver + 'static> Backend for Cuda<D> {
    const NAME: &'static str = "cuda";

    type Gate<T: Float> = CudaGate<D, T>;
    type Experts<W: ExpertWeights> = CudaExperts<D, W::Element>;

    fn prepare_gate<T: Float>(
        &self,
        shape: [usize; 2],
        weights: RouterWeights<T>,
        stream: &CudaStream<D>,
    ) -> Result<CudaGate<D, T>> {
        CudaGate::upload(self, shape, &weights, stream)
    }

    fn prepare<W: ExpertWeights>(
        &self,
        weights: W,
        stream: &CudaStream<D>,
    ) -> Result<CudaExperts<D, W::Element>> {
        match weights.into_format() {
            Format::Dense(experts) => CudaExperts::upload(self, &experts, stream),
        }
    }

    fn router<T: Float>(
        &self,
        op: Router<'_, Self, T, CudaGate<D, T>>,
        stream: &CudaStream<D>,
    ) -> Result<()> {
        router::run(self, op, stream)
    }

    fn plan(&self, op: Plan<'_, Self>, stream: &CudaStream<D>) -> Result<()> {
        plan::run(self, op, stream)
    }

    fn permute<T: Float>(&self, op: Permute<'_, Self, T>, stream: &CudaStream<D>) -> Result<()> {
        permute::run(self, op, stream)
    }

    fn grouped_gemm<W: ExpertWeights>(
        &self,
        op: GroupedGemm<'_, Self, W::Element, CudaExperts<D, W::Element>>,
        stream: &CudaStream<D>,
    ) -> Result<()> {
        grouped_gemm::run(self, op, stream)
    }

    fn activation<T: Float>(
        &self,
        op: Activation<'_, Self, T>,
        stream: &CudaStream<D>,
    ) -> Result<()> {
        activation::run(self, op, stream)
    }

    fn combine<T: Float>(&self, op: Combine<'_, Self, T>, stream: &CudaStream<D>) -> Result<()> {
        combine::run(self, op, stream)
    }
}
