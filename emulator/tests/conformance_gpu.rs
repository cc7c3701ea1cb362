//! The conformance suite on this machine's GPU: every wrapper and layout against the truth and against the
//! golden files, or, with `MOE_RECORD_GOLDEN=1`, into the golden files.
//!
//! `MOE_MICRO_FATBINS` names the folder of the micro-kernels' fatbins (`tools/micro-fatbins.sh`), `MOE_GOLDEN`
//! that of the golden files, where that is not the repository's. Each micro-kernel runs in a process of its
//! own, because a fault makes the GPU useless for the rest of a process.
#![cfg(feature = "cuda")]

mod common;

use common::{Rig, micro};
use moe_kernels::cuda::nvidia::{NvidiaDriver, device_count};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

fn golden(name: &str) -> PathBuf {
    let repository = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden");
    let folder = env::var_os("MOE_GOLDEN").map_or_else(repository, PathBuf::from);
    folder.join(format!("{name}.bin"))
}

/// Why nothing can run, if so.
fn lacking() -> Option<String> {
    match device_count() {
        Err(error) => Some(error.to_string()),
        Ok(0) => Some("the driver sees no GPU".to_owned()),
        Ok(_) if env::var_os("MOE_MICRO_FATBINS").is_none() => {
            Some("MOE_MICRO_FATBINS names no folder (tools/micro-fatbins.sh)".to_owned())
        }
        Ok(_) => None,
    }
}

#[test]
fn the_gpu_computes_the_truth() {
    if let Some(why) = lacking() {
        assert!(
            env::var_os("MOE_REQUIRE_GPU").is_none_or(|v| v != "1"),
            "MOE_REQUIRE_GPU=1: {why}"
        );
        // Past the test harness, which keeps the output of a passing test to itself.
        let count = micro::all().len();
        let _ = writeln!(std::io::stderr(), "SKIPPED on the GPU: {count} micro-kernels: {why}");
        return;
    }
    let mut wrong = String::new();
    for m in micro::all() {
        let run = Command::new(env::current_exe().unwrap())
            .args(["one_micro_kernel", "--exact", "--nocapture"])
            .env("MOE_MICRO", &m.name)
            .output()
            .unwrap();
        if !run.status.success() {
            let said = String::from_utf8_lossy(&run.stderr);
            let line = said.lines().find(|line| line.starts_with("MICRO: ")).unwrap_or(&said);
            wrong += &format!("{}\n", line.trim_start_matches("MICRO: "));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} wrong:\n{wrong}",
        wrong.lines().count(),
        micro::all().len()
    );
}

/// The other side of the process boundary.
#[test]
fn one_micro_kernel() {
    let Ok(name) = env::var("MOE_MICRO") else { return };
    let m = micro::all().iter().find(|m| m.name == name).expect("it is in the suite");
    let mut paths: Vec<_> = fs::read_dir(env::var_os("MOE_MICRO_FATBINS").unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "fatbin"))
        .collect();
    paths.sort();
    let images: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).unwrap()).collect();
    let images: Vec<&[u8]> = images.iter().map(Vec::as_slice).collect();
    let rig = Rig::over(NvidiaDriver::new(0).unwrap(), &images);
    if let Err(why) = check(&rig, m) {
        let _ = writeln!(std::io::stderr(), "MICRO: {why}");
        panic!("{why}");
    }
}

/// Against the truth; then recorded, or against the golden file.
fn check(rig: &Rig<NvidiaDriver>, m: &micro::Micro) -> Result<(), String> {
    let got = m.run(rig).map_err(|error| format!("{}: {error}", m.name))?;
    m.same(&got, &m.want).map_err(|error| format!("truth: {error}"))?;
    let path = golden(&m.name);
    if env::var_os("MOE_RECORD_GOLDEN").is_some_and(|value| value == "1") {
        return fs::write(&path, &got[..m.want.len()])
            .map_err(|error| format!("{}: {error}", path.display()));
    }
    let want = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    m.same(&got, &want).map_err(|error| format!("golden file: {error}"))
}
