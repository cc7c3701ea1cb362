//! One row for each model family: what its config.json and its checkpoint call things.
//!
//! A further family is a further row. Sources: the families' published config.json files and
//! their modeling classes in transformers 5.23.0.

/// A family's row.
#[derive(Debug)]
pub struct Family {
    /// The family's name, which is its `model_type`.
    pub name: &'static str,
    /// The names of its checkpoint tensors.
    pub tensors: TensorNames,
    pub(super) keys: ConfigKeys,
}

/// The keys of a family's config.json that say what its MoE layer computes.
#[derive(Debug)]
pub(super) struct ConfigKeys {
    pub(super) intermediate_size: &'static str,
    /// Versions of transformers differ in which of these they write.
    pub(super) num_experts: &'static [&'static str],
    pub(super) top_k: &'static str,
    pub(super) renormalize: RenormalizeRule,
    pub(super) layers: LayerRule,
    /// Keys that look like the MoE layer's but do not change what it computes.
    pub(super) irrelevant: &'static [&'static str],
}

#[derive(Debug)]
pub(super) enum RenormalizeRule {
    Always,
    /// A boolean key, with the value that the family's class takes when it is missing.
    Key {
        name: &'static str,
        default: bool,
    },
}

/// Which layers are MoE layers.
#[derive(Debug)]
pub(super) enum LayerRule {
    All,
    /// Every `decoder_sparse_step`-th, except those that `mlp_only_layers` lists.
    SparseStep,
}

/// Names of a layer's tensors, with `{layer}` and `{expert}` to be filled in.
#[derive(Debug)]
pub struct TensorNames {
    /// The prefix of all: `model.layers.{layer}.mlp.`
    pub block: &'static str,
    /// The router's weight [E, H].
    pub router: &'static str,
    /// The experts' weights.
    pub experts: ExpertNames,
}

/// How a checkpoint stores the experts.
#[derive(Debug)]
#[non_exhaustive]
pub enum ExpertNames {
    /// Three matrices for each expert: gate and up [I, H], down [H, I].
    PerExpert {
        /// The gate projection [I, H].
        gate: &'static str,
        /// The up projection [I, H].
        up: &'static str,
        /// The down projection [H, I].
        down: &'static str,
    },
}

/// Weights of auxiliary losses and flags of what a model returns: training only.
const LOSS_KEYS: [&str; 2] = ["router_aux_loss_coef", "output_router_logits"];

const NUM_EXPERTS: &[&str] = &["num_experts", "num_local_experts"];

const W1_W3_W2: ExpertNames = ExpertNames::PerExpert {
    gate: "experts.{expert}.w1.weight",
    up: "experts.{expert}.w3.weight",
    down: "experts.{expert}.w2.weight",
};

const GATE_UP_DOWN: ExpertNames = ExpertNames::PerExpert {
    gate: "experts.{expert}.gate_proj.weight",
    up: "experts.{expert}.up_proj.weight",
    down: "experts.{expert}.down_proj.weight",
};

/// Every family that the crate knows.
pub const FAMILIES: &[Family] = &[
    Family {
        name: "mixtral",
        keys: ConfigKeys {
            intermediate_size: "intermediate_size",
            num_experts: NUM_EXPERTS,
            top_k: "num_experts_per_tok",
            renormalize: RenormalizeRule::Always,
            layers: LayerRule::All,
            // The jitter multiplies the input in training mode alone.
            irrelevant: &[LOSS_KEYS[0], LOSS_KEYS[1], "router_jitter_noise"],
        },
        tensors: TensorNames {
            block: "model.layers.{layer}.block_sparse_moe.",
            router: "gate.weight",
            experts: W1_W3_W2,
        },
    },
    Family {
        name: "qwen3_moe",
        keys: ConfigKeys {
            intermediate_size: "moe_intermediate_size",
            num_experts: NUM_EXPERTS,
            top_k: "num_experts_per_tok",
            renormalize: RenormalizeRule::Key { name: "norm_topk_prob", default: false },
            layers: LayerRule::SparseStep,
            irrelevant: &LOSS_KEYS,
        },
        tensors: TensorNames {
            block: "model.layers.{layer}.mlp.",
            router: "gate.weight",
            experts: GATE_UP_DOWN,
        },
    },
    Family {
        name: "olmoe",
        keys: ConfigKeys {
            intermediate_size: "intermediate_size",
            num_experts: NUM_EXPERTS,
            top_k: "num_experts_per_tok",
            renormalize: RenormalizeRule::Key { name: "norm_topk_prob", default: false },
            layers: LayerRule::All,
            irrelevant: &LOSS_KEYS,
        },
        tensors: TensorNames {
            block: "model.layers.{layer}.mlp.",
            router: "gate.weight",
            experts: GATE_UP_DOWN,
        },
    },
];
