//! What a backend does: one method for each stage.

use crate::element::Float;
use crate::error::Result;
use crate::memory::{Matrix, MatrixMut, Memory};
use crate::ops::{
    Activation, Combine, Epilogue, Experts, Gate, Gather, GroupedGemm, Layer, Permute, Plan, Router,
};
use crate::weights::{ExpertWeights, RouterWeights};

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
        let Layer { config, input, gate, experts, output, workspace } = op;
        let x = input.hidden_states;
        let num_tokens = x.layout().rows;
        let rows = config.num_assignments(num_tokens)?;

        if input.routing.is_none() {
            let router_input = input.router_input.unwrap_or(x);
            let output = workspace.router_output(num_tokens)?;
            let mut op = Router::new(config, router_input, gate, output)?;
            op.num_tokens = input.num_tokens;
            self.router(op, stream)?;
        }
        let (topk_ids, topk_weights) = match input.routing {
            Some(routing) => (routing.topk_ids, routing.topk_weights),
            None => (
                Matrix::contiguous("topk_ids", &workspace.topk_ids, num_tokens, config.top_k)?,
                Matrix::contiguous(
                    "topk_weights",
                    &workspace.topk_weights,
                    num_tokens,
                    config.top_k,
                )?,
            ),
        };
        let mut op = Plan::new(topk_ids, input.expert_map, &mut workspace.plan)?;
        op.num_tokens = input.num_tokens;
        self.plan(op, stream)?;

        let plan = &workspace.plan;
        let activated = MatrixMut::contiguous(
            "activated rows",
            &mut workspace.activated,
            rows,
            config.intermediate_size,
        )?;
        let epilogue = Epilogue::Activation(config.activation);
        let gather = Gather::TokenOfRow;
        self.grouped_gemm::<W>(
            GroupedGemm::gate_up(x, gather, plan, experts, epilogue, activated)?,
            stream,
        )?;

        let activated = Matrix::contiguous(
            "activated rows",
            &workspace.activated,
            rows,
            config.intermediate_size,
        )?;
        let expert_rows = MatrixMut::contiguous(
            "expert rows",
            &mut workspace.expert_rows,
            rows,
            config.hidden_size,
        )?;
        self.grouped_gemm::<W>(GroupedGemm::down(activated, plan, experts, expert_rows)?, stream)?;

        let expert_rows =
            Matrix::contiguous("expert rows", &workspace.expert_rows, rows, config.hidden_size)?;
        let mut op = Combine::new(expert_rows, topk_weights, plan, output)?;
        op.num_tokens = input.num_tokens;
        self.combine(op, stream)
    }
}
