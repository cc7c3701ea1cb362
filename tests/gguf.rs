//! GGUF files: written here by the format's description, read by the crate, run, and broken.

#![cfg(all(feature = "cpu", feature = "checkpoint"))]

mod common;

use std::path::Path;

use common::*;
use half::{bf16, f16};
use moe_kernels::Error;
use moe_kernels::checkpoint::Checkpoint;
use tempfile::TempDir;

/// A tensor's elements, and the type in which a file stores them.
#[derive(Clone)]
struct Tensor {
    name: String,
    /// The first dimension's elements are neighbours.
    dims: Vec<u64>,
    kind: u32,
    values: Vec<f32>,
}

#[derive(Clone)]
enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(&'static str),
    Words(Vec<&'static str>),
}

#[derive(Clone)]
struct File {
    version: u32,
    metadata: Vec<(String, Value)>,
    tensors: Vec<Tensor>,
}

fn put_text(to: &mut Vec<u8>, text: &str) {
    to.extend((text.len() as u64).to_le_bytes());
    to.extend(text.as_bytes());
}

impl File {
    fn bytes(&self) -> Vec<u8> {
        let mut to = b"GGUF".to_vec();
        to.extend(self.version.to_le_bytes());
        to.extend((self.tensors.len() as u64).to_le_bytes());
        to.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_text(&mut to, key);
            match value {
                Value::U32(value) => {
                    [4u32.to_le_bytes(), value.to_le_bytes()].map(|b| to.extend(b))
                }
                Value::F32(value) => {
                    [6u32.to_le_bytes(), value.to_le_bytes()].map(|b| to.extend(b))
                }
                Value::Bool(value) => {
                    to.extend(7u32.to_le_bytes());
                    to.push(u8::from(*value));
                    [(); 2]
                }
                Value::Text(value) => {
                    to.extend(8u32.to_le_bytes());
                    put_text(&mut to, value);
                    [(); 2]
                }
                Value::Words(words) => {
                    to.extend(9u32.to_le_bytes());
                    to.extend(8u32.to_le_bytes());
                    to.extend((words.len() as u64).to_le_bytes());
                    words.iter().for_each(|word| put_text(&mut to, word));
                    [(); 2]
                }
            };
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            put_text(&mut to, &tensor.name);
            to.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| to.extend(dim.to_le_bytes()));
            to.extend(tensor.kind.to_le_bytes());
            data.resize(data.len().next_multiple_of(32), 0);
            to.extend((data.len() as u64).to_le_bytes());
            for &value in &tensor.values {
                match tensor.kind {
                    0 => data.extend(value.to_le_bytes()),
                    1 => data.extend(f16::from_f32(value).to_le_bytes()),
                    _ => data.extend(bf16::from_f32(value).to_le_bytes()),
                }
            }
        }
        to.resize(to.len().next_multiple_of(32), 0);
        to.extend(data);
        to
    }

    fn open(&self, folder: &Path) -> Result<Checkpoint, Error> {
        let path = folder.join("model.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        Checkpoint::open(path)
    }
}

/// The same layer as a golden file's, as GGUF has it: an expert's matrices behind one another.
fn converted(name: &str, architecture: &'static str, more: &[(&str, Value)], kind: u32) -> File {
    let stored = golden(name);
    let model = golden_model(&stored);
    let moe = &model.moe;
    let layer = stored.moe_layers(model.family)[0];
    let tensor = |name: String, kind: u32, parts: &[String], dims: &[usize]| {
        let values = parts
            .iter()
            .flat_map(|part| stored.tensor(part, "a part").unwrap().read::<f32>().unwrap());
        let dims = dims.iter().map(|&dim| dim as u64).collect();
        Tensor { name: format!("blk.{layer}.{name}"), dims, kind, values: values.collect() }
    };
    let block = model.family.tensors.blocks[0].replace("{layer}", &layer.to_string());
    let (h, i, e) = (moe.hidden_size, moe.intermediate_size, moe.num_experts);
    let mixtral = name.starts_with("mixtral");
    let of_all = |part: &str| -> Vec<String> {
        (0..e).map(|expert| format!("{block}experts.{expert}.{part}.weight")).collect()
    };
    let names = if mixtral { ["w1", "w3", "w2"] } else { ["gate_proj", "up_proj", "down_proj"] };
    let router = [format!("{block}gate.weight")];
    let mut tensors = vec![
        tensor("ffn_gate_inp.weight".into(), 0, &router, &[h, e]),
        tensor("ffn_gate_exps.weight".into(), kind, &of_all(names[0]), &[h, i, e]),
        tensor("ffn_up_exps.weight".into(), kind, &of_all(names[1]), &[h, i, e]),
        tensor("ffn_down_exps.weight".into(), kind, &of_all(names[2]), &[i, h, e]),
    ];
    if moe.router.selection_bias {
        let bias = [format!("{block}gate.e_score_correction_bias")];
        tensors.push(tensor("exp_probs_b.bias".into(), 0, &bias, &[e]));
    }
    if let Some(shared) = moe.experts.shared {
        let s = shared.intermediate_size;
        let base = if stored.contains(&format!("{block}shared_expert_gate.weight")) {
            let gate = [format!("{block}shared_expert_gate.weight")];
            tensors.push(tensor("ffn_gate_inp_shexp.weight".into(), 0, &gate, &[h]));
            "shared_expert"
        } else {
            "shared_experts"
        };
        for (to, from, dims) in [
            ("ffn_gate_shexp", "gate_proj", [h, s]),
            ("ffn_up_shexp", "up_proj", [h, s]),
            ("ffn_down_shexp", "down_proj", [s, h]),
        ] {
            let part = [format!("{block}{base}.{from}.weight")];
            tensors.push(tensor(format!("{to}.weight"), kind, &part, &dims));
        }
    }
    let key = |key: &str| format!("{architecture}.{key}");
    let mut metadata = vec![
        ("general.architecture".to_owned(), Value::Text(architecture)),
        ("tokenizer.ggml.tokens".to_owned(), Value::Words(vec!["a", "b", ""])),
        (key("block_count"), Value::U32(layer as u32 + 1)),
        (key("embedding_length"), Value::U32(h as u32)),
        (key("expert_count"), Value::U32(e as u32)),
        (key("expert_used_count"), Value::U32(moe.top_k as u32)),
    ];
    metadata.extend(more.iter().map(|(name, value)| (key(name), value.clone())));
    File { version: 3, metadata, tensors }
}

fn mixtral(kind: u32) -> File {
    converted("mixtral", "llama", &[("feed_forward_length", Value::U32(96))], kind)
}

#[test]
fn layers_agree_with_their_reference() {
    let folder = TempDir::new().unwrap();
    let width = |width| ("expert_feed_forward_length", Value::U32(width));
    let deepseek = [
        width(32),
        ("expert_gating_func", Value::U32(2)),
        ("expert_weights_norm", Value::Bool(true)),
        ("expert_weights_scale", Value::F32(2.5)),
        ("expert_group_count", Value::U32(4)),
        ("expert_group_used_count", Value::U32(2)),
        ("expert_shared_count", Value::U32(1)),
        ("leading_dense_block_count", Value::U32(3)),
    ];
    let qwen2 = [width(40), ("expert_shared_feed_forward_length", Value::U32(88))];
    for kind in [0, 1, 30] {
        for (name, file) in [
            ("mixtral", mixtral(kind)),
            (
                "olmoe",
                converted("olmoe", "olmoe", &[("feed_forward_length", Value::U32(32))], kind),
            ),
            ("qwen2_moe", converted("qwen2_moe", "qwen2moe", &qwen2, kind)),
            ("qwen3_moe", converted("qwen3_moe", "qwen3moe", &[width(40)], kind)),
            ("deepseek_v3", converted("deepseek_v3", "deepseek2", &deepseek, kind)),
        ] {
            let stored = golden(name);
            let checkpoint = file.open(folder.path()).unwrap();
            let model = checkpoint.model(&[]).unwrap();
            let layer = checkpoint.moe_layers(model.family)[0];
            let given = Computed::run::<_, f32>(&cpu(), &checkpoint, &model, layer, &stored);
            given.check(&format!("{name} in GGML type {kind}"), &stored, 1e-6);
        }
    }
}

#[test]
fn files_that_are_broken() {
    let folder = TempDir::new().unwrap();
    let whole = mixtral(0).bytes();
    let open = |bytes: &[u8]| {
        let path = folder.path().join("broken.gguf");
        std::fs::write(&path, bytes).unwrap();
        Checkpoint::open(path)
    };
    // Cut anywhere in the header or in the data: no panic, an error that names the file.
    for len in (4..1500).step_by(37).chain([whole.len() / 2, whole.len() - 1]) {
        refused!(open(&whole[..len]), Error::File { .. }, "broken.gguf", "GGUF");
    }
    let with = |at: usize, bytes: &[u8]| {
        let mut broken = whole.clone();
        broken[at..at + bytes.len()].copy_from_slice(bytes);
        open(&broken)
    };
    refused!(with(4, &1u32.to_le_bytes()), Error::File { .. }, "version 1", "2 and 3");
    refused!(with(8, &u64::MAX.to_le_bytes()), Error::File { .. }, "broken.gguf");
    refused!(with(16, &u64::MAX.to_le_bytes()), Error::File { .. }, "broken.gguf");
    // The first key's length.
    refused!(with(24, &u64::MAX.to_le_bytes()), Error::File { .. }, "header ends");
    let mut twice = mixtral(0);
    twice.tensors.push(twice.tensors[0].clone());
    refused!(twice.open(folder.path()), Error::File { .. }, "ffn_gate_inp.weight", "twice");
}

#[test]
fn layers_that_cannot_be_read() {
    let folder = TempDir::new().unwrap();
    let layer = |file: &File| {
        let checkpoint = file.open(folder.path())?;
        checkpoint.layer(&checkpoint.model(&[])?, 0)
    };
    let fine = mixtral(0);
    layer(&fine).unwrap();
    let change = |change: &dyn Fn(&mut File)| {
        let mut file = fine.clone();
        change(&mut file);
        layer(&file)
    };
    // Quantised: Q4_K.
    refused!(
        change(&|file| file.tensors[1].kind = 12),
        Error::DType { .. },
        "blk.0.ffn_gate_exps.weight",
        "GGML type 12",
        "F32, BF16 or F16"
    );
    refused!(
        change(&|file| file.tensors[2].dims.swap(0, 1)),
        Error::Shape { .. },
        "blk.0.ffn_up_exps.weight",
        "[8, 96, 64]",
        "[8, 64, 96]"
    );
    refused!(
        change(&|file| drop(file.tensors.remove(3))),
        Error::MissingTensor { .. },
        "blk.0.ffn_down_exps.weight"
    );
    refused!(
        change(&|file| file.tensors[3].name = "blk.0.ffn_gate_exps.bias".to_owned()),
        Error::MissingTensor { .. },
        "ffn_down_exps"
    );
    let surplus = |file: &mut File| {
        let mut bias = file.tensors[0].clone();
        bias.name = "blk.0.ffn_gate_exps.bias".to_owned();
        file.tensors.push(bias);
    };
    refused!(change(&surplus), Error::Unsupported { .. }, "blk.0.ffn_gate_exps.bias", "mixtral");
    refused!(
        change(&|file| file.metadata[0].1 = Value::Text("mamba")),
        Error::Unsupported { .. },
        "mamba",
        "llama",
        "deepseek2"
    );
    refused!(
        change(&|file| drop(file.metadata.remove(0))),
        Error::Config(_),
        "general.architecture"
    );
    refused!(
        change(&|file| drop(file.metadata.remove(4))),
        Error::Config(_),
        "expert_count",
        "missing"
    );
    refused!(
        change(&|file| file.metadata.push(("llama.expert_gating_func".into(), Value::U32(2)))),
        Error::UnknownConfigKey { .. },
        "expert_gating_func"
    );
}
