//! Wrong PTX in the wrappers: every mutant must be caught on a CPU, those that ptxas accepts above all.
//!
//! A mutant is an edit of the text that the emulator decodes, so that no rebuild is needed. Three mutants
//! of the descriptor encoders, which are C++ and not PTX, are faults 70 to 72 in `tests/faults.rs`.

mod common;
use common::Rig;
use common::cases::CASES;
use moe_emulator::{Options, TextEdit};

/// What ptxas 13.0 says of the same edit.
#[derive(PartialEq, Debug)]
enum Ptxas {
    Accepts,
    Rejects,
}
use Ptxas::{Accepts, Rejects};

const MUTANTS: &[(&str, &str, &str, Ptxas)] = &[
    (
        "2D load: coordinates swapped",
        "[%0], [%1, {%2, %3}], [%4];",
        "[%0], [%1, {%3, %2}], [%4];",
        Accepts,
    ),
    (
        "3D load: destination and barrier swapped",
        "[%0], [%1, {%2, %3, %4}], [%5];",
        "[%5], [%1, {%2, %3, %4}], [%0];",
        Accepts,
    ),
    (
        "3D load: a coordinate short",
        "[%0], [%1, {%2, %3, %4}], [%5];",
        "[%0], [%1, {%2, %3}], [%5];",
        Rejects,
    ),
    ("store: coordinates swapped", "[%0, {%1, %2}], [%3];", "[%0, {%2, %1}], [%3];", Accepts),
    (
        "2D load: says 3d",
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}]",
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %3}]",
        Accepts,
    ),
    (
        "expect_tx without the arrival",
        "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;",
        "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;",
        Accepts,
    ),
    (
        "arrival without expect_tx",
        "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;",
        "mbarrier.arrive.release.cta.shared::cta.b64 _, [%0], %1;",
        Accepts,
    ),
    (
        "try_wait: result inverted",
        "p, [%1], %2;\nselp.b32 %0, 1, 0, p;",
        "p, [%1], %2;\nselp.b32 %0, 0, 1, p;",
        Accepts,
    ),
    ("try_wait: parity and address swapped", "p, [%1], %2;", "p, [%2], %1;", Accepts),
    (
        "mbarrier.init: operands swapped",
        "mbarrier.init.shared::cta.b64 [%0], %1;",
        "mbarrier.init.shared::cta.b64 [%1], %0;",
        Accepts,
    ),
    (
        "elect.sync: half the mask",
        "elect.sync _|p, 0xffffffff",
        "elect.sync _|p, 0x0000ffff",
        Accepts,
    ),
    (
        "elect.sync: result inverted",
        "elect.sync _|p, 0xffffffff;\nselp.b32 %0, 1, 0, p;",
        "elect.sync _|p, 0xffffffff;\nselp.b32 %0, 0, 1, p;",
        Accepts,
    ),
    ("bar.sync: id and count swapped", "bar.sync %0, %1;", "bar.sync %1, %0;", Accepts),
    ("setmaxnreg: inc says dec", "setmaxnreg.inc.sync", "setmaxnreg.dec.sync", Rejects),
    (
        "fence.proxy.async of global memory",
        "fence.proxy.async.shared::cta;",
        "fence.proxy.async.global;",
        Accepts,
    ),
    (
        "bulk commit says cp.async commit",
        "cp.async.bulk.commit_group;",
        "cp.async.commit_group;",
        Accepts,
    ),
    (
        "bulk wait_group.read 1",
        "cp.async.bulk.wait_group.read %0;",
        "cp.async.bulk.wait_group.read 1;",
        Accepts,
    ),
    ("cp.async without src-size", "[%0], [%1], 16, %2;", "[%0], [%1], 16;", Accepts),
    ("cp.async.wait_group 3", "cp.async.wait_group %0;", "cp.async.wait_group 3;", Accepts),
    (
        "ldmatrix transposed",
        "ldmatrix.sync.aligned.m8n8.x4.shared",
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared",
        Accepts,
    ),
    (
        "ldmatrix: two results swapped",
        "x4.shared.b16 {%0, %1, %2, %3}, [%4];",
        "x4.shared.b16 {%0, %2, %1, %3}, [%4];",
        Accepts,
    ),
    (
        "ldmatrix.x2 with four results",
        "ldmatrix.sync.aligned.m8n8.x4.shared",
        "ldmatrix.sync.aligned.m8n8.x2.shared",
        Rejects,
    ),
    (
        "stmatrix: two registers swapped",
        "x4.shared.b16 [%0], {%1, %2, %3, %4};",
        "x4.shared.b16 [%0], {%1, %3, %2, %4};",
        Accepts,
    ),
    (
        "mma: two registers of A swapped",
        "{%4, %5, %6, %7}, {%8, %9}",
        "{%4, %6, %5, %7}, {%8, %9}",
        Accepts,
    ),
    ("mma: C is not D", "{%8, %9}, {%0, %1, %2, %3};", "{%8, %9}, {%1, %0, %2, %3};", Accepts),
    (
        "cvt.bf16x2: halves swapped",
        "cvt.rn.bf16x2.f32 %0, %1, %2;",
        "cvt.rn.bf16x2.f32 %0, %2, %1;",
        Accepts,
    ),
    (
        "wgmma: descriptors swapped",
        ", %64, %65, p, 1, 1, %67, %68;",
        ", %65, %64, p, 1, 1, %67, %68;",
        Accepts,
    ),
    ("wgmma: scale-d inverted", "setp.ne.b32 p, %66, 0;", "setp.eq.b32 p, %66, 0;", Accepts),
    (
        "wgmma: scale-d from another operand",
        "setp.ne.b32 p, %66, 0;",
        "setp.ne.b32 p, %67, 0;",
        Accepts,
    ),
    (
        "wgmma: A negated",
        ", %64, %65, p, 1, 1, %67, %68;",
        ", %64, %65, p, -1, 1, %67, %68;",
        Accepts,
    ),
    (
        "wgmma: A never transposed",
        ", %64, %65, p, 1, 1, %67, %68;",
        ", %64, %65, p, 1, 1, 0, %68;",
        Accepts,
    ),
    ("wgmma: n256 with 64 accumulators", "m64n128k16", "m64n256k16", Rejects),
    ("wgmma: f16 for bf16", "m64n128k16.f32.bf16.bf16", "m64n128k16.f32.f16.f16", Accepts),
    (
        "wgmma.wait_group 1",
        "wgmma.wait_group.sync.aligned %0;",
        "wgmma.wait_group.sync.aligned 1;",
        Accepts,
    ),
    ("wgmma commit missing", "wgmma.commit_group.sync.aligned;", "", Accepts),
];

fn hunt(mutants: &[(&str, &str, &str, Ptxas)]) {
    let mut missed = String::new();
    for (what, from, to, ptxas) in mutants {
        let mut caught = None;
        'seeds: for seed in 0..4 {
            for case in CASES {
                let edit = Some(TextEdit { from: (*from).into(), to: (*to).into() });
                let Some(rig) = Rig::new(Options { edit, ..Options::checked(seed) }) else {
                    return;
                };
                if let Err(report) = (case.run)(&rig) {
                    caught = Some((seed, case.name, report));
                    break 'seeds;
                }
            }
        }
        match caught {
            Some((seed, case, report)) => {
                println!(
                    "{what:45} {ptxas:?}; seed {seed}, {case}: {}",
                    report.lines().next().unwrap_or_default()
                );
            }
            None => missed += &format!("{what} ({ptxas:?} by ptxas)\n"),
        }
    }
    assert!(missed.is_empty(), "not caught:\n{missed}");
}
#[test]
fn mutants_in_the_first_half_are_caught() {
    hunt(&MUTANTS[..18]);
}
#[test]
fn mutants_in_the_second_half_are_caught() {
    hunt(&MUTANTS[18..]);
}
#[test]
fn the_list_is_complete() {
    // With the three descriptor mutants of tests/faults.rs: 38, of which ptxas accepts 34.
    assert_eq!(MUTANTS.len() + 3, 38);
    assert_eq!(MUTANTS.iter().filter(|m| m.3 == Accepts).count() + 3, 34);
}
#[test]
fn an_unknown_modifier_names_the_wrapper() {
    let edit = Some(TextEdit {
        from: "mbarrier.init.shared::cta.b64".into(),
        to: "mbarrier.init.weak.shared::cta.b64".into(),
    });
    let Some(rig) = Rig::new(Options { edit, ..Options::checked(0) }) else { return };
    let report = common::cases::wgmma_transposed(&rig).expect_err("no such instruction");
    assert!(
        report.contains("mbarrier_init: no model for `mbarrier.init.weak.shared::cta.b64`"),
        "{report}"
    );
}
