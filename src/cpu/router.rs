//! Router: the gate GEMM in f32, then each token's scores and choice.

use rayon::prelude::*;

use crate::config::{MAX_TOP_K, MoeConfig, Renormalize, Scoring};
use crate::element::Float;
use crate::memory::Matrix;
use crate::ops::{GateWeight, Router, RouterOutput};

use super::gemm::{PackedMatrix, PackedRows, multiply};
use super::{Cpu, row, rows_mut};

/// Tokens of one task: enough to use the packed gate well, few enough to share out.
const TOKENS_PER_TASK: usize = 32;

pub(super) fn run<T: Float>(op: Router<'_, Cpu, T>) {
    let Router { config, hidden_states, gate, output } = op;
    if hidden_states.layout().rows == 0 {
        return;
    }
    let gate = match gate {
        GateWeight::F32(weight) => pack_gate(weight),
        GateWeight::Model(weight) => pack_gate(weight),
    };
    let RouterOutput { router_logits, topk_ids, topk_weights } = output;
    let mut logits = rows_mut(router_logits);
    let mut ids = rows_mut(topk_ids);
    let mut weights = rows_mut(topk_weights);
    logits
        .par_chunks_mut(TOKENS_PER_TASK)
        .zip(ids.par_chunks_mut(TOKENS_PER_TASK))
        .zip(weights.par_chunks_mut(TOKENS_PER_TASK))
        .enumerate()
        .for_each(|(task, ((logits, ids), weights))| {
            let first_token = task * TOKENS_PER_TASK;
            compute_logits(hidden_states, first_token, &gate, logits);
            for ((logits, ids), weights) in logits.iter().zip(ids).zip(weights) {
                choose(logits, ids);
                weigh(config, logits, ids, weights);
            }
        });
}

fn pack_gate<T: Float>(weight: Matrix<'_, Cpu, T>) -> PackedMatrix<f32> {
    let layout = weight.layout();
    let wide: Vec<f32> = (0..layout.rows)
        .flat_map(|expert| row(weight, expert).iter().map(|value| value.to_f32()))
        .collect();
    PackedMatrix::pack(layout.rows, layout.cols, |expert| {
        &wide[expert * layout.cols..][..layout.cols]
    })
}

fn compute_logits<T: Float>(
    hidden_states: Matrix<'_, Cpu, T>,
    first_token: usize,
    gate: &PackedMatrix<f32>,
    logits: &mut [&mut [f32]],
) {
    let num_experts = gate.n();
    let mut x = PackedRows::default();
    let tokens = first_token..first_token + logits.len();
    x.pack(hidden_states.layout().cols, tokens.map(|token| row(hidden_states, token)));
    let mut sums = vec![0.0; logits.len() * num_experts];
    multiply(&x, gate, 0..num_experts, &mut sums);
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
            let sum: f32 = logits.iter().map(|logit| (logit - max).exp()).sum();
            for (weight, logit) in weights.iter_mut().zip(chosen) {
                *weight = (logit - max).exp() / sum;
            }
        }
        Scoring::Sigmoid => {
            for (weight, logit) in weights.iter_mut().zip(chosen) {
                *weight = 1.0 / (1.0 + (-logit).exp());
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
