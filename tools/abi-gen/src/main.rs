//! Prints `src/cuda/abi.rs`, generated from `kernels/abi.h`, whose path is the argument.
//!
//! Needs libclang (`tools/clang.sh` installs it; `LIBCLANG_PATH` names its folder) and rustfmt.

use std::error::Error;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

const HEAD: &str = "\
//! What crosses the boundary to the kernels: `kernels/abi.h`, in Rust.
//!
//! Generated: `MOE_WRITE_ABI=1 cargo test -p abi-gen` writes it. Offsets and sizes, as clang sees them,
//! are asserted here; the header asserts the sizes, and has no padding.

use std::mem::offset_of;
";

fn main() -> Result<(), Box<dyn Error>> {
    let header = std::env::args().nth(1).ok_or("usage: abi-gen path/to/abi.h")?;
    let bindings = bindgen::Builder::default()
        .header(&header)
        .allowlist_file(".*/abi\\.h")
        .use_core()
        .derive_default(true)
        .clang_args(["-std=c11", "-fparse-all-comments"])
        .clang_args(headers_of_the_compiler())
        .generate()?;
    let rust = format(&tidy(&bindings.to_string()), Path::new(&header))?;
    std::io::stdout().write_all(rust.as_bytes())?;
    Ok(())
}

/// The libclang that Python's wheel has comes without its own `stdint.h`; gcc's does.
fn headers_of_the_compiler() -> Option<String> {
    let output = Command::new("gcc").arg("-print-file-name=include").output().ok()?;
    Some(format!("-isystem{}", String::from_utf8(output.stdout).ok()?.trim()))
}

/// The header's comments as comments, constants as u32, assertions as such, a line between structs.
fn tidy(bindings: &str) -> String {
    let mut tidy = HEAD.to_owned();
    let mut lines = bindings.lines().skip(1);
    while let Some(line) = lines.next() {
        let indent = &line[..line.len() - line.trim_start().len()];
        let starts_an_item = line.starts_with("#[doc") || line.starts_with("#[repr");
        if starts_an_item && tidy.lines().last().is_some_and(|last| !last.starts_with("//")) {
            tidy.push('\n');
        }
        if let Some(doc) = line.trim().strip_prefix("#[doc = \"") {
            let text = doc.trim_end_matches("\"]").replace("\\\"", "\"");
            text.split("\\n").for_each(|text| tidy += &format!("{indent}//{text}\n"));
        } else if line.trim().starts_with("[\"") {
            let mut assertion = line.trim().to_owned();
            while !assertion.ends_with(';') {
                assertion += lines.next().expect("it ends").trim();
            }
            let (_, equation) = assertion.split_once("][").expect("a name, then an index");
            let (left, right) = equation.rsplit_once(" - ").expect("an index of 0");
            let (left, right) = (left.replace("::core::mem::", ""), right.replace("usize];", ""));
            tidy += &format!("{indent}assert!({left} == {right});\n");
        } else if line.starts_with("pub const ") {
            let (name, value) = line.split_once(": ").expect("a constant has a type");
            let (_, value) = value.split_once(" = ").expect("and a value");
            tidy += &format!("{name}: u32 = {value}\n");
        } else if !line.starts_with("pub type ") && !line.starts_with("#[allow(clippy") {
            tidy += &format!("{line}\n");
        }
    }
    tidy
}

/// In the project's style: `rustfmt.toml` lies beside the folder of the header.
fn format(rust: &str, header: &Path) -> Result<String, Box<dyn Error>> {
    let root = header.parent().and_then(Path::parent).ok_or("the header lies in no folder")?;
    let mut rustfmt = Command::new("rustfmt")
        .args(["--edition", "2024", "--emit", "stdout", "--config-path"])
        .arg(root.join("rustfmt.toml"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    rustfmt.stdin.take().ok_or("no pipe")?.write_all(rust.as_bytes())?;
    let output = rustfmt.wait_with_output()?;
    if !output.status.success() {
        return Err("rustfmt refused the bindings".into());
    }
    Ok(String::from_utf8(output.stdout)?)
}
