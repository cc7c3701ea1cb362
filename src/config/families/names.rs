//! What checkpoints call a layer's tensors.
//!
//! Names are relative to the block's prefix and have `{layer}` and `{expert}` to be filled in. Which
//! of them a layer has, its configuration says.

/// Names of a layer's tensors.
#[derive(Clone, Copy, Debug)]
pub struct TensorNames {
    /// Prefixes of all, for example `model.layers.{layer}.mlp.`: the first under which there is a router.
    pub blocks: &'static [&'static str],
    /// Beginnings, after the prefix, of the names that belong to the MoE layer and must all be read.
    pub parts: &'static [&'static str],
    /// The router's.
    pub router: RouterNames,
    /// The experts', in one of these ways: the first of which a tensor is there.
    pub experts: &'static [ExpertNames],
    /// The shared expert's.
    pub shared: Option<SharedNames>,
    /// The projections `[L, H]` and `[H, L]` to and from the latent width.
    pub latent: Option<[&'static str; 2]>,
    /// The output's bias `[H]`.
    pub output_bias: &'static str,
}

/// Names of a router's tensors; empty where the family has none.
#[derive(Clone, Copy, Debug)]
pub struct RouterNames {
    /// `[E, H]`.
    pub weight: &'static str,
    /// `[E]`.
    pub bias: &'static str,
    /// `[E]`, or `[1, E]`.
    pub selection_bias: &'static str,
    /// `[E]`.
    pub expert_scale: &'static str,
    /// `[H]`.
    pub input_scale: &'static str,
    /// `[vocab_size, K]`: where it is there, it chooses.
    pub hash_table: &'static str,
}

/// How a checkpoint stores experts.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum ExpertNames {
    /// Matrices of each expert: gate and up `[I, H]`, down `[H, I]`. An empty gate means none.
    PerExpert {
        /// Gate.
        gate: &'static str,
        /// Up.
        up: &'static str,
        /// Down.
        down: &'static str,
        /// Biases of up and down, of families that have any.
        biases: Option<[&'static str; 2]>,
    },
    /// Two tensors of all experts: gate and up `[E, 2I, H]`, gate first, and down `[E, H, I]`.
    Fused {
        /// Gate and up.
        gate_up: &'static str,
        /// Down.
        down: &'static str,
    },
    /// The same, transposed: `[E, H, 2I]` and `[E, I, H]`.
    Transposed {
        /// Gate and up.
        gate_up: &'static str,
        /// Down.
        down: &'static str,
        /// Whether columns of gate and up alternate; the gate's come first otherwise.
        interleaved: bool,
        /// Biases `[E, 2I]`, in the order of the columns, and `[E, H]`.
        biases: Option<[&'static str; 2]>,
    },
    /// Three tensors of all experts: gate and up `[E, I, H]`, down `[E, H, I]`.
    Stacked {
        /// Gate.
        gate: &'static str,
        /// Up.
        up: &'static str,
        /// Down.
        down: &'static str,
    },
    /// Three tensors `[E * I, H]` of all experts; down is transposed.
    Flat {
        /// Gate.
        gate: &'static str,
        /// Up.
        up: &'static str,
        /// Down.
        down: &'static str,
    },
}

/// Names of a shared expert's tensors.
#[derive(Clone, Copy, Debug)]
pub struct SharedNames {
    /// The weight `[1, H]` of its sigmoid gate.
    pub gate: &'static str,
    /// Its projections.
    pub mlp: MlpNames,
}

/// How a checkpoint stores one expert that is not among others.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum MlpNames {
    /// Gate and up `[I, H]`, down `[H, I]`. An empty gate means none.
    Split {
        /// Gate.
        gate: &'static str,
        /// Up.
        up: &'static str,
        /// Down.
        down: &'static str,
    },
    /// Gate and up `[2I, H]`, gate first, and down `[H, I]`.
    Fused {
        /// Gate and up.
        gate_up: &'static str,
        /// Down.
        down: &'static str,
    },
}

const fn router(weight: &'static str) -> RouterNames {
    RouterNames {
        weight,
        bias: "",
        selection_bias: "",
        expert_scale: "",
        input_scale: "",
        hash_table: "",
    }
}

const GATE_UP_DOWN: ExpertNames = ExpertNames::PerExpert {
    gate: "experts.{expert}.gate_proj.weight",
    up: "experts.{expert}.up_proj.weight",
    down: "experts.{expert}.down_proj.weight",
    biases: None,
};

const W1_W3_W2: ExpertNames = ExpertNames::PerExpert {
    gate: "experts.{expert}.w1.weight",
    up: "experts.{expert}.w3.weight",
    down: "experts.{expert}.w2.weight",
    biases: None,
};

const FUSED: ExpertNames =
    ExpertNames::Fused { gate_up: "experts.gate_up_proj", down: "experts.down_proj" };

const FUSED_TRANSPOSED: ExpertNames = ExpertNames::Transposed {
    gate_up: "experts.gate_up_proj",
    down: "experts.down_proj",
    interleaved: false,
    biases: None,
};

const SHARED_EXPERTS: SharedNames = SharedNames {
    gate: "",
    mlp: MlpNames::Split {
        gate: "shared_experts.gate_proj.weight",
        up: "shared_experts.up_proj.weight",
        down: "shared_experts.down_proj.weight",
    },
};

const SHARED_EXPERT: SharedNames = SharedNames {
    gate: "shared_expert_gate.weight",
    mlp: MlpNames::Split {
        gate: "shared_expert.gate_proj.weight",
        up: "shared_expert.up_proj.weight",
        down: "shared_expert.down_proj.weight",
    },
};

const SHARED_MLP: SharedNames = SharedNames {
    gate: "",
    mlp: MlpNames::Split {
        gate: "shared_mlp.gate_proj.weight",
        up: "shared_mlp.up_proj.weight",
        down: "shared_mlp.down_proj.weight",
    },
};

/// Most families: `mlp.gate`, `mlp.experts.{expert}.gate_proj`.
pub(super) const MLP: TensorNames = TensorNames {
    blocks: &["model.layers.{layer}.mlp.", "model.language_model.layers.{layer}.mlp."],
    parts: &[""],
    router: router("gate.weight"),
    experts: &[GATE_UP_DOWN, FUSED],
    shared: None,
    latent: None,
    output_bias: "",
};

/// GGUF, whatever the family: an expert's matrices are slices of a tensor of all.
pub(super) const GGUF: TensorNames = TensorNames {
    blocks: &["blk.{layer}."],
    parts: &["ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "exp_probs_b"],
    router: RouterNames { selection_bias: "exp_probs_b.bias", ..router("ffn_gate_inp.weight") },
    experts: &[ExpertNames::Stacked {
        gate: "ffn_gate_exps.weight",
        up: "ffn_up_exps.weight",
        down: "ffn_down_exps.weight",
    }],
    shared: Some(SharedNames {
        gate: "ffn_gate_inp_shexp.weight",
        mlp: MlpNames::Split {
            gate: "ffn_gate_shexp.weight",
            up: "ffn_up_shexp.weight",
            down: "ffn_down_shexp.weight",
        },
    }),
    ..MLP
};

pub(super) const MIXTRAL: TensorNames = TensorNames {
    blocks: &["model.layers.{layer}.block_sparse_moe."],
    experts: &[W1_W3_W2],
    ..MLP
};

pub(super) const QWEN: TensorNames = TensorNames { shared: Some(SHARED_EXPERT), ..MLP };

pub(super) const QWEN_FUSED: TensorNames = TensorNames {
    blocks: &["model.language_model.layers.{layer}.mlp.", "model.layers.{layer}.mlp."],
    experts: &[FUSED, GATE_UP_DOWN],
    ..QWEN
};

pub(super) const QWEN_VL: TensorNames =
    TensorNames { experts: &[FUSED_TRANSPOSED, GATE_UP_DOWN], shared: None, ..QWEN_FUSED };

pub(super) const DEEPSEEK: TensorNames = TensorNames {
    router: RouterNames { selection_bias: "gate.e_score_correction_bias", ..router("gate.weight") },
    shared: Some(SHARED_EXPERTS),
    ..MLP
};

pub(super) const GPT_OSS: TensorNames = TensorNames {
    router: RouterNames { bias: "router.bias", ..router("router.weight") },
    experts: &[ExpertNames::Transposed {
        gate_up: "experts.gate_up_proj",
        down: "experts.down_proj",
        interleaved: true,
        biases: Some(["experts.gate_up_proj_bias", "experts.down_proj_bias"]),
    }],
    ..MLP
};

pub(super) const LLAMA4: TensorNames = TensorNames {
    blocks: &[
        "language_model.model.layers.{layer}.feed_forward.",
        "model.language_model.layers.{layer}.feed_forward.",
        "model.layers.{layer}.feed_forward.",
    ],
    router: router("router.weight"),
    experts: &[FUSED_TRANSPOSED],
    shared: Some(SharedNames { gate: "", ..SHARED_EXPERT }),
    ..MLP
};

const INPUT_OUTPUT_LINEAR: ExpertNames =
    ExpertNames::Fused { gate_up: "input_linear.weight", down: "output_linear.weight" };

pub(super) const GRANITE: TensorNames = TensorNames {
    blocks: &["model.layers.{layer}.block_sparse_moe."],
    router: router("router.layer.weight"),
    experts: &[INPUT_OUTPUT_LINEAR],
    ..MLP
};

pub(super) const GRANITE_HYBRID: TensorNames = TensorNames {
    blocks: &["model.layers.{layer}."],
    parts: &["block_sparse_moe.", "shared_mlp."],
    router: router("block_sparse_moe.router.layer.weight"),
    experts: &[ExpertNames::Fused {
        gate_up: "block_sparse_moe.input_linear.weight",
        down: "block_sparse_moe.output_linear.weight",
    }],
    shared: Some(SharedNames {
        gate: "",
        mlp: MlpNames::Fused {
            gate_up: "shared_mlp.input_linear.weight",
            down: "shared_mlp.output_linear.weight",
        },
    }),
    ..MLP
};

pub(super) const JETMOE: TensorNames =
    TensorNames { blocks: &["model.layers.{layer}.mlp."], output_bias: "bias", ..GRANITE };

pub(super) const DBRX: TensorNames = TensorNames {
    blocks: &["transformer.blocks.{layer}.ffn."],
    router: router("router.layer.weight"),
    experts: &[ExpertNames::Flat {
        gate: "experts.mlp.w1",
        up: "experts.mlp.v1",
        down: "experts.mlp.w2",
    }],
    ..MLP
};

pub(super) const JAMBA: TensorNames = TensorNames {
    blocks: &["model.layers.{layer}.feed_forward."],
    router: router("router.weight"),
    ..MLP
};

pub(super) const ERNIE: TensorNames = TensorNames {
    router: RouterNames {
        selection_bias: "moe_statics.e_score_correction_bias",
        ..router("gate.weight")
    },
    ..DEEPSEEK
};

pub(super) const HUNYUAN: TensorNames =
    TensorNames { router: router("gate.wg.weight"), shared: Some(SHARED_MLP), ..MLP };

pub(super) const LFM2: TensorNames = TensorNames {
    blocks: &["model.layers.{layer}.feed_forward."],
    router: RouterNames { selection_bias: "expert_bias", ..router("gate.weight") },
    experts: &[W1_W3_W2],
    ..MLP
};

pub(super) const MINIMAX: TensorNames = TensorNames {
    blocks: &[
        "model.layers.{layer}.block_sparse_moe.",
        "language_model.model.layers.{layer}.block_sparse_moe.",
    ],
    router: RouterNames { selection_bias: "e_score_correction_bias", ..router("gate.weight") },
    experts: &[W1_W3_W2],
    shared: Some(SHARED_EXPERTS),
    ..MLP
};

pub(super) const DEEPSEEK_V4: TensorNames = TensorNames {
    blocks: &["layers.{layer}.ffn.", "model.layers.{layer}.ffn."],
    router: RouterNames {
        selection_bias: "gate.bias",
        hash_table: "gate.tid2eid",
        ..router("gate.weight")
    },
    experts: &[W1_W3_W2],
    shared: Some(SharedNames {
        gate: "",
        mlp: MlpNames::Split {
            gate: "shared_experts.w1.weight",
            up: "shared_experts.w3.weight",
            down: "shared_experts.w2.weight",
        },
    }),
    ..MLP
};

pub(super) const STEP: TensorNames = TensorNames {
    blocks: &["model.layers.{layer}.", "model.language_model.layers.{layer}."],
    parts: &["moe.", "share_expert."],
    router: RouterNames { selection_bias: "moe.router_bias", ..router("moe.gate.weight") },
    experts: &[ExpertNames::Stacked {
        gate: "moe.gate_proj.weight",
        up: "moe.up_proj.weight",
        down: "moe.down_proj.weight",
    }],
    shared: Some(SharedNames {
        gate: "",
        mlp: MlpNames::Split {
            gate: "share_expert.gate_proj.weight",
            up: "share_expert.up_proj.weight",
            down: "share_expert.down_proj.weight",
        },
    }),
    ..MLP
};

pub(super) const GEMMA4: TensorNames = TensorNames {
    blocks: &["model.language_model.layers.{layer}.", "model.layers.{layer}."],
    parts: &["router.", "experts."],
    router: RouterNames {
        expert_scale: "router.per_expert_scale",
        input_scale: "router.scale",
        ..router("router.proj.weight")
    },
    experts: &[FUSED],
    ..MLP
};

pub(super) const NEMOTRON: TensorNames = TensorNames {
    blocks: &["backbone.layers.{layer}.mixer.", "model.layers.{layer}.mixer."],
    experts: &[ExpertNames::PerExpert {
        gate: "",
        up: "experts.{expert}.up_proj.weight",
        down: "experts.{expert}.down_proj.weight",
        biases: None,
    }],
    shared: Some(SharedNames {
        gate: "",
        mlp: MlpNames::Split {
            gate: "",
            up: "shared_experts.up_proj.weight",
            down: "shared_experts.down_proj.weight",
        },
    }),
    latent: Some(["fc1_latent_proj.weight", "fc2_latent_proj.weight"]),
    ..DEEPSEEK
};

pub(super) const LONGCAT: TensorNames = TensorNames {
    blocks: &["model.layers.{layer}.mlp."],
    router: RouterNames {
        selection_bias: "router.e_score_correction_bias",
        ..router("router.classifier.weight")
    },
    ..MLP
};

pub(super) const HY_V3: TensorNames = TensorNames {
    router: RouterNames { selection_bias: "expert_bias", ..router("router.gate.weight") },
    shared: Some(SHARED_MLP),
    ..MLP
};

pub(super) const SWITCH: TensorNames = TensorNames {
    blocks: &["encoder.block.{layer}.layer.1.mlp.", "decoder.block.{layer}.layer.2.mlp."],
    router: router("router.classifier.weight"),
    experts: &[ExpertNames::PerExpert {
        gate: "",
        up: "experts.expert_{expert}.wi.weight",
        down: "experts.expert_{expert}.wo.weight",
        biases: None,
    }],
    ..MLP
};

pub(super) const NLLB: TensorNames = TensorNames {
    blocks: &["model.encoder.layers.{layer}.ffn.", "model.decoder.layers.{layer}.ffn."],
    experts: &[ExpertNames::PerExpert {
        gate: "",
        up: "experts.expert_{expert}.fc1.weight",
        down: "experts.expert_{expert}.fc2.weight",
        biases: Some(["experts.expert_{expert}.fc1.bias", "experts.expert_{expert}.fc2.bias"]),
    }],
    ..SWITCH
};
