//! The stages' CUDA kernels and their wrappers, on the emulator: every access checked, under several
//! schedules and devices, against the oracle.
//!
//! A pass means that the kernels are right on the model (`docs/emulator.md`).

#![cfg(feature = "driver")]

#[path = "../common/mod.rs"]
mod common;

mod activation;
mod chain;
mod combine;
mod permute;
mod plan;
mod refused;
mod router;

use common::*;
use moe_emulator::{Options, Profile};
use moe_kernels::cuda::Path;

/// Runs `test` with every check on: under four schedules, on old and new devices, with few
/// multiprocessors, so that blocks stride over much work, and with so many that each piece of work
/// has a block.
fn on_every_device(test: impl Fn(&Emulated)) {
    (0..4).for_each(|turn| on_device(turn, &test));
}

/// The same on one of the four, for tests of many variants that take turns.
fn on_device(turn: usize, test: impl Fn(&Emulated)) {
    let seed = turn as u64 + 1;
    let profile = match turn % 4 {
        0 => Profile::sm_80(),
        1 => Profile::sm_90().with_sm_count(1),
        2 => Profile::sm_90().with_sm_count(1000),
        _ => Profile::sm_120(),
    };
    if let Some(device) = emulated(profile, Path::Auto, Options::checked(seed)) {
        test(&device);
    }
}

/// The storage types of the CUDA backend.
macro_rules! for_each_float16 {
    ($type:ident => $body:expr) => {{
        {
            type $type = half::bf16;
            $body
        }
        {
            type $type = half::f16;
            $body
        }
    }};
}
use for_each_float16;

/// `run` gives the same bits under every schedule, at other addresses and on every device.
fn same_bits_everywhere<R: PartialEq>(what: &str, run: impl Fn(&Emulated) -> R) {
    let first = std::cell::RefCell::new(None);
    on_every_device(|device| {
        for others in [0, 3] {
            let _others: Vec<_> = (0..others).map(|_| device.put(&[0u32; 1000])).collect();
            let given = run(device);
            let mut first = first.borrow_mut();
            let name = &device.backend.properties().name;
            match &*first {
                Some(first) => assert!(*first == given, "{what}: other bits on {name}"),
                None => *first = Some(given),
            }
        }
    });
}

/// No line of what `run` launches takes shared memory more passes than the least possible.
fn no_bank_conflicts(profile: Profile, run: impl Fn(&Emulated)) {
    let options = Options { lint: true, ..Options::plain(0) };
    let Some(device) = emulated(profile, Path::Auto, options) else { return };
    run(&device);
    let report = device.backend.driver().lint_report();
    let lines: Vec<&str> = report.lines().filter(|line| line.starts_with("shared")).collect();
    for line in &lines {
        assert!(
            line.contains(" 1.00 times the passes of the least possible"),
            "{line}\nin\n{report}"
        );
    }
    assert!(!lines.is_empty(), "no access to shared memory was seen:\n{report}");
}
