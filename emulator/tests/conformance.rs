//! The conformance suite on the model: every wrapper and layout against the truth, and against golden files.
//!
//! The golden files were recorded from the model: "passes on the model" is all that they say until they are
//! recorded on a GPU, which conformance_gpu.rs does.

mod common;
use common::{Rig, micro};
use moe_emulator::Options;
use std::path::PathBuf;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{name}.bin"))
}

#[test]
fn every_wrapper_computes_the_truth() {
    let mut wrong = String::new();
    for m in micro::all() {
        for seed in 0..3 {
            let Some(rig) = Rig::new(Options::checked(seed)) else { return };
            let result = m
                .run(&rig)
                .map_err(|e| format!("{}: {e}", m.name))
                .and_then(|got| m.same(&got, &m.want));
            if let Err(e) = result {
                wrong += &format!("seed {seed}: {e}\n");
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_wrapper_matches_its_golden_file() {
    let record = std::env::var_os("MOE_RECORD_GOLDEN").is_some_and(|v| v == "1");
    let mut wrong = String::new();
    for m in micro::all() {
        let Some(rig) = Rig::new(Options::plain(1)) else { return };
        let got = m.run(&rig).unwrap_or_else(|e| panic!("{}: {e}", m.name));
        let path = golden(&m.name);
        if record {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &got[..m.want.len()]).unwrap();
            continue;
        }
        match std::fs::read(&path) {
            Err(e) => wrong += &format!("{}: no golden file: {e}\n", m.name),
            Ok(want) => wrong += &m.same(&got, &want).err().map(|e| e + "\n").unwrap_or_default(),
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_micro_kernel_is_in_the_suite() {
    let listed: Vec<String> = micro::all().iter().map(|m| m.name.clone()).collect();
    for name in moe_emulator::kernel_names().iter().filter(|n| n.starts_with("micro_")) {
        assert!(listed.contains(name), "{name} has no case");
    }
}
