//! Quantised experts on the CPU against a naive dequantisation in f64.

#![cfg(feature = "cpu")]

mod common;

use common::*;
use moe_kernels::ops::{ExpertShape, Gather};
use moe_kernels::weights::QuantFormat;

/// Rows of each expert, H and I: one row, depths of no whole block or panel, blocks of 128 with a tail.
const SHAPES: &[(QuantFormat, &[usize], usize, usize)] = &[
    (QuantFormat::Fp8Block, &[1], 16, 16),
    (QuantFormat::Fp8Block, &[3, 0, 17], 208, 144),
    (QuantFormat::Fp8Block, &[5, 1], 272, 400),
    (QuantFormat::Mxfp4, &[1], 32, 32),
    (QuantFormat::Mxfp4, &[3, 0, 17], 224, 96),
    (QuantFormat::Mxfp4, &[40, 1], 544, 160),
    (QuantFormat::Int4 { group: 32 }, &[1], 32, 32),
    (QuantFormat::Int4 { group: 32 }, &[3, 0, 17], 224, 96),
    (QuantFormat::Int4 { group: 64 }, &[9, 2], 192, 320),
    (QuantFormat::Int4 { group: 128 }, &[7, 0, 1], 384, 128),
];

/// The weights are multiplied as they are, in f32.
fn check<T: Storage>(draws: &[Draw]) {
    for &(format, rows, hidden_size, intermediate_size) in SHAPES {
        for (gated, adjusted, gather, pad) in [
            (true, false, Gather::TokenOfRow, TIGHT),
            (true, true, Gather::Packed, LOOSE),
            (false, true, Gather::TokenOfRow, LOOSE),
        ] {
            let num_experts = rows.len();
            let shape = ExpertShape { num_experts, hidden_size, intermediate_size, gated };
            for &draw in draws {
                let inputs = QuantInputs::<T>::new(format, shape, rows, draw);
                let given = inputs.run(&cpu(), adjusted, gather, pad);
                let what = format!("{format} {shape:?} {draw:?} adjusted {adjusted}");
                inputs.check(&what, &given, adjusted, draw, |_, value| value);
            }
        }
    }
}

#[test]
fn f32_activations() {
    check::<f32>(&[Draw::Exact, Draw::Any]);
}

#[test]
fn bf16_activations() {
    check::<half::bf16>(&[Draw::Exact, Draw::Any]);
}

#[test]
fn f16_activations() {
    // Activations of the exact inputs are beyond f16.
    check::<half::f16>(&[Draw::Any]);
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    for &(format, rows, hidden_size, intermediate_size) in SHAPES {
        let shape = ExpertShape::gated(rows.len(), hidden_size, intermediate_size);
        let inputs = QuantInputs::<half::bf16>::new(format, shape, rows, Draw::Any);
        same_on_every_pool(&format.to_string(), || {
            inputs.run(&cpu(), true, Gather::TokenOfRow, TIGHT).bits()
        });
    }
}

/// Codes and scales at the ends of their ranges, as the kernels' tests have them.
#[test]
fn extreme_codes_and_scales() {
    for &(format, rows, hidden_size, intermediate_size) in SHAPES {
        let shape = ExpertShape::gated(rows.len(), hidden_size, intermediate_size);
        let mut inputs = QuantInputs::<half::bf16>::new(format, shape, rows, Draw::Exact);
        inputs.make_extreme();
        let given = inputs.run(&cpu(), false, Gather::TokenOfRow, TIGHT);
        inputs.check_extreme(&format!("{format} {shape:?}"), &given);
    }
}
