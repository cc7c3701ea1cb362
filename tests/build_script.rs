//! The build script, run by itself in a folder of its own, with an nvcc of our own (a shell script that
//! writes down what it is asked).
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Prints what nvcc does where build.rs asks, and for each kernel what is in its source after `//! `.
const NVCC: &str = r#"#!/bin/sh
here=$(dirname "$0")
case "$1" in
--version) echo "Cuda compilation tools, release X, V$(cat "$here/version")"; exit ;;
--list-gpu-code) echo sm_75; echo sm_80; echo sm_90; exit ;;
--help) cat "$here/help"; exit ;;
esac
echo "$@" >> "$here/asked"
out=; source=
while [ $# -gt 0 ]; do
    case "$1" in
    -o) out=$2; shift ;;
    *.cu) source=$1 ;;
    esac
    shift
done
sed -n 's|^//! ||p' "$source" >&2
grep -q '^error' "$source" && exit 2
cat "$source" > "$out"
"#;

/// A folder with kernels and an nvcc.
struct Build {
    folder: tempfile::TempDir,
    variables: Vec<(&'static str, String)>,
}

struct Outcome {
    passed: bool,
    stdout: String,
    stderr: String,
    table: String,
}

impl Build {
    fn new(kernels: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let build = Self { folder, variables: vec![("CARGO_FEATURE_CUDA", "1".to_owned())] };
        build.write("nvcc/bin/version", "13.0.88");
        build.write("nvcc/bin/help", "--compress-mode [default,size]");
        build.write("nvcc/bin/nvcc", NVCC);
        let nvcc = build.path("nvcc/bin/nvcc");
        fs::set_permissions(nvcc, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(build.path("out")).unwrap();
        kernels.iter().for_each(|(name, text)| build.write(&format!("kernels/{name}"), text));
        build
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    /// With our nvcc as that of `CUDA_HOME`.
    fn with_nvcc(self) -> Self {
        let home = self.path("nvcc").to_str().unwrap().to_owned();
        self.with("CUDA_HOME", &home)
    }

    fn run(&self) -> Outcome {
        let output = Command::new(script())
            .current_dir(self.folder.path())
            .env_clear()
            // What the script of nvcc needs, and no python3 that may know of another nvcc.
            .env("PATH", "/usr/bin:/bin")
            .env("PYTHONPATH", "/nonexistent")
            .env("OUT_DIR", self.path("out"))
            .env("NUM_JOBS", "2")
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Outcome {
            passed: output.status.success(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
            table: fs::read_to_string(self.path("out/fatbins.rs")).unwrap_or_default(),
        }
    }

    /// What nvcc was asked to compile, an invocation a line.
    fn asked(&self) -> Vec<String> {
        let asked = fs::read_to_string(self.path("nvcc/bin/asked")).unwrap_or_default();
        asked.lines().map(str::to_owned).collect()
    }
}

/// build.rs, compiled once.
fn script() -> &'static Path {
    static SCRIPT: OnceLock<PathBuf> = OnceLock::new();
    SCRIPT.get_or_init(|| {
        let script = Path::new(env!("CARGO_TARGET_TMPDIR")).join("build-script");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs");
        let rustc = std::env::var("RUSTC").unwrap_or("rustc".to_owned());
        let made = Command::new(rustc)
            .args(["--edition", "2024", "-o"])
            .args([&script, &source])
            .status()
            .unwrap();
        assert!(made.success());
        script
    })
}

const KERNELS: &[(&str, &str)] =
    &[("gemm/fast_sm90.cu", "hopper"), ("plan/plan.cu", "plan"), ("tile/ring.cuh", "a header")];

#[test]
fn without_the_feature_nothing_is_asked_for() {
    let mut build = Build::new(KERNELS).with_nvcc();
    build.variables.retain(|(name, _)| *name != "CARGO_FEATURE_CUDA");
    let outcome = build.run();
    assert!(outcome.passed && outcome.table.is_empty() && build.asked().is_empty());
}

#[test]
fn without_nvcc_the_table_is_empty_and_says_why() {
    let outcome = Build::new(KERNELS).run();
    assert!(outcome.passed, "{}", outcome.stderr);
    assert!(
        outcome.table.contains("static FATBINS: &[(&str, &[u8])] = &[\n];"),
        "{}",
        outcome.table
    );
    assert!(outcome.table.contains("none: no nvcc by NVCC, CUDA_HOME"), "{}", outcome.table);
    assert!(outcome.stdout.contains("cargo:warning=CUDA kernels: none: no nvcc by NVCC"));

    let required = Build::new(KERNELS).with("MOE_KERNELS_REQUIRE_NVCC", "1").run();
    assert!(!required.passed && required.stderr.contains("no nvcc by NVCC"), "{}", required.stderr);
    let named = Build::new(KERNELS).with("NVCC", "/nowhere/nvcc").run();
    assert!(named.passed && named.table.contains("/nowhere/nvcc: No such file"), "{}", named.table);
}

#[test]
fn an_old_nvcc_is_refused_by_its_version() {
    let build = Build::new(KERNELS).with_nvcc();
    build.write("nvcc/bin/version", "11.8.89");
    let outcome = build.run();
    assert!(outcome.passed && build.asked().is_empty());
    assert!(outcome.table.contains("version 11.8.89; C++20 and sm_90a ask for 12.0"));
}

#[test]
fn every_file_gets_its_architectures() {
    let build = Build::new(KERNELS).with_nvcc();
    let outcome = build.run();
    assert!(outcome.passed, "{}", outcome.stderr);
    let asked = build.asked();
    let of = |name: &str| asked.iter().find(|line| line.contains(name)).unwrap();
    let common = "--fatbin -std=c++20 -O3 -Xptxas=-v -Ikernels --compress-mode=size";
    assert_eq!(asked.len(), 2, "{asked:?}");
    let hopper = format!("{common} --generate-code=arch=compute_90a,code=sm_90a kernels/gemm/");
    assert!(of("fast_sm90.cu").starts_with(&hopper), "{asked:?}");
    let others = format!(
        "{common} --generate-code=arch=compute_80,code=sm_80 \
         --generate-code=arch=compute_90,code=sm_90 \
         --generate-code=arch=compute_80,code=compute_80 kernels/plan/"
    );
    assert!(of("plan.cu").starts_with(&others), "{asked:?}");
    // What this nvcc does not know is said.
    assert!(outcome.stdout.contains("SASS for [80, 90] and PTX for 80"), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("which lacks [89, 100, 120]"), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("2 fatbins, 10 bytes"), "{}", outcome.stdout);
    assert!(outcome.table.contains("static SASS: &[u32] = &[80, 90];"), "{}", outcome.table);
    for name in ["(\"gemm/fast_sm90\", include_bytes!(", "(\"plan/plan\", include_bytes!("] {
        assert!(outcome.table.contains(name), "{}", outcome.table);
    }
}

#[test]
fn the_list_of_architectures_can_be_narrowed() {
    let archs = |list: &str| {
        let build = Build::new(KERNELS).with_nvcc().with("CUDA_COMPUTE_CAP", list);
        let outcome = build.run();
        assert!(outcome.passed, "{}", outcome.stderr);
        let asked = build.asked().concat();
        (asked.contains("sm_90a"), asked.contains("code=sm_80"), asked.contains("code=sm_90 "))
    };
    assert_eq!(archs("90"), (true, false, true));
    assert_eq!(archs("8.0"), (false, true, false));
    assert_eq!(archs("8.0;9.0a"), (true, true, true));
    assert_eq!(archs("all"), (true, true, true));
    assert_eq!(archs(""), (true, true, true));
    for list in ["75", "hopper", "native"] {
        let outcome = Build::new(KERNELS).with_nvcc().with("CUDA_COMPUTE_CAP", list).run();
        assert!(!outcome.passed && outcome.stderr.contains("CUDA_COMPUTE_CAP"), "{list}");
    }
}

#[test]
fn an_nvcc_without_compression_is_not_asked_for_it() {
    let build = Build::new(KERNELS).with_nvcc();
    build.write("nvcc/bin/help", "--fatbin");
    assert!(build.run().passed && !build.asked().concat().contains("--compress-mode"));
}

#[test]
fn complaints_are_reported_and_can_be_fatal() {
    let entry = "//! ptxas info    : Compiling entry function 'k' for 'sm_90a'\n";
    let clean = "//!     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n";
    for (said, found) in [
        (
            "//!     48 bytes stack frame, 40 bytes spill stores, 40 bytes spill loads\n",
            "40 bytes spill",
        ),
        ("//! ptxas info    : (C7510) wgmma.mma_async instructions are serialized\n", "(C7510)"),
        ("//! a.cu(3): warning #177-D: variable was declared but never referenced\n", "#177-D"),
    ] {
        let source = format!("{entry}{said}{clean}");
        let kernels = [("gemm/bad_sm90.cu", source.as_str())];
        let outcome = Build::new(&kernels).with_nvcc().run();
        let line = outcome.stdout.lines().find(|line| line.contains(found)).unwrap();
        assert!(outcome.passed && line.starts_with("cargo:warning='k' for 'sm_90a': "), "{line}");
        let denied = Build::new(&kernels).with_nvcc().with("MOE_KERNELS_DENY_SPILLS", "1").run();
        assert!(!denied.passed && denied.stderr.contains("MOE_KERNELS_DENY_SPILLS"), "{found}");
    }
    let fine = format!("{entry}{clean}");
    let kernels = [("gemm/good_sm90.cu", fine.as_str())];
    let outcome = Build::new(&kernels).with_nvcc().with("MOE_KERNELS_DENY_SPILLS", "1").run();
    assert!(outcome.passed, "{}", outcome.stderr);

    let large = "x".repeat((8 << 20) + 1);
    let kernels = [("gemm/large_sm90.cu", large.as_str())];
    let outcome = Build::new(&kernels).with_nvcc().with("MOE_KERNELS_DENY_SPILLS", "1").run();
    assert!(
        !outcome.passed && outcome.stdout.contains("the limit is 8388608"),
        "{}",
        outcome.stdout
    );
}

#[test]
fn a_kernel_that_does_not_compile_fails_the_build() {
    let kernels = [("gemm/wrong.cu", "//! wrong.cu(1): error: expected a declaration\nerror")];
    let outcome = Build::new(&kernels).with_nvcc().run();
    assert!(!outcome.passed && outcome.stderr.contains("expected a declaration"));
}

#[test]
fn what_has_not_changed_is_not_compiled_again() {
    let build = Build::new(KERNELS).with_nvcc();
    let compiled_again = || {
        let before = build.asked().len();
        assert!(build.run().passed);
        build.asked().len() - before
    };
    assert_eq!(compiled_again(), 2);
    assert_eq!(compiled_again(), 0);
    build.write("kernels/plan/plan.cu", "another plan");
    assert_eq!(compiled_again(), 1);
    build.write("kernels/tile/ring.cuh", "another header");
    assert_eq!(compiled_again(), 2);
    build.write("nvcc/bin/version", "13.0.89");
    assert_eq!(compiled_again(), 2);
    // A folder that builds share serves a build elsewhere.
    let shared = build.path("shared").to_str().unwrap().to_owned();
    for expected in [2, 0] {
        let other = Build::new(KERNELS).with_nvcc().with("MOE_KERNELS_CACHE", &shared);
        assert!(other.run().passed);
        assert_eq!(other.asked().len(), expected);
    }
}
