//! Configurations: built, from config.json, and serialised.

use crate::common::*;
use moe_kernels::backend::Backend;
use moe_kernels::config::{GateUpLayout, ModelConfig, Renormalize, Scoring};
use moe_kernels::cpu::CpuBuffer;
use moe_kernels::memory::{Matrix, MatrixMut};
use moe_kernels::ops::{ExpertShape, Router, RouterOutput, RoutingPlan, Workspace};
use moe_kernels::weights::{DenseExperts, LayerWeights, RouterWeights};
use moe_kernels::{Cpu, Error, MoeConfig, MoeLayer};

use crate::ROOM;

/// Configurations that no layer can have, and what their errors must name.
fn bad_configs() -> Vec<(MoeConfig, [&'static str; 3])> {
    vec![
        (MoeConfig::new(0, 8, 4, 2), ["hidden_size", "= 0", "multiple of 8"]),
        (MoeConfig::new(12, 8, 4, 2), ["hidden_size", "= 12", "multiple of 8"]),
        (MoeConfig::new(8, 0, 4, 2), ["intermediate_size", "= 0", "multiple of 8"]),
        (MoeConfig::new(8, 4, 4, 2), ["intermediate_size", "= 4", "multiple of 8"]),
        (MoeConfig::new((1 << 24) + 8, 8, 4, 2), ["hidden_size", "= 16777224", "2^24"]),
        (
            MoeConfig::new(8, usize::MAX - 7, 4, 2),
            ["intermediate_size", "= 18446744073709551608", "2^24"],
        ),
        (MoeConfig::new(8, 8, 0, 1), ["num_experts", "= 0", "1 to 1024"]),
        (MoeConfig::new(8, 8, 1025, 1), ["num_experts", "= 1025", "1 to 1024"]),
        (MoeConfig::new(8, 8, usize::MAX, 1), ["num_experts", "= 18446744073709551615", "1024"]),
        (MoeConfig::new(8, 8, 4, 0), ["top_k", "= 0", "1 to 4"]),
        (MoeConfig::new(8, 8, 4, 5), ["top_k", "= 5", "1 to 4"]),
        (MoeConfig::new(8, 8, 40, 33), ["top_k", "= 33", "1 to 32"]),
        (MoeConfig::new(8, 8, 40, usize::MAX), ["top_k", "= 18446744073709551615", "1 to 32"]),
    ]
}

#[test]
fn impossible_configurations() {
    for (config, [name, given, expected]) in bad_configs() {
        refused!(config.validate(), Error::Value { .. }, name, given, expected);
        refused!(
            Workspace::<Cpu, f32>::bytes(&config, 1),
            Error::Value { .. },
            name,
            given,
            expected
        );
        refused!(
            Workspace::<Cpu, f32>::new(&Cpu, &config, 1),
            Error::Value { .. },
            name,
            given,
            expected
        );
        let shape = ExpertShape::gated(1, 8, 8);
        let experts = DenseExperts::<f32>::stacked(
            shape,
            GateUpLayout::GateFirst,
            vec![0.0; 128],
            vec![0.0; 64],
        )
        .unwrap();
        refused!(
            MoeLayer::new(
                Cpu,
                config.clone(),
                LayerWeights::new(RouterWeights::f32(vec![]), experts),
                &(),
            ),
            Error::Value { .. },
            name,
            given,
            expected
        );
        let buffer = CpuBuffer::from(vec![0.0f32; ROOM]);
        let mut logits = buffer.clone();
        let (mut ids, mut weights) = (CpuBuffer::from(vec![0i32; 8]), buffer.clone());
        let output = RouterOutput {
            router_logits: MatrixMut::contiguous("logits", &mut logits, 1, 4).unwrap(),
            topk_ids: MatrixMut::contiguous("ids", &mut ids, 1, 2).unwrap(),
            topk_weights: MatrixMut::contiguous("weights", &mut weights, 1, 2).unwrap(),
        };
        let x = Matrix::<Cpu, f32>::contiguous("x", &buffer, 1, 8).unwrap();
        let gate = Cpu.prepare_gate([4, 8], RouterWeights::<f32>::f32(vec![0.0; 32]), &()).unwrap();
        refused!(
            Router::new(&config, x, &gate, output),
            Error::Value { .. },
            name,
            given,
            expected
        );
    }
}

/// Every number that a valid configuration gives, at its bounds.
#[test]
fn the_greatest_configuration_can_be_asked_its_size() {
    let config = MoeConfig::new(1 << 24, 1 << 24, 1024, 32);
    config.validate().unwrap();
    assert_eq!(config.expert_parameters(), 3 << 48);
    assert_eq!(config.parameters(), (3 << 58) + (1 << 34));
    assert_eq!(config.active_parameters(), (3 << 53) + (1 << 34));
}

#[test]
fn too_many_rows() {
    let config = MoeConfig::new(8, 8, 40, 32);
    assert_eq!(config.num_assignments((1 << 26) - 1).unwrap(), (1 << 31) - 32);
    for tokens in [1 << 26, usize::MAX] {
        let given = format!("{tokens} * 32");
        refused!(
            config.num_assignments(tokens),
            Error::Value { .. },
            "num_tokens * top_k",
            given,
            "2^31"
        );
        refused!(
            Workspace::<Cpu, f32>::new(&Cpu, &config, tokens),
            Error::Value { .. },
            "num_tokens * top_k",
            given,
            "2^31"
        );
    }
    refused!(
        RoutingPlan::<Cpu>::new(&Cpu, 4, 1 << 31),
        Error::Value { .. },
        "max_assignments",
        "2147483648",
        "2^31"
    );
    for experts in [0, 1025] {
        refused!(
            RoutingPlan::<Cpu>::new(&Cpu, experts, 8),
            Error::Value { .. },
            "num_experts",
            experts,
            "1 to 1024"
        );
    }
}

/// A workspace that no machine can hold.
#[test]
fn a_workspace_beyond_memory() {
    let config = MoeConfig::new(1 << 24, 1 << 24, 1024, 32);
    let bytes = Workspace::<Cpu, f32>::bytes(&config, 1 << 25).unwrap();
    assert!(bytes > 1 << 57);
    // 2^55 bytes of rows, and little besides.
    let config = MoeConfig::new(1 << 24, 1 << 24, 1, 1);
    refused!(
        Workspace::<Cpu, f32>::new(&Cpu, &config, 1 << 29),
        Error::OutOfMemory { .. },
        "rows",
        "bytes could not be allocated"
    );
}

fn hf(model_type: &str, more: &str) -> String {
    let sizes = match model_type {
        "mixtral" => r#""intermediate_size": 96, "num_local_experts": 8"#,
        "qwen3_moe" => r#""moe_intermediate_size": 96, "intermediate_size": 512, "num_experts": 8"#,
        _ => r#""intermediate_size": 96, "num_experts": 8"#,
    };
    format!(
        r#"{{"model_type": "{model_type}", "hidden_size": 64, "num_experts_per_tok": 2, {sizes}{more}}}"#
    )
}

/// Names of other families, and of code that was copied from them: each changes what a layer
/// computes, so none may pass unread.
#[test]
fn keys_that_sound_like_a_moe_layer() {
    for (key, value) in [
        ("score_func", "\"sigmoid\""),
        ("scoring_func", "\"sqrtsoftplus\""),
        ("hidden_activation", "\"gelu\""),
        ("ffn_hidden_act", "\"gelu\""),
        ("act_fn", "\"gelu\""),
        ("mlp_bias", "true"),
        ("first_k_dense_replace", "1"),
        ("swiglu_limit", "7.0"),
        ("expert_clamp", "null"),
        ("n_shared_experts", "1"),
        ("n_group", "8"),
        ("text_config", "{\"num_experts\":4}"),
    ] {
        for family in FAMILIES {
            let json = hf(family, &format!(", \"{key}\": {value}"));
            refused!(
                MoeConfig::from_hf_config(&json),
                Error::UnknownConfigKey { .. },
                format!("{key:?}"),
                value,
                family
            );
            MoeConfig::from_hf_config_ignoring(&json, &[key]).unwrap();
        }
    }
}

const FAMILIES: [&str; 3] = ["mixtral", "qwen3_moe", "olmoe"];

#[test]
fn config_json_that_is_read() {
    for (family, renormalize) in [
        ("mixtral", Renormalize::SUM),
        ("qwen3_moe", Renormalize::None),
        ("olmoe", Renormalize::None),
    ] {
        let mut expected = MoeConfig::new(64, 96, 8, 2);
        expected.router.renormalize = renormalize;
        for more in [
            "",
            r#", "hidden_act": "silu""#,
            r#", "vocab_size": 32000, "rms_norm_eps": 1e-6, "tie_word_embeddings": false"#,
            r#", "router_aux_loss_coef": 0.02, "output_router_logits": true"#,
            r#", "num_hidden_layers": 4, "torch_dtype": "bfloat16""#,
        ] {
            assert_eq!(MoeConfig::from_hf_config(&hf(family, more)).unwrap(), expected, "{more}");
        }
    }
    for family in ["qwen3_moe", "olmoe"] {
        let config = MoeConfig::from_hf_config(&hf(family, r#", "norm_topk_prob": true"#)).unwrap();
        assert_eq!(config.router.renormalize, Renormalize::SUM);
        let config =
            MoeConfig::from_hf_config(&hf(family, r#", "norm_topk_prob": false"#)).unwrap();
        assert_eq!(config.router.renormalize, Renormalize::None);
    }
}

#[test]
fn config_json_that_is_no_json() {
    for text in ["", "nonsense", "{", "[1, 2]", "3", "null", "\"mixtral\"", "{\"a\": }", "\u{0}"] {
        refused!(MoeConfig::from_hf_config(text), Error::Config(_), "config", "JSON object");
    }
    let deep = "[".repeat(100_000);
    refused!(MoeConfig::from_hf_config(&deep), Error::Config(_), "JSON object");
}

#[test]
fn config_json_of_no_known_family() {
    refused!(
        MoeConfig::from_hf_config("{}"),
        Error::Config(_),
        "\"model_type\" is missing",
        "mixtral",
        "qwen3_moe",
        "olmoe"
    );
    refused!(
        MoeConfig::from_hf_config(r#"{"model_type": 7}"#),
        Error::Config(_),
        "model_type",
        "7",
        "string"
    );
    refused!(
        MoeConfig::from_hf_config(&hf("llama", "")),
        Error::Unsupported { .. },
        "model_type \"llama\"",
        "mixtral",
        "qwen3_moe",
        "olmoe"
    );
}

#[test]
fn config_json_with_missing_keys() {
    for family in FAMILIES {
        let whole: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&hf(family, "")).unwrap();
        for key in whole.keys() {
            // The width of qwen3_moe's dense layers is not the experts'.
            if key == "model_type" || (family, key.as_str()) == ("qwen3_moe", "intermediate_size") {
                continue;
            }
            for null in [false, true] {
                let mut config = whole.clone();
                match null {
                    true => config[key] = serde_json::Value::Null,
                    false => drop(config.remove(key)),
                }
                let text = serde_json::Value::from(config).to_string();
                refused!(
                    MoeConfig::from_hf_config(&text),
                    Error::Config(_),
                    key,
                    "missing",
                    family
                );
            }
        }
    }
}

/// Versions of transformers write one name or the other; both must not disagree.
#[test]
fn config_json_with_both_names_of_the_expert_count() {
    for family in FAMILIES {
        let other = if family == "mixtral" { "num_experts" } else { "num_local_experts" };
        let same = hf(family, &format!(r#", "{other}": 8"#));
        assert_eq!(MoeConfig::from_hf_config(&same).unwrap().num_experts, 8);
        let different = hf(family, &format!(r#", "{other}": 16"#));
        refused!(
            MoeConfig::from_hf_config(&different),
            Error::Config(_),
            "num_experts",
            "num_local_experts",
            "8",
            "16"
        );
    }
}

#[test]
fn config_json_with_values_of_other_types() {
    for family in FAMILIES {
        let sizes = match family {
            "mixtral" => {
                ["hidden_size", "num_experts_per_tok", "intermediate_size", "num_local_experts"]
            }
            "qwen3_moe" => {
                ["hidden_size", "num_experts_per_tok", "moe_intermediate_size", "num_experts"]
            }
            _ => ["hidden_size", "num_experts_per_tok", "intermediate_size", "num_experts"],
        };
        for key in sizes {
            for value in ["\"8\"", "8.5", "-8", "true", "[8]", "{}", "1e30", "18446744073709551616"]
            {
                let mut config: serde_json::Map<String, serde_json::Value> =
                    serde_json::from_str(&hf(family, "")).unwrap();
                config[key] = serde_json::from_str(value).unwrap();
                let text = serde_json::Value::from(config).to_string();
                refused!(
                    MoeConfig::from_hf_config(&text),
                    Error::Config(_),
                    key,
                    "whole number",
                    family
                );
            }
        }
    }
    for (more, key) in [
        (r#", "norm_topk_prob": 1"#, "norm_topk_prob"),
        (r#", "norm_topk_prob": "yes""#, "norm_topk_prob"),
        (r#", "decoder_sparse_step": "1""#, "decoder_sparse_step"),
        (r#", "mlp_only_layers": 3"#, "mlp_only_layers"),
        (r#", "mlp_only_layers": [0, "a"]"#, "mlp_only_layers"),
        (r#", "num_hidden_layers": -1"#, "num_hidden_layers"),
    ] {
        refused!(
            MoeConfig::from_hf_config(&hf("qwen3_moe", more)),
            Error::Config(_),
            key,
            "expected",
            "qwen3_moe"
        );
    }
}

#[test]
fn config_json_with_values_out_of_bounds() {
    for (key, value, name, expected) in [
        ("hidden_size", 12, "hidden_size = 12", "multiple of 8"),
        ("hidden_size", 0, "hidden_size = 0", "multiple of 8"),
        ("intermediate_size", 4, "intermediate_size = 4", "multiple of 8"),
        ("num_local_experts", 0, "num_experts = 0", "1 to 1024"),
        ("num_local_experts", 1, "top_k = 2", "1 to 1"),
        ("num_local_experts", 2000, "num_experts = 2000", "1 to 1024"),
        ("num_experts_per_tok", 0, "top_k = 0", "1 to 8"),
        ("num_experts_per_tok", 9, "top_k = 9", "1 to 8"),
    ] {
        let mut config: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&hf("mixtral", "")).unwrap();
        config[key] = value.into();
        let text = serde_json::Value::from(config).to_string();
        refused!(MoeConfig::from_hf_config(&text), Error::Value { .. }, name, expected);
    }
    refused!(
        MoeConfig::from_hf_config(&hf("qwen3_moe", r#", "decoder_sparse_step": 0"#)),
        Error::Value { .. },
        "decoder_sparse_step",
        "= 0",
        "at least 1"
    );
}

#[test]
fn config_json_with_an_unknown_activation() {
    for family in FAMILIES {
        for name in ["\"mish\"", "\"relu2\"", "\"SiLU\"", "7", "[]"] {
            let more = format!(r#", "hidden_act": {name}"#);
            refused!(
                MoeConfig::from_hf_config(&hf(family, &more)),
                Error::Unsupported { .. },
                "hidden_act",
                name,
                "silu",
                family
            );
        }
    }
}

#[test]
fn config_json_with_keys_that_are_not_understood() {
    for family in FAMILIES {
        for key in [
            "n_shared_experts",
            "moe_layer_freq",
            "routed_scaling_factor",
            "scoring_func",
            "topk_group",
            "topk_method",
            "n_group",
            "swiglu_limit",
            "shared_expert_intermediate_size",
            "router_bias",
            "expert_capacity",
            "gate_bias",
            "Num_Experts_Extra",
        ] {
            let more = format!(r#", "{key}": 2.5"#);
            let text = hf(family, &more);
            refused!(
                MoeConfig::from_hf_config(&text),
                Error::UnknownConfigKey { .. },
                key,
                "2.5",
                family,
                "from_hf_config_ignoring"
            );
            let expected = MoeConfig::from_hf_config(&hf(family, "")).unwrap();
            assert_eq!(MoeConfig::from_hf_config_ignoring(&text, &["x", key]).unwrap(), expected);
            refused!(
                MoeConfig::from_hf_config_ignoring(&text, &["x"]),
                Error::UnknownConfigKey { .. },
                key
            );
        }
    }
    // A key of another family's is not this one's.
    for (family, key) in [
        ("mixtral", "norm_topk_prob"),
        ("mixtral", "moe_intermediate_size"),
        ("mixtral", "decoder_sparse_step"),
        ("olmoe", "mlp_only_layers"),
        ("qwen3_moe", "zero_expert_num"),
    ] {
        let text = hf(family, &format!(r#", "{key}": 1"#));
        refused!(MoeConfig::from_hf_config(&text), Error::UnknownConfigKey { .. }, key, family);
    }
}

#[test]
fn layers_that_are_not_moe_layers() {
    let more = r#", "num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]"#;
    let model = ModelConfig::parse(&hf("qwen3_moe", more), &[]).unwrap();
    for layer in [1, 5] {
        model.check_layer(layer).unwrap();
    }
    for layer in [0, 2, 3, 4] {
        refused!(model.check_layer(layer), Error::Value { .. }, "layer", layer, "MoE layer");
    }
    for layer in [6, usize::MAX] {
        refused!(model.check_layer(layer), Error::Value { .. }, "layer", layer, "less than 6");
    }
}

#[test]
fn the_last_layer_number_of_a_model_that_does_not_say_how_many() {
    let model = ModelConfig::parse(&hf("qwen3_moe", r#", "decoder_sparse_step": 3"#), &[]).unwrap();
    refused!(model.check_layer(usize::MAX), Error::Value { .. }, "layer");
}

#[test]
fn serialised_configurations() {
    let mut config = MoeConfig::new(64, 96, 8, 2);
    config.router.scoring = Scoring::Sigmoid;
    config.router.renormalize = Renormalize::None;
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<MoeConfig>(&text).unwrap(), config);

    let replaced = |from: &str, to: &str| {
        assert!(text.contains(from), "{text}");
        let text = text.replace(from, to);
        serde_json::from_str::<MoeConfig>(&text).unwrap_err().to_string()
    };
    for (from, to, parts) in [
        ("\"sigmoid\"", "\"sinkhorn\"", vec!["sinkhorn", "softmax", "sigmoid"]),
        ("\"none\"", "\"max\"", vec!["max", "none", "sum"]),
        ("\"swi_glu\"", "\"mish\"", vec!["mish", "swi_glu"]),
        ("\"hidden_size\":64", "\"hidden_size\":\"64\"", vec!["string", "usize"]),
        ("\"hidden_size\":64", "\"hidden_size\":-64", vec!["-64", "usize"]),
        ("\"hidden_size\":64,", "", vec!["missing", "hidden_size"]),
        ("\"top_k\":2", "\"top_k\":2,\"n_group\":4", vec!["unknown", "n_group"]),
    ] {
        let message = replaced(from, to);
        for part in parts {
            assert!(message.contains(part), "\"{part}\" is not named in: {message}");
        }
    }
}
