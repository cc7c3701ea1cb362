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
        topk_ids,
        topk_weights,
        plan,
        activated,
        expert_rows,
        row_weights,
        gate_logits,
        gate_ids,
        gate_weights,
        dense,
        ..
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
    let mut op =
        Plan::new(routing.topk_ids, input.expert_map, plan)?.with_always_on(config.always_on())?;
    op.num_tokens = input.num_tokens;
    if rules.weight_on == WeightOn::Input {
        op = op.with_row_weights(routing.topk_weights, row_weights)?;
    }
    backend.plan(op, stream)?;

    let gate = parts.shared.as_ref().and_then(|shared| shared.gate.as_ref());
    if let Some(gate) = gate {
        stages.shared_gate(config, x, gate, [gate_logits, gate_weights], gate_ids)?;
    }
    let gate_weights = match gate {
        None => None,
        Some(_) => {
            Some(Matrix::contiguous("shared gate's weights", &*gate_weights, num_tokens, 1)?)
        }
    };
    let mut dense = dense.as_mut();
    if let Some(dense) = dense.as_deref_mut() {
        let mut op = Plan::dense(num_tokens, &mut dense.plan)?;
        op.num_tokens = input.num_tokens;
        backend.plan(op, stream)?;
        if let Some(rule) = rules.shared.filter(|rule| !rule.merged) {
            stages.shared_expert::<W>(rule, x, parts, dense)?;
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
    let joined =
        Joined { config, x, routing, gate_weights, parts, plan, rows: expert_rows, output };
    stages.join::<W>(joined, dense)
}

/// What the last step joins.
struct Joined<'a, B: Backend, W: ExpertWeights> {
    config: &'a MoeConfig,
    x: Matrix<'a, B, W::Element>,
    routing: Routing<'a, B>,
    /// `[T, 1]`.
    gate_weights: Option<Matrix<'a, B, f32>>,
    parts: &'a PartsOf<B, W>,
    plan: &'a RoutingPlan<B>,
    /// Of the routed experts.
    rows: &'a B::Buffer<W::Element>,
    output: Output<'a, B, W::Element>,
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

    /// The weights of a shared expert's output: a sigmoid gate is a router with one expert to choose from.
    fn shared_gate<T: Float>(
        &self,
        config: &MoeConfig,
        x: Matrix<'_, B, T>,
        gate: &B::Gate<T>,
        [logits, weights]: [&mut B::Buffer<f32>; 2],
        ids: &mut B::Buffer<i32>,
    ) -> Result<()> {
        let MoeConfig { hidden_size, intermediate_size, .. } = *config;
        let mut config = MoeConfig::new(hidden_size, intermediate_size, 1, 1);
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
        self.backend.router(op, self.stream)
    }

    /// Every token's way through a shared expert that runs beside the routed ones.
    fn shared_expert<W: ExpertWeights>(
        &self,
        rule: SharedExpert,
        x: Matrix<'_, B, W::Element>,
        parts: &PartsOf<B, W>,
        dense: &mut DenseWorkspace<B, W::Element>,
    ) -> Result<()> {
        let Some(shared) = &parts.shared else { return Ok(()) };
        let DenseWorkspace { plan, shared_activated, shared_rows, .. } = dense;
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
            SharedExperts::Merged => Ok(()),
        }
    }

    /// The routed rows and all that joins them, into the output.
    fn join<W: ExpertWeights>(
        &self,
        joined: Joined<'_, B, W>,
        dense: Option<&mut DenseWorkspace<B, W::Element>>,
    ) -> Result<()> {
        let Joined { config, x, routing, gate_weights, parts, plan, rows, output } = joined;
        let MoeConfig { hidden_size, num_experts, ref experts, ref router, .. } = *config;
        let (tokens, width) = (self.num_tokens, config.expert_width());
        // What each of both is multiplied by.
        let share = match experts.shared.map(|rule| rule.combine) {
            Some(SharedCombine::Average) => 0.5,
            Some(SharedCombine::Sum | SharedCombine::SigmoidGate) | None => 1.0,
        };
        let rows = Matrix::contiguous("expert rows", rows, plan.num_assignments(), width)?;
        let combine = |output| match experts.weight_on {
            WeightOn::Output => Combine::new(rows, routing.topk_weights, plan, output),
            WeightOn::Input => Combine::unweighted(rows, plan, output),
        };
        let (mut op, dense) = match (&parts.latent, dense) {
            (Some(latent), Some(dense)) => {
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
                let dense = &*dense;
                let rows = &dense.latent_rows;
                let rows = Matrix::contiguous("latent rows", rows, tokens, hidden_size)?;
                // Every token has one row.
                let op = Combine::unweighted(rows, &dense.plan, output)?;
                (op.with_always_on(None, share)?, Some(dense))
            }
            (_, dense) => {
                let op = combine(output)?.with_scale(share * experts.scale);
                (op, dense.map(|dense| &*dense))
            }
        };
        match (experts.shared, dense) {
            (Some(rule), _) if rule.merged => op = op.with_always_on(gate_weights, share)?,
            (Some(_), Some(dense)) => {
                let rows = &dense.shared_rows;
                let rows = Matrix::contiguous("shared rows", rows, tokens, hidden_size)?;
                op = op.with_shared(SharedRows { rows, weights: gate_weights, scale: share })?;
            }
            _ => {}
        }
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
}
