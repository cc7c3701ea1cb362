//! Combine: a weighted sum for each token, in the order of k.

use rayon::prelude::*;

use crate::element::Float;
use crate::ops::{Combine, NOT_ROUTED, Output, Write};

use super::{Cpu, row, rows_mut, token_count};

pub(super) fn run<T: Float>(op: Combine<'_, Cpu, T>) {
    let Combine {
        rows,
        topk_weights,
        plan,
        output: Output { matrix, write },
        num_tokens,
        scale,
        zero_experts,
        shared,
        bias,
        always_on,
    } = op;
    let tokens = token_count(matrix.layout().rows, num_tokens);
    let hidden_size = matrix.layout().cols;
    let (top_k, routed_k) = (plan.top_k, plan.routed_k);
    let mut out = rows_mut(matrix);
    out.truncate(tokens);
    let always = shared.is_some() || bias.is_some();
    out.into_par_iter().enumerate().for_each_init(
        || (vec![0.0; hidden_size], vec![0.0; hidden_size]),
        |(sum, wide), (token, out)| {
            let assignments = &plan.row_of_assignment[token * top_k..][..top_k];
            // Where each assignment's row lies: among the experts', or in the input itself.
            let source = |k: usize| match (assignments[k], &zero_experts) {
                (NOT_ROUTED, Some(zero)) if k < routed_k => {
                    let id = usize::try_from(row(zero.topk_ids, token)[k]).ok();
                    id.filter(|id| zero.ids.contains(id)).map(|_| row(zero.x, token))
                }
                (NOT_ROUTED, _) => None,
                (expert_row, _) => Some(row(rows, expert_row as usize)),
            };
            let mut routed = (0..top_k).filter_map(|k| Some((k, source(k)?))).peekable();
            // Widening and rounding back could change the bits of a NaN.
            if write == Write::Accumulate && !always && routed.peek().is_none() {
                return;
            }
            match write {
                Write::Accumulate => T::widen(out, sum),
                Write::Overwrite => sum.fill(0.0),
            }
            for (k, values) in routed {
                let weight = match k < routed_k {
                    true => scale * topk_weights.map_or(1.0, |weights| row(weights, token)[k]),
                    false => {
                        let weights = always_on.weights;
                        always_on.scale * weights.map_or(1.0, |weights| row(weights, token)[0])
                    }
                };
                add(sum, weight, values, wide);
            }
            if let Some(shared) = &shared {
                let weight = shared.weights.map_or(1.0, |weights| row(weights, token)[0]);
                add(sum, weight * shared.scale, row(shared.rows, token), wide);
            }
            if let Some(bias) = bias {
                sum.iter_mut().zip(&**bias).for_each(|(sum, bias)| *sum += bias);
            }
            T::narrow(sum, out);
        },
    );
}

fn add<T: Float>(sum: &mut [f32], weight: f32, values: &[T], wide: &mut [f32]) {
    T::widen(values, wide);
    for (sum, value) in sum.iter_mut().zip(wide) {
        *sum += weight * *value;
    }
}
