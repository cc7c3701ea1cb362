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
            let stored = row(gate_up, index);
            T::widen(&stored[..columns], gate);
            if function.is_gated() {
                T::widen(&stored[columns..], up);
            }
            activate(function, gate, up);
            T::narrow(gate, out);
        },
    );
}

/// `gate = act(gate, up)`, elementwise; without a gate, `gate = act(gate)`, and `up` is not read.
pub(super) fn activate(function: ActivationFn, gate: &mut [f32], up: &[f32]) {
    let pairs = gate.iter_mut().zip(up);
    match function {
        ActivationFn::SwiGlu => pairs.for_each(|(g, u)| *g = silu(*g) * u),
        ActivationFn::GeGluTanh => pairs.for_each(|(g, u)| *g = gelu_tanh(*g) * u),
        ActivationFn::GeGluErf => pairs.for_each(|(g, u)| *g = gelu_erf(*g) * u),
        ActivationFn::ReGlu => pairs.for_each(|(g, u)| *g = relu(*g) * u),
        ActivationFn::SwiGluClamped { limit } => {
            pairs.for_each(|(g, u)| *g = silu(at_most(*g, limit)) * within(*u, limit));
        }
        ActivationFn::SwiGluThenClamp { limit } => {
            pairs.for_each(|(g, u)| *g = at_most(silu(*g), limit) * within(*u, limit));
        }
        ActivationFn::SwiGluOai { alpha, limit } => pairs.for_each(|(g, u)| {
            let clamped = at_most(*g, limit);
            *g = clamped / (1.0 + (-alpha * clamped).exp()) * (within(*u, limit) + 1.0);
        }),
        ActivationFn::Relu => gate.iter_mut().for_each(|u| *u = relu(*u)),
        ActivationFn::Relu2 => gate.iter_mut().for_each(|u| *u = relu(*u) * relu(*u)),
        ActivationFn::Silu => gate.iter_mut().for_each(|u| *u = silu(*u)),
        ActivationFn::GeluTanh => gate.iter_mut().for_each(|u| *u = gelu_tanh(*u)),
        ActivationFn::GeluErf => gate.iter_mut().for_each(|u| *u = gelu_erf(*u)),
    }
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// NaN stays NaN, as in all of these: `f32::min` would hide it.
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

fn at_most(x: f32, limit: f32) -> f32 {
    if x > limit { limit } else { x }
}

fn within(x: f32, limit: f32) -> f32 {
    x.clamp(-limit, limit)
}

fn gelu_tanh(x: f32) -> f32 {
    // The square stays finite: an infinite one would meet a 0.
    let slope = 2.0 * (2.0 / std::f32::consts::PI).sqrt();
    silu_of(x, slope * x * (1.0 + 0.044_715 * (x * x).min(3e38)))
}

/// `x * sigmoid(z)`: `(1 + tanh(z / 2)) / 2` is the sigmoid of z.
fn silu_of(x: f32, z: f32) -> f32 {
    x / (1.0 + (-z).exp())
}

fn gelu_erf(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}
