//! How fast the emulator is: the shape that its tests are sized by.

mod common;
use common::Rig;
use common::cases::Gemm;
use moe_emulator::{Checks, Options};
use moe_kernels::cuda::driver::Driver;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Seconds for one launch with all checks, on the machine where [`REFERENCE`] was measured.
const BOUND: f64 = 0.2;
/// Seconds that [`reference`] takes there, undisturbed: of one round the fastest of 200, on one of two cores of a
/// Xeon with AVX-512 (2026-11-22).
const REFERENCE: f64 = 0.0129 * ROUNDS as f64;
/// So many that the loop takes as long as a launch: what interrupts the one then interrupts the other.
const ROUNDS: u32 = 8;

fn reference() -> f64 {
    (0..ROUNDS).map(|_| round()).sum()
}
/// A fixed amount of work of the emulator's kind: branches on random data, and records all over 2 MiB.
fn round() -> f64 {
    let mut records = vec![0_u32; 512 << 10];
    let start = Instant::now();
    let mut at = 1_u32;
    for i in 0..1_000_000 {
        at = at.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let record = &mut records[(at >> 13) as usize];
        if *record & 1 == 0 {
            *record = record.wrapping_add(i | 1);
        } else {
            at ^= *record;
            *record >>= 1;
        }
    }
    black_box(&records);
    start.elapsed().as_secs_f64()
}

/// Seconds of one launch, its result checked.
fn launch(seed: u64, checks: Checks) -> Option<f64> {
    let r = Rig::new(Options { seed, checks, ..Options::default() })?;
    let g = Gemm::new(&r, &[64; 8], 128, 256, 256, 4);
    r.driver.synchronize(r.stream).unwrap();
    let start = Instant::now();
    g.run(&r).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    g.check(&r).unwrap();
    Some(seconds)
}

#[test]
fn a_fused_grouped_gemm_runs_in_a_fifth_of_a_second_with_all_checks() {
    println!("E=8 M=512 N=256 K=256, fused SwiGLU; the reference loop takes {REFERENCE} s");
    let start = Instant::now();
    let mut before = reference();
    for seed in (1..6).cycle() {
        let Some(checked) = launch(seed, Checks::Full) else { return };
        let after = reference();
        // A machine that is slower, or busy with something else, is so before and after. A faster one gets no
        // smaller bound.
        let slower = (before.min(after) / REFERENCE).max(1.0);
        before = after;
        println!(
            "seed {seed}: {checked:.3} s with all checks, on a machine {slower:.2} times slower"
        );
        if checked < BOUND * slower {
            break;
        }
        // Sanitized models are three times slower; there the time is printed only.
        if cfg!(ubsan) {
            break;
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{checked:.3} s, and never less than {BOUND} s, on a machine {slower:.2} times slower"
        );
    }
    for checks in [Checks::None, Checks::Async, Checks::Full] {
        let best = (1..6).filter_map(|seed| launch(seed, checks)).fold(f64::MAX, f64::min);
        println!("{checks:?}: {best:.3} s, the fastest of five");
    }
}
