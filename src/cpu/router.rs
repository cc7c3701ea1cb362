//! Router: the gate GEMM in f32, then each token's scores and choice.

use rayon::prelude::*;

use crate::config::{MAX_TOP_K, MoeConfig, Renormalize, Scoring};
use crate::element::Float;
use crate::error::{Error, Result, checked_product};
use crate::memory::Matrix;
use crate::ops::{Gate, Router, RouterOutput};
use crate::weights::RouterWeights;

use super::gemm::{PackedMatrix, PackedRows, multiply};
use super::{Cpu, row, rows_mut, token_count};

/// Tokens of one task: enough to use the packed gate well, few enough to share out.
const TOKENS_PER_TASK: usize = 32;

/// A router's weight, repacked once for the micro-kernel.
#[derive(Debug)]
pub struct PackedGate<T> {
    shape: [usize; 2],
    weight: Weight<T>,
}

#[derive(Debug)]
enum Weight<T> {
    F32(PackedMatrix<f32>),
    Model(PackedMatrix<T>),
}

impl<T: Float> PackedGate<T> {
    pub(super) fn pack(shape: [usize; 2], weights: &RouterWeights<T>) -> Result<Self> {
        let weight = match weights {
            RouterWeights::F32(elements) => Weight::F32(pack_gate(shape, elements)?),
            RouterWeights::Model(elements) => Weight::Model(pack_gate(shape, elements)?),
        };
        Ok(Self { shape, weight })
    }
}

fn pack_gate<T: Float>([n, k]: [usize; 2], elements: &[T]) -> Result<PackedMatrix<T>> {
    let expected = checked_product("router weight", &[n, k])?;
    if elements.len() != expected {
        return Err(Error::shape("router weight", [expected], [elements.len()]));
    }
    PackedMatrix::pack(n, k, |expert| &elements[expert * k..][..k])
}

impl<T: Float> Gate for PackedGate<T> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn bytes(&self) -> usize {
        match &self.weight {
            Weight::F32(weight) => weight.bytes(),
            Weight::Model(weight) => weight.bytes(),
        }
    }
}

pub(super) fn run<T: Float>(op: Router<'_, Cpu, T, PackedGate<T>>) {
    let Router { config, hidden_states, gate, output, num_tokens } = op;
    let tokens = token_count(hidden_states.layout().rows, num_tokens);
    let RouterOutput { router_logits, topk_ids, topk_weights } = output;
    let mut logits = rows_mut(router_logits);
    logits.truncate(tokens);
    let mut ids = rows_mut(topk_ids);
    let mut weights = rows_mut(topk_weights);
    logits
        .par_chunks_mut(TOKENS_PER_TASK)
        .zip(ids.par_chunks_mut(TOKENS_PER_TASK))
        .zip(weights.par_chunks_mut(TOKENS_PER_TASK))
        .enumerate()
        .for_each(|(task, ((logits, ids), weights))| {
            let first_token = task * TOKENS_PER_TASK;
            compute_logits(hidden_states, first_token, gate, logits);
            for ((logits, ids), weights) in logits.iter().zip(ids).zip(weights) {
                choose(logits, ids);
                weigh(config, logits, ids, weights);
            }
        });
}

fn compute_logits<T: Float>(
    hidden_states: Matrix<'_, Cpu, T>,
    first_token: usize,
    gate: &PackedGate<T>,
    logits: &mut [&mut [f32]],
) {
    let [num_experts, _] = gate.shape;
    let mut x = PackedRows::default();
    let tokens = first_token..first_token + logits.len();
    x.pack(hidden_states.layout().cols, tokens.map(|token| row(hidden_states, token)));
    let mut sums = vec![0.0; logits.len() * num_experts];
    match &gate.weight {
        Weight::F32(weight) => multiply(&x, weight, 0..num_experts, &mut sums),
        Weight::Model(weight) => multiply(&x, weight, 0..num_experts, &mut sums),
    }
    for (logits, sums) in logits.iter_mut().zip(sums.chunks_exact(num_experts)) {
        logits.copy_from_slice(sums);
    }
}

/// The experts with the greatest logits, best first; ties to the lowest id, NaN last.
fn choose(logits: &[f32], ids: &mut [i32]) {
    let better = |a: f32, b: f32| a > b || b.is_nan() && !a.is_nan();
    let mut best = [(0, 0.0); MAX_TOP_K];
    let best = &mut best[..ids.len()];
    for (expert, &logit) in logits.iter().enumerate() {
        let found = expert.min(best.len());
        // Searched from the end, because most experts do not get in.
        let place = best[..found].iter().rposition(|&(_, other)| !better(logit, other));
        let place = place.map_or(0, |place| place + 1);
        if place < best.len() {
            let end = (found + 1).min(best.len());
            best[place..end].rotate_right(1);
            best[place] = (expert as i32, logit);
        }
    }
    for (id, &(expert, _)) in ids.iter_mut().zip(&*best) {
        *id = expert;
    }
}

fn weigh(config: &MoeConfig, logits: &[f32], ids: &[i32], weights: &mut [f32]) {
    let chosen = ids.iter().map(|&id| logits[id as usize]);
    match config.scoring {
        Scoring::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // In f64: a thousand terms added one by one in f32 would lose three of its bits.
            let sum: f64 = logits.iter().map(|logit| f64::from((logit - max).exp())).sum();
            for (weight, logit) in weights.iter_mut().zip(chosen) {
                *weight = (logit - max).exp() / sum as f32;
            }
        }
        Scoring::Sigmoid => {
            for (weight, logit) in weights.iter_mut().zip(chosen) {
                *weight = sigmoid(logit);
            }
        }
    }
    match config.renormalize {
        Renormalize::None => {}
        Renormalize::Sum => {
            let sum: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= sum);
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
