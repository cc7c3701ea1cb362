//! Reads the machine code of every kernel that the crate was built with, prints a table for `docs/`, and
//! fails on what must not be:
//!
//! - local memory: loads or stores of it (`LDL`, `STL`), a stack;
//! - a kernel of a `*_sm90` file without wgmma (`HGMMA`, `QGMMA`) or without TMA loads (`UTMALDG`, or `UBLKCP` of bytes);
//! - a register of a product's operand A that is overwritten while the product may still read it;
//! - more kernels than [`MOST_KERNELS`].
//!
//! ```text
//! cargo run -p check-sass                  the kernels of the crate
//! cargo run -p check-sass -- a.fatbin      those of files
//! ```

mod sass;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

use moe_kernels::cuda::fatbins;
use moe_kernels::cuda::tiles::{EpilogueKind, TILES, Tile};
use sass::Kernel;

/// Instantiations are paid for in build time and bytes.
const MOST_KERNELS: usize = 150;

/// What `cuobjdump -res-usage` says of a kernel.
#[derive(Clone, Copy, Debug, Default)]
struct Usage {
    registers: u32,
    stack: u32,
    shared: u32,
}

/// A kernel for one architecture, with the file that it comes from.
struct Built {
    file: String,
    kernel: Kernel,
    usage: Usage,
}

fn main() -> ExitCode {
    match run() {
        Ok(wrong) if wrong.is_empty() => ExitCode::SUCCESS,
        Ok(wrong) => {
            eprintln!("\ncheck-sass: {} wrong", wrong.len());
            wrong.iter().for_each(|line| eprintln!("  {line}"));
            ExitCode::FAILURE
        }
        Err(why) => {
            eprintln!("check-sass: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the table; gives what is wrong.
fn run() -> Result<Vec<String>, String> {
    let cuobjdump = find_cuobjdump()?;
    let scratch = env::temp_dir().join(format!("check-sass-{}", std::process::id()));
    fs::create_dir_all(&scratch).map_err(|error| format!("{}: {error}", scratch.display()))?;
    let mut files: Vec<(String, PathBuf)> = Vec::new();
    for path in env::args().skip(1).map(PathBuf::from) {
        let stem = path.file_stem().ok_or("a path without a name")?.to_string_lossy();
        files.push((stem.into_owned(), path));
    }
    if files.is_empty() {
        for (i, (name, bytes)) in fatbins::all().iter().enumerate() {
            let path = scratch.join(format!("{i}.fatbin"));
            fs::write(&path, bytes).map_err(|error| format!("{}: {error}", path.display()))?;
            files.push(((*name).to_owned(), path));
        }
    }
    let built: Result<Vec<_>, String> =
        files.iter().map(|(name, path)| read(&cuobjdump, name, path)).collect();
    fs::remove_dir_all(&scratch).map_err(|error| format!("{}: {error}", scratch.display()))?;
    let built: Vec<Built> = built?.into_iter().flatten().collect();
    if built.is_empty() {
        return Err(format!("no kernels to read: the build made {}", fatbins::built()));
    }
    print_table(&built);
    let mut wrong: Vec<String> = built.iter().flat_map(complaints).collect();
    let names: BTreeSet<&str> = built.iter().map(|built| built.kernel.name.as_str()).collect();
    let hazardous = built.iter().filter(|b| !hazards(b, false).is_empty()).count();
    println!(
        "\n{} kernels; {hazardous} would have register hazards if no wait counted",
        names.len()
    );
    if names.len() > MOST_KERNELS {
        wrong.push(format!("{} kernels; {MOST_KERNELS} are the limit", names.len()));
    }
    Ok(wrong)
}

fn find_cuobjdump() -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let homes = [root.join(".cuda")].into_iter().chain(homes);
    let mut folders: Vec<_> = homes.map(|home| home.join("bin")).collect();
    folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let mut found = folders.iter().map(|folder| folder.join("cuobjdump"));
    found.find(|path| path.is_file()).ok_or_else(|| {
        "no cuobjdump in .cuda/ (tools/cuda-toolkit.sh), CUDA_HOME or PATH".to_owned()
    })
}

fn read(cuobjdump: &Path, file: &str, fatbin: &Path) -> Result<Vec<Built>, String> {
    let dump = |what: &str| {
        let output = Command::new(cuobjdump).arg(what).arg(fatbin).output();
        let output = output.map_err(|error| format!("{}: {error}", cuobjdump.display()))?;
        if !output.status.success() {
            return Err(format!("{file}: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let usages = usages(&dump("-res-usage")?);
    let built = sass::parse(&dump("-sass")?).into_iter().map(|kernel| {
        let key = (kernel.arch.clone(), kernel.name.clone());
        let usage = usages.get(&key).ok_or_else(|| format!("{key:?}: no resource usage"))?;
        Ok(Built { file: file.to_owned(), kernel, usage: *usage })
    });
    built.collect()
}

/// Resources by architecture and kernel.
fn usages(listing: &str) -> BTreeMap<(String, String), Usage> {
    let (mut usages, mut arch, mut name) = (BTreeMap::new(), "", "");
    for line in listing.lines().map(str::trim) {
        if let Some(found) = line.strip_prefix("arch = ") {
            arch = found;
        } else if let Some(found) = line.strip_prefix("Function ") {
            name = found.trim_end_matches(':');
        } else if line.starts_with("REG:") {
            let value = |field: &str| {
                let value = line.split(' ').find_map(|word| word.strip_prefix(field));
                value.and_then(|value| value.parse().ok()).unwrap_or(0)
            };
            let stack = value("STACK:") + value("LOCAL:");
            let usage = Usage { registers: value("REG:"), stack, shared: value("SHARED:") };
            usages.insert((arch.to_owned(), name.to_owned()), usage);
        }
    }
    usages
}

fn hazards(built: &Built, heed_waits: bool) -> Vec<sass::Hazard> {
    sass::register_operand_hazards(&built.kernel, heed_waits)
}

/// What is wrong with a kernel, a sentence each.
fn complaints(built: &Built) -> Vec<String> {
    let Built { file, kernel, usage } = built;
    let mut wrong = Vec::new();
    let mut complain = |what: String| {
        wrong.push(format!("{file}: {} for {}: {what}", kernel.name, kernel.arch));
    };
    if kernel.code.is_empty() {
        complain("no code".to_owned());
    }
    if usage.stack > 0 {
        complain(format!("{} bytes of stack and local memory", usage.stack));
    }
    let local: Vec<_> =
        kernel.code.iter().filter(|i| matches!(i.opcode(), "LDL" | "STL")).collect();
    if let [first, ..] = &local[..] {
        let (count, text, address) = (local.len(), &first.text, first.address);
        complain(format!("{count} accesses of local memory, the first `{text}` at {address:#x}"));
    }
    if file.ends_with("_sm90") {
        if !kernel.code.iter().any(sass::Instruction::is_wgmma) {
            complain("no wgmma (HGMMA or QGMMA)".to_owned());
        }
        if !kernel
            .code
            .iter()
            .any(|instruction| matches!(instruction.opcode(), "UTMALDG" | "UBLKCP"))
        {
            complain("no TMA load (UTMALDG, UBLKCP)".to_owned());
        }
    }
    for hazard in hazards(built, true) {
        let sass::Hazard { product, address, text } = hazard;
        complain(format!(
            "`{text}` at {address:#x} overwrites operand A of the product at {product:#x}"
        ));
    }
    wrong
}

/// One row for each kernel. Registers and blocks of a multiprocessor by architecture.
fn print_table(built: &[Built]) {
    println!(
        "| kernel | threads | shared bytes | registers, blocks per multiprocessor | code bytes |"
    );
    println!("|---|---|---|---|---|");
    let mut rows: BTreeMap<&str, Vec<&Built>> = BTreeMap::new();
    for one in built {
        rows.entry(&one.kernel.name).or_default().push(one);
    }
    for (name, archs) in rows {
        let tile = tile_of(name);
        let threads = tile.map_or("-".to_owned(), |tile| tile.threads.to_string());
        let dynamic = tile.map_or(0, |tile| tile.shared_bytes);
        let shared = dynamic.max(archs.iter().map(|one| one.usage.shared).max().unwrap_or(0));
        let mut by_arch = Vec::new();
        for one in &archs {
            let registers = one.usage.registers;
            let blocks = tile.map(|tile| blocks_per_sm(&one.kernel.arch, registers, tile));
            let blocks = blocks.map_or(String::new(), |blocks| format!(", {blocks}"));
            let arch = one.kernel.arch.trim_start_matches("sm_");
            by_arch.push(format!("{arch}: {registers}{blocks}"));
        }
        let code = archs.iter().map(|one| one.kernel.code.len() * 16).max().unwrap_or(0);
        println!("| {name} | {threads} | {shared} | {} | {code} |", by_arch.join("; "));
    }
}

/// The tile that a kernel of the grouped GEMM is named after.
fn tile_of(kernel: &str) -> Option<&'static Tile> {
    TILES.iter().find(|tile| {
        let dtypes = ["bf16", "f16"];
        let named = |epilogue| dtypes.iter().any(|dtype| tile.kernel(epilogue, dtype) == kernel);
        EpilogueKind::ALL.into_iter().any(named)
    })
}

/// How many blocks of a tile's kernel one multiprocessor holds at once.
fn blocks_per_sm(arch: &str, registers: u32, tile: &Tile) -> u32 {
    let (shared, threads) = match arch {
        "sm_80" => (164 << 10, 2048),
        "sm_86" | "sm_89" => (100 << 10, 1536),
        "sm_120" => (100 << 10, 1536),
        _ => (228 << 10, 2048),
    };
    let by_registers = 65536 / (registers.next_multiple_of(8) * tile.threads);
    (shared / (tile.shared_bytes + 1024)).min(threads / tile.threads).min(by_registers)
}
