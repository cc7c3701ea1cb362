//! What a backend does: one method for each stage.

use crate::element::{DType, Float};
use crate::error::Result;
use crate::memory::Memory;
use crate::ops::{
    Activation, Combine, ExpertShape, Experts, Gate, GateParts, GroupedGemm, Layer, LayerParts,
    Permute, Plan, Router,
};
use crate::weights::{DenseExperts, ExpertWeights, QuantFormat, RouterWeights};

mod compose;

pub(crate) mod sealed {
    pub trait Sealed {}
}

/// [`Layer`] with weights in format `W`, as backend `B` prepares them.
pub type LayerOf<'a, B, W> = Layer<
    'a,
    B,
    <W as ExpertWeights>::Element,
    <B as Backend>::Gate<<W as ExpertWeights>::Element>,
    <B as Backend>::Experts<W>,
    <B as Backend>::Experts<DenseExperts<<W as ExpertWeights>::Element>>,
>;

/// [`LayerParts`] of weights in format `W`, as backend `B` prepares them.
pub type PartsOf<B, W> = LayerParts<
    B,
    <B as Backend>::Gate<<W as ExpertWeights>::Element>,
    <B as Backend>::Experts<W>,
    <B as Backend>::Experts<DenseExperts<<W as ExpertWeights>::Element>>,
>;

/// A place where the stages run. Contracts are checked when they are made ([`crate::ops`]); a
/// backend only executes them, in the order of the stream.
///
/// Results have the same bits for the same inputs, whatever else the machine does.
pub trait Backend: Memory + sealed::Sealed {
    /// The backend's name, as `run_layer --backend` takes it.
    const NAME: &'static str;

    /// A router's weight in the place and layout that this backend's router reads.
    type Gate<T: Float>: Gate;

    /// Experts' weights in the place and layout that this backend's grouped GEMM reads.
    type Experts<W: ExpertWeights>: Experts;

    /// Puts a router's weight `[num_experts, hidden_size]` where [`Backend::router`] reads it.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if it has another number of elements, and
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    fn prepare_gate<T: Float>(
        &self,
        shape: [usize; 2],
        weights: RouterWeights<T>,
        stream: &Self::Stream,
    ) -> Result<Self::Gate<T>>;

    /// Puts weights where [`Backend::grouped_gemm`] reads them.
    ///
    /// # Errors
    /// The errors of the weights' source, and [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    fn prepare<W: ExpertWeights>(
        &self,
        weights: W,
        stream: &Self::Stream,
    ) -> Result<Self::Experts<W>>;

    /// Bytes that [`Backend::prepare_gate`] takes: of a matrix in f32 or in the type of the layer, and
    /// what is beside it. `None` past what a usize holds.
    fn gate_bytes<T: Float>(shape: [usize; 2], router: DType, parts: GateParts) -> Option<usize>;

    /// Bytes that [`Backend::prepare`] takes: of dense weights or of quantised ones, and biases. `None`
    /// past what a usize holds.
    fn expert_bytes<T: Float>(
        shape: ExpertShape,
        format: Option<QuantFormat>,
        biases: bool,
    ) -> Option<usize>;

    /// Router: logits, top-k ids and weights.
    ///
    /// # Errors
    /// Failures of the device; contracts have been checked.
    fn router<T: Float>(
        &self,
        op: Router<'_, Self, T, Self::Gate<T>>,
        stream: &Self::Stream,
    ) -> Result<()>;

    /// Plan: the order of assignments by expert.
    ///
    /// # Errors
    /// As [`Backend::router`].
    fn plan(&self, op: Plan<'_, Self>, stream: &Self::Stream) -> Result<()>;

    /// Permute: tokens into expert order.
    ///
    /// # Errors
    /// As [`Backend::router`].
    fn permute<T: Float>(&self, op: Permute<'_, Self, T>, stream: &Self::Stream) -> Result<()>;

    /// Grouped GEMM: each expert's rows times its weights.
    ///
    /// # Errors
    /// As [`Backend::router`].
    fn grouped_gemm<W: ExpertWeights>(
        &self,
        op: GroupedGemm<'_, Self, W::Element, Self::Experts<W>>,
        stream: &Self::Stream,
    ) -> Result<()>;

    /// Activation: between the two products, unfused.
    ///
    /// # Errors
    /// As [`Backend::router`].
    fn activation<T: Float>(
        &self,
        op: Activation<'_, Self, T>,
        stream: &Self::Stream,
    ) -> Result<()>;

    /// Combine: each token's weighted sum.
    ///
    /// # Errors
    /// As [`Backend::router`].
    fn combine<T: Float>(&self, op: Combine<'_, Self, T>, stream: &Self::Stream) -> Result<()>;

    /// The whole layer, composed of the stages.
    ///
    /// # Errors
    /// As [`Backend::router`].
    fn layer<W: ExpertWeights>(
        &self,
        op: LayerOf<'_, Self, W>,
        stream: &Self::Stream,
    ) -> Result<()> {
        compose::layer::<Self, W>(self, op, stream)
    }
}
