//! One row for each model family: what its config.json and its checkpoint call things.
//!
//! A further family is a further row, and a function in [`rules`] if no other family has its rules.
//! Sources: the families' published config.json files and their modeling classes in transformers
//! 5.23.0.

mod names;
mod rules;

pub use names::{ExpertNames, MlpNames, RouterNames, SharedNames, TensorNames};

pub(super) use rules::limited;

use super::gguf;
use super::hf::Keys;
use super::{Layers, MoeConfig};
use crate::error::{Error, Result};

/// A family's row.
#[derive(Debug)]
pub struct Family {
    /// The family's name.
    pub name: &'static str,
    /// The `model_type`s of its config.json.
    pub model_types: &'static [&'static str],
    /// The names of its checkpoint tensors.
    pub tensors: TensorNames,
    pub(super) read: Read,
}

/// What a family's config.json says.
type Read = fn(&mut Keys<'_>) -> Result<Rules>;

/// What every layer of a model computes, which layers are MoE layers, and how single ones differ.
pub(super) struct Rules {
    pub(super) moe: MoeConfig,
    pub(super) layers: Layers,
    /// Limits of the activation by layer, of routed and of shared experts (Step-3.7).
    pub(super) limits: [Option<Vec<f32>>; 2],
}

impl Rules {
    pub(super) fn new(moe: MoeConfig, layers: Layers) -> Result<Self> {
        Ok(Self { moe, layers, limits: [None, None] })
    }
}

const fn family(
    name: &'static str,
    model_types: &'static [&'static str],
    tensors: TensorNames,
    read: Read,
) -> Family {
    Family { name, model_types, tensors, read }
}

/// Every family that the crate knows.
pub const FAMILIES: &[Family] = &[
    family("mixtral", &["mixtral"], names::MIXTRAL, rules::mixtral),
    family("minimax", &["minimax", "minimax_text_01"], names::MIXTRAL, rules::mixtral),
    family("qwen2_moe", &["qwen2_moe"], names::QWEN, rules::qwen2),
    family("qwen3_moe", &["qwen3_moe"], names::MLP, rules::qwen3),
    family("qwen3_next", &["qwen3_next"], names::QWEN, rules::qwen3_next),
    family("qwen3_5_moe", &["qwen3_5_moe_text", "qwen3_5_moe"], names::QWEN_FUSED, rules::qwen3_5),
    family("qwen3_vl_moe", &["qwen3_vl_moe_text", "qwen3_vl_moe"], names::QWEN_VL, rules::qwen3_vl),
    family("olmoe", &["olmoe"], names::MLP, rules::olmoe),
    family("flex_olmo", &["flex_olmo"], names::MLP, rules::olmoe),
    family("deepseek_v2", &["deepseek_v2"], names::DEEPSEEK, rules::deepseek_v2),
    family("deepseek_v3", &["deepseek_v3", "kimi_k2"], names::DEEPSEEK, rules::deepseek_v3),
    family("deepseek_v32", &["deepseek_v32"], names::DEEPSEEK, rules::deepseek_v3),
    family("deepseek_v4", &["deepseek_v4"], names::DEEPSEEK_V4, rules::deepseek_v4),
    family("glm4_moe", &["glm4_moe"], names::DEEPSEEK, rules::deepseek_v3),
    family("glm4_moe_lite", &["glm4_moe_lite"], names::DEEPSEEK, rules::deepseek_v3),
    family("glm_moe_dsa", &["glm_moe_dsa"], names::DEEPSEEK, rules::deepseek_v3),
    family("dots1", &["dots1"], names::DEEPSEEK, rules::deepseek_v3),
    family("exaone_moe", &["exaone_moe"], names::DEEPSEEK, rules::deepseek_v3),
    family("solar_open", &["solar_open"], names::DEEPSEEK, rules::deepseek_v3),
    family("mimo_v2_flash", &["mimo_v2_flash"], names::DEEPSEEK, rules::deepseek_v3),
    family("gpt_oss", &["gpt_oss"], names::GPT_OSS, rules::gpt_oss),
    family("llama4", &["llama4_text", "llama4"], names::LLAMA4, rules::llama4),
    family("phimoe", &["phimoe"], names::MIXTRAL, rules::phimoe),
    family("granitemoe", &["granitemoe"], names::GRANITE, rules::granite),
    family("granitemoehybrid", &["granitemoehybrid"], names::GRANITE_HYBRID, rules::granite),
    family("dbrx", &["dbrx"], names::DBRX, rules::dbrx),
    family("jetmoe", &["jetmoe"], names::JETMOE, rules::jetmoe),
    family("jamba", &["jamba"], names::JAMBA, rules::jamba),
    family("ernie4_5_moe", &["ernie4_5_moe"], names::ERNIE, rules::ernie),
    family("hunyuan_v1_moe", &["hunyuan_v1_moe"], names::HUNYUAN, rules::hunyuan),
    family("hy_v3", &["hy_v3"], names::HY_V3, rules::hy_v3),
    family("minimax_m2", &["minimax_m2"], names::MINIMAX, rules::minimax_m2),
    family(
        "minimax_m3",
        &["minimax_m3_vl_text", "minimax_m3_vl"],
        names::MINIMAX,
        rules::minimax_m3,
    ),
    family("step3p7", &["step3p7_text", "step3p7"], names::STEP, rules::step3p7),
    family("lfm2_moe", &["lfm2_moe"], names::LFM2, rules::lfm2),
    family("longcat_flash", &["longcat_flash"], names::LONGCAT, rules::longcat),
    family("gemma4", &["gemma4_text", "gemma4"], names::GEMMA4, rules::gemma4),
    family("cohere2_moe", &["cohere2_moe"], names::DEEPSEEK, rules::cohere2),
    family("nemotron_h", &["nemotron_h"], names::NEMOTRON, rules::nemotron),
    family("switch_transformers", &["switch_transformers"], names::SWITCH, rules::switch),
    family("nllb_moe", &["nllb-moe", "nllb_moe"], names::NLLB, rules::nllb),
];

/// The architectures of GGUF files, by their own names.
const GGUF: &[Family] = &[
    family("mixtral", &["llama"], names::GGUF, gguf::llama),
    family("olmoe", &["olmoe"], names::GGUF, gguf::olmoe),
    family("qwen2_moe", &["qwen2moe"], names::GGUF, gguf::qwen2),
    family("qwen3_moe", &["qwen3moe"], names::GGUF, gguf::qwen3),
    family("deepseek_v3", &["deepseek2"], names::GGUF, gguf::deepseek2),
];

pub(super) fn gguf_family(architecture: &str) -> Result<&'static Family> {
    GGUF.iter().find(|family| family.model_types.contains(&architecture)).ok_or_else(|| {
        let known: Vec<_> = GGUF.iter().flat_map(|family| family.model_types).copied().collect();
        Error::Unsupported {
            what: format!("general.architecture \"{architecture}\""),
            supported: known.join(", "),
        }
    })
}

/// Families that are known and not supported, with the rule that is missing.
pub(super) const REFUSED: &[(&str, &str)] = &[
    ("axk1", "an RMS norm over the sum of routed and shared experts"),
    ("axk2", "an RMS norm over the sum of routed and shared experts"),
    ("inkling", "weights normalised over routed and shared experts together"),
    ("inkling2", "weights normalised over routed and shared experts together"),
    ("kimi_k3", "the SiTU activation, and an RMS norm in the latent width"),
    ("kolibri1", "a bias on logits before the choice"),
    ("muse_spark", "a multiplier on logits"),
    ("zaya", "a router of three layers with a state from the layer before"),
    ("ernie4_5_vl_moe", "two pools of experts"),
    ("ernie4_5_vl_moe_text", "two pools of experts"),
];
