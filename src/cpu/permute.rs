//! Permute: a copy for each row.

use rayon::prelude::*;

use crate::element::Float;
use crate::ops::Permute;

use super::{Cpu, row, rows_mut};

pub(super) fn run<T: Float>(op: Permute<'_, Cpu, T>) {
    let Permute { hidden_states, plan, rows } = op;
    let routed = plan.expert_offsets[plan.num_experts] as usize;
    rows_mut(rows).into_par_iter().zip(&plan.token_of_row[..routed]).for_each(|(to, &token)| {
        to.copy_from_slice(row(hidden_states, token as usize));
    });
}
