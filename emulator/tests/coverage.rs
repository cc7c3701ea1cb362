//! No wrapper without a micro-kernel: both lists are read from the sources, so that they cannot drift apart.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The sources in `dir` (below the crate) whose names begin with `prefix`, without comments and with
/// continued lines joined.
fn sources(dir: &str, prefix: &str) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    let mut paths: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.file_name().unwrap().to_string_lossy().starts_with(prefix));
    paths.sort();
    paths
        .iter()
        .flat_map(|p| fs::read_to_string(p).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
        .map(|line| line.split("//").next().unwrap().to_owned() + "\n")
        .collect::<String>()
        .replace("\\\n", " ")
}
fn identifier(s: &str) -> &str {
    let end = s.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(s.len());
    &s[..end]
}
/// What stands between `open` and the parenthesis that closes it, cut at the commas of the top level.
fn arguments(s: &str) -> Vec<&str> {
    let (mut depth, mut from, mut found) = (0, 0, Vec::new());
    for (i, c) in s.char_indices() {
        match c {
            '(' | '{' => depth += 1,
            ')' | '}' if depth == 0 => {
                found.push(s[from..i].trim());
                break;
            }
            ')' | '}' => depth -= 1,
            ',' if depth == 0 => {
                found.push(s[from..i].trim());
                from = i + 1;
            }
            _ => {}
        }
    }
    found
}
/// Every use of a name: what follows it, where it is a whole identifier followed by a parenthesis.
fn calls<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    text.match_indices(name).filter_map(move |(at, _)| {
        let before = text[..at].chars().next_back();
        let whole = before.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_');
        text[at + name.len()..].strip_prefix('(').filter(|_| whole)
    })
}
/// The macros of `text`: name, parameters, body.
fn macros(text: &str) -> Vec<(&str, Vec<&str>, &str)> {
    text.lines()
        .filter_map(|l| l.trim_start().strip_prefix("#define "))
        .filter_map(|l| {
            let name = identifier(l);
            let rest = l[name.len()..].strip_prefix('(')?;
            Some((name, arguments(rest), &rest[rest.find(')')? + 1..]))
        })
        .collect()
}
/// What `PTX_INLINE` declares: functions by their own names, or by the argument of the macro that declares them.
fn wrappers(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let macros = macros(text);
    let declared = |line: &str| -> Vec<String> {
        line.match_indices("PTX_INLINE ")
            .filter_map(|(at, _)| {
                let open = line[at..].find('(')?;
                line[at..at + open].split_whitespace().last().map(str::to_owned)
            })
            .collect()
    };
    for line in text.lines().filter(|l| !l.trim_start().starts_with("#define")) {
        found.extend(declared(line));
    }
    for (name, parameters, body) in &macros {
        for pattern in declared(body) {
            let (parameter, suffix) = pattern.split_once("##").unwrap_or((&pattern, ""));
            let Some(at) = parameters.iter().position(|p| *p == parameter) else { continue };
            for call in calls(text, name) {
                let argument = arguments(call)[at];
                if argument != parameter {
                    found.insert(format!("{argument}{suffix}"));
                }
            }
        }
    }
    found
}
/// What is called as `ptx::name`, or is the argument that a macro calls so.
fn called(text: &str) -> BTreeSet<String> {
    let named = |s: &str| -> Vec<String> {
        s.match_indices("ptx::").map(|(at, m)| identifier(&s[at + m.len()..]).to_owned()).collect()
    };
    let mut found: BTreeSet<String> = named(text).into_iter().collect();
    for (name, parameters, body) in macros(text) {
        for callee in named(body) {
            let Some(at) = parameters.iter().position(|p| *p == callee) else { continue };
            found.extend(
                calls(text, name).filter_map(|c| arguments(c).get(at).map(|a| (*a).to_owned())),
            );
        }
    }
    found
}

#[test]
fn every_wrapper_is_called_in_a_micro_kernel() {
    let wrappers = wrappers(&sources("../kernels/ptx", ""));
    let called = called(&sources("kernels", "micro"));
    let missing: Vec<_> = wrappers.difference(&called).collect();
    assert!(missing.is_empty(), "without a micro-kernel: {missing:?}");
}
#[test]
fn the_lists_are_read_from_the_sources() {
    let wrappers = wrappers(&sources("../kernels/ptx", ""));
    // One of each way to declare a wrapper.
    for name in [
        "mbarrier_try_wait",
        "lop3",
        "bulk_wait",
        "add_bf16x2",
        "fma_f16x2",
        "exp2_approx",
        "redux_or",
        "mma_e4m3",
        "wgmma_f16",
        "wgmma_bf16_ra",
        "wgmma_e4m3_ra",
        "policy_evict_last",
    ] {
        assert!(wrappers.contains(name), "`{name}` is not seen among {wrappers:?}");
    }
    assert!(wrappers.len() > 120, "{} wrappers", wrappers.len());
    // A wrapper that is only spoken of, or is another's beginning, has no micro-kernel.
    let text =
        "// ptx::one(1);\n#define CALL(x, name) ptx::name(x, ptx::two_more());\nCALL(ptx, three)\n";
    let stripped: String =
        text.lines().map(|l| l.split("//").next().unwrap().to_owned() + "\n").collect();
    let seen = called(&stripped);
    assert!(seen.contains("three") && seen.contains("two_more"), "{seen:?}");
    assert!(!seen.contains("one") && !seen.contains("two"), "{seen:?}");
}
