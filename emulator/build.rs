//! Builds the emulator and the kernels as C++.
//!
//! Kernels are built twice: plain, and with `-fsanitize=thread`, whose calls reach the emulator's own
//! checks. Each source is compiled inside a namespace of its variant, so that the two do not share
//! symbols. Without a C++20 compiler the crate still builds, and says so when it is used.
//!
//! A unit is compiled again only if its command or a file that it reads has changed. Builds of other profiles
//! and features share objects in the folder that `MOE_EMULATOR_CACHE` names, if it names one.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs, thread};

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
    println!("cargo:rerun-if-env-changed=MOE_EMULATOR_REQUIRE_CXX");
    println!("cargo:rerun-if-env-changed=MOE_EMULATOR_CACHE");
    println!("cargo:rerun-if-env-changed=MOE_EMULATOR_SELF_TEST");
    let objects = env::var_os("MOE_EMULATOR_CACHE").map_or(out.clone(), PathBuf::from);

    let probe = out.join("probe.cpp");
    fs::write(&probe, PROBE).expect("OUT_DIR is writable");
    if base(&root, &kernels)
        .file(&probe)
        .cargo_metadata(false)
        .cargo_warnings(false)
        .try_compile("probe")
        .is_err()
    {
        assert!(!is_set("MOE_EMULATOR_REQUIRE_CXX"), "no C++20 compiler, and one is required");
        println!("cargo:warning=no C++20 compiler: the emulator is built without its models");
        println!("cargo:rustc-cfg=no_cxx");
        return;
    }

    let models = base(&root, &kernels).get_compiler();
    let mut units: Vec<Unit> = sources(&root.join("cpp"), "cpp")
        .iter()
        .map(|s| Unit::new(&models, s, &objects, "cpp"))
        .collect();
    let mut cuda = sources(&root.join("kernels"), "cu");
    // The emulator's own tests need no more.
    if !is_set("MOE_EMULATOR_SELF_TEST") {
        cuda.extend(sources(&kernels, "cu"));
    }
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
        let compiler = build.get_compiler();
        units.extend(
            cuda.iter()
                .map(|s| Unit::new(&compiler, &wrap(s, namespace, &objects), &objects, namespace)),
        );
    }
    compile(&units);
    let mut library = cc::Build::new();
    library.cpp(true).link_lib_modifier("+whole-archive");
    library.objects(units.iter().map(|u| &u.object));
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
    is_set("MOE_EMULATOR_UBSAN")
}
fn is_set(name: &str) -> bool {
    env::var_os(name).is_some_and(|v| v == "1")
}

/// A source, its object, and the command that makes one from the other.
struct Unit {
    source: PathBuf,
    object: PathBuf,
    compiler: cc::Tool,
}
impl Unit {
    fn new(compiler: &cc::Tool, source: &Path, out: &Path, folder: &str) -> Self {
        let object = out.join(folder).join(name_of(source)).with_extension("o");
        Self { source: source.into(), object, compiler: compiler.clone() }
    }
    fn command(&self) -> Command {
        let mut c = self.compiler.to_command();
        c.arg("-c").arg(&self.source).arg("-o").arg(&self.object);
        c.arg("-MMD").arg("-MF").arg(self.object.with_extension("d"));
        c
    }
    /// What the object was made from: the compiler's version and arguments, then each file and its hash.
    fn record(&self) -> PathBuf {
        self.object.with_extension("from")
    }
    fn arguments(&self, version: &str) -> String {
        format!("{version} {:?}", self.command().get_args().collect::<Vec<_>>())
    }
    fn is_fresh(&self, version: &str, hashes: &mut HashMap<String, Option<u64>>) -> bool {
        let record = fs::read_to_string(self.record()).unwrap_or_default();
        let mut lines = record.lines();
        self.object.exists()
            && lines.next() == Some(&self.arguments(version))
            && lines.all(|line| {
                let (hash, file) = line.split_once(' ').unwrap_or_default();
                let now = *hashes.entry(file.to_owned()).or_insert_with(|| hash_of(file));
                now.is_some_and(|now| now.to_string() == hash)
            })
    }
    fn compile(&self, version: &str) {
        let _ = fs::remove_file(self.record());
        fs::create_dir_all(self.object.parent().expect("joined")).expect("OUT_DIR is writable");
        let run = self.command().output().expect("the compiler has run before");
        let errors = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{} does not compile:\n{errors}", self.source.display());
        // A rule of make, "object: file file \\ file". A name with a space is not found, and so never fresh.
        let rule = fs::read_to_string(self.object.with_extension("d")).expect("-MF writes it");
        let mut record = self.arguments(version);
        for file in rule.split_whitespace().skip(1).filter(|&f| f != "\\") {
            record += &format!("\n{} {file}", hash_of(file).unwrap_or_default());
        }
        fs::write(self.record(), record).expect("OUT_DIR is writable");
    }
}
/// Compiles what is not fresh, as many units at a time as cargo allows.
fn compile(units: &[Unit]) {
    let version = units[0].compiler.to_command().arg("--version").output().expect("probed");
    let version = String::from_utf8_lossy(&version.stdout).lines().next().map(str::to_owned);
    let version = version.unwrap_or_default();
    let mut hashes = HashMap::new();
    let stale: Vec<_> = units.iter().filter(|u| !u.is_fresh(&version, &mut hashes)).collect();
    println!("compiling {} of {} units", stale.len(), units.len());
    let next = Mutex::new(stale.into_iter());
    let take = || next.lock().expect("never held by a panic").next();
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let work = || {
        while let Some(unit) = take() {
            unit.compile(&version);
        }
    };
    thread::scope(|s| (0..jobs).for_each(|_| drop(s.spawn(work))));
}
fn hash_of(file: &str) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    fs::read(file).ok()?.hash(&mut hasher);
    Some(hasher.finish())
}
/// A source's folder and name, which together tell it from the others.
fn name_of(source: &Path) -> String {
    let folder = source.parent().and_then(Path::file_name).unwrap_or_default();
    let stem = source.file_stem().expect("a file has a name");
    format!("{}_{}", folder.to_string_lossy(), stem.to_string_lossy())
}

/// A translation unit that compiles `source` inside `namespace`.
fn wrap(source: &Path, namespace: &str, out: &Path) -> PathBuf {
    let unit = out.join(namespace).join(name_of(source)).with_extension("cpp");
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
