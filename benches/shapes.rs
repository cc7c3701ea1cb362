//! The MoE layers of named models: what benches, `run_layer` and tables call by name.
//!
//! Shapes from the models' published config.json files.

use moe_kernels::MoeConfig;
use moe_kernels::config::Renormalize;

/// A released model's MoE layer.
#[allow(dead_code, reason = "not every user of this file reads every field")]
pub struct NamedModel {
    pub name: &'static str,
    /// As in its config.json.
    pub family: &'static str,
    /// H, I, E, K.
    pub shape: [usize; 4],
    pub renormalize: Renormalize,
    /// What the layer needs beyond softmax routing and SwiGLU, if the crate lacks it.
    pub missing: Option<&'static str>,
}

pub const MODELS: &[NamedModel] = &[
    NamedModel {
        name: "mixtral-8x7b",
        family: "mixtral",
        shape: [4096, 14336, 8, 2],
        renormalize: Renormalize::SUM,
        missing: None,
    },
    NamedModel {
        name: "qwen3-30b-a3b",
        family: "qwen3_moe",
        shape: [2048, 768, 128, 8],
        renormalize: Renormalize::SUM,
        missing: None,
    },
    NamedModel {
        name: "olmoe-1b-7b",
        family: "olmoe",
        shape: [2048, 1024, 64, 8],
        renormalize: Renormalize::None,
        missing: None,
    },
    NamedModel {
        name: "deepseek-v3",
        family: "deepseek_v3",
        shape: [7168, 2048, 256, 8],
        renormalize: Renormalize::SUM,
        missing: Some("group-limited routing with a selection bias, and a shared expert"),
    },
    NamedModel {
        name: "gpt-oss-20b",
        family: "gpt_oss",
        shape: [2880, 2880, 32, 4],
        renormalize: Renormalize::SUM,
        missing: Some("expert biases and a clamped activation"),
    },
    NamedModel {
        name: "gpt-oss-120b",
        family: "gpt_oss",
        shape: [2880, 2880, 128, 4],
        renormalize: Renormalize::SUM,
        missing: Some("expert biases and a clamped activation"),
    },
];

impl NamedModel {
    /// The layer's configuration, without what is `missing`.
    pub fn config(&self) -> MoeConfig {
        let [hidden_size, intermediate_size, num_experts, top_k] = self.shape;
        let mut config = MoeConfig::new(hidden_size, intermediate_size, num_experts, top_k);
        config.router.renormalize = self.renormalize;
        config
    }
}
