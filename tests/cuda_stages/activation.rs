//! Activation, as a stage of its own.

use half::bf16;
use moe_kernels::config::ActivationFn;

use super::common::*;
use super::{for_each_float16, on_device, on_every_device, same_bits_everywhere};

fn sizes<T: Storage>() {
    let mut rng = Rng::new(1);
    let mut functions = activations().collect::<Vec<_>>().into_iter().cycle();
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
        (1856, 3, 3),
        (40, 9, 7),
    ] {
        let function = functions.next().unwrap();
        let width = if function.is_gated() { 2 * columns } else { columns };
        let gate_up: Vec<T> = rng.full(routed * width, 2.0);
        let expected = |store| expected_activation(function, &gate_up, columns, store);
        let (truth, plain) = (expected(&reference::exact), expected(&round::<T>));
        on_every_device(|device| {
            for pad in [TIGHT, LOOSE] {
                let given = run_activation(device, function, &gate_up, columns, rows, pad);
                let what = format!("{function:?}, {routed} of {rows} rows, {columns} columns");
                assert_within::<T>(&what, &wide(&given), &truth, &plain, columns);
            }
        });
    }
}

#[test]
fn every_size_equals_the_oracle() {
    for_each_float16!(T => sizes::<T>());
}

#[test]
fn every_value_is_right_by_itself() {
    for (turn, function) in activations().enumerate() {
        on_device(turn, |device| {
            for_each_float16!(T => check_every_value::<_, T>(device, function));
        });
    }
}

#[test]
fn the_same_bits_every_time() {
    const FUNCTION: ActivationFn = ActivationFn::SwiGluThenClamp { limit: 1.0 };
    let gate_up: Vec<bf16> = Rng::new(3).full(130 * 2 * 72, 2.0);
    same_bits_everywhere("activation", |device| {
        bits(&run_activation(device, FUNCTION, &gate_up, 72, 140, LOOSE))
    });
}
