//! A backend's stages on test data: operands amid poison, results read back.

use moe_kernels::backend::Backend;
use moe_kernels::config::{ActivationFn, MoeConfig};
use moe_kernels::memory::{Matrix, MatrixMut};
use moe_kernels::ops::{
    Activation, Combine, Output, Permute, Plan, Router, RouterOutput, RoutingPlan, Write,
};
use moe_kernels::weights::RouterWeights;

use super::{
    Bits, Device, Pad, Placed, Storage, TIGHT, assert_close, assert_exact, bits, reference, wide,
};

/// For operands that need no alignment.
pub(crate) const ODD: Pad = Pad { offset: 3, gap: 5, tail: 1 };

/// `pad` where there is one at all, but of no alignment.
fn odd(pad: Pad) -> Pad {
    if pad == TIGHT { TIGHT } else { ODD }
}

/// A router's weight: of a type of its own, or as the tokens.
pub(crate) enum Gate {
    F32(Vec<f32>),
    Model,
}

#[derive(Clone, Debug)]
pub(crate) struct Routed {
    pub(crate) logits: Vec<f32>,
    pub(crate) ids: Vec<i32>,
    pub(crate) weights: Vec<f32>,
}

impl Routed {
    pub(crate) fn bits(&self) -> [Vec<u32>; 3] {
        [bits(&self.logits), bits(&self.ids), bits(&self.weights)]
    }
}

/// Runs a router whose tensors lie amid poison where `pad` says so.
pub(crate) fn run_router<B: Backend, T: Storage>(
    device: &Device<B>,
    config: &MoeConfig,
    x: &[T],
    gate: (&[T], Gate),
    pad: Pad,
) -> Routed {
    run_router_for(device, config, x, gate, pad, None)
}

/// The same for a number of tokens in the backend's memory.
pub(crate) fn run_router_for<B: Backend, T: Storage>(
    device: &Device<B>,
    config: &MoeConfig,
    x: &[T],
    gate: (&[T], Gate),
    pad: Pad,
    num_tokens: Option<u32>,
) -> Routed {
    let MoeConfig { hidden_size: h, num_experts: e, top_k: k, .. } = *config;
    let tokens = x.len() / h;
    let x = Placed::new(x, tokens, h, pad);
    let x_buffer = x.put(device);
    let logits = Placed::poison(tokens, e, odd(pad));
    let ids = Placed::poison(tokens, k, odd(pad));
    let weights = Placed::poison(tokens, k, odd(pad));
    let mut logits_buffer = logits.put(device);
    let mut ids_buffer = ids.put(device);
    let mut weights_buffer = weights.put(device);
    let output = RouterOutput {
        router_logits: MatrixMut::new("logits", &mut logits_buffer, logits.layout).unwrap(),
        topk_ids: MatrixMut::new("ids", &mut ids_buffer, ids.layout).unwrap(),
        topk_weights: MatrixMut::new("weights", &mut weights_buffer, weights.layout).unwrap(),
    };
    let weights_of_gate = match gate.1 {
        Gate::F32(gate) => RouterWeights::f32(gate),
        Gate::Model => RouterWeights::model(gate.0.to_vec()),
    };
    let gate = device.backend.prepare_gate([e, h], weights_of_gate, &device.stream).unwrap();
    let x = Matrix::new("x", &x_buffer, x.layout).unwrap();
    let count = num_tokens.map(|count| device.put(&[count]));
    let mut op = Router::new(config, x, &gate, output).unwrap();
    if let Some(count) = &count {
        op = op.with_num_tokens(count).unwrap();
    }
    device.backend.router(op, &device.stream).unwrap();
    Routed {
        logits: logits.take("router_logits", device, &logits_buffer),
        ids: ids.take("topk_ids", device, &ids_buffer),
        weights: weights.take("topk_weights", device, &weights_buffer),
    }
}

/// The bound on weights, half of what targets.md allows: an f32 sum of 1024 exponentials is 2e-6
/// off when it is made one after the other.
const ROUTING_WEIGHTS: f64 = 5e-6;

/// Against the truth, and the choice also against the computed logits, which it must follow
/// exactly.
pub(crate) fn check_router(
    what: &str,
    config: &MoeConfig,
    given: &Routed,
    truth: &reference::Routing,
) {
    let MoeConfig { num_experts: e, top_k: k, .. } = *config;
    assert_exact(&format!("{what}: topk_ids"), &given.ids, &truth.ids, k);
    assert_close(&format!("{what}: router_logits"), &wide(&given.logits), &truth.logits, e, 1e-6);
    assert_close(
        &format!("{what}: topk_weights"),
        &wide(&given.weights),
        &truth.weights,
        k,
        ROUTING_WEIGHTS,
    );
    check_choice(what, config, given);
}

pub(crate) fn check_choice(what: &str, config: &MoeConfig, given: &Routed) {
    let k = config.top_k;
    let own = reference::route(config, wide(&given.logits));
    assert_exact(&format!("{what}: topk_ids of the computed logits"), &given.ids, &own.ids, k);
    let weights = wide(&given.weights);
    let what = format!("{what}: topk_weights of the computed logits");
    assert_close(&what, &weights, &own.weights, k, ROUTING_WEIGHTS);
}

/// Plans `ids [T, K]` into `plan`.
pub(crate) fn run_plan<B: Backend>(
    device: &Device<B>,
    ids: &[i32],
    top_k: usize,
    map: Option<&[i32]>,
    pad: Pad,
    plan: &mut RoutingPlan<B>,
) -> reference::Plan {
    run_plan_for(device, ids, top_k, map, pad, plan, None)
}

/// The same for a number of tokens in the backend's memory.
pub(crate) fn run_plan_for<B: Backend>(
    device: &Device<B>,
    ids: &[i32],
    top_k: usize,
    map: Option<&[i32]>,
    pad: Pad,
    plan: &mut RoutingPlan<B>,
    num_tokens: Option<u32>,
) -> reference::Plan {
    let tokens = ids.len() / top_k;
    let ids = Placed::new(ids, tokens, top_k, pad);
    let ids_buffer = ids.put(device);
    let map = map.map(|map| Placed::new(map, 1, map.len(), pad));
    let map_buffer = map.as_ref().map(|map| map.put(device));
    let map = map_buffer
        .as_ref()
        .zip(map.as_ref())
        .map(|(buffer, map)| Matrix::new("expert_map", buffer, map.layout).unwrap());
    let ids = Matrix::new("topk_ids", &ids_buffer, ids.layout).unwrap();
    let count = num_tokens.map(|count| device.put(&[count]));
    let mut op = Plan::new(ids, map, plan).unwrap();
    if let Some(count) = &count {
        op = op.with_num_tokens(count).unwrap();
    }
    device.backend.plan(op, &device.stream).unwrap();
    assert_eq!((plan.num_tokens(), plan.num_assignments()), (tokens, tokens * top_k));
    device.read_plan(plan)
}

/// Every count, offset and map, exactly.
#[track_caller]
pub(crate) fn check_plan(
    what: &str,
    given: &reference::Plan,
    truth: &reference::Plan,
    top_k: usize,
) {
    for (part, given, truth, cols) in [
        ("tokens_per_expert", &given.tokens_per_expert, &truth.tokens_per_expert, 0),
        ("expert_offsets", &given.expert_offsets, &truth.expert_offsets, 0),
        ("token_of_row", &given.token_of_row, &truth.token_of_row, 0),
        ("row_of_assignment", &given.row_of_assignment, &truth.row_of_assignment, top_k),
    ] {
        assert_exact(&format!("{what}: {part}"), given, truth, cols);
    }
}

/// `rows [R, H]` in a poisoned buffer: all of it that the plan uses, and the poison after. `ids` are
/// the ids, K and E.
pub(crate) fn run_permute<B: Backend, T: Storage>(
    device: &Device<B>,
    x: &[T],
    hidden: usize,
    ids: (&[i32], usize, usize),
    pad: Pad,
) -> Vec<T> {
    let (ids, top_k, experts) = ids;
    let plan = device.plan(ids, top_k, experts);
    let x = Placed::new(x, x.len() / hidden, hidden, pad);
    let x_buffer = x.put(device);
    let rows = Placed::poison(ids.len(), hidden, pad);
    let mut rows_buffer = rows.put(device);
    let op = Permute::new(
        Matrix::new("x", &x_buffer, x.layout).unwrap(),
        &plan,
        MatrixMut::new("rows", &mut rows_buffer, rows.layout).unwrap(),
    )
    .unwrap();
    device.backend.permute(op, &device.stream).unwrap();
    rows.take("rows", device, &rows_buffer)
}

/// `[R, I]` from `[R, 2I]`, or from `[R, I]` without a gate, for a plan of `routed` rows of `rows`; the
/// others hold poison.
pub(crate) fn run_activation<B: Backend, T: Storage>(
    device: &Device<B>,
    function: ActivationFn,
    gate_up: &[T],
    columns: usize,
    rows: usize,
    pad: Pad,
) -> Vec<T> {
    let width = if function.is_gated() { 2 * columns } else { columns };
    let routed = gate_up.len() / width;
    let mut ids = vec![-1; rows];
    ids[..routed].fill(0);
    let plan = device.plan(&ids, 1, 3);
    let mut gate_up = gate_up.to_vec();
    gate_up.resize(rows * width, T::POISON);
    let gate_up = Placed::new(&gate_up, rows, width, pad);
    let gate_up_buffer = gate_up.put(device);
    let out = Placed::poison(rows, columns, pad);
    let mut out_buffer = out.put(device);
    let op = Activation::new(
        function,
        Matrix::new("gate_up", &gate_up_buffer, gate_up.layout).unwrap(),
        &plan,
        MatrixMut::new("out", &mut out_buffer, out.layout).unwrap(),
    )
    .unwrap();
    device.backend.activation(op, &device.stream).unwrap();
    let out = out.take("activation", device, &out_buffer);
    let (stored, rest) = out.split_at(routed * columns);
    assert!(
        rest.iter().all(|value| value.bits() == T::POISON.bits()),
        "rows past the last offset were written"
    );
    stored.to_vec()
}

/// A token's experts, the rows of all, and what the output held before.
#[derive(Clone, Copy)]
pub(crate) struct CombineInput<'a, T> {
    pub(crate) ids: &'a [i32],
    pub(crate) top_k: usize,
    pub(crate) experts: usize,
    pub(crate) weights: &'a [f32],
    /// `[routed, H]`.
    pub(crate) rows: &'a [T],
    pub(crate) before: &'a [T],
    pub(crate) hidden: usize,
}

pub(crate) fn run_combine<B: Backend, T: Storage>(
    device: &Device<B>,
    input: &CombineInput<'_, T>,
    write: Write,
    pad: Pad,
) -> Vec<T> {
    run_combine_for(device, input, write, pad, None)
}

/// The same for a number of tokens in the backend's memory.
pub(crate) fn run_combine_for<B: Backend, T: Storage>(
    device: &Device<B>,
    input: &CombineInput<'_, T>,
    write: Write,
    pad: Pad,
    num_tokens: Option<u32>,
) -> Vec<T> {
    let CombineInput { ids, top_k, experts, weights, rows, before, hidden } = *input;
    let plan = device.plan(ids, top_k, experts);
    let mut rows = rows.to_vec();
    // Rows past the last offset, and weights of assignments without a row, must not be read.
    rows.resize(ids.len() * hidden, T::POISON);
    let weights: Vec<f32> = ids
        .iter()
        .zip(weights)
        .map(|(&id, &weight)| if id < 0 { f32::POISON } else { weight })
        .collect();
    let tokens = ids.len() / top_k;
    let rows = Placed::new(&rows, ids.len(), hidden, pad);
    let weights = Placed::new(&weights, tokens, top_k, odd(pad));
    let out = Placed::new(before, tokens, hidden, pad);
    let (rows_buffer, weights_buffer) = (rows.put(device), weights.put(device));
    let mut out_buffer = out.put(device);
    let matrix = MatrixMut::new("output", &mut out_buffer, out.layout).unwrap();
    let output = match write {
        Write::Overwrite => Output::overwrite(matrix),
        Write::Accumulate => Output::accumulate(matrix),
    };
    let count = num_tokens.map(|count| device.put(&[count]));
    let mut op = Combine::new(
        Matrix::new("rows", &rows_buffer, rows.layout).unwrap(),
        Matrix::new("topk_weights", &weights_buffer, weights.layout).unwrap(),
        &plan,
        output,
    )
    .unwrap();
    if let Some(count) = &count {
        op = op.with_num_tokens(count).unwrap();
    }
    device.backend.combine(op, &device.stream).unwrap();
    out.take("output", device, &out_buffer)
}
