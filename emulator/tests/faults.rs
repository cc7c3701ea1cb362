//! Deliberately broken kernels: each mistake must be caught, at every seed, by the right report.

mod common;
use common::Rig;
use common::cases::CASES;
use common::hazards::HAZARDS;
use common::seeds;
use moe_emulator::FaultKind::{self, *};
use moe_emulator::Options;

/// One mistake, `FAULT(id)` in `emulator/kernels/`.
struct Mistake {
    id: i32,
    what: &'static str,
    /// Cases whose names begin so are run.
    cases: &'static str,
    /// The kinds of report that name it; empty: a wrong value is what shows.
    reports: &'static [FaultKind],
}
const fn m(
    id: i32,
    what: &'static str,
    cases: &'static str,
    reports: &'static [FaultKind],
) -> Mistake {
    Mistake { id, what, cases, reports }
}
const MISTAKES: &[Mistake] = &[
    m(1, "wrong shuffle lane", "router", &[]),
    m(2, "lanes exit before a full-mask shuffle", "router", &[Deadlock]),
    m(10, "missing __syncthreads after zeroing", "permute 1", &[Race, Uninitialised]),
    m(11, "plain ++ instead of atomicAdd", "permute 1", &[Race]),
    m(12, "missing __syncthreads before reading counts", "permute 1", &[Race]),
    m(13, "missing __syncthreads in the scatter", "permute 1", &[Race]),
    m(14, "global access past the end of a row", "permute 1", &[OutOfBounds, Race]),
    m(15, "missing __syncthreads in the scan", "permute 1", &[Race, Uninitialised]),
    m(20, "empty barrier counts half its arrivals", "gemm", &[Race, Barrier, Async, Deadlock]),
    m(21, "no fence after mbarrier.init", "gemm", &[Proxy]),
    m(22, "no __syncthreads after mbarrier.init", "gemm", &[Race, Barrier]),
    m(23, "producer does not wait for empty", "gemm", &[Race, Async, Barrier]),
    m(24, "producer waits for the wrong parity", "gemm", &[Deadlock, Race]),
    m(25, "expect_tx too small", "gemm", &[Async, Race, Deadlock]),
    m(26, "expect_tx too large", "gemm", &[Deadlock]),
    m(27, "one copy signals the wrong barrier", "gemm", &[Async, Deadlock]),
    m(28, "consumer does not wait for full", "gemm", &[Race]),
    m(29, "consumer waits for the wrong parity", "gemm", &[Race, Deadlock]),
    m(30, "no wgmma.fence", "gemm", &[Wgmma]),
    m(31, "descriptor without swizzle", "gemm", &[]),
    m(32, "descriptor with a wrong stride", "gemm", &[]),
    m(33, "wrong advance along K", "gemm", &[]),
    m(34, "A and B descriptors swapped", "gemm", &[Race]),
    m(35, "accumulators not cleared at the start of a tile", "gemm", &[Taint]),
    m(36, "no wgmma.commit_group", "gemm", &[Race, Taint, Wgmma]),
    m(37, "stage released before the wait", "gemm", &[Race]),
    m(38, "stage never released", "gemm", &[Deadlock]),
    m(39, "no wgmma.wait before the epilogue", "gemm", &[Taint, Race]),
    m(40, "last stage released by one warp for four", "gemm", &[Race]),
    m(41, "staging reused before the TMA store has read it", "gemm", &[Race]),
    m(42, "named barrier with a wrong count", "gemm", &[Barrier, Deadlock]),
    m(43, "staging not swizzled", "gemm", &[]),
    m(44, "no fence.proxy.async before the TMA store", "gemm", &[Proxy]),
    m(45, "no barrier before the TMA store", "gemm", &[Race, Uninitialised]),
    m(46, "no row mask at the end of an expert", "gemm", &[Race, OutOfBounds]),
    m(47, "no barrier before staging is reused", "gemm", &[Race]),
    m(48, "no bulk wait at exit", "gemm", &[Async]),
    m(50, "cp.async.wait_group off by one", "mma", &[Race, Taint]),
    m(51, "no __syncthreads in the cp.async loop", "mma", &[Race, Uninitialised]),
    m(52, "missing column bound", "mma", &[Race, OutOfBounds]),
    m(60, "wrong leading offset of an MN-major operand", "wgmma", &[]),
    m(70, "descriptor stride not in units of 16 bytes", "gemm", &[Race]),
    m(71, "descriptor says 64B swizzle", "gemm", &[]),
    m(72, "descriptor address cut short", "gemm", &[Race]),
    m(80, "changed tensor map used without its proxy fence", "tensor map", &[Proxy]),
    m(
        81,
        "cluster barrier missing before blocks signal each other",
        "multicast",
        &[Race, Barrier, Proxy, Cluster],
    ),
    m(82, "multicast mask leaves a block out", "multicast", &[Deadlock]),
    m(
        83,
        "neighbour's shared memory read before it is written",
        "distributed",
        &[Race, Uninitialised],
    ),
    m(
        84,
        "block exits while others use its shared memory",
        "distributed",
        &[Cluster, Race, Deadlock],
    ),
    m(85, "remote arrivals not waited for", "remote arrive", &[Race, Uninitialised]),
    m(86, "barrier initialised again without mbarrier.inval", "micro_mbarrier_inv", &[Barrier]),
    m(87, "bar.arrive where bar.sync is meant", "micro_barrier_arrive", &[Race, Uninitialised]),
    m(88, "bulk load of plain stores without a proxy fence", "micro_fence_proxy", &[Proxy]),
    m(89, "tile overwritten before the bulk store has read it", "micro_bulk_wait_read", &[Race]),
    m(90, "wgmma reads cp.async data without a proxy fence", "gathered", &[Proxy]),
    m(91, "wgmma reads cp.async data without waiting for it", "gathered", &[Race]),
    m(92, "flag raised by a relaxed addition", "flag", &[Race]),
    m(93, "flag polled by a relaxed load", "flag", &[Race]),
    m(94, "no barrier before the flag is raised", "flag", &[Race]),
    m(95, "no __threadfence before the last-block counter", "last block", &[Race]),
    m(96, "TMA reads another block's stores without a proxy fence", "flag", &[Proxy]),
    m(97, "dependent kernel does not wait for its predecessor", "dependent", &[Race, Taint]),
    m(98, "dependent kernel overwrites its predecessor's input", "dependent", &[Race]),
    m(99, "rows that were never loaded are stored", "partial tile", &[Taint]),
    m(100, "misaligned 16-byte store", "edges", &[Misaligned]),
    m(101, "read of shared memory that was never written", "edges", &[Uninitialised]),
    m(102, "plain store past the end of a buffer", "edges", &[OutOfBounds]),
    m(103, "shared memory past the launch's size", "edges", &[OutOfBounds]),
    m(104, "plain access to an mbarrier", "edges", &[Barrier]),
    m(105, "barrier in half a warp", "edges", &[Divergence, Deadlock, Barrier]),
    m(106, "kernel traps", "edges", &[Trap]),
    m(107, "setmaxnreg takes more registers than were given up", "edges", &[Deadlock, Registers]),
    m(108, "flag raised by a relaxed store", "micro_release_acquire", &[Race]),
    m(109, "no fence after a relaxed poll", "micro_relaxed_fences", &[Race]),
    m(110, "last block counted by relaxed additions", "micro_atomics", &[Race]),
    m(111, "remote expect_tx too small", "micro_remote_expect_tx", &[Async, Race]),
    m(112, "relaxed cluster barrier without a fence", "micro_fence_cluster", &[Race]),
    m(113, "16 bits that were never written, as .b16", "typed stores", &[Taint]),
    m(114, "words that were never written, as .v4.b32", "typed stores", &[Taint]),
    m(115, "64 bits that were never written, as .b64", "typed stores", &[Taint]),
    m(116, "a float that was never written, added", "typed stores", &[Taint]),
    m(117, "staging that holds what was never written", "typed stores", &[Taint]),
    m(118, "bytes that were never written, by a bulk store", "typed stores", &[Taint]),
    m(119, "f16 that were never written, by a tensor store", "typed stores", &[Taint]),
    m(120, "f32 that were never written, by a tensor store", "typed stores", &[Taint]),
    m(121, "i32 that were never written, by a tensor store", "typed stores", &[Taint]),
];
/// Mistakes that the schedule may hide: caught at some seed only.
const NOT_AT_EVERY_SEED: &[i32] = &[];

fn hunt(mistakes: &[Mistake]) {
    let (mut trouble, most) = (String::new(), seeds(8));
    for mistake in mistakes {
        let (mut caught, mut missed) = (0, Vec::new());
        for seed in 0..most {
            let mut found = None;
            for case in CASES.iter().chain(HAZARDS).filter(|c| c.name.starts_with(mistake.cases)) {
                let Some(rig) = Rig::new(Options { fault: mistake.id, ..Options::checked(seed) })
                else {
                    return;
                };
                if let Err(report) = (case.run)(&rig) {
                    found = Some((rig.driver.fault().map(|f| f.kind), report));
                    break;
                }
            }
            let Some((kind, report)) = found else {
                missed.push(seed);
                continue;
            };
            caught += 1;
            let right = kind.map_or(mistake.reports.is_empty(), |k| mistake.reports.contains(&k));
            if !right {
                trouble += &format!(
                    "{} ({}), seed {seed}: unexpected report {kind:?}: {}\n",
                    mistake.id,
                    mistake.what,
                    report.lines().next().unwrap_or_default()
                );
            }
        }
        println!("{:2} {:50} caught at {caught} of {most} seeds", mistake.id, mistake.what);
        if caught == 0 || (!missed.is_empty() && !NOT_AT_EVERY_SEED.contains(&mistake.id)) {
            trouble += &format!("{} ({}): missed at seeds {missed:?}\n", mistake.id, mistake.what);
        }
    }
    assert!(trouble.is_empty(), "{trouble}");
}
#[test]
fn mistakes_in_the_first_third_are_caught() {
    hunt(&MISTAKES[..24]);
}
#[test]
fn mistakes_in_the_second_third_are_caught() {
    hunt(&MISTAKES[24..44]);
}
#[test]
fn mistakes_in_the_last_third_are_caught() {
    hunt(&MISTAKES[44..]);
}
#[test]
fn a_race_names_both_sides() {
    let Some(rig) = Rig::new(Options { fault: 13, ..Options::checked(1) }) else { return };
    let report = common::cases::permute(&rig, 100, 2, 8, 64).expect_err("fault 13 races");
    assert_eq!(
        report.matches("permute.cu:").count(),
        3,
        "both accesses and the thread's place: {report}"
    );
    for part in ["race on smem+", "is not ordered with", "kernel test_scatter", "thread "] {
        assert!(report.contains(part), "no `{part}` in: {report}");
    }
}
#[test]
fn a_deadlock_says_who_waits_for_what() {
    let Some(rig) = Rig::new(Options { fault: 38, ..Options::checked(0) }) else { return };
    let report =
        common::cases::gemm(&rig, &[100, 28], 128, 776, 128, 2).expect_err("fault 38 deadlocks");
    for part in
        ["deadlock", "wait for parity", "of 8 arrivals missing", "grouped_gemm.cu:", "threads 128-"]
    {
        assert!(report.contains(part), "no `{part}` in: {report}");
    }
}
