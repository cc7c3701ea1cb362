//! How fast the emulator is: the shape that its tests are sized by.

mod common;
use common::Rig;
use common::cases::Gemm;
use moe_emulator::{Checks, Options};
use moe_kernels::cuda::driver::Driver;
use std::time::Instant;

/// Seconds of the fastest of five launches, each checked.
fn gemm(checks: Checks, columns: u32) -> Option<f64> {
    let mut best = f64::MAX;
    for seed in 1..6 {
        let r = Rig::new(Options { seed, checks, ..Options::default() })?;
        let g = Gemm::new(&r, &[64; 8], 128, 256, columns, 4);
        r.driver.synchronize(r.stream).unwrap();
        let start = Instant::now();
        g.run(&r).unwrap();
        best = best.min(start.elapsed().as_secs_f64());
        g.check(&r).unwrap();
    }
    Some(best)
}
#[test]
fn a_fused_grouped_gemm_runs_in_a_fifth_of_a_second_with_all_checks() {
    let Some(checked) = gemm(Checks::Full, 256) else { return };
    let (asynchronous, plain) =
        (gemm(Checks::Async, 256).unwrap(), gemm(Checks::None, 256).unwrap());
    println!(
        "E=8 M=512 N=256 K=256, fused SwiGLU: {plain:.3} s plain, {asynchronous:.3} s async checks, {checked:.3} s all checks"
    );
    // Sanitized models are three times slower; there the time is printed only.
    assert!(cfg!(ubsan) || checked < 0.2, "{checked:.3} s");
}
