//! Feature `cuda`: compiles `kernels/**/*.cu` with nvcc, a fatbin for each file, and writes the table
//! that embeds them. Nothing is linked. Without nvcc the table is empty, and using the GPU an error.
//!
//! - `NVCC`, else `CUDA_HOME`, `CUDA_PATH`, `.cuda/`, PATH, Python's `nvidia.cu13`: the compiler;
//! - `CUDA_COMPUTE_CAP`: SASS for these alone: `90`, `8.0,9.0`, `native`; `all` is what `ALL` lists;
//! - `MOE_KERNELS_REQUIRE_NVCC=1`: no nvcc, no build; `MOE_KERNELS_DENY_SPILLS=1`: nor with spills,
//!   C75xx or any warning, nor with too many bytes;
//! - `MOE_KERNELS_CACHE`: a folder where builds share fatbins, by content; by default OUT_DIR.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::{env, fs, iter, thread};

/// Compute capabilities that get SASS of their own; the PTX of 8.0 serves the rest.
const ALL: [u32; 5] = [80, 89, 90, 100, 120];
const MOST_FATBIN_BYTES: usize = 8 << 20;
const VARIABLES: &str = "NVCC CUDA_HOME CUDA_PATH CUDA_COMPUTE_CAP MOE_KERNELS_REQUIRE_NVCC \
    MOE_KERNELS_DENY_SPILLS MOE_KERNELS_CACHE NVCC_CCBIN NVCC_PREPEND_FLAGS NVCC_APPEND_FLAGS";

struct Nvcc {
    path: PathBuf,
    version: String,
    knows: Vec<u32>,
    flags: Vec<&'static str>,
}

/// A kernel file's name, its path, what to compile it for, and where to, without an extension.
type Job = (String, PathBuf, Vec<String>, PathBuf);

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    VARIABLES.split(' ').for_each(|name| println!("cargo:rerun-if-env-changed={name}"));
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-changed=kernels");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let (built, caps, fatbins) = match find_nvcc() {
        Ok(nvcc) => build(&nvcc, &out),
        Err(why) if env::var("MOE_KERNELS_REQUIRE_NVCC") == Ok("1".into()) => panic!("{why}"),
        Err(why) => (format!("none: {why}"), Vec::new(), Vec::new()),
    };
    println!("cargo:warning=CUDA kernels: {built}");
    let row = |(name, path)| format!("({name:?}, include_bytes!({path:?})),\n");
    let rows: String = fatbins.into_iter().map(row).collect();
    let built = format!("static BUILT: &str = {built:?};\nstatic SASS: &[u32] = &{caps:?};\n");
    let table = format!("{built}static FATBINS: &[(&str, &[u8])] = &[\n{rows}];\n");
    fs::write(out.join("fatbins.rs"), table).expect("OUT_DIR is writable");
}

/// What a program prints, or why it prints nothing.
fn ask(program: &Path, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|e| e.to_string())?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The first nvcc that there is.
fn find_nvcc() -> Result<Nvcc, String> {
    let homes = [env::var("CUDA_HOME"), env::var("CUDA_PATH"), Ok(".cuda".into())];
    let homes = homes.into_iter().flatten();
    let mut folders: Vec<_> = homes.map(|home| Path::new(&home).join("bin")).collect();
    folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let wheel = "import nvidia.cu13 as m; print(list(m.__path__)[0])";
    folders.extend(ask(Path::new("python3"), &["-c", wheel]).map(|p| Path::new(&p).join("bin")));
    let name = format!("nvcc{}", env::consts::EXE_SUFFIX);
    let mut found = folders.iter().map(|folder| folder.join(&name)).filter(|path| path.is_file());
    let nvcc = env::var_os("NVCC").map(PathBuf::from).or_else(|| found.next()).ok_or(
        "no nvcc by NVCC, CUDA_HOME, CUDA_PATH, .cuda/ (where tools/cuda-toolkit.sh installs it), \
         PATH or Python's nvidia.cu13",
    )?;
    probe(&nvcc).map_err(|why| format!("{}: {why}", nvcc.display()))
}

fn probe(path: &Path) -> Result<Nvcc, String> {
    let version = ask(path, &["--version"])?;
    let version = version.split(", V").nth(1).and_then(|v| v.split_whitespace().next());
    let version = version.ok_or("`--version` names none")?.to_owned();
    if version.split('.').next().is_none_or(|major| major.parse().unwrap_or(0) < 12) {
        return Err(format!("version {version}; C++20 and sm_90a ask for 12.0"));
    }
    let codes = ask(path, &["--list-gpu-code"])?;
    let knows = codes.split_whitespace().filter_map(|code| code.strip_prefix("sm_")?.parse().ok());
    let mut flags = vec!["--fatbin", "-std=c++20", "-O3", "-Xptxas=-v", "-Ikernels"];
    let compresses = ask(path, &["--help"])?.contains("--compress-mode");
    flags.extend(compresses.then_some("--compress-mode=size"));
    Ok(Nvcc { path: path.into(), version, knows: knows.collect(), flags })
}

/// The compute capabilities to make SASS for: those that this nvcc knows, and the others.
fn compute_capabilities(nvcc: &Nvcc) -> (Vec<u32>, Vec<u32>) {
    let asked = env::var("CUDA_COMPUTE_CAP").ok().filter(|list| !list.is_empty());
    let mut asked = asked.unwrap_or("all".into());
    if asked == "native" {
        let query = ["--query-gpu=compute_cap", "--format=csv,noheader"];
        asked = ask(Path::new("nvidia-smi"), &query)
            .unwrap_or_else(|why| panic!("CUDA_COMPUTE_CAP=native, but nvidia-smi: {why}"));
    }
    let words = asked.split([',', ';', ' ', '\n']).filter(|word| !word.is_empty());
    let caps = words.flat_map(|word| match word.trim_end_matches('a').replace('.', "").parse() {
        _ if word == "all" => ALL.to_vec(),
        Ok(cap) if cap >= 80 => vec![cap],
        _ => panic!("CUDA_COMPUTE_CAP: {word:?} is none from 8.0 on, nor all, nor native"),
    });
    caps.collect::<BTreeSet<_>>().into_iter().partition(|cap| nvcc.knows.contains(cap))
}

/// Compiles everything. What was built, in words; what got SASS; the fatbins by name.
fn build(nvcc: &Nvcc, out: &Path) -> (String, Vec<u32>, Vec<(String, PathBuf)>) {
    println!("cargo:rerun-if-changed={}", nvcc.path.display());
    let (caps, unknown) = compute_capabilities(nvcc);
    let cache = env::var_os("MOE_KERNELS_CACHE").map_or(out.to_owned(), PathBuf::from);
    fs::create_dir_all(&cache).expect("MOE_KERNELS_CACHE can be made");
    let is_source = |path: &PathBuf| path.extension() == Some("cu".as_ref());
    let (sources, headers): (Vec<_>, Vec<_>) =
        files("kernels".as_ref()).into_iter().partition(is_source);
    // Any header may be in any source: one that changes makes everything anew.
    let headers: Vec<_> = headers.iter().map(|path| read(path)).collect();
    let variables = ["NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"].map(env::var_os);
    let shared = (&nvcc.version, &nvcc.flags, headers, variables);
    let mut jobs: Vec<Job> = Vec::new();
    for source in sources {
        let name = source.strip_prefix("kernels").expect("found there").with_extension("");
        let name = name.to_str().expect("UTF-8").replace('\\', "/");
        let mut archs: Vec<_> = caps.iter().map(|cap| format!("{cap},code=sm_{cap}")).collect();
        archs.push("80,code=compute_80".into());
        if name.ends_with("_sm90") {
            archs = caps.contains(&90).then(|| "90a,code=sm_90a".into()).into_iter().collect();
        }
        let mut hasher = DefaultHasher::new();
        (&shared, &archs, read(&source)).hash(&mut hasher);
        let file = format!("{}-{:016x}", name.replace('/', "-"), hasher.finish());
        jobs.extend((!archs.is_empty()).then(|| (name, source, archs, cache.join(file))));
    }
    let queue = Mutex::new(jobs.iter());
    let next = || queue.lock().expect("no thread panics as it takes a job").next();
    let work = || iter::from_fn(next).for_each(|job| compile(nvcc, job));
    let workers = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok()).unwrap_or(1);
    thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
    let logs = jobs.iter().map(|(_, _, _, base)| read(&base.with_extension("log")));
    let mut complaints: Vec<_> = logs.flat_map(|log| complaints_of(&log)).collect();
    let fatbin = |(name, _, _, base): Job| (name, base.with_extension("fatbin"));
    let fatbins: Vec<_> = jobs.into_iter().map(fatbin).collect();
    let bytes: usize = fatbins.iter().map(|(_, path)| read(path).len()).sum();
    if bytes > MOST_FATBIN_BYTES {
        complaints.push(format!("{bytes} bytes of fatbins; the limit is {MOST_FATBIN_BYTES}"));
    }
    complaints.iter().for_each(|line| println!("cargo:warning={line}"));
    if env::var("MOE_KERNELS_DENY_SPILLS") == Ok("1".into()) {
        assert!(complaints.is_empty(), "denied by MOE_KERNELS_DENY_SPILLS=1");
    }
    let (count, Nvcc { version, path, .. }) = (fatbins.len(), nvcc);
    let lacks = if unknown.is_empty() { "" } else { &format!(", which lacks {unknown:?}") };
    let made = format!("{count} fatbins, {bytes} bytes, SASS for {caps:?} and PTX for 80");
    (format!("{made}, by nvcc {version} at {path:?}{lacks}"), caps, fatbins)
}

/// Writes `base`.fatbin and, in `base`.log, what the compiler said; not if they are there.
fn compile(nvcc: &Nvcc, (_, source, archs, base): &Job) {
    if base.with_extension("fatbin").is_file() {
        return;
    }
    // Under another name until it is whole: builds may share the folder.
    let scratch = base.with_extension(std::process::id().to_string());
    let archs = archs.iter().map(|arch| format!("--generate-code=arch=compute_{arch}"));
    let mut command = Command::new(&nvcc.path);
    command.args(&nvcc.flags).args(archs).arg(source).arg("-o").arg(&scratch);
    let output = command.output().unwrap_or_else(|e| panic!("{}: {e}", nvcc.path.display()));
    let log = [output.stderr, output.stdout].concat();
    assert!(output.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&log));
    fs::write(base.with_extension("log"), log).expect("the cache is writable");
    fs::rename(&scratch, base.with_extension("fatbin")).expect("the cache is writable");
}

/// Spills and other local memory, serialised wgmma (C75xx), and warnings.
fn complaints_of(log: &[u8]) -> Vec<String> {
    let (mut kernel, mut found) = ("", Vec::new());
    for line in String::from_utf8_lossy(log).lines().map(str::trim) {
        kernel = line.split_once("Compiling entry function ").map_or(kernel, |(_, entry)| entry);
        let local = line.contains(" bytes stack frame, ") && !line.starts_with("0 bytes");
        if local || line.contains("warning") || line.contains("(C7") {
            found.push(format!("{kernel}: {line}"));
        }
    }
    found
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// All files below a folder.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let paths = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { [path].into() }).collect()
}
