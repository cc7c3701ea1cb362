//! Router: the gate GEMM in f32, then each token's scores and choice.

use rayon::prelude::*;

use crate::config::{
    Capacity, ExpertGroups, GroupFill, GroupScore, MAX_GROUPS, MAX_TOP_K, MoeConfig, Renormalize,
    RouterConfig, Scoring, Selection,
};
use crate::element::Float;
use crate::error::Result;
use crate::memory::Matrix;
use crate::ops::{Gate, GateParts, Router, RouterOutput};
use crate::weights::{RouterMatrix, RouterWeights};

use super::gemm::{PackedMatrix, PackedRows, multiply};
use super::{Cpu, CpuBuffer, row, rows_mut, token_count};

/// Tokens of one task: enough to use the packed gate well, few enough to share out.
const TOKENS_PER_TASK: usize = 32;

/// A router's weights, the matrix repacked once for the micro-kernel.
#[derive(Debug)]
pub struct PackedGate<T> {
    shape: [usize; 2],
    parts: GateParts,
    matrix: PackedRouter<T>,
    bias: Vec<f32>,
    selection_bias: Vec<f32>,
    expert_scale: Vec<f32>,
    hash_table: Vec<i32>,
}

#[derive(Debug)]
enum PackedRouter<T> {
    F32(PackedMatrix<f32>),
    Model(PackedMatrix<T>),
}

impl<T: Float> PackedGate<T> {
    pub(super) fn pack(shape: [usize; 2], weights: RouterWeights<T>) -> Result<Self> {
        let parts = weights.parts();
        let RouterWeights { matrix, bias, selection_bias, expert_scale, hash_table, .. } =
            weights.folded(shape)?;
        Ok(Self {
            shape,
            parts,
            matrix: match matrix {
                RouterMatrix::F32(matrix) => PackedRouter::F32(pack(shape, &matrix)?),
                RouterMatrix::Model(matrix) => PackedRouter::Model(pack(shape, &matrix)?),
            },
            bias: bias.unwrap_or_default(),
            selection_bias: selection_bias.unwrap_or_default(),
            expert_scale: expert_scale.unwrap_or_default(),
            hash_table: hash_table.unwrap_or_default(),
        })
    }
}

fn pack<T: Float>([n, k]: [usize; 2], elements: &[T]) -> Result<PackedMatrix<T>> {
    PackedMatrix::pack(n, k, |expert| &elements[expert * k..][..k])
}

impl<T: Float> Gate for PackedGate<T> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn parts(&self) -> GateParts {
        self.parts
    }

    fn bytes(&self) -> usize {
        let matrix = match &self.matrix {
            PackedRouter::F32(matrix) => matrix.bytes(),
            PackedRouter::Model(matrix) => matrix.bytes(),
        };
        let vectors = [&self.bias, &self.selection_bias, &self.expert_scale];
        let vectors: usize = vectors.into_iter().map(Vec::len).sum();
        matrix + 4 * (vectors + self.hash_table.len())
    }
}

pub(super) fn run<T: Float>(op: Router<'_, Cpu, T, PackedGate<T>>) -> Result<()> {
    let Router { config, hidden_states, gate, output, num_tokens, token_ids, sequence_offsets } =
        op.begin()?;
    let tokens = token_count(hidden_states.layout().rows, num_tokens);
    let RouterOutput { router_logits, topk_ids, topk_weights } = output;
    let mut logits = rows_mut(router_logits);
    logits.truncate(tokens);
    let mut ids = rows_mut(topk_ids);
    let mut weights = rows_mut(topk_weights);
    ids.truncate(tokens);
    weights.truncate(tokens);

    let rules = &config.router;
    let limited = rules.capacity != Capacity::Unlimited;
    logits
        .par_chunks_mut(TOKENS_PER_TASK)
        .zip(ids.par_chunks_mut(TOKENS_PER_TASK))
        .zip(weights.par_chunks_mut(TOKENS_PER_TASK))
        .enumerate()
        .for_each(|(task, ((logits, ids), weights))| {
            let first_token = task * TOKENS_PER_TASK;
            compute_logits(config, hidden_states, first_token, gate, logits);
            let tokens = first_token..;
            for (((token, logits), ids), weights) in tokens.zip(logits).zip(ids).zip(weights) {
                route(rules, gate, logits, token_ids.map(|ids| ids[token]), ids, weights);
                if !limited {
                    finish(rules, &gate.expert_scale, ids, weights);
                }
            }
        });
    if limited {
        drop_past_capacity(config, &mut ids, &mut weights, sequence_offsets);
        ids.par_iter()
            .zip(weights.par_iter_mut())
            .for_each(|(ids, weights)| finish(rules, &gate.expert_scale, ids, weights));
    }
    Ok(())
}

fn compute_logits<T: Float>(
    config: &MoeConfig,
    hidden_states: Matrix<'_, Cpu, T>,
    first_token: usize,
    gate: &PackedGate<T>,
    logits: &mut [&mut [f32]],
) {
    let [num_experts, hidden_size] = gate.shape;
    let mut x = PackedRows::default();
    let tokens = first_token..first_token + logits.len();
    x.pack(hidden_size, tokens.map(|token| row(hidden_states, token)));
    let mut sums = vec![0.0; logits.len() * num_experts];
    match &gate.matrix {
        PackedRouter::F32(weight) => multiply(&x, weight, 0..num_experts, &mut sums),
        PackedRouter::Model(weight) => multiply(&x, weight, 0..num_experts, &mut sums),
    }
    let rows = logits.iter_mut().zip(sums.chunks_exact(num_experts)).enumerate();
    for (index, (logits, sums)) in rows {
        logits.copy_from_slice(sums);
        if let Some(epsilon) = config.router.norm_eps {
            let token = row(hidden_states, first_token + index);
            let squares = token.iter().map(|&x| x.to_f32() * x.to_f32()).sum::<f32>();
            let norm = (squares / hidden_size as f32 + epsilon).sqrt();
            logits.iter_mut().for_each(|logit| *logit /= norm);
        }
        for (logit, bias) in logits.iter_mut().zip(&gate.bias) {
            *logit += bias;
        }
    }
}

/// One token's ids, and the scores of them as weights.
fn route<T>(
    rules: &RouterConfig,
    gate: &PackedGate<T>,
    logits: &[f32],
    token_id: Option<u32>,
    ids: &mut [i32],
    weights: &mut [f32],
) {
    let capped: Vec<f32>;
    let logits = match rules.softcap {
        None => logits,
        Some(cap) => {
            capped = logits.iter().map(|logit| cap * (logit / cap).tanh()).collect();
            &capped
        }
    };
    if let Scoring::SparseMixer { jitter } = rules.scoring {
        return sparse_mixer(jitter, logits, ids, weights);
    }
    let score = Score::new(rules.scoring, logits);
    if let Selection::HashTable { .. } = rules.selection {
        let row = token_id.map_or(usize::MAX, |id| id as usize).saturating_mul(ids.len());
        match gate.hash_table.get(row..row.saturating_add(ids.len())) {
            Some(table) => ids.copy_from_slice(table),
            None => ids.fill(-1),
        }
    } else if gate.selection_bias.is_empty() && rules.groups.is_none() {
        choose(logits, ids);
    } else {
        let mut scores: Vec<f32> = logits.iter().map(|&logit| score.of(logit)).collect();
        for (score, bias) in scores.iter_mut().zip(&gate.selection_bias) {
            *score += bias;
        }
        if let Some(groups) = rules.groups {
            leave_groups(groups, &mut scores);
        }
        choose(&scores, ids);
    }
    for (id, weight) in ids.iter_mut().zip(weights) {
        match usize::try_from(*id).ok().and_then(|id| logits.get(id)) {
            Some(&logit) => *weight = score.of(logit),
            None => (*id, *weight) = (-1, 0.0),
        }
    }
}

/// From a logit to a score, with what all of a token's logits have in common.
struct Score {
    scoring: Scoring,
    max: f32,
    sum: f32,
}

impl Score {
    fn new(scoring: Scoring, logits: &[f32]) -> Self {
        if scoring != Scoring::Softmax {
            return Self { scoring, max: 0.0, sum: 1.0 };
        }
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // In f64: a thousand terms added one by one in f32 would lose three of its bits.
        let sum: f64 = logits.iter().map(|logit| f64::from((logit - max).exp())).sum();
        Self { scoring, max, sum: sum as f32 }
    }

    fn of(&self, logit: f32) -> f32 {
        match self.scoring {
            Scoring::Softmax | Scoring::SparseMixer { .. } => (logit - self.max).exp() / self.sum,
            Scoring::Sigmoid => sigmoid(logit),
            // log(1 + exp(x)), without an exp that overflows.
            Scoring::SqrtSoftplus => (logit.max(0.0) + (-logit.abs()).exp().ln_1p()).sqrt(),
        }
    }
}

/// Two choices among the logits that are close to the best: see [`Scoring::SparseMixer`].
fn sparse_mixer(jitter: f32, logits: &[f32], ids: &mut [i32], weights: &mut [f32]) {
    choose(logits, ids);
    let first = ids[0] as usize;
    for (k, (&id, weight)) in ids.iter().zip(weights).enumerate() {
        let max = logits[id as usize];
        // What cannot be compared is not far: a NaN shows.
        let is_far = |logit: f32| (max - logit) / logit.abs().max(max) > 2.0 * jitter;
        let left = logits.iter().enumerate().filter(|&(expert, _)| k == 0 || expert != first);
        let close = left.filter(|&(_, &logit)| !is_far(logit));
        let sum: f32 = close.map(|(_, logit)| (logit - max).exp()).sum();
        *weight = 1.0 / sum;
    }
}

/// Gives the experts outside the best groups the score that they have there.
fn leave_groups(groups: ExpertGroups, scores: &mut [f32]) {
    let ExpertGroups { count, kept, score, fill } = groups;
    let size = scores.len() / count;
    let mut group_scores = [0.0; MAX_GROUPS];
    for (group_score, group) in group_scores.iter_mut().zip(scores.chunks_exact(size)) {
        let mut best = [0, 0];
        choose(group, &mut best[..size.min(2)]);
        *group_score = match score {
            GroupScore::Max => group[best[0] as usize],
            GroupScore::Top2Sum => group[best[0] as usize] + group[best[1] as usize],
        };
    }
    let mut best = [0; MAX_GROUPS];
    choose(&group_scores[..count], &mut best[..kept]);
    let fill = match fill {
        GroupFill::Zero => 0.0,
        GroupFill::NegativeInfinity => f32::NEG_INFINITY,
    };
    for (group, scores) in scores.chunks_exact_mut(size).enumerate() {
        if !best[..kept].contains(&(group as i32)) {
            scores.fill(fill);
        }
    }
}

/// Takes the tokens that come too late from the experts that are full.
fn drop_past_capacity(
    config: &MoeConfig,
    ids: &mut [&mut [i32]],
    weights: &mut [&mut [f32]],
    sequence_offsets: Option<&CpuBuffer<u32>>,
) {
    let capacity = config.router.capacity;
    let most = capacity.tokens(ids.len());
    let tokens = ids.len();
    let whole = [0, tokens as u32];
    let bounds = match (capacity, sequence_offsets) {
        (Capacity::Sequence { .. }, Some(offsets)) => &**offsets,
        _ => &whole,
    };
    for bound in bounds.windows(2) {
        let mut taken = vec![0; config.router_experts()];
        let sequence = (bound[0] as usize).min(tokens)..(bound[1] as usize).min(tokens);
        for k in 0..config.top_k {
            for token in sequence.clone() {
                let Some(count) =
                    usize::try_from(ids[token][k]).ok().and_then(|id| taken.get_mut(id))
                else {
                    continue;
                };
                *count += 1;
                if *count > most {
                    (ids[token][k], weights[token][k]) = (-1, 0.0);
                }
            }
        }
    }
}

/// The experts with the greatest values, best first; ties to the lowest id, NaN last.
fn choose(values: &[f32], ids: &mut [i32]) {
    let better = |a: f32, b: f32| a > b || b.is_nan() && !a.is_nan();
    let mut best = [(0, 0.0); MAX_TOP_K];
    let best = &mut best[..ids.len()];
    for (expert, &value) in values.iter().enumerate() {
        let found = expert.min(best.len());
        // Searched from the end, because most experts do not get in.
        let place = best[..found].iter().rposition(|&(_, other)| !better(value, other));
        let place = place.map_or(0, |place| place + 1);
        if place < best.len() {
            let end = (found + 1).min(best.len());
            best[place..end].rotate_right(1);
            best[place] = (expert as i32, value);
        }
    }
    for (id, &(expert, _)) in ids.iter_mut().zip(&*best) {
        *id = expert;
    }
}

/// From the scores of a token's experts to their weights.
fn finish(rules: &RouterConfig, expert_scale: &[f32], ids: &[i32], weights: &mut [f32]) {
    let sum: f32 = weights.iter().sum();
    let divisor = match rules.renormalize {
        Renormalize::None => 1.0,
        Renormalize::Sum { epsilon } => sum + epsilon,
        Renormalize::ClampMin { least } if sum < least => least,
        Renormalize::ClampMin { .. } => sum,
        Renormalize::PNorm { p: 1.0 } => weights.iter().map(|weight| weight.abs()).sum(),
        Renormalize::PNorm { p } => {
            let powers = weights.iter().map(|weight| weight.abs().powf(p));
            powers.sum::<f32>().powf(1.0 / p)
        }
    };
    for (weight, &id) in weights.iter_mut().zip(ids) {
        *weight = *weight / divisor * rules.scale;
        if let Some(scale) = usize::try_from(id).ok().and_then(|id| expert_scale.get(id)) {
            *weight *= scale;
        }
        // A dropped assignment weighs nothing, even where nothing is left to divide by.
        if id < 0 {
            *weight = 0.0;
        }
    }
}

/// `1 / (1 + exp(-x))`. Where `exp(-x)` would overflow, the quotient is taken the other way
/// around: it is tiny there, but not 0, which renormalisation would divide by.
fn sigmoid(x: f32) -> f32 {
    if x < 0.0 {
        let exp = x.exp();
        exp / (1.0 + exp)
    } else {
        1.0 / (1.0 + (-x).exp())
    }
}
