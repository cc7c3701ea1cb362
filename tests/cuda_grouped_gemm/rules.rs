//! Experts of every rule as a backend prepares them, by whichever tile is chosen.

use half::{bf16, f16};
use moe_emulator::{Options, Profile};
use moe_kernels::cuda::Path;
use moe_kernels::ops::ExpertShape;

use crate::common::*;

/// Each activation on the portable path and on Hopper's, in turn with biases, weights of rows, both and
/// neither.
fn every_rule<T: Storage>(start: usize, path: Path, shape: ExpertShape, tokens: usize) {
    for (turn, function) in activations().enumerate() {
        let which = turn + start;
        let rules = ExpertRules { function, biases: which % 2 == 1, row_weights: which % 4 > 1 };
        let options = Options::checked(which as u64);
        let Some(device) = emulated(Profile::sm_90().with_sm_count(3), path, options) else {
            return;
        };
        check_expert_rules::<_, T>(&device, rules, shape, tokens);
    }
}

#[test]
fn every_rule_for_few_rows() {
    for (at, path) in [Path::Portable, Path::Hopper].into_iter().enumerate() {
        every_rule::<bf16>(at, path, ExpertShape::gated(5, 72, 40), 9);
        every_rule::<f16>(at + 2, path, ExpertShape::gated(3, 40, 136), 33);
    }
}

#[test]
fn every_rule_for_many_rows() {
    for (at, path) in [Path::Portable, Path::Hopper].into_iter().enumerate() {
        every_rule::<f16>(at, path, ExpertShape::gated(2, 24, 200), 150);
    }
}
