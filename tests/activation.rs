//! Activation as a stage of its own, against the oracle.

#![cfg(feature = "cpu")]

mod common;

use common::*;
use moe_kernels::config::ActivationFn;

fn sizes<T: Storage>() {
    let mut rng = Rng::new(1);
    let mut functions = activations().collect::<Vec<_>>().into_iter().cycle();
    for columns in [8, 24, 40, 72, 200, 1032] {
        for rows in [0, 1, 2, 31, 33, 130] {
            for routed in [0, rows / 2, rows] {
                for pad in [TIGHT, LOOSE] {
                    let function = functions.next().unwrap();
                    let width = if function.is_gated() { 2 * columns } else { columns };
                    let gate_up: Vec<T> = rng.full(routed * width, 2.0);
                    let given = run_activation(&cpu(), function, &gate_up, columns, rows, pad);
                    let expected = |store| expected_activation(function, &gate_up, columns, store);
                    let (truth, plain) = (expected(&reference::exact), expected(&round::<T>));
                    let what = format!("{function:?}, {routed} of {rows} rows, {columns} columns");
                    assert_within::<T>(&what, &wide(&given), &truth, &plain, columns);
                }
            }
        }
    }
}

#[test]
fn every_size_equals_the_oracle() {
    for_each_storage!(T => sizes::<T>());
}

#[test]
fn every_value_is_right_by_itself() {
    for function in activations() {
        for_each_storage!(T => check_every_value::<_, T>(&cpu(), function));
    }
}

#[test]
fn the_same_bits_every_time() {
    const FUNCTION: ActivationFn = ActivationFn::GeGluErf;
    let gate_up: Vec<f32> = Rng::new(3).full(130 * 2 * 72, 2.0);
    same_on_every_pool("activation", || {
        bits(&run_activation(&cpu(), FUNCTION, &gate_up, 72, 140, LOOSE))
    });
}
