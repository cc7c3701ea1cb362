//! The main job as a person or a script meets it: exit status, JSON, saved file, error lines.

#![cfg(all(feature = "cpu", feature = "checkpoint"))]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use tempfile::TempDir;

/// `cargo test` builds examples beside the folder of the test binaries. `cargo test --test
/// run_layer` does not: build the example first, or an old one is tested.
fn run_layer(args: &[&str]) -> Output {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().and_then(Path::parent).unwrap();
    let example =
        folder.join("examples").join(format!("run_layer{}", std::env::consts::EXE_SUFFIX));
    assert!(example.exists(), "build it first: cargo build --example run_layer");
    Command::new(example).args(args).output().unwrap()
}

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn json(output: &Output) -> Value {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(text).unwrap()
}

/// Exit status 2, one line on stderr that holds every part, and nothing on stdout.
fn refused(args: &[&str], parts: &[&str]) {
    let output = run_layer(args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
    assert!(output.stdout.is_empty());
    assert!(text.starts_with("error: "), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in parts {
        assert!(text.contains(part), "\"{part}\" is not in {text}");
    }
}

/// The mixtral fixture with one tensor's first value replaced.
fn broken_fixture(folder: &TempDir, tensor: &str, value: f64) -> PathBuf {
    let bytes = fs::read(fixture("mixtral.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut tensors: Vec<_> = file
        .iter()
        .map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    let (_, _, shape, data) = tensors.iter_mut().find(|(name, ..)| *name == tensor).unwrap();
    match data.len() / shape.iter().product::<usize>() {
        8 => data[..8].copy_from_slice(&value.to_le_bytes()),
        _ => data[..4].copy_from_slice(&(value as f32).to_le_bytes()),
    }
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (*name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let path = folder.path().join("broken.safetensors");
    safetensors::serialize_to_file(views, header.metadata().clone(), &path).unwrap();
    path
}

#[test]
fn without_arguments_it_checks_the_mixtral_layer() {
    let output = run_layer(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for part in ["T 33, H 64, I 96, E 8, K 2", "147.97 k parameters, 591.87 kB", "exact", "passed"]
    {
        assert!(text.contains(part), "\"{part}\" is not in {text}");
    }
    // The busiest experts, 5 and 6, have full bars and 11 tokens.
    assert!(text.contains(&format!("    5  {}  11\n", "█".repeat(40))), "{text}");
}

#[test]
fn json_has_every_field_and_the_errors_are_small() {
    for (family, dtype, bound) in [
        ("mixtral", "f32", 1e-5),
        ("qwen3_moe", "f32", 1e-5),
        ("olmoe", "f32", 1e-5),
        ("mixtral", "bf16", 1e-2),
        ("qwen3_moe", "bf16", 1e-2),
        ("olmoe", "f16", 1e-2),
    ] {
        let file = fixture(&format!("{family}.safetensors"));
        let output = run_layer(&[&file, "--json", "--dtype", dtype]);
        assert!(output.status.success());
        let report = json(&output);
        assert_eq!(report["family"], family);
        assert!(report["model"].is_null());
        assert_eq!(report["backend"], "cpu");
        assert_eq!(report["dtype"], dtype);
        assert_eq!(report["T"], 33);
        assert_eq!(report["selection_exact"], true);
        assert_eq!(report["kernels"], Value::Array(Vec::new()));
        assert!(report["path"].is_null());
        assert!(report["seconds"].as_f64().unwrap() > 0.0);
        for error in ["output_rel_l2", "logits_rel_l2", "weights_rel_l2"] {
            assert!(report[error].as_f64().unwrap() <= bound, "{family} {error}: {report}");
        }
        let tokens: u64 =
            report["tokens_per_expert"].as_array().unwrap().iter().flat_map(Value::as_u64).sum();
        assert_eq!(tokens, 33 * report["K"].as_u64().unwrap());
    }
}

#[test]
fn a_stored_result_that_is_not_met_exits_with_1() {
    let folder = TempDir::new().unwrap();
    for tensor in ["fixture.f64.output", "fixture.router_logits", "fixture.combine_weights"] {
        for value in [f64::NAN, 1e3] {
            let path = broken_fixture(&folder, tensor, value);
            let output = run_layer(&[path.to_str().unwrap(), "--json"]);
            assert_eq!(output.status.code(), Some(1), "{tensor} {value}");
            json(&output);
        }
    }
    let path = broken_fixture(&folder, "fixture.hidden_states", f64::NAN);
    let output = run_layer(&[path.to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(1), "NaN in the input");
    assert!(json(&output)["output_rel_l2"].is_null());
}

#[test]
fn save_writes_what_was_computed() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("saved.safetensors");
    let output = run_layer(&[&fixture("olmoe.safetensors"), "--save", path.to_str().unwrap()]);
    assert!(output.status.success());
    let saved = fs::read(&path).unwrap();
    let saved = SafeTensors::deserialize(&saved).unwrap();
    let stored = fs::read(fixture("olmoe.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&stored).unwrap();
    for name in ["output", "router_logits", "selected", "combine_weights"] {
        let (ours, theirs) =
            (saved.tensor(name).unwrap(), stored.tensor(&format!("fixture.{name}")).unwrap());
        assert_eq!((ours.dtype(), ours.shape()), (theirs.dtype(), theirs.shape()), "{name}");
    }
    assert_eq!(
        saved.tensor("selected").unwrap().data(),
        stored.tensor("fixture.selected").unwrap().data()
    );
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing half-written is left");
}

#[test]
fn a_checkpoint_folder_runs_any_layer_on_random_tokens() {
    let folder = fixture("mixtral-checkpoint");
    let output = run_layer(&[&folder, "--layer", "2", "--tokens", "7", "--json", "--repeat", "3"]);
    assert!(output.status.success());
    let report = json(&output);
    assert_eq!(report["T"], 7);
    assert!(report["output_rel_l2"].is_null() && report["selection_exact"].is_null());

    let report = json(&run_layer(&[&folder, "--tokens", "0", "--json"]));
    assert_eq!(report["tokens_per_expert"], serde_json::json!([0, 0, 0, 0, 0]));
}

/// The CUDA kernels, without a GPU: Hopper's multiply by wgmma, the portable ones never do.
#[test]
fn the_kernels_of_both_paths_on_the_emulator() {
    if moe_emulator::EmulatedDriver::new(moe_emulator::Profile::sm_90()).is_err() {
        eprintln!("SKIPPED: the emulator was built without a C++ compiler");
        return;
    }
    for (file, path) in [
        ("mixtral", "hopper"),
        ("qwen3_moe", "hopper"),
        ("olmoe", "hopper"),
        ("mixtral", "portable"),
        ("qwen3_moe", "portable"),
        ("olmoe", "portable"),
    ] {
        let file = fixture(&format!("{file}.safetensors"));
        let output = run_layer(&[&file, "--backend", "emulator", "--path", path, "--json"]);
        assert!(output.status.success(), "{output:?}");
        let report = json(&output);
        assert_eq!(report["backend"], "emulator");
        assert_eq!(report["path"], path);
        assert_eq!(report["dtype"], "bf16");
        assert_eq!(report["selection_exact"], true);
        assert!(report["output_rel_l2"].as_f64().unwrap() <= 1e-2, "{report}");
        let wgmmas = report["wgmmas"].as_u64().unwrap();
        assert_eq!(wgmmas > 0, path == "hopper", "{report}");
        let kernels: Vec<_> =
            report["kernels"].as_array().unwrap().iter().flat_map(Value::as_str).collect();
        for part in ["router_logits", "router_topk", "plan", "combine"] {
            assert!(kernels.iter().any(|kernel| kernel.starts_with(part)), "{part}: {report}");
        }
        let gemms =
            kernels.iter().filter(|name| name.starts_with(&format!("grouped_gemm_{path}"))).count();
        assert_eq!(gemms, 2, "{report}");
    }
}

#[test]
fn bad_input_is_refused_in_one_line() {
    refused(&["none.safetensors"], &["none.safetensors", "No such file"]);
    refused(&["Cargo.toml"], &["Cargo.toml", "not a safetensors file"]);
    refused(&["--nonsense"], &["--nonsense"]);
    refused(&["--backend", "foo"], &["foo", "--backend", "auto, cpu, cuda, emulator"]);
    refused(&["--dtype", "f64"], &["f64", "f32, bf16, f16"]);
    refused(&["--layer", "1", "--model", "mixtral-8x7b"], &["--layer", "--model"]);
    if !cfg!(feature = "cuda") {
        refused(&["--backend", "cuda"], &["cuda", "not built"]);
    }
    refused(&["--backend", "emulator", "--dtype", "f32"], &["f32", "emulator", "bf16, f16"]);
    refused(&["--path", "hopper"], &["--path", "cpu"]);
    refused(&["--repeat", "0"], &["--repeat", "1.."]);
    refused(&["--repeat", "18446744073709551615"], &["--repeat", "too large"]);
    refused(&["--tokens", "3"], &["--tokens", "stores its own"]);
    refused(&["--model", "gpt-5"], &["gpt-5", "mixtral-8x7b"]);
    refused(
        &["--model", "deepseek-v4-pro", "--tokens", "1000000"],
        &["deepseek-v4-pro with 1000000 tokens in f32", "bytes", "the machine has", "free"],
    );
    refused(
        &["--model", "qwen3-30b-a3b", "--tokens", "99999999999999999"],
        &["num_tokens * top_k", "less than 2^31"],
    );
    refused(
        &["--model", "mixtral-8x7b", "--tokens", "100000000"],
        &["mixtral-8x7b", "bytes", "GB free"],
    );
    refused(&[&fixture("mixtral-checkpoint"), "--layer", "3"], &["layer = 3", "less than 3"]);
    refused(
        &[&fixture("mixtral.safetensors"), "--layer", "1"],
        &["model.layers.1.block_sparse_moe.gate.weight", "is missing"],
    );
}

#[test]
fn save_refuses_what_is_no_file_and_leaves_nothing_behind() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    refused(&["--save", &path("")], &["--save", "expected a file"]);
    refused(&["--save", &path("none/such.safetensors")], &["--save", "none is none"]);
    refused(&["--save", "/dev/null"], &["--save /dev/null", "expected a file"]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

    // An existing file is replaced, and what a link points to rather than the link.
    fs::write(path("old"), "old").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(path("old"), path("link")).unwrap();
    #[cfg(not(unix))]
    fs::copy(path("old"), path("link")).unwrap();
    assert!(run_layer(&["--save", &path("link")]).status.success());
    #[cfg(unix)]
    assert!(fs::symlink_metadata(path("link")).unwrap().is_symlink());
    SafeTensors::deserialize(&fs::read(path("link")).unwrap()).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn stored_results_of_another_shape_are_refused() {
    let folder = TempDir::new().unwrap();
    let bytes = fs::read(fixture("mixtral.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let views = file.iter().map(|(name, view)| {
        let shape = match name {
            "fixture.router_logits" => vec![8, 33],
            _ => view.shape().to_vec(),
        };
        (name, TensorView::new(view.dtype(), shape, view.data()).unwrap())
    });
    let path = folder.path().join("transposed.safetensors");
    safetensors::serialize_to_file(views, header.metadata().clone(), &path).unwrap();
    refused(&[path.to_str().unwrap()], &["fixture.router_logits", "[33, 8]", "[8, 33]"]);
}

#[cfg(unix)]
#[test]
fn a_named_pipe_is_refused_and_not_waited_for() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("pipe.safetensors");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    refused(&[path.to_str().unwrap()], &["pipe.safetensors", "not a regular file"]);
}

#[test]
fn a_config_key_can_be_ignored_by_name() {
    let folder = TempDir::new().unwrap();
    for entry in fs::read_dir(fixture("mixtral-checkpoint")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let config = folder.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap().replacen('{', "{\"moe_color\": \"red\",", 1);
    fs::write(&config, text).unwrap();
    let folder = folder.path().to_str().unwrap();
    refused(&[folder], &["config.json", "\"moe_color\"", "red", "mixtral", "--ignore-key"]);
    assert!(run_layer(&[folder, "--ignore-key", "moe_color"]).status.success());
}
