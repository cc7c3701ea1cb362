//! Every activation, for the stage and for the grouped GEMM's epilogues.

use moe_kernels::backend::Backend;
use moe_kernels::config::ActivationFn;

use super::{Device, Rng, Storage, TIGHT, reference, round, run_activation, wide};

/// Limits that sums of a few products are on both sides of.
pub(crate) const GATED: [ActivationFn; 7] = [
    ActivationFn::SwiGlu,
    ActivationFn::SwiGluOai { alpha: 1.702, limit: 0.75 },
    ActivationFn::GeGluErf,
    ActivationFn::ReGlu,
    ActivationFn::SwiGluThenClamp { limit: 0.5 },
    ActivationFn::GeGluTanh,
    ActivationFn::SwiGluClamped { limit: 1.25 },
];
pub(crate) const UNGATED: [ActivationFn; 5] = [
    ActivationFn::Relu2,
    ActivationFn::GeluErf,
    ActivationFn::Silu,
    ActivationFn::Relu,
    ActivationFn::GeluTanh,
];

pub(crate) fn activations() -> impl Iterator<Item = ActivationFn> {
    GATED.into_iter().chain(UNGATED)
}

/// `[rows, 2I]` or `[rows, I]`, as the oracle's two products.
pub(crate) fn expected_activation<T: Storage>(
    function: ActivationFn,
    gate_up: &[T],
    columns: usize,
    store: reference::Store<'_>,
) -> Vec<f64> {
    if !function.is_gated() {
        return reference::activation(function, &wide(gate_up), &[], store);
    }
    let (mut gate, mut up) = (Vec::new(), Vec::new());
    for row in wide(gate_up).chunks(2 * columns) {
        gate.extend_from_slice(&row[..columns]);
        up.extend_from_slice(&row[columns..]);
    }
    reference::activation(function, &gate, &up, store)
}

/// Each element within the errors of its storage and of f32, and within 1e-6 where a function falls
/// to nothing: over a gate's whole range, around each limit, at infinities and NaN.
pub(crate) fn check_every_value<B: Backend, T: Storage>(
    device: &Device<B>,
    function: ActivationFn,
) {
    let limit = match function {
        ActivationFn::SwiGluClamped { limit }
        | ActivationFn::SwiGluThenClamp { limit }
        | ActivationFn::SwiGluOai { limit, .. } => f64::from(limit),
        _ => 1.0,
    };
    let mut values = vec![0.0, -0.0, 1e-4, -1e-4, f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    for around in [limit, -limit] {
        values.extend([0.99, 0.996, 1.0, 1.004, 1.01].map(|factor| around * factor));
    }
    values.extend([2e4, -2e4].map(|great| round::<T>(great)));
    // The gate whose silu is the limit is near it.
    values.extend((1..40).flat_map(|step| [limit, -limit].map(|by| by * f64::from(step) / 20.0)));
    let (mut gates, mut ups) = (Vec::new(), Vec::new());
    for &gate in &values {
        for &up in &values[..17] {
            // Beyond, f32 has 0 for what f64 has not: an infinite factor tells them apart.
            if !(up.is_infinite() && gate.abs() > 30.0) {
                gates.push(T::nearest(gate));
                ups.push(T::nearest(up));
            }
        }
    }
    for step in -3000..=3000 {
        gates.push(T::nearest(f64::from(step) / 100.0));
        ups.push(T::nearest(1.5));
    }
    let mut rng = Rng::new(5);
    while gates.len() % 8 != 0 || gates.len() < 8000 {
        gates.push(T::nearest(rng.signed() * 6.0));
        ups.push(T::nearest(rng.signed() * 3.0));
    }
    let columns = gates.len();
    let gate_up =
        if function.is_gated() { [gates.clone(), ups.clone()].concat() } else { gates.clone() };
    let truth = expected_activation(function, &gate_up, columns, &reference::exact);
    let given = wide(&run_activation(device, function, &gate_up, columns, 1, TIGHT));
    let relative = match T::NAME {
        "f32" => 1e-6,
        "bf16" => 4.0e-3,
        "f16" => 5.0e-4,
        other => panic!("{other}"),
    };
    for (place, (&given, &truth)) in given.iter().zip(&truth).enumerate() {
        let (gate, up) = (gates[place].wide(), ups[place].wide());
        let factor = if function.is_gated() { up.abs().min(1e5) + 1.0 } else { 1.0 };
        let allowed = relative * truth.abs() + 1e-6 * factor;
        let same = given == round::<T>(truth) || (given.is_nan() && truth.is_nan());
        assert!(
            same || (given - truth).abs() <= allowed,
            "{} {function:?}: gate {gate}, up {up}: {given:e}, expected {truth:e} within {allowed:e}",
            T::NAME,
        );
    }
}
