//! Breaks the self-test kernels at random, one line at a time, and counts what the tests notice.
//!
//!     cargo run -p moe-emulator --example mutants -- [COUNT] [SEED] [FILE]
//!
//! The sources are copied into the target folder and built there; each mutant costs two C++ units, a link and
//! the checked cases under four seeds. A survivor is printed as the line that it was and became: it is either
//! equivalent to the original, or a hole in the cases or the checks.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

const FILES: &[&str] = &["grouped_gemm", "mma_gemm", "permute", "router", "hazards"];
/// A spin without any emulated instruction ends here.
const MOST: Duration = Duration::from_secs(120);

struct Rand(u64);
impl Rand {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// Everything that one edit can make of a line of device code.
fn mutations(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    let body = code.trim();
    let mut found = Vec::new();
    if body.is_empty() || body.starts_with(['#', '}', '@']) || body.contains("static constexpr") {
        return found;
    }
    // A statement that stands alone on its line, and is no declaration, goes.
    let calls = ["ptx::", "__sync", "atomic", "if (", "for ("].iter().any(|c| body.starts_with(c));
    if calls && body.ends_with(';') {
        found.push(String::new());
    }
    let swaps = [
        (" < ", " <= "),
        (" <= ", " < "),
        (" == ", " != "),
        (" != ", " == "),
        (" >= ", " > "),
        (" > ", " >= "),
        (" + ", " - "),
        (" - ", " + "),
        (" * ", " + "),
        (" / ", " * "),
        (" % ", " / "),
        (" & ", " | "),
        (" ^ ", " | "),
        (" && ", " || "),
        (" || ", " && "),
        ("++", "--"),
        (" << ", " >> "),
        (" >> ", " << "),
    ];
    for (from, to) in swaps {
        for (at, _) in code.match_indices(from) {
            found.push(format!("{}{to}{}", &code[..at], &code[at + from.len()..]));
        }
    }
    // Whole numbers grow by one.
    let bytes = code.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes[at..].iter().take_while(|b| b.is_ascii_digit()).count();
        let alone = |b: Option<&u8>| {
            b.is_none_or(|b| !b.is_ascii_alphanumeric() && *b != b'_' && *b != b'.')
        };
        if digits > 0
            && alone(at.checked_sub(1).map(|i| &bytes[i]))
            && alone(bytes.get(at + digits))
        {
            let n: u64 = code[at..at + digits].parse().unwrap_or_default();
            found.push(format!("{}{}{}", &code[..at], n + 1, &code[at + digits..]));
        }
        at += digits.max(1);
    }
    found
}

/// Copies what git knows of the workspace.
fn copy_workspace(from: &Path, to: &Path) {
    let list = Command::new("git").arg("ls-files").current_dir(from).output().expect("git runs");
    for name in String::from_utf8_lossy(&list.stdout).lines() {
        let (source, copy) = (from.join(name), to.join(name));
        let Ok(new) = fs::read(&source) else { continue };
        if fs::read(&copy).ok().as_deref() != Some(&new) {
            fs::create_dir_all(copy.parent().expect("joined"))
                .expect("the target folder is writable");
            fs::write(copy, new).expect("the target folder is writable");
        }
    }
}

#[derive(PartialEq)]
enum Verdict {
    DoesNotCompile,
    Caught(String),
    Survives,
}
fn judge(workspace: &Path) -> Verdict {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["test", "--package", "moe-emulator", "--test", "correct", "--no-run"]);
    cargo.current_dir(workspace).env("CARGO_TARGET_DIR", workspace.join("target"));
    let built = cargo.output().expect("cargo runs");
    if !built.status.success() {
        return Verdict::DoesNotCompile;
    }
    // "Executable tests/correct.rs (path)"; run by itself, so that it is what a kill ends.
    let said = String::from_utf8_lossy(&built.stderr);
    let test = said.rsplit_once('(').and_then(|(_, path)| path.split_once(')')).expect("a path").0;
    let log = workspace.join("target/log");
    let out = fs::File::create(&log).expect("the target folder is writable");
    let mut run = Command::new(workspace.join(test))
        .args(["no_false_alarm_in_seeds_0_to_31", "--nocapture"])
        .env("MOE_EMULATOR_SEEDS", "4")
        .stdout(Stdio::null())
        .stderr(out)
        .spawn()
        .expect("the test was built");
    let start = Instant::now();
    loop {
        match run.try_wait().expect("it was started") {
            Some(status) if status.success() => return Verdict::Survives,
            Some(_) => break,
            None if start.elapsed() > MOST => {
                run.kill().and_then(|()| run.wait()).expect("it was running");
                return Verdict::Caught("it does not end".into());
            }
            None => thread::sleep(Duration::from_millis(100)),
        }
    }
    let report = fs::read_to_string(log).unwrap_or_default();
    let line = report.lines().find(|l| l.contains("under seed")).unwrap_or("it crashes");
    Verdict::Caught(line.chars().take(140).collect())
}

fn main() {
    let mut arguments = env::args().skip(1);
    let count: usize = arguments.next().map_or(20, |n| n.parse().expect("COUNT is a number"));
    let mut rand = Rand(arguments.next().map_or(1, |n| n.parse().expect("SEED is a number")));
    let files: Vec<String> = arguments
        .next()
        .map_or_else(|| FILES.iter().map(|&f| f.to_owned()).collect(), |file| vec![file]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let workspace = target.join("mutants");
    copy_workspace(&root, &workspace);
    assert!(judge(&workspace) == Verdict::Survives, "the kernels fail before anything is broken");

    let (mut caught, mut survivors) = (0, Vec::new());
    while caught + survivors.len() < count {
        let file = &files[rand.below(files.len())];
        let name = format!("emulator/kernels/{file}.cu");
        let original = fs::read_to_string(root.join(&name)).expect("a self-test kernel");
        let lines: Vec<&str> = original.lines().collect();
        let at = rand.below(lines.len());
        let choices = mutations(lines[at]);
        // Deliberate faults are switched off, and so would be a mistake in them.
        if choices.is_empty() || lines[at].contains("FAULT") {
            continue;
        }
        let mutant = &choices[rand.below(choices.len())];
        let mut broken = lines.clone();
        broken[at] = mutant;
        fs::write(workspace.join(&name), broken.join("\n") + "\n").expect("the copy is writable");
        let verdict = judge(&workspace);
        fs::write(workspace.join(&name), &original).expect("the copy is writable");
        let edit = format!("{file}.cu:{}\n  - {}\n  + {}", at + 1, lines[at].trim(), mutant.trim());
        match verdict {
            Verdict::DoesNotCompile => {}
            Verdict::Caught(report) => {
                caught += 1;
                println!("caught: {edit}\n    {report}");
            }
            Verdict::Survives => {
                println!("SURVIVES: {edit}");
                survivors.push(edit);
            }
        }
    }
    println!("\ncaught {caught} of {count}; survivors:\n{}", survivors.join("\n"));
}
