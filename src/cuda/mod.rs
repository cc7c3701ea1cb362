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
#[cfg(feature = "cudarc")]
mod cudarc;
pub mod driver;
#[cfg(feature = "cuda")]
pub mod fatbins;
mod grouped_gemm;
#[cfg(feature = "cuda")]
pub mod nvidia;
mod operands;
mod permute;
mod plan;
mod quantised;
pub mod raw;
mod router;
pub mod tiles;
mod weights;

pub use buffer::{CudaBuffer, CudaStream};
pub use context::{Cuda, Path};
pub use weights::{CudaExperts, CudaGate};

use crate::backend::{Backend, sealed};
use crate::element::{DType, Float};
use crate::error::{Error, Result};
use crate::ops::{
    Activation, Combine, ExpertShape, GateParts, GroupedGemm, Permute, Plan, Router, RowWeights,
    SharedRows,
};
use crate::weights::{ExpertBiases, ExpertWeights, Format, QuantFormat, RouterWeights};

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
        CudaGate::upload(self, shape, weights, stream)
    }

    fn prepare<W: ExpertWeights>(
        &self,
        weights: W,
        stream: &CudaStream<D>,
    ) -> Result<CudaExperts<D, W::Element>> {
        match weights.into_format() {
            Format::Dense(experts) => CudaExperts::upload(self, &experts, stream),
            Format::Quantised(experts) => CudaExperts::upload_quantised(self, &experts, stream),
        }
    }

    fn gate_bytes<T: Float>(shape: [usize; 2], router: DType, parts: GateParts) -> Option<usize> {
        let dtype = if router == T::DTYPE && !parts.input_scale { T::DTYPE } else { DType::F32 };
        let matrix = shape[0].checked_mul(shape[1])?.checked_mul(dtype.size())?;
        matrix.checked_add(parts.bytes(shape[0])?)
    }

    fn expert_bytes<T: Float>(
        shape: ExpertShape,
        format: Option<QuantFormat>,
        biases: bool,
    ) -> Option<usize> {
        ExpertBiases::with_matrices(shape, biases, |matrix| {
            let [rows, columns] = matrix.dims(shape);
            match format {
                None => rows.checked_mul(columns)?.checked_mul(T::DTYPE.size()),
                Some(format) => quantised::matrix_bytes(format, shape, matrix),
            }
        })
    }

    fn router<T: Float>(
        &self,
        op: Router<'_, Self, T, CudaGate<D, T>>,
        stream: &CudaStream<D>,
    ) -> Result<()> {
        self.check_places([
            stream.place(),
            op.hidden_states.buffer().place("router input"),
            op.output.router_logits.buffer().place("router_logits"),
            op.output.topk_ids.buffer().place("topk_ids"),
            op.output.topk_weights.buffer().place("topk_weights"),
        ])?;
        self.check_places(op.gate.places())?;
        self.check_places(op.num_tokens.map(|count| count.place("num_tokens")))?;
        self.check_places(op.token_ids.map(|ids| ids.place("token_ids")))?;
        self.check_places(op.sequence_offsets.map(|offsets| offsets.place("sequence_offsets")))?;
        router::run(self, op, stream)
    }

    fn plan(&self, op: Plan<'_, Self>, stream: &CudaStream<D>) -> Result<()> {
        self.check_places([stream.place(), op.plan.token_of_row.place("routing plan")])?;
        self.check_places(op.topk_ids.map(|ids| ids.buffer().place("topk_ids")))?;
        self.check_places(op.expert_map.map(|map| map.buffer().place("expert_map")))?;
        self.check_places(op.num_tokens.map(|count| count.place("num_tokens")))?;
        if let Some(RowWeights { topk_weights, out }) = &op.row_weights {
            let weights = topk_weights.buffer().place("topk_weights");
            self.check_places([weights, out.place("row weights")])?;
        }
        plan::run(self, op, stream)
    }

    fn permute<T: Float>(&self, op: Permute<'_, Self, T>, stream: &CudaStream<D>) -> Result<()> {
        self.check_places([
            stream.place(),
            op.hidden_states.buffer().place("hidden_states"),
            op.plan.token_of_row.place("routing plan"),
            op.rows.buffer().place("rows"),
        ])?;
        permute::run(self, op, stream)
    }

    fn grouped_gemm<W: ExpertWeights>(
        &self,
        op: GroupedGemm<'_, Self, W::Element, CudaExperts<D, W::Element>>,
        stream: &CudaStream<D>,
    ) -> Result<()> {
        self.check_places([
            stream.place(),
            op.x.buffer().place("grouped GEMM input"),
            op.plan.token_of_row.place("routing plan"),
            op.experts.place(),
            op.out.buffer().place("grouped GEMM output"),
        ])?;
        self.check_places(op.row_weights.map(|weights| weights.place("row_weights")))?;
        grouped_gemm::run(self, op, stream)
    }

    fn activation<T: Float>(
        &self,
        op: Activation<'_, Self, T>,
        stream: &CudaStream<D>,
    ) -> Result<()> {
        self.check_places([
            stream.place(),
            op.gate_up.buffer().place("gate_up"),
            op.plan.token_of_row.place("routing plan"),
            op.out.buffer().place("activation output"),
        ])?;
        activation::run(self, op, stream)
    }

    fn combine<T: Float>(&self, op: Combine<'_, Self, T>, stream: &CudaStream<D>) -> Result<()> {
        self.check_places([
            stream.place(),
            op.rows.buffer().place("rows"),
            op.plan.token_of_row.place("routing plan"),
            op.output.matrix.buffer().place("output"),
        ])?;
        self.check_places(op.num_tokens.map(|count| count.place("num_tokens")))?;
        self.check_places(op.topk_weights.map(|weights| weights.buffer().place("topk_weights")))?;
        let always_on = op.always_on.weights;
        self.check_places(always_on.map(|weights| weights.buffer().place("always-on weights")))?;
        if let Some(zero) = &op.zero_experts {
            let x = zero.x.buffer().place("zero experts' input");
            self.check_places([x, zero.topk_ids.buffer().place("topk_ids")])?;
        }
        if let Some(SharedRows { rows, weights, .. }) = op.shared {
            self.check_places([rows.buffer().place("shared rows")])?;
            self.check_places(weights.map(|weights| weights.buffer().place("shared weights")))?;
        }
        self.check_places(op.bias.map(|bias| bias.place("output bias")))?;
        combine::run(self, op, stream)
    }
}
