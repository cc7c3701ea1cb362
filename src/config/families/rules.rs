//! What each family's config.json says, read key by key.

use super::super::hf::Keys;
use super::super::{
    ActivationFn, Capacity, ExpertGroups, GroupFill, GroupScore, Layers, MoeConfig, Renormalize,
    Scoring, SharedCombine, SharedExpert, WeightOn,
};
use super::Rules;
use crate::error::{Error, Result};

const EPSILON: Renormalize = Renormalize::Sum { epsilon: 1e-20 };

const EXPERTS: &[&str] = &["num_experts", "num_local_experts", "n_routed_experts"];
const TOP_K: &str = "num_experts_per_tok";
const SHARED: &[&str] = &["n_shared_experts", "num_shared_experts"];

/// `condition` renormalises by the sum.
fn sum_if(condition: bool) -> Renormalize {
    if condition { Renormalize::SUM } else { Renormalize::None }
}

fn shared(intermediate_size: usize, activation: ActivationFn) -> Option<SharedExpert> {
    let combine = SharedCombine::Sum;
    let merged = false;
    let expert = SharedExpert { intermediate_size, activation, combine, merged };
    (intermediate_size > 0).then_some(expert)
}

pub(super) fn mixtral(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("intermediate_size", EXPERTS, TOP_K)?;
    moe.experts.activation = keys.gated("hidden_act", ActivationFn::SwiGlu)?;
    Rules::new(moe, Layers::All)
}

pub(super) fn qwen3(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("moe_intermediate_size", EXPERTS, TOP_K)?;
    moe.router.renormalize = sum_if(keys.bool_or("norm_topk_prob", false)?);
    moe.experts.activation = keys.gated("hidden_act", ActivationFn::SwiGlu)?;
    Rules::new(moe, keys.sparse_step()?)
}

pub(super) fn qwen2(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("moe_intermediate_size", EXPERTS, TOP_K)?;
    moe.router.renormalize = sum_if(keys.bool_or("norm_topk_prob", false)?);
    qwen_shared(keys, &mut moe)?;
    Rules::new(moe, keys.sparse_step()?)
}

pub(super) fn qwen3_next(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("moe_intermediate_size", EXPERTS, TOP_K)?;
    moe.router.renormalize = sum_if(keys.bool_or("norm_topk_prob", true)?);
    qwen_shared(keys, &mut moe)?;
    Rules::new(moe, keys.sparse_step()?)
}

pub(super) fn qwen3_5(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("moe_intermediate_size", EXPERTS, TOP_K)?;
    qwen_shared(keys, &mut moe)?;
    Rules::new(moe, keys.sparse_step()?)
}

pub(super) fn qwen3_vl(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("moe_intermediate_size", EXPERTS, TOP_K)?;
    moe.experts.activation = keys.gated("hidden_act", ActivationFn::SwiGlu)?;
    // The class renormalises, whatever this says.
    keys.must_be_true("norm_topk_prob")?;
    Rules::new(moe, keys.sparse_step()?)
}

fn qwen_shared(keys: &mut Keys<'_>, moe: &mut MoeConfig) -> Result<()> {
    let activation = keys.gated("hidden_act", ActivationFn::SwiGlu)?;
    moe.experts.activation = activation;
    moe.experts.shared = keys
        .optional_size("shared_expert_intermediate_size")?
        .and_then(|width| shared(width, activation))
        .map(|shared| SharedExpert { combine: SharedCombine::SigmoidGate, ..shared });
    Ok(())
}

pub(super) fn olmoe(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("intermediate_size", EXPERTS, TOP_K)?;
    moe.experts.activation = keys.gated("hidden_act", ActivationFn::SwiGlu)?;
    moe.router.renormalize = sum_if(keys.bool_or("norm_topk_prob", false)?);
    Rules::new(moe, Layers::All)
}

/// One shared MLP, as wide as all shared experts together.
fn deepseek_shared(keys: &mut Keys<'_>, moe: &mut MoeConfig) -> Result<()> {
    let activation = keys.gated("hidden_act", ActivationFn::SwiGlu)?;
    let count = keys.optional_size_of_any(SHARED)?.unwrap_or(0);
    moe.experts.activation = activation;
    moe.experts.shared = shared(keys.product(SHARED[0], count, moe.intermediate_size)?, activation);
    Ok(())
}

pub(super) fn deepseek_v2(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("moe_intermediate_size", EXPERTS, TOP_K)?;
    keys.must_be("scoring_func", &["softmax"])?;
    // The class never renormalises, whatever this says.
    keys.irrelevant(&["norm_topk_prob"]);
    moe.router.renormalize = Renormalize::None;
    moe.router.scale = keys.number_or("routed_scaling_factor", 1.0)?;
    let limited = keys.must_be("topk_method", &["greedy", "group_limited_greedy"])?;
    let (count, kept) = (keys.optional_size("n_group")?, keys.optional_size("topk_group")?);
    if limited == "group_limited_greedy" {
        moe.router.groups = Some(ExpertGroups {
            count: count.ok_or_else(|| keys.missing("n_group"))?,
            kept: kept.ok_or_else(|| keys.missing("topk_group"))?,
            score: GroupScore::Max,
            fill: GroupFill::Zero,
        });
    }
    deepseek_shared(keys, &mut moe)?;
    Rules::new(moe, keys.first_dense(0)?)
}

pub(super) fn deepseek_v3(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("moe_intermediate_size", EXPERTS, TOP_K)?;
    keys.must_be("scoring_func", &["sigmoid"])?;
    keys.must_be("topk_method", &["noaux_tc"])?;
    moe.router.scoring = Scoring::Sigmoid;
    moe.router.selection_bias = true;
    moe.router.renormalize =
        if keys.bool_or("norm_topk_prob", true)? { EPSILON } else { Renormalize::None };
    moe.router.scale = keys.number_or("routed_scaling_factor", 1.0)?;
    noaux_groups(keys, &mut moe)?;
    deepseek_shared(keys, &mut moe)?;
    Rules::new(moe, keys.first_dense(0)?)
}

/// Groups by their two best biased scores. One group is none.
fn noaux_groups(keys: &mut Keys<'_>, moe: &mut MoeConfig) -> Result<()> {
    let count = keys.optional_size("n_group")?.unwrap_or(1);
    let kept = keys.optional_size("topk_group")?.unwrap_or(count);
    if count > 1 {
        let (score, fill) = (GroupScore::Top2Sum, GroupFill::NegativeInfinity);
        moe.router.groups = Some(ExpertGroups { count, kept, score, fill });
    }
    Ok(())
}

pub(super) fn deepseek_v4(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("moe_intermediate_size", EXPERTS, TOP_K)?;
    keys.must_be("scoring_func", &["sqrtsoftplus"])?;
    keys.must_be("topk_method", &["noaux_tc"])?;
    keys.must_be_true("norm_topk_prob")?;
    moe.router.scoring = Scoring::SqrtSoftplus;
    // The first layers have a table in its place: the checkpoint says which.
    moe.router.selection_bias = true;
    keys.irrelevant(&["num_hash_layers"]);
    moe.router.renormalize = EPSILON;
    moe.router.scale = keys.number_or("routed_scaling_factor", 1.5)?;
    keys.must_be("hidden_act", &["silu"])?;
    let activation = clamped(keys.number_or("swiglu_limit", 10.0)?);
    moe.experts.activation = activation;
    let count = keys.optional_size_of_any(SHARED)?.unwrap_or(1);
    moe.experts.shared = shared(keys.product(SHARED[0], count, moe.intermediate_size)?, activation);
    let layers = keys.listed("mlp_layer_types", &["moe", "hash_moe"])?.unwrap_or(Layers::All);
    Rules::new(moe, layers)
}

fn clamped(limit: f32) -> ActivationFn {
    ActivationFn::SwiGluClamped { limit }
}

pub(super) fn gpt_oss(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("intermediate_size", EXPERTS, TOP_K)?;
    // Another name of K in the released files.
    keys.must_agree("experts_per_token", moe.top_k)?;
    keys.must_be("hidden_act", &["silu"])?;
    moe.router.bias = true;
    moe.experts.bias = true;
    moe.experts.activation = ActivationFn::SwiGluOai {
        alpha: keys.number_or("swiglu_alpha", 1.702)?,
        limit: keys.number_or("swiglu_limit", 7.0)?,
    };
    Rules::new(moe, Layers::All)
}

pub(super) fn llama4(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("intermediate_size", EXPERTS, TOP_K)?;
    moe.router.scoring = Scoring::Sigmoid;
    moe.router.renormalize = Renormalize::None;
    moe.experts.weight_on = WeightOn::Input;
    moe.experts.activation = keys.gated("hidden_act", ActivationFn::SwiGlu)?;
    moe.experts.shared = shared(moe.intermediate_size, moe.experts.activation);
    let step = keys.optional_size("interleave_moe_layer_step")?.unwrap_or(1);
    let layers = match keys.optional_list("moe_layers")? {
        Some(layers) => Layers::Listed(layers),
        None => Layers::Step { step, except: Vec::new() },
    };
    Rules::new(moe, layers)
}

pub(super) fn phimoe(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("intermediate_size", EXPERTS, TOP_K)?;
    let jitter = keys.number_or("router_jitter_noise", 0.01)?;
    moe.router.scoring = Scoring::SparseMixer { jitter };
    moe.router.renormalize = Renormalize::None;
    moe.experts.activation = keys.gated("hidden_act", ActivationFn::SwiGlu)?;
    keys.irrelevant(&["input_jitter_noise"]);
    Rules::new(moe, Layers::All)
}

pub(super) fn granite(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("intermediate_size", EXPERTS, TOP_K)?;
    let activation = keys.gated("hidden_act", ActivationFn::SwiGlu)?;
    moe.experts.activation = activation;
    moe.experts.shared =
        keys.optional_size("shared_intermediate_size")?.and_then(|width| shared(width, activation));
    Rules::new(moe, Layers::All)
}

pub(super) fn dbrx(keys: &mut Keys<'_>) -> Result<Rules> {
    let hidden_size = keys.size("d_model")?;
    let (mut moe, layers) = keys.within("ffn_config", |ffn| {
        let mut moe = MoeConfig::new(
            hidden_size,
            ffn.size("ffn_hidden_size")?,
            ffn.size("moe_num_experts")?,
            ffn.size("moe_top_k")?,
        );
        moe.router.renormalize = match ffn.optional_number("moe_normalize_expert_weights")? {
            Some(p) => Renormalize::PNorm { p },
            None => Renormalize::None,
        };
        ffn.within("ffn_act_fn", |act| act.must_be("name", &["silu"]).map(drop))?;
        ffn.irrelevant(&["moe_jitter_eps", "moe_loss_weight"]);
        Ok((moe, Layers::All))
    })?;
    moe.hidden_size = hidden_size;
    keys.num_layers("n_layers")?;
    Rules::new(moe, layers)
}

pub(super) fn jetmoe(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("intermediate_size", EXPERTS, TOP_K)?;
    moe.experts.activation = keys.gated("activation_function", ActivationFn::SwiGlu)?;
    moe.experts.output_bias = true;
    Rules::new(moe, Layers::All)
}

pub(super) fn jamba(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("intermediate_size", EXPERTS, TOP_K)?;
    moe.router.renormalize = Renormalize::None;
    moe.experts.activation = keys.gated("hidden_act", ActivationFn::SwiGlu)?;
    let period = keys.optional_size("expert_layer_period")?.unwrap_or(2);
    let offset = keys.optional_size("expert_layer_offset")?.unwrap_or(1);
    Rules::new(moe, Layers::Period { period, offset })
}

pub(super) fn ernie(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("moe_intermediate_size", &["moe_num_experts"], "moe_k")?;
    moe.router.selection_bias = true;
    moe.router.renormalize =
        Renormalize::ClampMin { least: keys.number_or("moe_norm_min", 1e-12)? };
    keys.must_be_true("moe_use_aux_free")?;
    let activation = keys.gated("hidden_act", ActivationFn::SwiGlu)?;
    moe.experts.activation = activation;
    let count = keys.optional_size("moe_num_shared_experts")?.unwrap_or(0);
    let width = keys.product("moe_num_shared_experts", count, moe.intermediate_size)?;
    moe.experts.shared = shared(width, activation);
    let layers = Layers::Range {
        start: keys.optional_size("moe_layer_start_index")?.unwrap_or(1),
        end: keys.optional_size("moe_layer_end_index")?.unwrap_or(usize::MAX),
        interval: keys.optional_size("moe_layer_interval")?.unwrap_or(1),
    };
    Rules::new(moe, layers)
}

pub(super) fn hunyuan(keys: &mut Keys<'_>) -> Result<Rules> {
    // The class makes experts of this width; the files say it twice.
    let mut moe = keys.moe("intermediate_size", EXPERTS, "moe_topk")?;
    keys.must_agree_all("moe_intermediate_size", moe.intermediate_size)?;
    keys.irrelevant(&["num_shared_expert", "use_mixed_mlp_moe"]);
    moe.experts.activation = keys.gated("hidden_act", ActivationFn::SwiGlu)?;
    moe.experts.shared = shared(moe.intermediate_size, moe.experts.activation);
    Rules::new(moe, Layers::All)
}

pub(super) fn hy_v3(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("moe_intermediate_size", EXPERTS, TOP_K)?;
    moe.router.scoring = Scoring::Sigmoid;
    moe.router.selection_bias = true;
    moe.router.renormalize = EPSILON;
    moe.router.scale = keys.number_or("router_scaling_factor", 1.0)?;
    // Sums are in f32 here in any case.
    keys.irrelevant(&["enable_moe_fp32_combine"]);
    deepseek_shared(keys, &mut moe)?;
    Rules::new(moe, keys.first_dense(1)?)
}

pub(super) fn minimax_m2(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("intermediate_size", EXPERTS, TOP_K)?;
    sigmoid_with_bias(keys, &mut moe)?;
    let activation = keys.gated("hidden_act", ActivationFn::SwiGlu)?;
    moe.experts.activation = activation;
    moe.experts.shared =
        keys.optional_size("shared_intermediate_size")?.and_then(|width| shared(width, activation));
    Rules::new(moe, Layers::All)
}

fn sigmoid_with_bias(keys: &mut Keys<'_>, moe: &mut MoeConfig) -> Result<()> {
    keys.must_be("scoring_func", &["sigmoid"])?;
    moe.router.scoring = Scoring::Sigmoid;
    moe.router.selection_bias = keys.bool_or("use_routing_bias", true)?;
    Ok(())
}

pub(super) fn minimax_m3(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("intermediate_size", EXPERTS, TOP_K)?;
    sigmoid_with_bias(keys, &mut moe)?;
    keys.must_be("hidden_act", &["swigluoai", "silu"])?;
    let activation = ActivationFn::SwiGluOai {
        alpha: keys.number_or("swiglu_alpha", 1.702)?,
        limit: keys.number_or("swiglu_limit", 7.0)?,
    };
    moe.experts.activation = activation;
    moe.experts.scale = keys.number_or("routed_scaling_factor", 2.0)?;
    let count = keys.optional_size_of_any(SHARED)?.unwrap_or(1);
    let width = keys.optional_size("shared_intermediate_size")?.unwrap_or(moe.intermediate_size);
    moe.experts.shared = shared(keys.product(SHARED[0], count, width)?, activation);
    let layers = keys.listed("mlp_layer_types", &["sparse"])?;
    Rules::new(moe, layers.unwrap_or(Layers::All))
}

pub(super) fn step3p7(keys: &mut Keys<'_>) -> Result<Rules> {
    let experts = &["n_routed_experts", "moe_num_experts", "num_local_experts"];
    let mut moe = keys.moe("moe_intermediate_size", experts, TOP_K)?;
    keys.must_agree("moe_top_k", moe.top_k)?;
    moe.router.scoring = Scoring::Sigmoid;
    moe.router.selection_bias = true;
    moe.experts.scale = keys.number_or("moe_router_scaling_factor", 1.0)?;
    // The gate is SiLU whatever this says: the class computes it inline.
    keys.irrelevant(&["hidden_act"]);
    let width = keys.optional_size_of_any(&["share_expert_dim", "share_expert_dims"])?;
    moe.experts.shared = width.and_then(|width| shared(width, ActivationFn::SwiGlu));
    let limits =
        [keys.optional_numbers("swiglu_limits")?, keys.optional_numbers("swiglu_limits_shared")?];
    let layers = match keys.listed("mlp_layer_types", &["sparse"])? {
        Some(layers) => layers,
        None => Layers::From { first: 3, every: 1 },
    };
    Ok(Rules { moe, layers, limits })
}

pub(super) fn lfm2(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("moe_intermediate_size", EXPERTS, TOP_K)?;
    moe.router.scoring = Scoring::Sigmoid;
    moe.router.selection_bias = keys.bool_or("use_expert_bias", true)?;
    moe.router.renormalize = match keys.bool_or("norm_topk_prob", true)? {
        true => Renormalize::Sum { epsilon: 1e-6 },
        false => Renormalize::None,
    };
    moe.router.scale = keys.number_or("routed_scaling_factor", 1.0)?;
    let first = keys.optional_size("num_dense_layers")?.unwrap_or(2);
    Rules::new(moe, Layers::From { first, every: 1 })
}

pub(super) fn longcat(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("expert_ffn_hidden_size", EXPERTS, "moe_topk")?;
    keys.must_be("zero_expert_type", &["identity"])?;
    moe.router.zero_experts = keys.optional_size("zero_expert_num")?.unwrap_or(256);
    moe.router.selection_bias = true;
    moe.router.renormalize = Renormalize::None;
    moe.router.scale = keys.number_or("routed_scaling_factor", 6.0)?;
    moe.experts.activation = keys.gated("hidden_act", ActivationFn::SwiGlu)?;
    keys.irrelevant(&["ffn_hidden_size"]);
    Rules::new(moe, Layers::All)
}

pub(super) fn gemma4(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("moe_intermediate_size", EXPERTS, "top_k_experts")?;
    if !keys.bool_or("enable_moe_block", false)? {
        return Err(Error::Config("\"enable_moe_block\" is false: no MoE layer".to_owned()));
    }
    moe.router.norm_eps = Some(keys.number_or("rms_norm_eps", 1e-6)?);
    moe.router.expert_scale = true;
    moe.experts.activation = keys.gated("hidden_activation", ActivationFn::GeGluTanh)?;
    Rules::new(moe, Layers::All)
}

pub(super) fn cohere2(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("intermediate_size", EXPERTS, TOP_K)?;
    let normalised = keys.bool_or("norm_topk_prob", true)?;
    // A softmax over the chosen experts is one over all, renormalised.
    if keys.must_be("expert_selection_fn", &["softmax", "sigmoid"])? == "sigmoid" {
        moe.router.scoring = Scoring::Sigmoid;
        moe.router.renormalize = sum_if(normalised);
    }
    deepseek_shared(keys, &mut moe)?;
    let combine = keys.must_be("shared_expert_combination_strategy", &["average", "sum"])?;
    if let (Some(shared), "average") = (&mut moe.experts.shared, combine) {
        shared.combine = SharedCombine::Average;
    }
    Rules::new(moe, keys.first_dense(0)?)
}

pub(super) fn nemotron(keys: &mut Keys<'_>) -> Result<Rules> {
    let mut moe = keys.moe("moe_intermediate_size", EXPERTS, TOP_K)?;
    moe.router.scoring = Scoring::Sigmoid;
    moe.router.selection_bias = true;
    moe.router.renormalize =
        if keys.bool_or("norm_topk_prob", true)? { EPSILON } else { Renormalize::None };
    moe.router.scale = keys.number_or("routed_scaling_factor", 1.0)?;
    noaux_groups(keys, &mut moe)?;
    let activation = keys.ungated("mlp_hidden_act", ActivationFn::Relu2)?;
    moe.experts.activation = activation;
    moe.experts.latent_size = keys.optional_size("moe_latent_size")?;
    let count = keys.optional_size_of_any(SHARED)?.unwrap_or(1);
    let width =
        keys.optional_size("moe_shared_expert_intermediate_size")?.unwrap_or(moe.intermediate_size);
    moe.experts.shared = shared(keys.product(SHARED[0], count, width)?, activation);
    keys.irrelevant(&["n_groups", "mamba_hidden_act", "moe_shared_expert_overlap"]);
    Rules::new(moe, Layers::All)
}

pub(super) fn switch(keys: &mut Keys<'_>) -> Result<Rules> {
    let hidden_size = keys.size("d_model")?;
    let mut moe =
        MoeConfig::new(hidden_size, keys.size("d_ff")?, keys.size_of_any(&["num_experts"])?, 1);
    moe.router.renormalize = Renormalize::None;
    moe.router.capacity = Capacity::Sequence { tokens: keys.size("expert_capacity")? };
    moe.router.bias = keys.bool_or("router_bias", false)?;
    moe.experts.activation = keys.ungated("dense_act_fn", ActivationFn::Relu)?;
    keys.irrelevant(&["router_dtype", "router_jitter_noise", "router_ignore_padding_tokens"]);
    keys.irrelevant(&["encoder_sparse_step", "decoder_sparse_step", "num_sparse_encoder_layers"]);
    keys.irrelevant(&["num_sparse_decoder_layers", "add_router_probs", "feed_forward_proj"]);
    Rules::new(moe, Layers::All)
}

pub(super) fn nllb(keys: &mut Keys<'_>) -> Result<Rules> {
    let hidden_size = keys.size("d_model")?;
    let width = keys.size("encoder_ffn_dim")?;
    let mut moe = MoeConfig::new(hidden_size, width, keys.size_of_any(&["num_experts"])?, 2);
    moe.router.renormalize = Renormalize::ClampMin { least: f32::EPSILON };
    moe.router.bias = keys.bool_or("router_bias", false)?;
    keys.must_be("second_expert_policy", &["all"])?;
    keys.must_be_false("normalize_router_prob_before_dropping")?;
    keys.must_be_false("batch_prioritized_routing")?;
    let fraction = keys.number_or("moe_eval_capacity_token_fraction", 1.0)?;
    moe.router.capacity = Capacity::Batch { fraction };
    moe.experts.bias = true;
    moe.experts.activation = keys.ungated("activation_function", ActivationFn::Relu)?;
    moe.experts.scale = 1.0 - keys.number_or("moe_token_dropout", 0.2)?;
    keys.irrelevant(&["router_dtype", "router_jitter_noise", "router_ignore_padding_tokens"]);
    keys.irrelevant(&["encoder_sparse_step", "decoder_sparse_step", "expert_capacity"]);
    keys.irrelevant(&["decoder_ffn_dim", "activation_dropout"]);
    Rules::new(moe, Layers::All)
}

/// A limit by layer, as the class reads it: 0 and null are none.
pub(in crate::config) fn limited(limits: &[f32], layer: usize) -> Result<ActivationFn> {
    match limits.get(layer) {
        Some(&limit) if limit > 0.0 => Ok(ActivationFn::SwiGluThenClamp { limit }),
        Some(_) => Ok(ActivationFn::SwiGlu),
        None => {
            let expected = format!("less than {}, the entries of swiglu_limits", limits.len());
            Err(Error::value("layer", layer, expected))
        }
    }
}
