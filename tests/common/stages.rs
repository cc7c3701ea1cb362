//! A backend's stages on test data: operands amid poison, results read back.

use moe_kernels::backend::Backend;
use moe_kernels::config::{ActivationFn, MoeConfig};
use moe_kernels::memory::{Matrix, MatrixMut};
use moe_kernels::ops::{Activation, Permute, Plan, Router, RouterOutput, RoutingPlan};
use moe_kernels::weights::RouterWeights;

use super::{
    Bits, Device, LOOSE, Pad, Placed, Rng, Storage, TIGHT, assert_close, assert_exact,
    assert_within, bits, reference, round, wide,
};

/// For operands that need no alignment.
pub(crate) const ODD: Pad = Pad { offset: 3, gap: 5, tail: 1 };

/// `pad` where there is one at all, but of no alignment.
pub(crate) fn odd(pad: Pad) -> Pad {
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
    let weights = match gate.1 {
        Gate::F32(gate) => RouterWeights::f32(gate),
        Gate::Model => RouterWeights::model(gate.0.to_vec()),
    };
    run_router_with(device, config, x, weights, (None, None), pad, num_tokens)
}

/// The same with all parts of a router, and with `token_ids` and `sequence_offsets`.
pub(crate) fn run_router_with<B: Backend, T: Storage>(
    device: &Device<B>,
    config: &MoeConfig,
    x: &[T],
    weights: RouterWeights<T>,
    (token_ids, sequence_offsets): (Option<&[u32]>, Option<&[u32]>),
    pad: Pad,
    num_tokens: Option<u32>,
) -> Routed {
    let MoeConfig { hidden_size: h, top_k: k, .. } = *config;
    let (tokens, e) = (x.len() / h, config.router_experts());
    let x = Placed::new(x, tokens, h, pad);
    let x_buffer = x.put(device);
    let logits = Placed::poison(tokens, e, odd(pad));
    let ids = Placed::poison(tokens, k, odd(pad));
    let out = Placed::poison(tokens, k, odd(pad));
    let mut logits_buffer = logits.put(device);
    let mut ids_buffer = ids.put(device);
    let mut out_buffer = out.put(device);
    let output = RouterOutput {
        router_logits: MatrixMut::new("logits", &mut logits_buffer, logits.layout).unwrap(),
        topk_ids: MatrixMut::new("ids", &mut ids_buffer, ids.layout).unwrap(),
        topk_weights: MatrixMut::new("weights", &mut out_buffer, out.layout).unwrap(),
    };
    let gate = device.backend.prepare_gate([e, h], weights, &device.stream).unwrap();
    let x = Matrix::new("x", &x_buffer, x.layout).unwrap();
    let count = num_tokens.map(|count| device.put(&[count]));
    let token_ids = token_ids.map(|ids| device.put(ids));
    let offsets = sequence_offsets.map(|offsets| device.put(offsets));
    let mut op = Router::new(config, x, &gate, output).unwrap();
    if let Some(count) = &count {
        op = op.with_num_tokens(count).unwrap();
    }
    if let Some(ids) = &token_ids {
        op = op.with_token_ids(ids).unwrap();
    }
    if let Some(offsets) = &offsets {
        op = op.with_sequence_offsets(offsets).unwrap();
    }
    device.backend.router(op, &device.stream).unwrap();
    Routed {
        logits: logits.take("router_logits", device, &logits_buffer),
        ids: ids.take("topk_ids", device, &ids_buffer),
        weights: out.take("topk_weights", device, &out_buffer),
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
    check_router_with(what, config, &reference::Parts::default(), given, truth);
}

pub(crate) fn check_router_with(
    what: &str,
    config: &MoeConfig,
    parts: &reference::Parts,
    given: &Routed,
    truth: &reference::Routing,
) {
    let (e, k) = (config.router_experts(), config.top_k);
    assert_exact(&format!("{what}: topk_ids"), &given.ids, &truth.ids, k);
    assert_close(&format!("{what}: router_logits"), &wide(&given.logits), &truth.logits, e, 1e-6);
    assert_close(
        &format!("{what}: topk_weights"),
        &wide(&given.weights),
        &truth.weights,
        k,
        ROUTING_WEIGHTS,
    );
    check_choice_with(what, config, parts, given);
}

pub(crate) fn check_choice(what: &str, config: &MoeConfig, given: &Routed) {
    check_choice_with(what, config, &reference::Parts::default(), given);
}

pub(crate) fn check_choice_with(
    what: &str,
    config: &MoeConfig,
    parts: &reference::Parts,
    given: &Routed,
) {
    let k = config.top_k;
    let own = reference::route_with(config, parts, wide(&given.logits));
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

/// Plans `ids [T, K]` and brings `weights [T, K]` into the order of rows, which lie amid poison: all of
/// the buffer's elements.
pub(crate) fn run_plan_weights<B: Backend>(
    device: &Device<B>,
    (ids, weights): (&[i32], &[f32]),
    top_k: usize,
    pad: Pad,
    plan: &mut RoutingPlan<B>,
    num_tokens: Option<u32>,
) -> (reference::Plan, Vec<f32>) {
    let tokens = ids.len() / top_k;
    let (ids, weights) =
        (Placed::new(ids, tokens, top_k, pad), Placed::new(weights, tokens, top_k, pad));
    let (ids_buffer, weights_buffer) = (ids.put(device), weights.put(device));
    let mut row_weights = device.put(&vec![f32::POISON; tokens * top_k + 3]);
    let count = num_tokens.map(|count| device.put(&[count]));
    let ids = Matrix::new("topk_ids", &ids_buffer, ids.layout).unwrap();
    let weights = Matrix::new("topk_weights", &weights_buffer, weights.layout).unwrap();
    let op = Plan::new(ids, None, plan).unwrap();
    let mut op = op.with_row_weights(weights, &mut row_weights).unwrap();
    if let Some(count) = &count {
        op = op.with_num_tokens(count).unwrap();
    }
    device.backend.plan(op, &device.stream).unwrap();
    (device.read_plan(plan), device.get(&row_weights))
}

/// Weights go where the rows of their assignments are, and nowhere else.
pub(crate) fn check_row_weights<B: Backend>(device: &Device<B>) {
    let mut rng = Rng::new(31);
    for (tokens, e, k) in [(1, 1, 1), (33, 5, 3), (130, 40, 8), (1500, 72, 7)] {
        let mut ids = rng.ids(tokens, e, k);
        ids.iter_mut().filter(|_| rng.below(3) == 0).for_each(|id| *id = -1);
        for count in [None, Some(0), Some(tokens as u32 / 2)] {
            let live = count.map_or(tokens, |count| count as usize) * k;
            let mut weights: Vec<f32> = rng.full(ids.len(), 1.0);
            let mut expected = vec![f32::POISON; ids.len() + 3];
            let truth = reference::plan(&ids[..live], k, e, None);
            for (weight, &row) in weights.iter().zip(&truth.row_of_assignment) {
                if row != u32::MAX {
                    expected[row as usize] = *weight;
                }
            }
            weights[live..].fill(f32::POISON);
            let mut plan = RoutingPlan::new(&device.backend, e, ids.len()).unwrap();
            let (given, row_weights) =
                run_plan_weights(device, (&ids, &weights), k, ODD, &mut plan, count);
            assert_eq!(given.row_of_assignment[..live], truth.row_of_assignment);
            let what = format!("row weights, {count:?} of {tokens}");
            assert_exact(&what, &bits(&row_weights), &bits(&expected), k);
        }
    }
}

/// Without ids, every token's only row is its own, of expert 0.
pub(crate) fn check_dense_plan<B: Backend>(device: &Device<B>) {
    for (tokens, e) in [(0, 1), (1, 1), (70, 3), (8193, 1)] {
        for count in [None, Some(0), Some(tokens as u32 / 2)] {
            let mut plan = RoutingPlan::new(&device.backend, e, tokens + 5).unwrap();
            let number = count.map(|count| device.put(&[count]));
            let mut op = Plan::dense(tokens, &mut plan).unwrap();
            if let Some(number) = &number {
                op = op.with_num_tokens(number).unwrap();
            }
            device.backend.plan(op, &device.stream).unwrap();
            assert_eq!((plan.num_tokens(), plan.num_assignments()), (tokens, tokens));
            let live = count.map_or(tokens, |count| count as usize);
            let mut truth = reference::plan(&vec![0; live], 1, e, None);
            truth.row_of_assignment.resize(tokens, u32::MAX);
            let what = format!("{count:?} of {tokens} tokens");
            check_plan(&what, &device.read_plan(&plan), &truth, 1);
        }
    }
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
