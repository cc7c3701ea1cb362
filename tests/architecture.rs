//! Who may know whom: reads every source file, and asserts the arrows of docs/design.md; prints a
//! ledger of file sizes (`cargo test --test architecture -- --nocapture`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each room of `src/`, and the rooms it may use besides itself.
///
/// `backend` knows `weights` because `prepare` takes them (a departure from the first design).
const ROOMS: &[(&str, &[&str])] = &[
    ("error", &["element", "config"]),
    ("element", &["error", "config"]),
    ("config", &["error", "element"]),
    ("memory", &["error", "element", "config"]),
    ("ops", &["memory", "error", "element", "config"]),
    ("weights", &["ops", "memory", "error", "element", "config"]),
    ("checkpoint", &["weights", "ops", "memory", "error", "element", "config"]),
    ("backend", &["weights", "ops", "memory", "error", "element", "config"]),
    ("layer", &["backend", "weights", "ops", "memory", "error", "element", "config"]),
    ("cpu", &["backend", "weights", "ops", "memory", "error", "element", "config"]),
    ("cuda", &["backend", "weights", "ops", "memory", "error", "element", "config"]),
];

/// What `lib.rs` re-exports: `crate::Error` is a use of `error`.
const REEXPORTS: &[(&str, &str)] = &[
    ("Backend", "backend"),
    ("Checkpoint", "checkpoint"),
    ("MoeConfig", "config"),
    ("Cpu", "cpu"),
    ("Cuda", "cuda"),
    ("Error", "error"),
    ("Result", "error"),
    ("MoeLayer", "layer"),
];

/// Where unsafe code may be (decision 14), by the start of its path in `src/`.
const UNSAFE: &[&str] =
    &["cuda/", "cuda.rs", "cpu/gemm.rs", "cpu/gemm/", "checkpoint/", "checkpoint.rs"];

/// The folders of `kernels/`, and the folders that each may include besides itself. Any other
/// folder is a stage, and may include all of these. `abi.h` is for `tile` and above.
const KERNELS: &[(&str, &[&str])] =
    &[("common", &[]), ("ptx", &["common"]), ("tile", &["ptx", "common"])];

/// More lines than this ask which role should leave.
const MANY_LINES: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file under `folder`, by its path there, sorted. None if there is no such folder.
fn files(folder: &str) -> Option<Vec<(String, String)>> {
    let top = root().join(folder);
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec![top.clone()];
    if !top.is_dir() {
        return None;
    }
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                let name = path.strip_prefix(&top).unwrap().to_str().unwrap();
                found.push((name.replace('\\', "/"), text));
            }
        }
    }
    found.sort();
    Some(found)
}

/// Rust's words and punctuation: comments, strings and characters are left out.
fn tokens(source: &str) -> Vec<String> {
    let chars: Vec<char> = source.chars().collect();
    let at = |place: usize| chars.get(place).copied().unwrap_or('\0');
    let mut tokens = Vec::new();
    let mut place = 0;
    while place < chars.len() {
        let char = at(place);
        if char == '/' && at(place + 1) == '/' {
            while place < chars.len() && at(place) != '\n' {
                place += 1;
            }
        } else if char == '/' && at(place + 1) == '*' {
            let mut depth = 1;
            place += 2;
            while depth > 0 && place < chars.len() {
                let pair = (at(place), at(place + 1));
                depth += i32::from(pair == ('/', '*')) - i32::from(pair == ('*', '/'));
                place += if pair == ('/', '*') || pair == ('*', '/') { 2 } else { 1 };
            }
        } else if let Some(end) = raw_string_end(&chars, place) {
            place = end;
        } else if char == '"' {
            place += 1;
            while place < chars.len() && at(place) != '"' {
                place += if at(place) == '\\' { 2 } else { 1 };
            }
            place += 1;
        } else if char == '\'' {
            // A character, or a lifetime.
            if at(place + 1) == '\\' {
                place += 3;
                while place < chars.len() && at(place) != '\'' {
                    place += 1;
                }
                place += 1;
            } else if at(place + 2) == '\'' {
                place += 3;
            } else {
                place += 1;
            }
        } else if char.is_alphanumeric() || char == '_' {
            let start = place;
            while at(place).is_alphanumeric() || at(place) == '_' {
                place += 1;
            }
            tokens.push(chars[start..place].iter().collect());
        } else if char == ':' && at(place + 1) == ':' {
            tokens.push("::".to_owned());
            place += 2;
        } else {
            if !char.is_whitespace() {
                tokens.push(char.to_string());
            }
            place += 1;
        }
    }
    tokens
}

/// Where a raw string that starts at `place` ends.
fn raw_string_end(chars: &[char], place: usize) -> Option<usize> {
    let at = |place: usize| chars.get(place).copied().unwrap_or('\0');
    let in_word = place > 0 && (at(place - 1).is_alphanumeric() || at(place - 1) == '_');
    let start = match (at(place), at(place + 1)) {
        _ if in_word => return None,
        ('r', '"' | '#') => place + 1,
        ('b', 'r') if matches!(at(place + 2), '"' | '#') => place + 2,
        _ => return None,
    };
    let hashes = (start..).take_while(|&place| at(place) == '#').count();
    if at(start + hashes) != '"' {
        return None;
    }
    let mut end = start + hashes + 1;
    while end < chars.len() {
        if at(end) == '"' && (1..=hashes).all(|hash| at(end + hash) == '#') {
            return Some(end + hashes + 1);
        }
        end += 1;
    }
    Some(end)
}

/// Module paths of the crate that a file names, as segments from the crate's root. `module` is
/// the file's own module: `cpu/router.rs` is `["cpu", "router"]`, `cpu/mod.rs` is `["cpu"]`.
fn crate_paths(source: &str, module: &[&str]) -> BTreeSet<Vec<String>> {
    let tokens = tokens(source);
    let mut found = BTreeSet::new();
    // Depth of `mod name {`, so that `super` of an inline module is the file itself.
    let mut inline: Vec<(usize, String)> = Vec::new();
    let mut depth = 0;
    for place in 0..tokens.len() {
        match tokens[place].as_str() {
            "{" => {
                if place >= 2 && tokens[place - 2] == "mod" {
                    inline.push((depth, tokens[place - 1].clone()));
                }
                depth += 1;
            }
            "}" => {
                depth -= 1;
                if inline.last().is_some_and(|(at, _)| *at == depth) {
                    inline.pop();
                }
            }
            "crate" | "self" | "super" => {
                let is_start = place == 0 || tokens[place - 1] != "::";
                let leads = tokens.get(place + 1).is_some_and(|next| next == "::");
                // `pub(super)` and `&self` lead nowhere; `use super::*` does.
                if is_start && leads {
                    let mut base: Vec<String> =
                        module.iter().map(|&segment| segment.to_owned()).collect();
                    base.extend(inline.iter().map(|(_, name)| name.clone()));
                    follow(&tokens, place, base, &mut found);
                }
            }
            _ => {}
        }
    }
    found
}

/// Reads a path, or a tree of paths, from `place` on.
fn follow(
    tokens: &[String],
    place: usize,
    base: Vec<String>,
    found: &mut BTreeSet<Vec<String>>,
) -> usize {
    let (mut path, mut place) = (base, place);
    loop {
        match tokens.get(place).map(String::as_str) {
            Some("crate") => path.clear(),
            Some("self") => {}
            Some("super") => drop(path.pop()),
            Some("*") => {}
            Some("{") => {
                place += 1;
                while tokens.get(place).is_some_and(|token| token != "}") {
                    match tokens[place].as_str() {
                        "," => place += 1,
                        // `as` and its name.
                        "as" => place += 2,
                        _ => place = follow(tokens, place, path.clone(), found),
                    }
                }
                return place + 1;
            }
            Some(word) if word.chars().all(|c| c.is_alphanumeric() || c == '_') => {
                path.push(word.to_owned());
            }
            // `<T>` after `::`, and whatever else ends a path.
            _ => break,
        }
        place += 1;
        if tokens.get(place).is_none_or(|token| token != "::") {
            break;
        }
        place += 1;
    }
    found.insert(path);
    // At least one token is read, or a group would never end.
    place.max(1)
}

/// The room of a path from the crate's root; None for the root itself.
fn room_of(path: &[String]) -> Option<&str> {
    let first = path.first()?.as_str();
    Some(REEXPORTS.iter().find(|(name, _)| *name == first).map_or(first, |(_, room)| room))
}

fn module_of(file: &str) -> Vec<&str> {
    let stem = file.strip_suffix(".rs").unwrap();
    stem.strip_suffix("/mod").unwrap_or(stem).split('/').collect()
}

/// What a file does that it must not, as sentences.
fn violations(file: &str, source: &str) -> Vec<String> {
    if file == "lib.rs" {
        return Vec::new();
    }
    let module = module_of(file);
    let Some((room, may_use)) = ROOMS.iter().find(|(room, _)| *room == module[0]) else {
        return vec![format!("{file}: room \"{}\" is not in the table", module[0])];
    };
    let mut violations = Vec::new();
    for path in crate_paths(source, &module) {
        match room_of(&path) {
            Some(used) if used == *room || may_use.contains(&used) => {}
            Some(used) => {
                violations.push(format!(
                    "{file}: {room} must not use {used} (crate::{})",
                    path.join("::")
                ));
            }
            None => violations.push(format!("{file}: {room} must not use the crate's root")),
        }
    }
    let is_unsafe = tokens(source).iter().any(|token| token == "unsafe");
    if is_unsafe && !UNSAFE.iter().any(|place| file.starts_with(place)) {
        violations.push(format!("{file}: unsafe code outside the rooms of decision 14"));
    }
    violations
}

/// The same for a file of `kernels/`, by its `#include "..."` lines, which are written from
/// `kernels/` on, or from the file's own folder.
fn kernel_violations(file: &str, source: &str) -> Vec<String> {
    let folder = |path: &str| match path.split_once('/') {
        Some((folder, _)) => folder.to_owned(),
        None => String::new(),
    };
    let own = folder(file);
    let may_include = |included: &str| {
        if included == own {
            return true;
        }
        let is_low = |name: &str| KERNELS.iter().any(|(folder, _)| *folder == name);
        if own.is_empty() {
            return false;
        }
        if included.is_empty() {
            return !matches!(own.as_str(), "common" | "ptx");
        }
        match KERNELS.iter().find(|(folder, _)| *folder == own) {
            Some((_, below)) => below.contains(&included),
            // The layer stands on the stages.
            None => is_low(included) || own == "layer",
        }
    };
    let includes = source.lines().filter_map(|line| {
        let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?;
        rest.trim_start().strip_prefix('"')?.split('"').next()
    });
    let mut violations = Vec::new();
    for include in includes {
        let mut path: Vec<&str> = match include.contains('/') {
            true if !include.starts_with('.') => Vec::new(),
            false if include == "abi.h" => Vec::new(),
            _ => file.split('/').rev().skip(1).collect::<Vec<_>>().into_iter().rev().collect(),
        };
        for segment in include.split('/') {
            match segment {
                "." => {}
                ".." => drop(path.pop()),
                segment => path.push(segment),
            }
        }
        let included = folder(&path.join("/"));
        if !may_include(&included) {
            violations.push(format!("kernels/{file}: must not include \"{include}\""));
        }
    }
    violations
}

#[test]
fn the_arrows_hold() {
    let files = files("src").unwrap();
    let found: Vec<String> = files
        .iter()
        .filter(|(file, _)| file.ends_with(".rs"))
        .flat_map(|(file, source)| violations(file, source))
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_kernels_arrows_hold() {
    let found: Vec<String> = files("kernels")
        .unwrap_or_default()
        .iter()
        .flat_map(|(file, source)| kernel_violations(file, source))
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// Every file is in the tree of modules and in a room, and what a plain search finds in it, the
/// parser found too.
#[test]
fn the_parser_sees_every_file() {
    let files = files("src").unwrap();
    let mut seen = BTreeSet::new();
    for (file, source) in files.iter().filter(|(file, _)| file.ends_with(".rs")) {
        if file == "lib.rs" {
            continue;
        }
        let module = module_of(file);
        seen.insert(module[0]);
        let tokens = tokens(source);
        assert!(!tokens.is_empty(), "{file} is empty");
        let (open, closed) = ["{", "}"].map(|b| tokens.iter().filter(|t| *t == b).count()).into();
        assert_eq!(open, closed, "{file}: braces, so a string or comment was misread");

        // Lines of their own that use the crate, found without the tokeniser.
        let paths = crate_paths(source, &module);
        for line in source.lines().filter_map(|line| line.strip_prefix("use crate::")) {
            let first = line.split([':', ';', '{', ' ']).next().unwrap();
            assert!(
                first.is_empty() || paths.iter().any(|path| path[0] == first),
                "{file}: the parser missed `use crate::{line}`"
            );
        }
    }
    let lib = &files.iter().find(|(file, _)| file == "lib.rs").unwrap().1;
    for line in lib.lines().filter_map(|line| line.trim().strip_prefix("pub use ")) {
        let (room, names) = line.trim_end_matches(';').split_once("::").unwrap();
        for name in names.trim_matches(['{', '}']).split(", ") {
            assert!(REEXPORTS.contains(&(name, room)), "REEXPORTS lacks {room}::{name}");
        }
    }
    // Rooms that are not there yet need no arrows; rooms that are must be in lib.rs.
    let lib = tokens(lib);
    for room in &seen {
        let declared = lib.windows(2).any(|pair| pair[0] == "mod" && pair[1] == *room);
        assert!(declared, "src/lib.rs does not declare {room}");
    }
    for room in
        ["error", "element", "config", "memory", "ops", "weights", "backend", "layer", "cpu"]
    {
        assert!(seen.contains(room), "src/ has no {room}");
    }
    // The table lets nobody up: whoever may be used may not use back.
    let table: BTreeMap<_, _> = ROOMS.iter().copied().collect();
    let leaves = ["error", "element", "config"];
    for (room, below) in ROOMS {
        for used in *below {
            assert!(
                leaves.contains(used) || !table[used].contains(room),
                "{room} and {used} may use each other"
            );
        }
    }
}

fn is_caught(file: &str, source: &str) -> bool {
    !violations(file, source).is_empty()
}

#[test]
fn a_violation_is_caught() {
    for source in [
        "use crate::cpu;",
        "use crate::cpu::Cpu;",
        "use crate::{error::Error, cpu::Cpu};",
        "use crate::{\n    error::{Error, Result},\n    layer::{self, MoeLayer},\n};",
        "use crate::{error, memory::{Matrix, Memory}, backend::*};",
        "pub use crate::Backend;",
        "use crate::MoeLayer as L;",
        "use crate::{Error as E, Cpu as C};",
        "fn f() { let x = crate::cuda::probe(); }",
        "fn f(x: &crate::Cpu) {}",
        "fn f<T: crate::backend::Backend>() {}",
        "type T = <crate::Cpu as M>::Buffer<f32>;",
        "use super::backend::Backend;",
        "use super::super::cpu;",
        "use super::{plan::Plan, super::cpu::Cpu};",
        "mod tests { use super::super::cpu; }",
        "use crate::*;",
        "use super::*;\nuse crate::layer;",
        "fn f() { unsafe { g() } }",
        "unsafe impl Send for X {}",
        "const A: &str = \"//\"; use crate::cpu::Cpu;",
        "const A: char = '\"'; use crate::cpu::Cpu; const B: char = '\"';",
        "const A: &str = r#\"\"\"#; use crate::cpu::Cpu;",
        "/* /* */ */ use crate::cpu::Cpu;",
        "fn f<'a>(x: &'a str) { crate::cpu::f(x) }",
    ] {
        // A file of the room `ops`; the relative paths are those of `ops/mod.rs`.
        assert!(is_caught("ops/mod.rs", source), "not caught: {source}");
    }
    assert!(is_caught("cpu/router.rs", "use crate::checkpoint::Checkpoint;"));
    assert!(is_caught("cpu/mod.rs", "use super::cuda;"));
    assert!(is_caught("cuda/mod.rs", "use crate::cpu;"));
    assert!(is_caught("layer.rs", "use crate::Cpu;"));
    assert!(is_caught("layer.rs", "use super::cpu;"));
    assert!(is_caught("memory.rs", "use crate::ops::Plan;"));
    assert!(is_caught("config/hf.rs", "use super::super::memory;"));
    assert!(is_caught("cpu/router.rs", "fn f() { unsafe {} }"));
    assert!(is_caught("nowhere.rs", ""));
}

#[test]
fn what_is_allowed_is_not_caught() {
    for source in [
        "use crate::config::MoeConfig;",
        "use crate::{error::{Error, Result}, memory::*, config::{self}};",
        "fn f() -> crate::Result<()> { Err(crate::Error::x()) }",
        "use super::plan::{Plan, self};\nuse self::router::Router;",
        "// use crate::cpu;\n/* crate::cuda */ //! [`crate::layer`]",
        "const A: &str = \"crate::cpu unsafe\"; const B: &str = r#\"use crate::cpu;\"#;",
        "pub(super) fn f(&self) {} pub(crate) struct S; pub(in crate::ops) fn g() {}",
        "#[cfg(test)] mod tests { use super::*; use super::plan; use crate::memory; }",
    ] {
        let found = violations("ops/router.rs", source);
        assert!(found.is_empty(), "{source}: {found:?}");
    }
    assert!(!is_caught("cpu/gemm.rs", "fn f() { unsafe {} }"));
    assert!(!is_caught("backend.rs", "use crate::weights::ExpertWeights;"));
    assert!(!is_caught(
        "config/mod.rs",
        "mod hf; pub use hf::X; use self::hf::Y; use super::error;"
    ));
}

#[test]
fn a_kernels_violation_is_caught() {
    for (file, source, allowed) in [
        ("common/math.cuh", "#include <cstdint>", true),
        ("common/math.cuh", "#include \"types.cuh\"", true),
        ("common/math.cuh", "#include \"abi.h\"", false),
        ("common/math.cuh", "#include \"ptx/wgmma.cuh\"", false),
        ("ptx/wgmma.cuh", "#include \"common/types.cuh\"", true),
        ("ptx/wgmma.cuh", "#include \"../common/types.cuh\"", true),
        ("ptx/wgmma.cuh", "  #  include \"tile/ring.cuh\"", false),
        ("ptx/wgmma.cuh", "#include \"../tile/ring.cuh\"", false),
        ("tile/ring.cuh", "#include \"abi.h\"\n#include \"ptx/wgmma.cuh\"", true),
        ("tile/ring.cuh", "#include \"router/forward.cuh\"", false),
        ("router/forward.cu", "#include \"tile/ring.cuh\"\n#include \"../abi.h\"", true),
        ("router/forward.cu", "#include \"plan/forward.cuh\"", false),
        ("router/forward.cu", "#include \"../plan/forward.cuh\"", false),
        ("layer/forward.cu", "#include \"router/forward.cuh\"", true),
        ("router/forward.cu", "#include \"layer/forward.cuh\"", false),
        ("abi.h", "#include \"tile/ring.cuh\"", false),
    ] {
        assert_eq!(kernel_violations(file, source).is_empty(), allowed, "{file}: {source}");
    }
}

#[test]
fn the_ledger_of_file_sizes() {
    let mut sizes: Vec<(usize, String)> = Vec::new();
    for folder in ["src", "kernels", "emulator", "tests", "benches", "examples"] {
        for (file, source) in files(folder).unwrap_or_default() {
            let is_source = [".rs", ".cu", ".cuh", ".h"].iter().any(|end| file.ends_with(end));
            if is_source && !file.starts_with("target/") {
                sizes.push((source.lines().count(), format!("{folder}/{file}")));
            }
        }
    }
    assert!(sizes.len() > 20, "the ledger has only {} files", sizes.len());
    sizes.sort_by(|a, b| b.cmp(a));
    let total: usize = sizes.iter().map(|(lines, _)| lines).sum();
    println!("{total:6} lines in {} files", sizes.len());
    for (lines, file) in sizes {
        let flag = if lines > MANY_LINES { "  <- which role should leave?" } else { "" };
        println!("{lines:6} {file}{flag}");
    }
}
