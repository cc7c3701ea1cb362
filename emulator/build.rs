//! Builds the emulator and the kernels as C++.
//!
//! Kernels are built twice: plain, and with `-fsanitize=thread`, whose calls reach the emulator's own
//! checks. Each source is compiled inside a namespace of its variant, so that the two do not share
//! symbols. Without a C++20 compiler the crate still builds, and says so when it is used.

use std::path::{Path, PathBuf};
use std::{env, fs};

const PROBE: &str = "#include <atomic>\nstruct S { int a; };\ntemplate <S s> int f() { return s.a; }\n\
                     static constinit std::atomic<int> x{0};\nint probe() { return f<S{1}>() + x; }\n";

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let kernels = root.join("../kernels");
    for watched in [root.join("cpp"), root.join("kernels"), kernels.clone()] {
        println!("cargo:rerun-if-changed={}", watched.display());
    }
    println!("cargo:rerun-if-env-changed=MOE_EMULATOR_UBSAN");

    let probe = out.join("probe.cpp");
    fs::write(&probe, PROBE).expect("OUT_DIR is writable");
    if base(&root, &kernels)
        .file(&probe)
        .cargo_metadata(false)
        .cargo_warnings(false)
        .try_compile("probe")
        .is_err()
    {
        println!("cargo:warning=no C++20 compiler: the emulator is built without its models");
        println!("cargo:rustc-cfg=no_cxx");
        return;
    }

    let mut objects =
        base(&root, &kernels).files(sources(&root.join("cpp"), "cpp")).compile_intermediates();
    let mut cuda = sources(&kernels, "cu");
    cuda.extend(sources(&root.join("kernels"), "cu"));
    for (checked, namespace) in [(false, "moe_plain"), (true, "moe_checked")] {
        let mut build = base(&root, &kernels);
        build
            .include(root.join("kernels"))
            .define("MOE_EMULATOR_CHECKED", if checked { "1" } else { "0" });
        if checked {
            build.flag("-fsanitize=thread");
            // Entry and exit hooks tell nothing here and cost a call per function.
            if build.get_compiler().is_like_clang() {
                build.flag("-mllvm").flag("-tsan-instrument-func-entry-exit=0");
            } else {
                build.flag("--param=tsan-instrument-func-entry-exit=0");
            }
        }
        for source in &cuda {
            build.file(wrap(source, namespace, &out));
        }
        objects.extend(build.compile_intermediates());
    }
    let mut library = cc::Build::new();
    library.cpp(true).link_lib_modifier("+whole-archive");
    for object in &objects {
        library.object(object);
    }
    library.compile("moe_emulator");
    if ubsan() {
        println!("cargo:rustc-link-lib=ubsan");
        println!("cargo:rustc-cfg=ubsan");
    }
}

/// Flags that all parts share.
fn base(root: &Path, kernels: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++20")
        .opt_level(2)
        .debug(false)
        .flag("-ftree-vectorize")
        .flag("-fno-strict-aliasing")
        .flag("-fno-omit-frame-pointer")
        .flag_if_supported("-Wno-psabi")
        .flag_if_supported("-Wno-unknown-pragmas")
        .define("MOE_EMULATOR", None)
        .include(root.join("cpp"))
        .include(root.join("cpp/device"))
        .include(kernels)
        .warnings(false);
    // Reports show the chain of inlining. addr2line loses it in what clang writes by default.
    build.flag("-g1");
    if build.get_compiler().is_like_clang() {
        build.flag("-gdwarf-4");
    }
    if ubsan() {
        // Misaligned accesses are the emulator's to report; undefined behaviour is fatal.
        build
            .flag("-fsanitize=undefined")
            .flag("-fno-sanitize=alignment,vptr")
            .flag("-fno-sanitize-recover=undefined");
    }
    build
}

fn ubsan() -> bool {
    env::var_os("MOE_EMULATOR_UBSAN").is_some_and(|v| v == "1")
}

/// A translation unit that compiles `source` inside `namespace`.
fn wrap(source: &Path, namespace: &str, out: &Path) -> PathBuf {
    let stem = source.file_stem().expect("a file has a name").to_string_lossy().into_owned();
    let parent = source
        .parent()
        .and_then(Path::file_name)
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let unit = out.join(namespace).join(format!("{parent}_{stem}.cpp"));
    fs::create_dir_all(unit.parent().expect("it was joined")).expect("OUT_DIR is writable");
    let text = format!(
        "#include \"emulator_device.h\"\nnamespace {namespace} {{\n#include \"{}\"\n}}\n",
        source.display()
    );
    if fs::read_to_string(&unit).ok().as_deref() != Some(&text) {
        fs::write(&unit, text).expect("OUT_DIR is writable");
    }
    unit
}

/// All files below `dir` with this extension, in a fixed order.
fn sources(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}
