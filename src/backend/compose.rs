//! The layer as a sequence of stages, whatever the backend.

use crate::config::{
    ActivationFn, MoeConfig, Renormalize, Scoring, SharedCombine, SharedExpert, WeightOn,
};
use crate::element::Float;
use crate::error::Result;
use crate::memory::{Matrix, MatrixMut, Memory};
use crate::ops::{
    Combine, DenseWorkspace, Epilogue, Experts, Gather, GroupedGemm, Layer, Output, Plan, Router,
    RouterOutput, Routing, RoutingPlan, SharedExperts, SharedRows, Workspace,
};
use crate::weights::{DenseExperts, ExpertWeights};

use super::{Backend, LayerOf, PartsOf};

/// Where the stages of one forward run.
struct Stages<'a, B: Backend> {
    backend: &'a B,
    stream: &'a B::Stream,
    num_tokens: usize,
    /// As a number in the backend's memory.
    live_tokens: Option<&'a B::Buffer<u32>>,
}

pub(super) fn layer<B: Backend, W: ExpertWeights>(
    backend: &B,
    op: LayerOf<'_, B, W>,
    stream: &B::Stream,
) -> Result<()> {
    let Layer { config, input, parts, output, workspace } = op;
    let (x, rules) = (input.hidden_states, &config.experts);
    let num_tokens = x.layout().rows;
    let stages = Stages { backend, stream, num_tokens, live_tokens: input.num_tokens };

    if input.routing.is_none() {
        let router_input = input.router_input.unwrap_or(x);
        let output = workspace.router_output(num_tokens)?;
        let mut op = Router::new(config, router_input, &parts.gate, output)?;
        op.num_tokens = input.num_tokens;
        op.token_ids = input.token_ids;
        op.sequence_offsets = input.sequence_offsets;
        backend.router(op, stream)?;
    }
    let Workspace {
        topk_ids, topk_weights, plan, activated, expert_rows, row_weights, dense, ..
    } = workspace;
    let routing = match input.routing {
        Some(routing) => routing,
        None => {
            let top_k = config.top_k;
            Routing {
                topk_ids: Matrix::contiguous("topk_ids", &*topk_ids, num_tokens, top_k)?,
                topk_weights: Matrix::contiguous(
                    "topk_weights",
                    &*topk_weights,
                    num_tokens,
                    top_k,
                )?,
            }
        }
    };
    let mut op = Plan::new(routing.topk_ids, input.expert_map, plan)?;
    op.num_tokens = input.num_tokens;
    if rules.weight_on == WeightOn::Input {
        op = op.with_row_weights(routing.topk_weights, row_weights)?;
    }
    backend.plan(op, stream)?;

    let mut dense = dense.as_mut();
    if let Some(dense) = dense.as_deref_mut() {
        let mut op = Plan::dense(num_tokens, &mut dense.plan)?;
        op.num_tokens = input.num_tokens;
        backend.plan(op, stream)?;
        if let Some(rule) = rules.shared {
            stages.shared_expert::<W>(config.hidden_size, rule, x, parts, dense)?;
        }
        if let (Some(latent), Some(width)) = (&parts.latent, rules.latent_size) {
            let tokens = &mut dense.latent_tokens;
            let out = MatrixMut::contiguous("latent tokens", tokens, num_tokens, width)?;
            let (gather, epilogue) = (Gather::Packed, Epilogue::Store);
            let op = GroupedGemm::gate_up(x, gather, &dense.plan, latent, epilogue, out)?;
            backend.grouped_gemm::<DenseExperts<W::Element>>(op, stream)?;
        }
    }
    let routed = Mlp {
        x: match (&dense, rules.latent_size) {
            (Some(dense), Some(width)) => {
                Matrix::contiguous("latent tokens", &dense.latent_tokens, num_tokens, width)?
            }
            _ => x,
        },
        gather: Gather::TokenOfRow,
        plan,
        function: rules.activation,
        row_weights: match rules.weight_on {
            WeightOn::Input => Some(&*row_weights),
            WeightOn::Output => None,
        },
        activated,
        out: expert_rows,
    };
    stages.mlp::<W>(&parts.experts, routed)?;
    stages.join::<W>(config, x, routing, parts, plan, expert_rows, dense, output)
}

/// An expert's two products: operands and memory of both.
struct Mlp<'a, M: Memory, T: Float> {
    x: Matrix<'a, M, T>,
    gather: Gather,
    plan: &'a RoutingPlan<M>,
    function: ActivationFn,
    row_weights: Option<&'a M::Buffer<f32>>,
    activated: &'a mut M::Buffer<T>,
    out: &'a mut M::Buffer<T>,
}

impl<B: Backend> Stages<'_, B> {
    fn mlp<W: ExpertWeights>(
        &self,
        experts: &B::Experts<W>,
        mlp: Mlp<'_, B, W::Element>,
    ) -> Result<()> {
        let Mlp { x, gather, plan, function, row_weights, activated, out } = mlp;
        let (shape, rows) = (experts.shape(), plan.num_assignments());
        let (deep, wide) = (shape.intermediate_size, shape.hidden_size);
        let into = MatrixMut::contiguous("activated rows", activated, rows, deep)?;
        let epilogue = Epilogue::Activation(function);
        let mut op = GroupedGemm::gate_up(x, gather, plan, experts, epilogue, into)?;
        op.row_weights = row_weights;
        self.backend.grouped_gemm::<W>(op, self.stream)?;

        let activated = Matrix::contiguous("activated rows", &*activated, rows, deep)?;
        let out = MatrixMut::contiguous("expert rows", out, rows, wide)?;
        let op = GroupedGemm::down(activated, plan, experts, out)?;
        self.backend.grouped_gemm::<W>(op, self.stream)
    }

    /// Every token's way through the shared expert, and the weight of what comes out.
    fn shared_expert<W: ExpertWeights>(
        &self,
        hidden_size: usize,
        rule: SharedExpert,
        x: Matrix<'_, B, W::Element>,
        parts: &PartsOf<B, W>,
        dense: &mut DenseWorkspace<B, W::Element>,
    ) -> Result<()> {
        let Some(shared) = &parts.shared else { return Ok(()) };
        let DenseWorkspace { plan, logits, ids, weights, shared_activated, shared_rows, .. } =
            dense;
        if let Some(gate) = &shared.gate {
            // A sigmoid gate is a router with one expert to choose from.
            let mut config = MoeConfig::new(hidden_size, rule.intermediate_size, 1, 1);
            config.router.scoring = Scoring::Sigmoid;
            config.router.renormalize = Renormalize::None;
            let tokens = self.num_tokens;
            let output = RouterOutput {
                router_logits: MatrixMut::contiguous("shared gate's logits", logits, tokens, 1)?,
                topk_ids: MatrixMut::contiguous("shared gate's ids", ids, tokens, 1)?,
                topk_weights: MatrixMut::contiguous("shared gate's weights", weights, tokens, 1)?,
            };
            let mut op = Router::new(&config, x, gate, output)?;
            op.num_tokens = self.live_tokens;
            self.backend.router(op, self.stream)?;
        }
        let mlp = Mlp {
            x,
            gather: Gather::Packed,
            plan,
            function: rule.activation,
            row_weights: None,
            activated: shared_activated,
            out: shared_rows,
        };
        match &shared.experts {
            SharedExperts::Same(experts) => self.mlp::<W>(experts, mlp),
            SharedExperts::Dense(experts) => self.mlp::<DenseExperts<W::Element>>(experts, mlp),
        }
    }

    /// The routed rows and all that joins them, into the output.
    #[expect(clippy::too_many_arguments, reason = "the last step takes what all others made")]
    fn join<W: ExpertWeights>(
        &self,
        config: &MoeConfig,
        x: Matrix<'_, B, W::Element>,
        routing: Routing<'_, B>,
        parts: &PartsOf<B, W>,
        plan: &RoutingPlan<B>,
        expert_rows: &B::Buffer<W::Element>,
        dense: Option<&mut DenseWorkspace<B, W::Element>>,
        output: Output<'_, B, W::Element>,
    ) -> Result<()> {
        let MoeConfig { hidden_size, num_experts, ref experts, ref router, .. } = *config;
        let (rows, tokens) = (plan.num_assignments(), self.num_tokens);
        let (width, average) = (config.expert_width(), |rule: SharedExpert| match rule.combine {
            SharedCombine::Average => 0.5,
            SharedCombine::Sum | SharedCombine::SigmoidGate => 1.0,
        });
        let share = experts.shared.map_or(1.0, average);
        let expert_rows = Matrix::contiguous("expert rows", expert_rows, rows, width)?;
        let combine = |output| match experts.weight_on {
            WeightOn::Output => Combine::new(expert_rows, routing.topk_weights, plan, output),
            WeightOn::Input => Combine::unweighted(expert_rows, plan, output),
        };

        let mut op = match (&parts.latent, experts.latent_size, dense) {
            (Some(latent), Some(_), Some(dense)) => {
                let sum = &mut dense.latent_sum;
                let sum = MatrixMut::contiguous("latent sum", sum, tokens, width)?;
                let mut op = combine(Output::overwrite(sum))?.with_scale(experts.scale);
                op.num_tokens = self.live_tokens;
                self.backend.combine(op, self.stream)?;
                let sum = Matrix::contiguous("latent sum", &dense.latent_sum, tokens, width)?;
                let out = &mut dense.latent_rows;
                let out = MatrixMut::contiguous("latent rows", out, tokens, hidden_size)?;
                let op = GroupedGemm::down(sum, &dense.plan, latent, out)?;
                self.backend.grouped_gemm::<DenseExperts<W::Element>>(op, self.stream)?;
                let rows = &dense.latent_rows;
                let rows = Matrix::contiguous("latent rows", rows, tokens, hidden_size)?;
                let op = Combine::unweighted(rows, &dense.plan, output)?.with_scale(share);
                self.with_shared(op, config, parts.shared.is_some(), Some(dense))?
            }
            (_, _, dense) => {
                let op = combine(output)?.with_scale(share * experts.scale);
                self.with_shared(op, config, parts.shared.is_some(), dense.map(|dense| &*dense))?
            }
        };
        if router.zero_experts > 0 {
            let ids = num_experts..config.router_experts();
            op = op.with_zero_experts(x, routing.topk_ids, ids)?;
        }
        if let Some(bias) = &parts.output_bias {
            op = op.with_bias(bias)?;
        }
        op.num_tokens = self.live_tokens;
        self.backend.combine(op, self.stream)
    }

    fn with_shared<'a, T: Float>(
        &self,
        op: Combine<'a, B, T>,
        config: &MoeConfig,
        is_there: bool,
        dense: Option<&'a DenseWorkspace<B, T>>,
    ) -> Result<Combine<'a, B, T>> {
        let (Some(rule), Some(dense), true) = (config.experts.shared, dense, is_there) else {
            return Ok(op);
        };
        let (rows, weights) = (&dense.shared_rows, &dense.weights);
        let tokens = self.num_tokens;
        let weights = match rule.combine {
            SharedCombine::SigmoidGate => {
                Some(Matrix::contiguous("shared gate's weights", weights, tokens, 1)?)
            }
            SharedCombine::Sum | SharedCombine::Average => None,
        };
        let scale = if rule.combine == SharedCombine::Average { 0.5 } else { 1.0 };
        let rows = Matrix::contiguous("shared rows", rows, tokens, config.hidden_size)?;
        op.with_shared(SharedRows { rows, weights, scale })
    }
}
