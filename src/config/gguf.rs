//! What a GGUF file's metadata says of its model's MoE layers.

use serde_json::{Map, Value};

use super::families::{Family, Rules, gguf_family};
use super::hf::Keys;
use super::{
    ExpertGroups, GroupFill, GroupScore, Layers, ModelConfig, MoeConfig, Renormalize, Scoring,
    SharedCombine, SharedExpert,
};
use crate::error::{Error, Result};

impl ModelConfig {
    /// Reads the metadata of a GGUF file: its keys, architecture's prefix included, with numbers, words and
    /// truth values.
    ///
    /// # Errors
    /// As [`MoeConfig::from_hf_config`]; [`Error::Unsupported`] for another architecture.
    pub fn from_gguf(metadata: &Map<String, Value>) -> Result<Self> {
        let architecture = match metadata.get("general.architecture") {
            Some(Value::String(architecture)) => architecture.as_str(),
            _ => return Err(Error::Config("\"general.architecture\" is missing".to_owned())),
        };
        let family: &'static Family = gguf_family(architecture)?;
        let own = metadata
            .iter()
            .filter_map(|(key, value)| {
                let key = key.strip_prefix(architecture)?.strip_prefix('.')?;
                Some((key.to_owned(), value.clone()))
            })
            .collect();
        Self::read(family, &own, &[])
    }
}

const SIZES: [&str; 3] = ["embedding_length", "expert_count", "expert_used_count"];

fn sizes(keys: &mut Keys<'_>, intermediate_size: &'static str) -> Result<MoeConfig> {
    keys.num_layers("block_count")?;
    let [hidden_size, num_experts, top_k] = SIZES;
    let moe = MoeConfig::new(
        keys.size(hidden_size)?,
        keys.size(intermediate_size)?,
        keys.size(num_experts)?,
        keys.size(top_k)?,
    );
    // The dense layers' width, where experts have one of their own.
    keys.irrelevant(&["feed_forward_length"]);
    Ok(moe)
}

/// Mixtral.
pub(super) fn llama(keys: &mut Keys<'_>) -> Result<Rules> {
    Rules::new(sizes(keys, "feed_forward_length")?, Layers::All)
}

pub(super) fn olmoe(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = sizes(keys, "feed_forward_length")?;
    moe.router.renormalize = Renormalize::None;
    Rules::new(moe, Layers::All)
}

pub(super) fn qwen2(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = sizes(keys, "expert_feed_forward_length")?;
    moe.router.renormalize = Renormalize::None;
    moe.experts.shared = match keys.optional_size("expert_shared_feed_forward_length")? {
        None | Some(0) => None,
        Some(intermediate_size) => Some(SharedExpert {
            intermediate_size,
            activation: moe.experts.activation,
            combine: SharedCombine::SigmoidGate,
        }),
    };
    Rules::new(moe, Layers::All)
}

pub(super) fn qwen3(keys: &mut Keys<'_>) -> Result<Rules> {
    Rules::new(sizes(keys, "expert_feed_forward_length")?, Layers::All)
}

/// DeepSeek-V2 and V3, Kimi-K2.
pub(super) fn deepseek2(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = sizes(keys, "expert_feed_forward_length")?;
    let sigmoid = match keys.optional_size("expert_gating_func")? {
        None | Some(1) => false,
        Some(2) => true,
        Some(other) => {
            return Err(Error::value("expert_gating_func", other, "1 (softmax) or 2 (sigmoid)"));
        }
    };
    let normalised = keys.bool_or("expert_weights_norm", false)?;
    moe.router.scoring = if sigmoid { Scoring::Sigmoid } else { Scoring::Softmax };
    moe.router.selection_bias = sigmoid;
    moe.router.renormalize = match normalised {
        true => Renormalize::Sum { epsilon: 1e-20 },
        false => Renormalize::None,
    };
    moe.router.scale = keys.number_or("expert_weights_scale", 1.0)?;
    let count = keys.optional_size("expert_group_count")?.unwrap_or(1);
    let kept = keys.optional_size("expert_group_used_count")?.unwrap_or(count);
    if count > 1 {
        let (score, fill) = match sigmoid {
            true => (GroupScore::Top2Sum, GroupFill::NegativeInfinity),
            false => (GroupScore::Max, GroupFill::Zero),
        };
        moe.router.groups = Some(ExpertGroups { count, kept, score, fill });
    }
    let shared = keys.optional_size("expert_shared_count")?.unwrap_or(0);
    let width = keys.product("expert_shared_count", shared, moe.intermediate_size)?;
    moe.experts.shared = (width > 0).then_some(SharedExpert {
        intermediate_size: width,
        activation: moe.experts.activation,
        combine: SharedCombine::Sum,
    });
    let first = keys.optional_size("leading_dense_block_count")?.unwrap_or(0);
    Rules::new(moe, Layers::From { first, every: 1 })
}
