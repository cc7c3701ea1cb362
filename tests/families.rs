//! Layers of every family, broken one tensor at a time, and configurations that a family's own code
//! rejects: an error names what is wrong.

#![cfg(all(feature = "cpu", feature = "checkpoint"))]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use common::*;
use moe_kernels::checkpoint::{Checkpoint, CheckpointLayer};
use moe_kernels::config::{FAMILIES, ModelConfig};
use moe_kernels::{Error, MoeConfig};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// A golden file's checkpoint, to be broken and written again.
struct Layer {
    name: String,
    family: &'static str,
    config: Map<String, Value>,
    layer: usize,
    tensors: BTreeMap<String, Stored>,
}

impl Layer {
    fn of(name: &str) -> Self {
        let stored = golden(name);
        let model = golden_model(&stored);
        let header: Value = serde_json::from_str(stored.metadata("fixture").unwrap()).unwrap();
        let bytes = fs::read(golden_folder().join(format!("{name}.safetensors"))).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors =
            file.iter().filter(|(name, _)| !name.starts_with("fixture.")).map(|(name, view)| {
                (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
            });
        Self {
            name: name.to_owned(),
            family: model.family.name,
            config: header["config"].as_object().unwrap().clone(),
            layer: stored.moe_layers(model.family)[0],
            tensors: tensors.collect(),
        }
    }

    /// The layer with some tensors changed.
    fn with(
        &self,
        folder: &Path,
        change: impl FnOnce(&mut BTreeMap<String, Stored>),
    ) -> Result<CheckpointLayer, Error> {
        let mut tensors = self.tensors.clone();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let path = folder.join("model.safetensors");
        safetensors::serialize_to_file(views, None, &path).unwrap();
        let checkpoint = Checkpoint::open(&path)?;
        let config = Value::Object(self.config.clone()).to_string();
        checkpoint.layer(&ModelConfig::parse(&config, &[])?, self.layer)
    }

    /// One tensor of each kind: those of the last expert stand for all experts'.
    fn kinds(&self) -> Vec<String> {
        let mut kinds = BTreeMap::new();
        for name in self.tensors.keys() {
            let parts = name.split('.').map(|part| {
                let number = part.trim_start_matches("expert_");
                let is_expert = number.chars().all(|c| c.is_ascii_digit());
                if is_expert { "N" } else { part }
            });
            kinds.insert(parts.collect::<Vec<_>>().join("."), name.clone());
        }
        kinds.into_values().collect()
    }
}

fn layers() -> Vec<Layer> {
    let names = golden_names();
    // One of each case of the families, without further shapes of the same.
    let is_first =
        |name: &String| !["_all", "_e5k3", "_k1", "_starved"].iter().any(|s| name.ends_with(s));
    names.iter().filter(|name| is_first(name)).map(|name| Layer::of(name)).collect()
}

#[test]
fn a_tensor_that_is_missing() {
    let folder = TempDir::new().unwrap();
    for layer in layers() {
        layer.with(folder.path(), |_| ()).unwrap();
        for name in layer.kinds() {
            let error = layer
                .with(folder.path(), |tensors| drop(tensors.remove(&name)))
                .expect_err(&format!("{} without {name}", layer.name));
            // Without its table, or its codes, a layer is of another kind, of which something else is missing.
            let other_kind = ["tid2eid", "_blocks", "weight_shape"];
            if !other_kind.iter().any(|part| name.ends_with(part)) {
                assert!(matches!(error, Error::MissingTensor { .. }), "{error}");
                check_message(&error, &[&name]);
            }
        }
    }
}

#[test]
fn a_tensor_of_another_shape() {
    let folder = TempDir::new().unwrap();
    for layer in layers() {
        for name in layer.kinds() {
            let (_, shape, _) = &layer.tensors[&name];
            let mut wider = shape.clone();
            wider[0] += 1;
            let change = |tensors: &mut BTreeMap<String, Stored>| {
                let (_, shape, data) = tensors.get_mut(&name).unwrap();
                let row = data.len() / shape[0];
                data.extend_from_within(..row);
                shape.clone_from(&wider);
            };
            let result = layer.with(folder.path(), change);
            // A longer table is one of a larger vocabulary.
            if name.ends_with("tid2eid") {
                result.unwrap();
                continue;
            }
            let error = result.expect_err(&format!("{} with a wider {name}", layer.name));
            assert!(matches!(error, Error::Shape { .. }), "{name}: {error}");
            check_message(&error, &[&name, &format!("{wider:?}")]);
            // A vector that is stored as a matrix of one row is expected as a vector.
            if shape[0] > 1 {
                check_message(&error, &[&format!("{shape:?}")]);
            }
        }
    }
}

#[test]
fn a_tensor_of_another_type() {
    let folder = TempDir::new().unwrap();
    for layer in layers() {
        for name in layer.kinds() {
            let change = |tensors: &mut BTreeMap<String, Stored>| {
                let (dtype, shape, data) = tensors.get_mut(&name).unwrap();
                let elements: usize = shape.iter().product();
                *dtype = Dtype::BOOL;
                *data = vec![0; elements];
            };
            let opened = layer.with(folder.path(), change);
            // A table is of whole numbers, which only shows when it is read.
            let error = match opened {
                Ok(opened) => opened.router_weights::<f32>().map(drop),
                Err(error) => Err(error),
            };
            let error = error.expect_err(&format!("{} with a {name} of BOOL", layer.name));
            assert!(matches!(error, Error::DType { .. }), "{name}: {error}");
            check_message(&error, &[&name, "BOOL"]);
        }
    }
}

/// A tensor of the layer that nobody would read.
#[test]
fn a_tensor_too_many() {
    let folder = TempDir::new().unwrap();
    for layer in layers() {
        for name in layer.kinds().into_iter().filter(|name| name.contains("expert")) {
            let surplus = format!("{name}_of_another_kind");
            let error = layer
                .with(folder.path(), |tensors| {
                    let copy = tensors[&name].clone();
                    tensors.insert(surplus.clone(), copy);
                })
                .expect_err(&format!("{} with {surplus}", layer.name));
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
            check_message(&error, &[&surplus, layer.family]);
        }
    }
}

#[test]
fn scales_of_another_grid() {
    let folder = TempDir::new().unwrap();
    let layer = Layer::of("deepseek_v3_fp8");
    let name = "model.layers.3.mlp.experts.2.down_proj.weight_scale_inv";
    // A scale for each row.
    let change = |tensors: &mut BTreeMap<String, Stored>| {
        *tensors.get_mut(name).unwrap() = (Dtype::F32, vec![256, 1], vec![0; 1024]);
    };
    let error = layer.with(folder.path(), change).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error}");
    check_message(&error, &[name, "[2, 1]", "[256, 1]"]);

    let mut other_blocks = Layer::of("deepseek_v3_fp8");
    other_blocks.config["quantization_config"]["weight_block_size"] = json!([64, 64]);
    let error = other_blocks.with(folder.path(), |_| ()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    check_message(&error, &["weight_block_size", "[64,64]", "[128, 128]"]);

    let mut other_method = Layer::of("gpt_oss_mxfp4");
    other_method.config["quantization_config"]["quant_method"] = json!("gptq");
    let error = other_method.with(folder.path(), |_| ()).unwrap_err();
    check_message(&error, &["quant_method", "gptq", "gpt_oss", "mxfp4"]);
}

/// Quantised experts read as dense ones, and the other way around.
#[test]
fn weights_in_the_other_format() {
    let folder = TempDir::new().unwrap();
    let quantised = Layer::of("gpt_oss_mxfp4").with(folder.path(), |_| ()).unwrap();
    let error = quantised.weights::<f32>().unwrap_err();
    check_message(&error, &["mxfp4", "quantised_weights"]);
    let dense = Layer::of("gpt_oss").with(folder.path(), |_| ()).unwrap();
    let error = dense.quantised_weights::<f32>().unwrap_err();
    check_message(&error, &["floating-point", "weights"]);
}

fn parsed(config: &Map<String, Value>) -> Result<MoeConfig, Error> {
    MoeConfig::from_hf_config(&Value::Object(config.clone()).to_string())
}

/// Values that a family's own code, or this crate, cannot run.
#[test]
fn configurations_that_are_rejected() {
    for (golden, key, value, parts) in [
        ("deepseek_v2", "topk_method", json!("noaux_tc"), ["noaux_tc", "group_limited_greedy"]),
        ("deepseek_v2", "scoring_func", json!("sigmoid"), ["sigmoid", "softmax"]),
        ("deepseek_v2", "n_group", Value::Null, ["n_group", "missing"]),
        ("deepseek_v2", "n_group", json!(5), ["n_group = 5", "a divisor of 12"]),
        ("deepseek_v2", "topk_group", json!(9), ["topk_group = 9", "1 to 4"]),
        ("deepseek_v3", "scoring_func", json!("softmax"), ["softmax", "sigmoid"]),
        ("deepseek_v3", "n_group", json!(16), ["n_group = 16", "two experts in each"]),
        ("deepseek_v4", "norm_topk_prob", json!(false), ["norm_topk_prob = false", "true"]),
        ("gpt_oss", "experts_per_token", json!(3), ["experts_per_token", "3"]),
        ("gpt_oss", "swiglu_limit", json!(-1.0), ["limit = -1", "above 0"]),
        ("phimoe", "num_experts_per_tok", json!(3), ["top_k = 3", "sparsemixer"]),
        ("longcat_flash", "zero_expert_type", json!("copy"), ["copy", "identity"]),
        ("gemma4", "enable_moe_block", json!(false), ["enable_moe_block", "no MoE layer"]),
        ("cohere2_moe", "expert_selection_fn", json!("sinkhorn"), ["sinkhorn", "softmax"]),
        ("cohere2_moe", "shared_expert_combination_strategy", json!("max"), ["max", "average"]),
        ("ernie4_5_moe", "moe_use_aux_free", json!(false), ["moe_use_aux_free = false", "true"]),
        ("nemotron_h", "mlp_hidden_act", json!("swiglu"), ["swiglu", "relu2"]),
        ("nemotron_h", "moe_latent_size", json!(12), ["latent_size = 12", "multiple of 8"]),
        ("nllb_moe", "second_expert_policy", json!("random"), ["random", "all"]),
        ("nllb_moe", "batch_prioritized_routing", json!(true), ["batch_prioritized", "false"]),
        ("switch_transformers", "expert_capacity", json!(0), ["capacity", "at least 1"]),
        ("minimax_m2", "scoring_func", json!("softmax"), ["softmax", "sigmoid"]),
        ("hunyuan_v1_moe", "moe_intermediate_size", json!([40, 48]), ["moe_intermediate", "48"]),
        ("llama4", "moe_layers", json!("all"), ["moe_layers", "a list"]),
        ("step3p7", "swiglu_limits", json!(7.0), ["swiglu_limits", "a list of numbers"]),
        ("qwen3_vl_moe", "norm_topk_prob", json!(false), ["norm_topk_prob = false", "true"]),
    ] {
        let mut config = Layer::of(golden).config;
        parsed(&config).unwrap();
        config.insert(key.to_owned(), value.clone());
        match parsed(&config) {
            Ok(_) => panic!("{golden} takes {key} = {value}"),
            Err(error) => check_message(&error, &parts),
        }
    }
    let mut dbrx = Layer::of("dbrx").config;
    dbrx["ffn_config"]["ffn_act_fn"]["name"] = json!("gelu");
    check_message(&parsed(&dbrx).unwrap_err(), &["gelu", "silu"]);
    dbrx["ffn_config"]["ffn_act_fn"]["name"] = json!("silu");
    dbrx["ffn_config"]["moe_shared"] = json!(1);
    check_message(&parsed(&dbrx).unwrap_err(), &["moe_shared", "dbrx"]);
}

/// Keys that the families' classes write for other parts of a model, or for what a layer does not have.
#[test]
fn keys_of_other_parts_of_a_model() {
    for name in golden_names() {
        let stored = golden(&name);
        let expected = golden_model(&stored).moe;
        let header: Value = serde_json::from_str(stored.metadata("fixture").unwrap()).unwrap();
        let mut config = header["config"].as_object().unwrap().clone();
        for (key, value) in [
            ("mlp_bias", json!(false)),
            ("output_router_logits", json!(false)),
            ("time_step_limit", json!([0.0, 1.0])),
            ("index_topk", json!(2048)),
            ("num_nextn_predict_layers", json!(1)),
            ("top_k", json!(50)),
        ] {
            config.insert(key.to_owned(), value);
        }
        assert_eq!(parsed(&config).unwrap(), expected, "{name}");
        config.insert("mlp_bias".to_owned(), json!(true));
        refused!(parsed(&config), Error::UnknownConfigKey { .. }, "mlp_bias", "true");
    }
}

/// Known, and refused by name with what is missing.
#[test]
fn families_that_are_not_supported() {
    for (name, missing) in [
        ("axk1", "RMS norm"),
        ("inkling", "normalised over routed and shared"),
        ("kimi_k3", "SiTU"),
        ("kolibri1", "bias on logits"),
        ("muse_spark", "multiplier"),
        ("zaya", "three layers"),
        ("a_family_of_tomorrow", "a_family_of_tomorrow"),
    ] {
        let error = MoeConfig::from_hf_config(&json!({ "model_type": name }).to_string());
        refused!(error, Error::Unsupported { .. }, name, missing, "deepseek_v3");
    }
}

/// Limits that differ from layer to layer, and layers past the lists.
#[test]
fn limits_by_layer() {
    let mut config = Layer::of("step3p7").config;
    config.insert("swiglu_limits".to_owned(), json!([null, 0.0, 0.0, 7.0]));
    config.insert("swiglu_limits_shared".to_owned(), json!([1.0, 2.0, 3.0, 0.0, 5.0]));
    let model = ModelConfig::parse(&Value::Object(config).to_string(), &[]).unwrap();
    let moe = model.layer(3).unwrap();
    let of = |limit| moe_kernels::config::ActivationFn::SwiGluThenClamp { limit };
    assert_eq!(moe.experts.activation, of(7.0));
    let plain = moe_kernels::config::ActivationFn::SwiGlu;
    assert_eq!(moe.experts.shared.unwrap().activation, plain);
    refused!(model.layer(4), Error::Value { .. }, "layer = 4", "swiglu_limits");
    refused!(model.layer(2), Error::Value { .. }, "layer = 2", "MoE layer");
}

/// A wrapper around a language model's configuration, as models that see have.
#[test]
fn a_language_model_within_another() {
    let text = Layer::of("llama4").config;
    let expected = parsed(&text).unwrap();
    let whole = json!({ "model_type": "llama4", "text_config": text, "vision_config": {} });
    assert_eq!(MoeConfig::from_hf_config(&whole.to_string()).unwrap(), expected);
}

#[test]
fn names_of_families_are_unique() {
    let names: BTreeSet<_> = FAMILIES.iter().map(|family| family.name).collect();
    assert_eq!(names.len(), FAMILIES.len());
    let types: Vec<_> = FAMILIES.iter().flat_map(|family| family.model_types).collect();
    assert_eq!(types.iter().collect::<BTreeSet<_>>().len(), types.len());
}
