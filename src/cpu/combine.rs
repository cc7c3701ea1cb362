//! Combine: a weighted sum for each token, in the order of k.

use rayon::prelude::*;

use crate::element::Float;
use crate::ops::{Combine, NOT_ROUTED, Output, Write};

use super::{Cpu, row, rows_mut, token_count};

pub(super) fn run<T: Float>(op: Combine<'_, Cpu, T>) {
    let Combine { rows, topk_weights, plan, output: Output { matrix, write }, num_tokens } = op;
    let tokens = token_count(matrix.layout().rows, num_tokens);
    let hidden_size = matrix.layout().cols;
    let top_k = plan.top_k;
    let mut out = rows_mut(matrix);
    out.truncate(tokens);
    out.into_par_iter().enumerate().for_each_init(
        || (vec![0.0; hidden_size], vec![0.0; hidden_size]),
        |(sum, wide), (token, out)| {
            let assignments = &plan.row_of_assignment[token * top_k..][..top_k];
            let mut routed = assignments
                .iter()
                .zip(row(topk_weights, token))
                .filter(|&(&row, _)| row != NOT_ROUTED)
                .peekable();
            match write {
                // Widening and rounding back could change the bits of a NaN.
                Write::Accumulate if routed.peek().is_none() => return,
                Write::Accumulate => T::widen(out, sum),
                Write::Overwrite => sum.fill(0.0),
            }
            for (&expert_row, &weight) in routed {
                T::widen(row(rows, expert_row as usize), wide);
                for (sum, value) in sum.iter_mut().zip(&*wide) {
                    *sum += weight * value;
                }
            }
            T::narrow(sum, out);
        },
    );
}
