//! Activation: from a checked contract to a launch.

use crate::config::ActivationFn;
use crate::element::Float;
use crate::error::Result;
use crate::ops::Activation;

use super::abi::{ACTIVATION_ROWS, ActivationArgs, ActivationParams};
use super::context::float16;
use super::driver::{Driver, KernelArg};
use super::operands::{Place, columns, row_wise};
use super::{Cuda, CudaStream};

/// Names of the stage's kernels.
pub(super) const KERNELS: &[&str] = &["activation_bf16", "activation_f16"];

pub(super) fn run<D: Driver + 'static, T: Float>(
    cuda: &Cuda<D>,
    op: Activation<'_, Cuda<D>, T>,
    stream: &CudaStream<D>,
) -> Result<()> {
    let dtype = float16::<T>("activation")?;
    let Activation { function, gate_up, plan, out } = op;
    let max_rows = plan.num_assignments();
    let columns = columns("activation output", out.layout().cols)?;
    if max_rows == 0 || columns == 0 {
        return Ok(());
    }
    let (gate_up, out) = (Place::of(gate_up), Place::of_mut(out));
    let args = ActivationArgs {
        gate_up: gate_up.address,
        out: out.address,
        num_rows: plan.expert_offsets.at(plan.num_experts),
        gate_up_stride: gate_up.stride,
        out_stride: out.stride,
        activation: params(function),
        columns,
        max_rows: max_rows as u32,
        gated: function.is_gated().into(),
        reserved: 0,
    };
    let config = row_wise(cuda, max_rows, ACTIVATION_ROWS, columns);
    // SAFETY: the kernel takes ActivationArgs; the contract has checked that every row lies in its
    // buffer, which is borrowed, and whoever frees it waits for the device.
    unsafe { cuda.launch(&format!("activation_{dtype}"), config, &[KernelArg::new(&args)], stream) }
}

/// The exponent of a sigmoid as a polynomial of the square: `sigmoid(x p(x^2))`. Of GELU by tanh it is
/// exact: `(1 + tanh(z / 2)) / 2` is the sigmoid of z. Of GELU by erf, `x p(x^2)` is near the logit of
/// `(1 + erf(x / sqrt(2))) / 2`: the polynomial whose greatest error of `x sigmoid(x p(x^2))` over
/// |x| <= 5.2 is least, 7e-8; beyond, both are x or 0 within 1e-6.
const GELU_TANH: &[f64] = &[1.595_769_121_605_731, 0.071_354_816_272_600_25];
const GELU_ERF: &[f64] = &[
    1.595_768_433_92,
    0.072_668_562_728_9,
    -6.625_670_212_57e-5,
    -1.104_813_790_54e-4,
    7.938_378_443_37e-6,
    -2.669_036_887_16e-7,
    3.611_501_488_32e-9,
];

/// A function as the kernels' formula, see [`ActivationParams`].
pub(super) fn params(function: ActivationFn) -> ActivationParams {
    let of = |slope: &[f64]| {
        let mut coefficients = [0.0; 7];
        for (to, &of) in coefficients.iter_mut().zip(slope) {
            // 2^(-x log2(e)) is exp(-x). A finite coefficient: an infinite one would meet a 0.
            let of = -of * std::f64::consts::LOG2_E;
            *to = of.clamp(f64::from(f32::MIN), f64::from(f32::MAX)) as f32;
        }
        ActivationParams {
            gate_min: f32::NEG_INFINITY,
            gate_max: f32::INFINITY,
            up_min: f32::NEG_INFINITY,
            up_max: f32::INFINITY,
            up_bias: 0.0,
            coefficients,
        }
    };
    let silu = of(&[1.0]);
    // So steep a sigmoid is 0 or 1.
    let relu = ActivationParams { gate_min: 0.0, ..of(&[f64::INFINITY]) };
    let clamped = |limit: f32| ActivationParams { up_min: -limit, up_max: limit, ..silu };
    // A factor of 1: a number within 0 and 0, plus 1.
    let alone = |gate| ActivationParams { up_min: 0.0, up_max: 0.0, up_bias: 1.0, ..gate };
    match function {
        ActivationFn::SwiGlu => silu,
        ActivationFn::GeGluTanh => of(GELU_TANH),
        ActivationFn::GeGluErf => of(GELU_ERF),
        ActivationFn::ReGlu => relu,
        ActivationFn::SwiGluClamped { limit } => {
            ActivationParams { gate_max: limit, ..clamped(limit) }
        }
        // silu rises with every positive gate: its limit is one of the gate.
        ActivationFn::SwiGluThenClamp { limit } => {
            ActivationParams { gate_max: inverse_silu(limit), ..clamped(limit) }
        }
        ActivationFn::SwiGluOai { alpha, limit } => ActivationParams {
            gate_max: limit,
            up_bias: 1.0,
            coefficients: of(&[alpha.into()]).coefficients,
            ..clamped(limit)
        },
        ActivationFn::Relu => alone(relu),
        ActivationFn::Relu2 => ActivationParams { up_min: 0.0, ..relu },
        ActivationFn::Silu => alone(silu),
        ActivationFn::GeluTanh => alone(of(GELU_TANH)),
        ActivationFn::GeluErf => alone(of(GELU_ERF)),
    }
}

/// The gate whose silu is `limit`, which is above 0.
fn inverse_silu(limit: f32) -> f32 {
    // silu is below its argument, and above half of it.
    let (mut low, mut high) = (f64::from(limit), 2.0 * f64::from(limit));
    for _ in 0..64 {
        let middle = f64::midpoint(low, high);
        if middle / (1.0 + (-middle).exp()) < f64::from(limit) {
            low = middle;
        } else {
            high = middle;
        }
    }
    high as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `activate` of kernels/tile/activation.cuh, without a gate.
    fn activate(p: &ActivationParams, x: f32) -> f32 {
        let least = |x: f32, limit: f32| if x > limit { limit } else { x };
        let most = |x: f32, limit: f32| if x < limit { limit } else { x };
        let g = most(least(x, p.gate_max), p.gate_min);
        let u = most(least(x, p.up_max), p.up_min);
        let square = (g * g).min(3e38);
        let slope = p.coefficients.iter().rev().fold(0.0, |sum: f32, c| sum.mul_add(square, *c));
        g * (1.0 / (1.0 + (g * slope).exp2())) * (u + p.up_bias)
    }

    /// `x (1 + erf(x / sqrt(2))) / 2` by the series of erf with positive terms.
    fn gelu_erf(x: f64) -> f64 {
        if x.abs() > 8.0 {
            return x.max(0.0);
        }
        let (mut term, mut sum) = (x, 0.0);
        for n in 1..200 {
            sum += term;
            term *= x * x / f64::from(2 * n + 1);
        }
        let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        x * (0.5 + density * sum)
    }

    /// Within 1e-6, over every 2^10th float.
    #[test]
    fn gelu_by_erf_is_close_everywhere() {
        let params = params(ActivationFn::GeluErf);
        let mut worst = (0.0, 0.0);
        for bits in (0..=u32::MAX).step_by(1 << 10) {
            let x = f32::from_bits(bits);
            if x.is_finite() && x != f32::MIN {
                let error = (f64::from(activate(&params, x)) - gelu_erf(x.into())).abs();
                worst = if error > worst.0 { (error, x) } else { worst };
            }
        }
        assert!(worst.0 <= 1e-6, "{worst:?}");
        assert!(activate(&params, f32::NAN).is_nan());
        assert_eq!(activate(&params, f32::INFINITY), f32::INFINITY);
    }

    #[test]
    fn a_limit_on_silu_is_one_on_the_gate() {
        for limit in [f32::MIN_POSITIVE, 1e-3, 0.5, 7.0, 16.0, 3e4, f32::MAX] {
            let gate = f64::from(inverse_silu(limit));
            let silu = gate / (1.0 + (-gate).exp());
            let error = (silu - f64::from(limit)).abs();
            assert!(error <= 1e-6 * f64::from(limit), "silu({gate}) = {silu}, limit {limit}");
        }
    }
}
