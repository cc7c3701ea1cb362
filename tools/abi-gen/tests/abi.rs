//! The two sides of the boundary: `src/cuda/abi.rs` is what `kernels/abi.h` says.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// `src/cuda/abi.rs` as a header makes it, or `None` (said aloud) where there is no libclang.
fn generate(header: &Path) -> Option<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_abi-gen"));
    let installed = root().join(".clang");
    if std::env::var_os("LIBCLANG_PATH").is_none() && installed.is_dir() {
        command.env("LIBCLANG_PATH", &installed);
    }
    let output = command.arg(header).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("Unable to find libclang") && !installed.is_dir() {
        // Past the test harness, which keeps the output of a passing test to itself.
        let _ = writeln!(std::io::stderr(), "SKIPPED: no libclang; tools/clang.sh installs one");
        return None;
    }
    assert!(output.status.success(), "{said}");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_bindings_are_those_of_the_header() {
    let Some(generated) = generate(&root().join("kernels/abi.h")) else { return };
    let checked_in = root().join("src/cuda/abi.rs");
    if std::env::var_os("MOE_WRITE_ABI").is_some_and(|value| value == "1") {
        fs::write(&checked_in, &generated).unwrap();
    }
    let checked_in = fs::read_to_string(checked_in).unwrap();
    let differs = generated.lines().zip(checked_in.lines()).position(|(new, old)| new != old);
    assert!(
        generated == checked_in,
        "src/cuda/abi.rs is not what kernels/abi.h makes (first at line {:?}): \
         MOE_WRITE_ABI=1 cargo test -p abi-gen",
        differs.map(|line| line + 1)
    );
}

/// So that the sizes, which the header asserts for the kernels' compilers too, say where every field is.
#[test]
fn no_struct_has_padding() {
    let Some(generated) = generate(&root().join("kernels/abi.h")) else { return };
    let padded = padding(&generated);
    assert!(padded.is_empty(), "{padded:?}");
}

/// The structs whose fields do not fill them.
fn padding(bindings: &str) -> Vec<String> {
    let mut sizes = vec![("u64", 8), ("u32", 4), ("f32", 4), ("i32", 4), ("u16", 2), ("u8", 1)];
    let mut padded = Vec::new();
    for item in bindings.split("pub struct ").skip(1) {
        let (name, rest) = item.split_once(" {").unwrap();
        let (fields, rest) = rest.split_once("\n}").unwrap();
        let fields = fields.lines().filter_map(|line| line.trim().strip_prefix("pub "));
        let size_of_field = |field: &str| {
            let kind = field.split_once(": ").unwrap().1.trim_end_matches(',');
            // `[f32; 7usize]`
            let array = kind.strip_prefix('[').and_then(|array| array.strip_suffix("usize]"));
            let (kind, count) = array.map_or((kind, "1"), |array| array.split_once("; ").unwrap());
            let known = sizes.iter().find(|(name, _)| *name == kind);
            let size = known.unwrap_or_else(|| panic!("{name}: a field of type {kind}")).1;
            size * count.parse::<usize>().unwrap()
        };
        let filled: usize = fields.map(size_of_field).sum();
        let (_, size) = rest.split_once(&format!("size_of::<{name}>() == ")).unwrap();
        let size = size.split(')').next().unwrap().parse().unwrap();
        if filled != size {
            padded.push(format!("{name}: {filled} of {size} bytes are fields"));
        }
        sizes.push((name, size));
    }
    padded
}

#[test]
fn a_header_that_changes_is_noticed() {
    let folder = std::env::temp_dir().join(format!("abi-gen-{}", std::process::id()));
    fs::create_dir_all(folder.join("kernels")).unwrap();
    fs::copy(root().join("rustfmt.toml"), folder.join("rustfmt.toml")).unwrap();
    let header = folder.join("kernels/abi.h");
    let text = fs::read_to_string(root().join("kernels/abi.h")).unwrap();
    let struct_of = |fields: &str| format!("{text}\ntypedef struct Extra {{ {fields} }} Extra;\n");

    fs::write(&header, struct_of("uint64_t address; uint32_t count; uint32_t more;")).unwrap();
    let Some(whole) = generate(&header) else { return };
    fs::write(&header, struct_of("uint32_t count; uint64_t address;")).unwrap();
    let holed = generate(&header).unwrap();
    fs::remove_dir_all(&folder).unwrap();

    assert_ne!(whole, holed);
    assert!(whole.contains("assert!(offset_of!(Extra, count) == 8);"), "{whole}");
    assert!(holed.contains("assert!(offset_of!(Extra, address) == 8);"), "{holed}");
    assert!(padding(&whole).is_empty());
    assert_eq!(padding(&holed), ["Extra: 12 of 16 bytes are fields"]);
}
