//! The truth: every stage as naive loops in f64, from its formula in `ops` and from nothing else.
//!
//! Stages that store rows take `store`, what a stored value becomes: the identity for the truth,
//! rounding to a storage type for a plain implementation of that precision.

use moe_kernels::MoeConfig;
use moe_kernels::config::{
    ActivationFn, Capacity, ExpertGroups, GroupFill, GroupScore, Renormalize, Scoring,
};

/// What a stored value becomes.
pub(crate) type Store<'a> = &'a dyn Fn(f64) -> f64;

pub(crate) fn exact(value: f64) -> f64 {
    value
}

/// `[T, E]`.
pub(crate) fn logits(x: &[f64], gate: &[f64], hidden: usize, experts: usize) -> Vec<f64> {
    assert_eq!(gate.len(), experts * hidden);
    let mut logits = Vec::new();
    for x in x.chunks(hidden) {
        for gate in gate.chunks(hidden) {
            logits.push(dot(x, gate));
        }
    }
    logits
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The `top_k` greatest of one token's logits: round after round the best that is left.
pub(crate) fn select(logits: &[f64], top_k: usize) -> Vec<i32> {
    let mut left: Vec<usize> = (0..logits.len()).collect();
    let mut chosen = Vec::new();
    for _ in 0..top_k {
        let mut best = 0;
        for candidate in 1..left.len() {
            let (new, old) = (logits[left[candidate]], logits[left[best]]);
            // Only something greater replaces a lower id, and any number replaces NaN.
            if new > old || (old.is_nan() && !new.is_nan()) {
                best = candidate;
            }
        }
        chosen.push(left.remove(best) as i32);
    }
    chosen
}

/// What a router has besides its matrix, and what its tokens bring.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts {
    pub(crate) bias: Option<Vec<f64>>,
    pub(crate) selection_bias: Option<Vec<f64>>,
    pub(crate) expert_scale: Option<Vec<f64>>,
    pub(crate) input_scale: Option<Vec<f64>>,
    pub(crate) hash_table: Option<Vec<i32>>,
    pub(crate) token_ids: Option<Vec<u32>>,
    pub(crate) sequence_offsets: Option<Vec<u32>>,
}

/// `[T, E]`, of a router with a norm or a bias.
pub(crate) fn router_logits(
    config: &MoeConfig,
    parts: &Parts,
    x: &[f64],
    gate: &[f64],
) -> Vec<f64> {
    let (hidden, experts) = (config.hidden_size, config.router_experts());
    let mut seen = Vec::new();
    for x in x.chunks(hidden) {
        let Some(epsilon) = config.router.norm_eps else {
            seen.extend(x);
            continue;
        };
        let square = dot(x, x) / hidden as f64;
        for (x, scale) in x.iter().zip(parts.input_scale.as_ref().unwrap()) {
            seen.push(x / (square + f64::from(epsilon)).sqrt() * scale);
        }
    }
    let mut logits = logits(&seen, gate, hidden, experts);
    if let Some(bias) = &parts.bias {
        for logits in logits.chunks_mut(experts) {
            logits.iter_mut().zip(bias).for_each(|(logit, bias)| *logit += bias);
        }
    }
    logits
}

/// One token's logits as scores see them.
pub(crate) fn capped(config: &MoeConfig, logits: &[f64]) -> Vec<f64> {
    match config.router.softcap.map(f64::from) {
        None => logits.to_vec(),
        Some(cap) => logits.iter().map(|logit| cap * (logit / cap).tanh()).collect(),
    }
}

/// One token's scores.
pub(crate) fn scores(config: &MoeConfig, logits: &[f64]) -> Vec<f64> {
    let logits = capped(config, logits);
    match config.router.scoring {
        Scoring::Softmax => {
            let mut greatest = f64::NEG_INFINITY;
            for &logit in &logits {
                if logit > greatest {
                    greatest = logit;
                }
            }
            let exps: Vec<f64> = logits.iter().map(|logit| (logit - greatest).exp()).collect();
            let sum: f64 = exps.iter().sum();
            exps.iter().map(|exp| exp / sum).collect()
        }
        Scoring::Sigmoid => logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect(),
        Scoring::SqrtSoftplus => logits
            .iter()
            .map(|&logit| if logit > 30.0 { logit } else { logit.exp().ln_1p() }.sqrt())
            .collect(),
        ref other => panic!("the oracle has no scores of {other:?}"),
    }
}

/// What each group of one token's values is ranked by.
pub(crate) fn group_scores(groups: ExpertGroups, values: &[f64]) -> Vec<f64> {
    let mut scores = Vec::new();
    for group in values.chunks(values.len() / groups.count) {
        let best = select(group, group.len().min(2));
        scores.push(match groups.score {
            GroupScore::Max => group[best[0] as usize],
            GroupScore::Top2Sum => group[best[0] as usize] + group[best[1] as usize],
        });
    }
    scores
}

/// What one token's experts are chosen by, before groups fall away.
pub(crate) fn choice_values(config: &MoeConfig, parts: &Parts, logits: &[f64]) -> Vec<f64> {
    if parts.selection_bias.is_none() && config.router.groups.is_none() {
        return capped(config, logits);
    }
    let mut values = scores(config, logits);
    if let Some(bias) = &parts.selection_bias {
        values.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
    }
    values
}

/// The same, with what the experts of other groups have.
pub(crate) fn within_groups(config: &MoeConfig, mut values: Vec<f64>) -> Vec<f64> {
    if let Some(groups) = config.router.groups {
        let kept = select(&group_scores(groups, &values), groups.kept);
        let size = values.len() / groups.count;
        for (expert, value) in values.iter_mut().enumerate() {
            if !kept.contains(&((expert / size) as i32)) {
                *value = match groups.fill {
                    GroupFill::Zero => 0.0,
                    GroupFill::NegativeInfinity => f64::NEG_INFINITY,
                };
            }
        }
    }
    values
}

/// Which logits take part in a softmax around `max`.
pub(crate) fn far_by(max: f64, logit: f64) -> f64 {
    (max - logit) / if logit.abs() > max { logit.abs() } else { max }
}

/// The two experts of one token by sparsemixer, and their weights.
fn sparse_mixer(jitter: f64, logits: &[f64]) -> (Vec<i32>, Vec<f64>) {
    let ids = select(logits, 2);
    let mut weights = Vec::new();
    for k in 0..2 {
        let max = logits[ids[k] as usize];
        let mut sum = 0.0;
        for (expert, &logit) in logits.iter().enumerate() {
            let is_out = k == 1 && expert == ids[0] as usize;
            let is_far = far_by(max, logit) > 2.0 * jitter;
            if !is_out && !is_far {
                sum += (logit - max).exp();
            }
        }
        weights.push(1.0 / sum);
    }
    (ids, weights)
}

/// The weights of one token's chosen experts.
pub(crate) fn weights(config: &MoeConfig, logits: &[f64], ids: &[i32]) -> Vec<f64> {
    let scores = scores(config, logits);
    let chosen = ids.iter().map(|&id| if id < 0 { 0.0 } else { scores[id as usize] }).collect();
    renormalized(config, chosen)
}

fn renormalized(config: &MoeConfig, chosen: Vec<f64>) -> Vec<f64> {
    let sum: f64 = chosen.iter().sum();
    let divisor = match config.router.renormalize {
        Renormalize::None => return chosen,
        Renormalize::Sum { epsilon } => sum + f64::from(epsilon),
        Renormalize::ClampMin { least } if sum < f64::from(least) => least.into(),
        Renormalize::ClampMin { .. } => sum,
        Renormalize::PNorm { p } => {
            let p = f64::from(p);
            chosen.iter().map(|score| score.abs().powf(p)).sum::<f64>().powf(1.0 / p)
        }
        ref other => panic!("the oracle does not know {other:?}"),
    };
    chosen.iter().map(|score| score / divisor).collect()
}

/// What a router computes.
#[derive(Clone, Debug)]
pub(crate) struct Routing {
    pub(crate) logits: Vec<f64>,
    pub(crate) ids: Vec<i32>,
    pub(crate) weights: Vec<f64>,
}

/// Ids and weights from logits.
pub(crate) fn route(config: &MoeConfig, logits: Vec<f64>) -> Routing {
    route_with(config, &Parts::default(), logits)
}

/// The same by a router with more than a matrix.
pub(crate) fn route_with(config: &MoeConfig, parts: &Parts, logits: Vec<f64>) -> Routing {
    let (experts, top_k) = (config.router_experts(), config.top_k);
    let tokens = logits.len() / experts;
    let mut ids = Vec::new();
    let mut weights = Vec::new();
    for (token, logits) in logits.chunks(experts).enumerate() {
        if let Scoring::SparseMixer { jitter } = config.router.scoring {
            let (chosen, of_them) = sparse_mixer(jitter.into(), &capped(config, logits));
            ids.extend(chosen);
            weights.extend(of_them);
            continue;
        }
        let chosen: Vec<i32> = match &parts.hash_table {
            None => select(&within_groups(config, choice_values(config, parts, logits)), top_k),
            Some(table) => {
                let id = parts.token_ids.as_ref().unwrap()[token] as usize;
                let row = table.chunks(top_k).nth(id).map_or(vec![-1; top_k], <[i32]>::to_vec);
                let is_expert = |id| (0..experts as i32).contains(&id);
                row.into_iter().map(|id| if is_expert(id) { id } else { -1 }).collect()
            }
        };
        let scores = scores(config, logits);
        weights.extend(chosen.iter().map(|&id| if id < 0 { 0.0 } else { scores[id as usize] }));
        ids.extend(chosen);
    }

    let sequences = match (config.router.capacity, &parts.sequence_offsets) {
        (Capacity::Sequence { .. }, Some(offsets)) => offsets.clone(),
        _ => vec![0, tokens as u32],
    };
    let most = match config.router.capacity {
        Capacity::Unlimited => usize::MAX,
        Capacity::Sequence { tokens } => tokens,
        // Fractions of tests are multiples of 1/64.
        Capacity::Batch { fraction } => (f64::from(fraction) * tokens as f64).ceil() as usize,
        ref other => panic!("the oracle does not know {other:?}"),
    };
    for bounds in sequences.windows(2) {
        let own = (bounds[0] as usize).min(tokens)..(bounds[1] as usize).min(tokens);
        for expert in 0..experts as i32 {
            // In the order of choices, then of tokens.
            let places = (0..top_k).flat_map(|k| own.clone().map(move |token| token * top_k + k));
            let sent: Vec<usize> = places.filter(|&place| ids[place] == expert).collect();
            for &place in sent.iter().skip(most) {
                (ids[place], weights[place]) = (-1, 0.0);
            }
        }
    }

    let mut finished = Vec::new();
    for (ids, weights) in ids.chunks(top_k).zip(weights.chunks(top_k)) {
        for (&id, weight) in ids.iter().zip(renormalized(config, weights.to_vec())) {
            let scale = parts.expert_scale.as_ref().filter(|_| id >= 0);
            let scale = scale.map_or(1.0, |scale| scale[id as usize]);
            let weight = weight * f64::from(config.router.scale) * scale;
            finished.push(if id < 0 { 0.0 } else { weight });
        }
    }
    Routing { logits, ids, weights: finished }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) tokens_per_expert: Vec<u32>,
    pub(crate) expert_offsets: Vec<u32>,
    pub(crate) token_of_row: Vec<u32>,
    pub(crate) row_of_assignment: Vec<u32>,
}

/// Expert after expert, the assignments that are its own.
pub(crate) fn plan(ids: &[i32], top_k: usize, experts: usize, map: Option<&[i32]>) -> Plan {
    let local: Vec<i64> = ids
        .iter()
        .map(|&id| match map {
            None => i64::from(id),
            Some(map) if id >= 0 && (id as usize) < map.len() => i64::from(map[id as usize]),
            Some(_) => -1,
        })
        .collect();
    let mut plan = Plan {
        tokens_per_expert: vec![0; experts],
        expert_offsets: vec![0],
        token_of_row: Vec::new(),
        row_of_assignment: vec![u32::MAX; ids.len()],
    };
    for expert in 0..experts {
        for (assignment, &local) in local.iter().enumerate() {
            if local == expert as i64 {
                plan.tokens_per_expert[expert] += 1;
                plan.row_of_assignment[assignment] = plan.token_of_row.len() as u32;
                plan.token_of_row.push((assignment / top_k) as u32);
            }
        }
        plan.expert_offsets.push(plan.token_of_row.len() as u32);
    }
    plan
}

/// `[rows, H]` in expert order: the rows that the plan uses, and no more.
pub(crate) fn permute<T: Copy>(x: &[T], plan: &Plan, hidden: usize) -> Vec<T> {
    let mut rows = Vec::new();
    for &token in &plan.token_of_row {
        rows.extend_from_slice(&x[token as usize * hidden..][..hidden]);
    }
    rows
}

/// `rows [rows, depth]` times each expert's `[columns, depth]`.
pub(crate) fn grouped_gemm(
    rows: &[f64],
    plan: &Plan,
    weights: &[f64],
    depth: usize,
    columns: usize,
    store: Store<'_>,
) -> Vec<f64> {
    let mut out = Vec::new();
    for expert in 0..plan.tokens_per_expert.len() {
        let matrix = &weights[expert * columns * depth..][..columns * depth];
        for row in plan.expert_offsets[expert]..plan.expert_offsets[expert + 1] {
            let x = &rows[row as usize * depth..][..depth];
            for column in matrix.chunks(depth) {
                out.push(store(dot(x, column)));
            }
        }
    }
    out
}

/// Each row's sums times its weight, plus its expert's biases `[E, columns]`.
pub(crate) fn adjust(
    sums: &[f64],
    plan: &Plan,
    columns: usize,
    row_weights: Option<&[f64]>,
    biases: Option<&[f64]>,
) -> Vec<f64> {
    let mut out = Vec::new();
    for expert in 0..plan.tokens_per_expert.len() {
        for row in plan.expert_offsets[expert] as usize..plan.expert_offsets[expert + 1] as usize {
            for column in 0..columns {
                let weight = row_weights.map_or(1.0, |weights| weights[row]);
                let bias = biases.map_or(0.0, |biases| biases[expert * columns + column]);
                out.push(sums[row * columns + column] * weight + bias);
            }
        }
    }
    out
}

/// Of products with the gate and the up projection; without a gate of the only product, and `up` is
/// empty.
pub(crate) fn activation(
    function: ActivationFn,
    gate: &[f64],
    up: &[f64],
    store: Store<'_>,
) -> Vec<f64> {
    if !function.is_gated() {
        assert!(up.is_empty());
        return gate.iter().map(|&u| store(activated(function, u, f64::NAN))).collect();
    }
    assert_eq!(gate.len(), up.len());
    gate.iter().zip(up).map(|(&g, &u)| store(activated(function, g, u))).collect()
}

fn activated(function: ActivationFn, g: f64, u: f64) -> f64 {
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let relu = |x: f64| if x < 0.0 { 0.0 } else { x };
    // A NaN is neither below nor above.
    let least = |x: f64, limit: f32| if x > limit.into() { limit.into() } else { x };
    let within = |x: f64, limit: f32| {
        let x = least(x, limit);
        if x < f64::from(-limit) { f64::from(-limit) } else { x }
    };
    let gelu_tanh = |x: f64| {
        let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        x / 2.0 * (1.0 + inner.tanh())
    };
    let gelu_erf = |x: f64| x / 2.0 * (1.0 + erf(x / 2f64.sqrt()));
    match function {
        ActivationFn::SwiGlu => silu(g) * u,
        ActivationFn::GeGluTanh => gelu_tanh(g) * u,
        ActivationFn::GeGluErf => gelu_erf(g) * u,
        ActivationFn::ReGlu => relu(g) * u,
        ActivationFn::SwiGluClamped { limit } => silu(least(g, limit)) * within(u, limit),
        ActivationFn::SwiGluThenClamp { limit } => least(silu(g), limit) * within(u, limit),
        ActivationFn::SwiGluOai { alpha, limit } => {
            let g = least(g, limit);
            g / (1.0 + (-f64::from(alpha) * g).exp()) * (within(u, limit) + 1.0)
        }
        ActivationFn::Relu => relu(g),
        ActivationFn::Relu2 => relu(g).powi(2),
        ActivationFn::Silu => silu(g),
        ActivationFn::GeluTanh => gelu_tanh(g),
        ActivationFn::GeluErf => gelu_erf(g),
        ref other => panic!("the oracle does not know {other:?}"),
    }
}

/// By the series of positive terms `2/sqrt(pi) exp(-x^2) sum 2^n x^(2n+1) / (1 * 3 * ... * (2n+1))`.
pub(crate) fn erf(x: f64) -> f64 {
    if x.is_nan() || x.abs() > 6.0 {
        return if x.is_nan() { x } else { x.signum() };
    }
    let (mut term, mut sum) = (x, 0.0);
    for n in 1..200 {
        sum += term;
        term *= 2.0 * x * x / f64::from(2 * n + 1);
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}

/// What an output has besides its experts' rows.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// A factor on the experts' rows.
    pub(crate) scale: f64,
    /// Experts whose output is their input: that `[T, H]`, the ids `[T, K]`, and which of them.
    pub(crate) zero: Option<(Vec<f64>, Vec<i32>, std::ops::Range<i32>)>,
    /// `[T, H]`, and a factor for each token.
    pub(crate) shared: Option<(Vec<f64>, Vec<f64>)>,
    /// `[H]`.
    pub(crate) bias: Option<Vec<f64>>,
}

impl Default for Terms {
    fn default() -> Self {
        Self { scale: 1.0, zero: None, shared: None, bias: None }
    }
}

/// `[T, H]`: `before` plus, or nothing plus, each token's weighted rows.
pub(crate) fn combine(
    rows: &[f64],
    weights: &[f64],
    plan: &Plan,
    hidden: usize,
    top_k: usize,
    before: Option<&[f64]>,
    store: Store<'_>,
) -> Vec<f64> {
    combine_with(&Terms::default(), rows, weights, plan, [hidden, top_k], before, store)
}

/// The same with further terms.
pub(crate) fn combine_with(
    terms: &Terms,
    rows: &[f64],
    weights: &[f64],
    plan: &Plan,
    [hidden, top_k]: [usize; 2],
    before: Option<&[f64]>,
    store: Store<'_>,
) -> Vec<f64> {
    let tokens = plan.row_of_assignment.len() / top_k;
    let mut out = Vec::new();
    for token in 0..tokens {
        for h in 0..hidden {
            let mut sum = before.map_or(0.0, |before| before[token * hidden + h]);
            for assignment in token * top_k..(token + 1) * top_k {
                let row = plan.row_of_assignment[assignment];
                if row != u32::MAX {
                    let value = rows[row as usize * hidden + h];
                    sum += terms.scale * weights[assignment] * value;
                } else if let Some((x, ids, zero)) = &terms.zero
                    && zero.contains(&ids[assignment])
                {
                    sum += terms.scale * weights[assignment] * x[token * hidden + h];
                }
            }
            if let Some((rows, factors)) = &terms.shared {
                sum += factors[token] * rows[token * hidden + h];
            }
            if let Some(bias) = &terms.bias {
                sum += bias[h];
            }
            out.push(store(sum));
        }
    }
    out
}

/// The experts' weights: gate and up `[E, I, H]`, down `[E, H, I]`.
#[derive(Clone, Debug)]
pub(crate) struct Experts {
    pub(crate) gate: Vec<f64>,
    pub(crate) up: Vec<f64>,
    pub(crate) down: Vec<f64>,
}

/// From tokens and their routing to the output.
pub(crate) fn layer(
    config: &MoeConfig,
    x: &[f64],
    routing: (&[i32], &[f64]),
    experts: &Experts,
    before: Option<&[f64]>,
    store: Store<'_>,
) -> Vec<f64> {
    let (ids, weights) = routing;
    let (h, i, k) = (config.hidden_size, config.intermediate_size, config.top_k);
    let plan = plan(ids, k, config.num_experts, None);
    let rows = permute(x, &plan, h);
    let gate = grouped_gemm(&rows, &plan, &experts.gate, h, i, &exact);
    let up = grouped_gemm(&rows, &plan, &experts.up, h, i, &exact);
    let activated = activation(config.experts.activation, &gate, &up, store);
    let rows = grouped_gemm(&activated, &plan, &experts.down, i, h, store);
    combine(&rows, weights, &plan, h, k, before, store)
}
