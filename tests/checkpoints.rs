//! Checkpoints: every family's layer against its reference, and every way a checkpoint can be
//! broken against the error that says so.

#![cfg(all(feature = "cpu", feature = "checkpoint"))]

mod common;

use common::*;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use moe_kernels::checkpoint::Checkpoint;
use moe_kernels::config::ModelConfig;
use moe_kernels::element::Float;
use moe_kernels::memory::{Matrix, MatrixMut, Memory};
use moe_kernels::ops::{LayerInput, Output};
use moe_kernels::{Cpu, Error, MoeLayer};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// Every family, every rule, every layout.
#[test]
fn families_agree_with_their_reference() {
    let names = golden_names();
    assert_eq!(names.len(), 42, "{names:?}");
    for name in names {
        check_golden::<_, f32>("the CPU", &cpu(), &name, 1e-6);
        check_golden::<_, bf16>("the CPU", &cpu(), &name, 1e-2);
        check_golden::<_, f16>("the CPU", &cpu(), &name, 1e-3);
    }
}

/// A checkpoint that transformers 5.23.0 wrote: five shards, bf16, layer 1 of 3.
#[test]
fn sharded_checkpoint_agrees_with_its_reference() {
    let checkpoint = Checkpoint::open(fixture("mixtral-checkpoint")).unwrap();
    let stored = Checkpoint::open(fixture("mixtral-layer1.safetensors")).unwrap();
    let model = ModelConfig::parse(&checkpoint.config_json().unwrap(), &[]).unwrap();
    assert_eq!(checkpoint.moe_layers(model.family), [0, 1, 2]);
    let run = |layer| Computed::run::<_, f32>(&cpu(), &checkpoint, &model, layer, &stored);
    run(1).check("f32", &stored, 1e-6);
    Computed::run::<_, bf16>(&cpu(), &checkpoint, &model, 1, &stored).check("bf16", &stored, 1e-2);
    // Another layer is another function: the layer number matters.
    assert!(rel_l2(&run(2).output, &run(1).output, 64).unwrap() > 0.1);
}

#[test]
fn layers_that_are_not_there_are_refused() {
    let checkpoint = Checkpoint::open(fixture("mixtral-checkpoint")).unwrap();
    let model = ModelConfig::parse(&checkpoint.config_json().unwrap(), &[]).unwrap();
    let error = checkpoint.layer(&model, 3).unwrap_err();
    assert_eq!(error.to_string(), "layer = 3: expected less than 3");
}

#[test]
fn a_missing_shard_matters_only_to_its_layers() {
    let folder = TempDir::new().unwrap();
    for entry in fs::read_dir(fixture("mixtral-checkpoint")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        // The last shard holds the output head and the end of layer 2.
        if name != "model-00001-of-00005.safetensors" {
            fs::copy(&path, folder.path().join(name)).unwrap();
        }
    }
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let model = ModelConfig::parse(&checkpoint.config_json().unwrap(), &[]).unwrap();
    let error = (0..3).find_map(|layer| checkpoint.layer(&model, layer).err()).unwrap();
    assert!(
        matches!(&error, Error::Io { path, .. }
        if path.ends_with("model-00001-of-00005.safetensors")),
        "{error}"
    );
    assert!((0..3).any(|layer| checkpoint.layer(&model, layer).is_ok()));
}

/// The tensors of a fixture, to be broken and written again.
struct Tensors(BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    fn of(name: &str) -> Self {
        let bytes = fs::read(fixture(name)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        Self(
            file.iter()
                .filter(|(name, _)| !name.starts_with("fixture."))
                .map(|(name, view)| {
                    (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
                })
                .collect(),
        )
    }

    fn get(&mut self, name: &str) -> &mut (Dtype, Vec<usize>, Vec<u8>) {
        self.0.get_mut(&format!("{PREFIX}{name}")).unwrap()
    }

    fn write(&self, path: &Path) {
        let views = self.0.iter().map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        safetensors::serialize_to_file(views, None, path).unwrap();
    }

    /// What opening the layer says.
    fn error(&self, config: &str) -> String {
        let folder = TempDir::new().unwrap();
        self.write(&folder.path().join("model.safetensors"));
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let model = ModelConfig::parse(config, &[]).unwrap();
        let error = checkpoint.layer(&model, 0).unwrap_err().to_string();
        error.replace(&folder.path().display().to_string(), "FOLDER")
    }
}

const PREFIX: &str = "model.layers.0.block_sparse_moe.";
const CONFIG: &str = r#"{"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 96,
    "num_local_experts": 8, "num_experts_per_tok": 2, "hidden_act": "silu"}"#;

#[test]
fn a_missing_expert_is_named() {
    let mut tensors = Tensors::of("mixtral.safetensors");
    tensors.0.remove(&format!("{PREFIX}experts.5.w3.weight")).unwrap();
    assert_eq!(
        tensors.error(CONFIG),
        "FOLDER: tensor \"model.layers.0.block_sparse_moe.experts.5.w3.weight\" is missing \
         (up_proj of expert 5 [96, 64])"
    );
}

#[test]
fn a_transposed_weight_is_named() {
    let mut tensors = Tensors::of("mixtral.safetensors");
    tensors.get("experts.2.w2.weight").1.reverse();
    assert_eq!(
        tensors.error(CONFIG),
        "model.layers.0.block_sparse_moe.experts.2.w2.weight: expected shape [64, 96], \
         given [96, 64]"
    );
}

#[test]
fn shapes_that_disagree_with_the_config_are_named() {
    let tensors = Tensors::of("mixtral.safetensors");
    assert_eq!(
        tensors.error(&CONFIG.replace("\"num_local_experts\": 8", "\"num_local_experts\": 7")),
        "model.layers.0.block_sparse_moe.gate.weight: expected shape [7, 64], given [8, 64]"
    );
    assert_eq!(
        tensors.error(&CONFIG.replace("96", "104")),
        "model.layers.0.block_sparse_moe.experts.0.w1.weight: expected shape [104, 64], \
         given [96, 64]"
    );
}

#[test]
fn a_wrong_dtype_is_named() {
    let mut tensors = Tensors::of("mixtral.safetensors");
    let tensor = tensors.get("experts.0.w1.weight");
    tensor.0 = Dtype::I32;
    assert_eq!(
        tensors.error(CONFIG),
        "model.layers.0.block_sparse_moe.experts.0.w1.weight: expected dtype F32, BF16 or F16, \
         given I32"
    );
}

#[test]
fn a_tensor_that_nobody_reads_is_named() {
    let mut tensors = Tensors::of("mixtral.safetensors");
    let extra = tensors.get("gate.weight").clone();
    tensors.0.insert(format!("{PREFIX}shared_expert.gate.weight"), extra);
    let error = tensors.error(CONFIG);
    assert!(
        error.starts_with("tensor \"model.layers.0.block_sparse_moe.shared_expert.gate.weight\""),
        "{error}"
    );
}

#[test]
fn a_value_beyond_the_range_of_f16_is_named() {
    let mut tensors = Tensors::of("mixtral.safetensors");
    tensors.get("experts.1.w1.weight").2[4..8].copy_from_slice(&1e6f32.to_le_bytes());
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    tensors.write(&path);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let layer = checkpoint.layer(&ModelConfig::parse(CONFIG, &[]).unwrap(), 0).unwrap();
    let make = |config| MoeLayer::new(Cpu, config, layer.weights::<f16>()?, &()).map(|_| ());
    assert_eq!(
        make(layer.config().clone()).unwrap_err().to_string(),
        "model.layers.0.block_sparse_moe.experts.1.w1.weight = 1000000: expected a value in the \
         range of f16"
    );
}

#[test]
fn files_that_are_no_checkpoint_are_named() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(fixture("mixtral.safetensors")).unwrap();
    let error = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        match Checkpoint::open(&path).unwrap_err() {
            Error::File { path: named, reason } if named == path => reason,
            other => panic!("{other}"),
        }
    };
    for bytes in [&b""[..], b"abc", &[0xff; 64], &whole[..100], &whole[..whole.len() - 1]] {
        let reason = error(bytes);
        assert!(reason.starts_with("not a safetensors file: "), "{reason}");
    }
    // A header that lies about where its tensors are.
    let mut random = whole.clone();
    random[20..200].reverse();
    assert!(error(&random).starts_with("not a safetensors file: "));

    let missing = folder.path().join("none.safetensors");
    assert!(matches!(Checkpoint::open(&missing), Err(Error::Io { path, .. }) if path == missing));
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    assert!(matches!(Checkpoint::open(&empty), Err(Error::File { path, .. }) if path == empty));
}

#[test]
fn a_broken_shard_index_is_named() {
    let folder = TempDir::new().unwrap();
    let index = folder.path().join("model.safetensors.index.json");
    for text in ["", "{}", "[1]", r#"{"weight_map": {"a": 3}}"#] {
        fs::write(&index, text).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err();
        assert!(matches!(&error, Error::File { path, .. } if *path == index), "{error}");
    }
    fs::write(&index, r#"{"weight_map": {"a": "../other.safetensors"}}"#).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("shard \"../other.safetensors\" is not a file name"), "{error}");
}

/// f32 router weights stay f32 in a bf16 layer: values that bf16 cannot hold change the logits.
#[test]
fn f32_router_weights_are_not_rounded() {
    let mut tensors = Tensors::of("mixtral.safetensors");
    let gate = &mut tensors.get("gate.weight").2;
    for value in gate.as_chunks_mut::<4>().0 {
        *value = (f32::from_le_bytes(*value) * 1.001).to_le_bytes();
    }
    let gate: Vec<f32> = gate.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.safetensors");
    tensors.write(&path);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let layer = checkpoint.layer(&ModelConfig::parse(CONFIG, &[]).unwrap(), 0).unwrap();

    let stored = Checkpoint::open(fixture("mixtral.safetensors")).unwrap();
    let tokens: Vec<bf16> = stored.tensor("fixture.hidden_states", "").unwrap().read().unwrap();
    let config = layer.config().clone();
    let layer = MoeLayer::new(Cpu, config, layer.weights::<bf16>().unwrap(), &()).unwrap();
    let mut workspace = layer.workspace(33).unwrap();
    let x = Cpu.buffer_from("x", &tokens, &()).unwrap();
    let mut out = Cpu.allocate::<bf16>("out", x.len()).unwrap();
    let input = LayerInput::new(Matrix::contiguous("x", &x, 33, 64).unwrap());
    let output = MatrixMut::contiguous("out", &mut out, 33, 64).unwrap();
    layer.forward(&input, Output::overwrite(output), &mut workspace, &()).unwrap();

    let expected: Vec<f64> = tokens
        .chunks(64)
        .flat_map(|x| {
            gate.chunks(64).map(|gate| {
                x.iter().zip(gate).map(|(x, w)| f64::from(Float::to_f32(*x)) * f64::from(*w)).sum()
            })
        })
        .collect();
    let logits: Vec<f64> = workspace.router_logits().unwrap().buffer()[..expected.len()]
        .iter()
        .map(|&logit| logit.into())
        .collect();
    // Rounding the weights to bf16 would cost about 1e-3.
    assert!(rel_l2(&logits, &expected, 8).unwrap() <= 1e-6);
}
