//! Activation, as a stage of its own.

use half::bf16;
use moe_kernels::config::ActivationFn;

use super::common::*;
use super::{for_each_float16, on_every_device, same_bits_everywhere};

fn expected<T: Storage>(gate_up: &[T], columns: usize, store: reference::Store<'_>) -> Vec<f64> {
    let (mut gate, mut up) = (Vec::new(), Vec::new());
    for row in wide(gate_up).chunks(2 * columns) {
        gate.extend_from_slice(&row[..columns]);
        up.extend_from_slice(&row[columns..]);
    }
    reference::activation(ActivationFn::SwiGlu, &gate, &up, store)
}

fn sizes<T: Storage>() {
    let mut rng = Rng::new(1);
    for (columns, rows, routed) in [
        (8, 0, 0),
        (8, 1, 1),
        (24, 2, 1),
        (40, 31, 31),
        (72, 33, 16),
        (200, 130, 130),
        (704, 5, 0),
        (1024, 3, 3),
        (1032, 3, 2),
        (2880, 4, 3),
    ] {
        let gate_up: Vec<T> = rng.full(routed * 2 * columns, 2.0);
        let truth = expected(&gate_up, columns, &reference::exact);
        let plain = expected(&gate_up, columns, &round::<T>);
        on_every_device(|device| {
            for pad in [TIGHT, LOOSE] {
                let given = run_activation(device, &gate_up, columns, rows, pad);
                let what = format!("{routed} of {rows} rows, {columns} columns");
                assert_within::<T>(&what, &wide(&given), &truth, &plain, columns);
            }
        });
    }
}

#[test]
fn every_size_equals_the_oracle() {
    for_each_float16!(T => sizes::<T>());
}

/// Each element within two of its storage type's rounding steps, over the gate's whole range.
fn whole_range<T: Storage>() {
    let gates: Vec<f64> = (-3000..=3000).map(|step| f64::from(step) / 100.0).collect();
    let columns = gates.len().next_multiple_of(8);
    let mut gate_up = vec![T::nearest(0.0); 2 * columns];
    for (place, &gate) in gates.iter().enumerate() {
        gate_up[place] = T::nearest(gate);
    }
    gate_up[columns..].fill(T::nearest(1.5));
    let truth = expected(&gate_up, columns, &reference::exact);
    let (relative, smallest) = if T::NAME == "bf16" { (4.0e-3, 1e-37) } else { (5.0e-4, 6.2e-5) };
    on_every_device(|device| {
        let given = wide(&run_activation(device, &gate_up, columns, 1, TIGHT));
        for (place, (given, truth)) in given.iter().zip(&truth).enumerate() {
            assert!(
                (given - truth).abs() <= relative * truth.abs().max(smallest),
                "{}: gate {}: {given:e}, expected {truth:e}",
                T::NAME,
                gate_up[place].wide()
            );
        }
    });
}

#[test]
fn every_gate_is_right_by_itself() {
    for_each_float16!(T => whole_range::<T>());
}

fn extremes<T: Storage>() {
    let values = [0.0, -0.0, 200.0, -200.0, 30000.0, -30000.0, f64::INFINITY, f64::NAN];
    let gates: Vec<T> = values.iter().map(|&value| T::nearest(value)).collect();
    on_every_device(|device| {
        for up in [1.0, -1.0, 0.5] {
            let gate_up: Vec<T> = gates.iter().copied().chain([T::nearest(up); 8]).collect();
            let given = wide(&run_activation(device, &gate_up, 8, 1, TIGHT));
            for (place, value) in values.iter().enumerate() {
                let expected = match value {
                    v if v.is_nan() => f64::NAN,
                    v if *v > 0.0 => round::<T>(v * up),
                    _ => 0.0,
                };
                let same = given[place] == expected || given[place].is_nan() && expected.is_nan();
                let close = (given[place] - expected).abs() <= 0.01 * expected.abs();
                assert!(same || close, "{} silu({value}) * {up} = {}", T::NAME, given[place]);
            }
        }
    });
}

#[test]
fn great_gates_do_not_overflow() {
    for_each_float16!(T => extremes::<T>());
}

#[test]
fn the_same_bits_every_time() {
    let gate_up: Vec<bf16> = Rng::new(3).full(130 * 2 * 72, 2.0);
    same_bits_everywhere("activation", |device| {
        bits(&run_activation(device, &gate_up, 72, 140, LOOSE))
    });
}
