//! Activation: elementwise, in f32.

use rayon::prelude::*;

use crate::config::ActivationFn;
use crate::element::Float;
use crate::ops::Activation;

use super::{Cpu, row, rows_mut};

pub(super) fn run<T: Float>(op: Activation<'_, Cpu, T>) {
    let Activation { function, gate_up, plan, out } = op;
    let routed = plan.expert_offsets[plan.num_experts] as usize;
    let columns = out.layout().cols;
    rows_mut(out).into_par_iter().take(routed).enumerate().for_each_init(
        || (vec![0.0; columns], vec![0.0; columns]),
        |(gate, up), (index, out)| {
            let (stored_gate, stored_up) = row(gate_up, index).split_at(columns);
            T::widen(stored_gate, gate);
            T::widen(stored_up, up);
            activate(function, gate, up);
            T::narrow(gate, out);
        },
    );
}

/// `gate = act(gate) * up`, elementwise.
pub(super) fn activate(function: ActivationFn, gate: &mut [f32], up: &[f32]) {
    match function {
        ActivationFn::SwiGlu => {
            for (gate, up) in gate.iter_mut().zip(up) {
                *gate = *gate / (1.0 + (-*gate).exp()) * up;
            }
        }
    }
}
