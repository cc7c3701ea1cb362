//! The MoE layers of named models: what benches, `run_layer`, `planner` and tables call by name.
//!
//! Values from the models' published config.json files, with keys under their official names, so that a
//! family's own rules read them. Published sizes are in billions of parameters.

use moe_kernels::config::{ModelConfig, SharedExpert};
use moe_kernels::{MoeConfig, Result};

/// A released model.
#[allow(dead_code, reason = "not every user of this file reads every field")]
pub struct NamedModel {
    pub name: &'static str,
    /// The MoE keys of its config.json.
    pub json: &'static str,
    /// MoE layers.
    pub layers: usize,
    /// Parameters of the whole model, and those that one token meets, as published or counted.
    pub billions: Option<(f64, f64)>,
}

#[allow(dead_code, reason = "not every user of this file asks for both")]
impl NamedModel {
    pub fn model(&self) -> Result<ModelConfig> {
        ModelConfig::parse(self.json, &[])
    }

    pub fn config(&self) -> Result<MoeConfig> {
        let mut moe = self.model()?.moe;
        let merged = moe.can_merge_shared();
        moe.experts.shared = moe.experts.shared.map(|shared| SharedExpert { merged, ..shared });
        Ok(moe)
    }
}

const fn model(
    name: &'static str,
    layers: usize,
    billions: Option<(f64, f64)>,
    json: &'static str,
) -> NamedModel {
    NamedModel { name, json, layers, billions }
}

/// Those that benches measure.
#[allow(dead_code, reason = "for benches")]
pub const BENCHED: [&str; 3] = ["mixtral-8x7b", "qwen3-30b-a3b", "olmoe-1b-7b"];

pub const MODELS: &[NamedModel] = &[
    model(
        "mixtral-8x7b",
        32,
        Some((46.7, 12.9)),
        r#"{"model_type": "mixtral", "hidden_size": 4096,
        "intermediate_size": 14336, "num_local_experts": 8, "num_experts_per_tok": 2}"#,
    ),
    model(
        "mixtral-8x22b",
        56,
        Some((140.6, 39.2)),
        r#"{"model_type": "mixtral", "hidden_size": 6144,
        "intermediate_size": 16384, "num_local_experts": 8, "num_experts_per_tok": 2}"#,
    ),
    model(
        "minimax-text-01",
        80,
        Some((456.0, 45.9)),
        r#"{"model_type": "minimax", "hidden_size": 6144,
        "intermediate_size": 9216, "num_local_experts": 32, "num_experts_per_tok": 2}"#,
    ),
    model(
        "qwen1.5-moe-a2.7b",
        24,
        Some((14.3, 2.7)),
        r#"{"model_type": "qwen2_moe",
        "hidden_size": 2048, "moe_intermediate_size": 1408, "num_experts": 60,
        "num_experts_per_tok": 4, "shared_expert_intermediate_size": 5632}"#,
    ),
    model(
        "qwen2-57b-a14b",
        28,
        Some((57.4, 14.2)),
        r#"{"model_type": "qwen2_moe",
        "hidden_size": 3584, "moe_intermediate_size": 2560, "num_experts": 64,
        "num_experts_per_tok": 8, "shared_expert_intermediate_size": 20480}"#,
    ),
    model(
        "qwen3-30b-a3b",
        48,
        Some((30.5, 3.4)),
        r#"{"model_type": "qwen3_moe",
        "hidden_size": 2048, "moe_intermediate_size": 768, "num_experts": 128,
        "num_experts_per_tok": 8, "norm_topk_prob": true}"#,
    ),
    model(
        "qwen3-235b-a22b",
        94,
        Some((235.1, 22.2)),
        r#"{"model_type": "qwen3_moe",
        "hidden_size": 4096, "moe_intermediate_size": 1536, "num_experts": 128,
        "num_experts_per_tok": 8, "norm_topk_prob": true}"#,
    ),
    model(
        "qwen3-coder-480b-a35b",
        62,
        Some((480.2, 35.5)),
        r#"{"model_type": "qwen3_moe",
        "hidden_size": 6144, "moe_intermediate_size": 2560, "num_experts": 160,
        "num_experts_per_tok": 8, "norm_topk_prob": true}"#,
    ),
    model(
        "qwen3-next-80b-a3b",
        48,
        Some((79.7, 3.9)),
        r#"{"model_type": "qwen3_next",
        "hidden_size": 2048, "moe_intermediate_size": 512, "num_experts": 512,
        "num_experts_per_tok": 10, "shared_expert_intermediate_size": 512}"#,
    ),
    model(
        "qwen3.5-35b-a3b",
        40,
        Some((34.7, 3.5)),
        r#"{"model_type": "qwen3_5_moe_text",
        "hidden_size": 2048, "moe_intermediate_size": 512, "num_experts": 256,
        "num_experts_per_tok": 8, "shared_expert_intermediate_size": 512}"#,
    ),
    model(
        "qwen3.5-122b-a10b",
        48,
        Some((122.1, 9.8)),
        r#"{"model_type": "qwen3_5_moe_text",
        "hidden_size": 3072, "moe_intermediate_size": 1024, "num_experts": 256,
        "num_experts_per_tok": 8, "shared_expert_intermediate_size": 1024}"#,
    ),
    model(
        "qwen3.5-397b-a17b",
        60,
        Some((396.4, 17.4)),
        r#"{"model_type": "qwen3_5_moe_text",
        "hidden_size": 4096, "moe_intermediate_size": 1024, "num_experts": 512,
        "num_experts_per_tok": 10, "shared_expert_intermediate_size": 1024}"#,
    ),
    model(
        "deepseek-v2",
        59,
        Some((235.7, 21.0)),
        r#"{"model_type": "deepseek_v2",
        "hidden_size": 5120, "moe_intermediate_size": 1536, "n_routed_experts": 160,
        "num_experts_per_tok": 6, "n_shared_experts": 2, "topk_method": "group_limited_greedy",
        "n_group": 8, "topk_group": 3, "routed_scaling_factor": 16.0, "first_k_dense_replace": 1}"#,
    ),
    model(
        "deepseek-v2-lite",
        26,
        Some((15.7, 2.4)),
        r#"{"model_type": "deepseek_v2",
        "hidden_size": 2048, "moe_intermediate_size": 1408, "n_routed_experts": 64,
        "num_experts_per_tok": 6, "n_shared_experts": 2, "topk_method": "greedy",
        "first_k_dense_replace": 1}"#,
    ),
    model(
        "deepseek-v3",
        58,
        Some((671.0, 37.0)),
        r#"{"model_type": "deepseek_v3",
        "hidden_size": 7168, "moe_intermediate_size": 2048, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "n_shared_experts": 1, "n_group": 8, "topk_group": 4,
        "routed_scaling_factor": 2.5, "norm_topk_prob": true, "first_k_dense_replace": 3}"#,
    ),
    model(
        "kimi-k2",
        60,
        Some((1026.4, 31.1)),
        r#"{"model_type": "kimi_k2", "hidden_size": 7168,
        "moe_intermediate_size": 2048, "n_routed_experts": 384, "num_experts_per_tok": 8,
        "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.827,
        "norm_topk_prob": true, "first_k_dense_replace": 1}"#,
    ),
    model(
        "glm-4.5",
        89,
        Some((355.0, 32.3)),
        r#"{"model_type": "glm4_moe", "hidden_size": 5120,
        "moe_intermediate_size": 1536, "n_routed_experts": 160, "num_experts_per_tok": 8,
        "n_shared_experts": 1, "routed_scaling_factor": 2.5, "first_k_dense_replace": 3}"#,
    ),
    model(
        "glm-4.5-air",
        45,
        Some((106.9, 12.9)),
        r#"{"model_type": "glm4_moe", "hidden_size": 4096,
        "moe_intermediate_size": 1408, "n_routed_experts": 128, "num_experts_per_tok": 8,
        "n_shared_experts": 1, "first_k_dense_replace": 1}"#,
    ),
    model(
        "glm-5",
        75,
        Some((743.9, 40.0)),
        r#"{"model_type": "glm_moe_dsa", "hidden_size": 6144,
        "moe_intermediate_size": 2048, "n_routed_experts": 256, "num_experts_per_tok": 8,
        "n_shared_experts": 1, "routed_scaling_factor": 2.5, "first_k_dense_replace": 3}"#,
    ),
    model(
        "mimo-v2-flash",
        47,
        Some((308.8, 15.5)),
        r#"{"model_type": "mimo_v2_flash",
        "hidden_size": 4096, "moe_intermediate_size": 2048, "n_routed_experts": 256,
        "num_experts_per_tok": 8, "first_k_dense_replace": 1}"#,
    ),
    model(
        "k-exaone-236b-a23b",
        47,
        Some((235.9, 21.9)),
        r#"{"model_type": "exaone_moe",
        "hidden_size": 6144, "moe_intermediate_size": 2048, "num_experts": 128,
        "num_experts_per_tok": 8, "num_shared_experts": 1, "first_k_dense_replace": 1}"#,
    ),
    model(
        "gpt-oss-20b",
        24,
        Some((20.9, 3.6)),
        r#"{"model_type": "gpt_oss", "hidden_size": 2880,
        "intermediate_size": 2880, "num_local_experts": 32, "num_experts_per_tok": 4}"#,
    ),
    model(
        "gpt-oss-120b",
        36,
        Some((116.8, 5.1)),
        r#"{"model_type": "gpt_oss", "hidden_size": 2880,
        "intermediate_size": 2880, "num_local_experts": 128, "num_experts_per_tok": 4}"#,
    ),
    model(
        "olmoe-1b-7b",
        16,
        Some((6.9, 1.3)),
        r#"{"model_type": "olmoe", "hidden_size": 2048,
        "intermediate_size": 1024, "num_experts": 64, "num_experts_per_tok": 8}"#,
    ),
    model(
        "llama-4-scout",
        48,
        Some((107.8, 17.2)),
        r#"{"model_type": "llama4_text",
        "hidden_size": 5120, "intermediate_size": 8192, "num_local_experts": 16,
        "num_experts_per_tok": 1}"#,
    ),
    model(
        "llama-4-maverick",
        24,
        Some((400.7, 17.2)),
        r#"{"model_type": "llama4_text",
        "hidden_size": 5120, "intermediate_size": 8192, "num_local_experts": 128,
        "num_experts_per_tok": 1, "interleave_moe_layer_step": 2}"#,
    ),
    model(
        "granite-3.0-1b-a400m",
        24,
        Some((1.3, 0.4)),
        r#"{"model_type": "granitemoe",
        "hidden_size": 1024, "intermediate_size": 512, "num_local_experts": 32,
        "num_experts_per_tok": 8}"#,
    ),
    model(
        "granite-3.0-3b-a800m",
        32,
        Some((3.3, 0.9)),
        r#"{"model_type": "granitemoe",
        "hidden_size": 1536, "intermediate_size": 512, "num_local_experts": 40,
        "num_experts_per_tok": 8}"#,
    ),
    model(
        "granite-4.0-h-small",
        40,
        Some((32.2, 8.2)),
        r#"{"model_type": "granitemoehybrid",
        "hidden_size": 4096, "intermediate_size": 768, "num_local_experts": 72,
        "num_experts_per_tok": 10, "shared_intermediate_size": 1536}"#,
    ),
    model(
        "phi-3.5-moe",
        32,
        Some((41.9, 6.6)),
        r#"{"model_type": "phimoe", "hidden_size": 4096,
        "intermediate_size": 6400, "num_local_experts": 16, "num_experts_per_tok": 2}"#,
    ),
    model(
        "dbrx",
        40,
        Some((131.6, 36.5)),
        r#"{"model_type": "dbrx", "d_model": 6144, "ffn_config":
        {"ffn_hidden_size": 10752, "moe_num_experts": 16, "moe_top_k": 4,
        "moe_normalize_expert_weights": 1.0}}"#,
    ),
    model(
        "jetmoe-8b",
        24,
        Some((8.5, 2.2)),
        r#"{"model_type": "jetmoe", "hidden_size": 2048,
        "intermediate_size": 5632, "num_local_experts": 8, "num_experts_per_tok": 2}"#,
    ),
    model(
        "jamba-1.5-mini",
        16,
        Some((51.6, 12.1)),
        r#"{"model_type": "jamba", "hidden_size": 4096,
        "intermediate_size": 14336, "num_experts": 16, "num_experts_per_tok": 2}"#,
    ),
    model(
        "jamba-1.5-large",
        36,
        Some((398.6, 94.2)),
        r#"{"model_type": "jamba", "hidden_size": 8192,
        "intermediate_size": 24576, "num_experts": 16, "num_experts_per_tok": 2}"#,
    ),
    model(
        "ernie-4.5-21b-a3b",
        27,
        Some((21.8, 3.0)),
        r#"{"model_type": "ernie4_5_moe",
        "hidden_size": 2560, "moe_intermediate_size": 1536, "moe_num_experts": 64, "moe_k": 6,
        "moe_num_shared_experts": 2}"#,
    ),
    model(
        "ernie-4.5-300b-a47b",
        51,
        Some((299.5, 47.9)),
        r#"{"model_type": "ernie4_5_moe",
        "hidden_size": 8192, "moe_intermediate_size": 3584, "moe_num_experts": 64, "moe_k": 8,
        "moe_num_shared_experts": 0, "moe_layer_start_index": 3}"#,
    ),
    model(
        "hunyuan-a13b",
        32,
        Some((80.4, 12.7)),
        r#"{"model_type": "hunyuan_v1_moe",
        "hidden_size": 4096, "intermediate_size": 3072, "num_experts": 64, "moe_topk": 8}"#,
    ),
    model(
        "minimax-m2",
        62,
        Some((228.7, 11.0)),
        r#"{"model_type": "minimax_m2",
        "hidden_size": 3072, "intermediate_size": 1536, "num_local_experts": 256,
        "num_experts_per_tok": 8}"#,
    ),
    model(
        "minimax-m3",
        57,
        None,
        r#"{"model_type": "minimax_m3_vl_text", "hidden_size": 6144,
        "intermediate_size": 3072, "num_local_experts": 128, "num_experts_per_tok": 4,
        "shared_intermediate_size": 3072}"#,
    ),
    model(
        "deepseek-v4-flash",
        43,
        Some((284.3, 13.1)),
        r#"{"model_type": "deepseek_v4",
        "hidden_size": 4096, "moe_intermediate_size": 2048, "n_routed_experts": 256,
        "num_experts_per_tok": 6, "n_shared_experts": 1}"#,
    ),
    model(
        "deepseek-v4-pro",
        61,
        Some((1573.0, 47.0)),
        r#"{"model_type": "deepseek_v4",
        "hidden_size": 7168, "moe_intermediate_size": 3072, "n_routed_experts": 384,
        "num_experts_per_tok": 6, "n_shared_experts": 1, "routed_scaling_factor": 2.5}"#,
    ),
    model(
        "gemma-4-26b-a4b",
        30,
        Some((25.3, 3.9)),
        r#"{"model_type": "gemma4_text",
        "hidden_size": 2816, "moe_intermediate_size": 704, "num_experts": 128, "top_k_experts": 8,
        "enable_moe_block": true}"#,
    ),
    model(
        "nemotron-3-nano-30b-a3b",
        23,
        Some((31.6, 3.2)),
        r#"{"model_type": "nemotron_h",
        "hidden_size": 2688, "moe_intermediate_size": 1856, "n_routed_experts": 128,
        "num_experts_per_tok": 6, "n_shared_experts": 1, "routed_scaling_factor": 2.5,
        "moe_shared_expert_intermediate_size": 3712}"#,
    ),
    model(
        "longcat-flash",
        28,
        Some((560.0, 27.0)),
        r#"{"model_type": "longcat_flash",
        "hidden_size": 6144, "expert_ffn_hidden_size": 2048, "n_routed_experts": 512,
        "zero_expert_num": 256, "moe_topk": 12}"#,
    ),
    model(
        "lfm2-8b-a1b",
        22,
        Some((8.3, 1.5)),
        r#"{"model_type": "lfm2_moe", "hidden_size": 2048,
        "moe_intermediate_size": 1792, "num_experts": 32, "num_experts_per_tok": 4}"#,
    ),
];
