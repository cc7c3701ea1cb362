//! What a router computes, as plain data.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The most groups that experts can be divided into.
pub const MAX_GROUPS: usize = 32;

/// How router logits become scores, one for each expert.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Scoring {
    /// `exp(logit_e) / sum_j exp(logit_j)` over all experts. With [`Renormalize::Sum`], the same as
    /// a softmax over the chosen experts alone.
    Softmax,
    /// `1 / (1 + exp(-logit_e))`, each expert by itself.
    Sigmoid,
    /// `sqrt(log(1 + exp(logit_e)))`, each expert by itself (DeepSeek-V4).
    SqrtSoftplus,
    /// Two choices, each with a softmax of its own over the experts whose logit `s` is close to the
    /// best one's: `(m - s) / max(|s|, m) <= 2 jitter` (Phi-3.5-MoE). K is 2, and no other rule but
    /// a scale applies.
    #[serde(rename = "sparsemixer")]
    SparseMixer {
        /// `router_jitter_noise`.
        jitter: f32,
    },
}

/// How the scores of the chosen experts become weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Renormalize {
    /// The scores are the weights; their sum is what it is.
    None,
    /// Each score divided by `sum + epsilon`, the sum of the chosen ones.
    Sum {
        /// Keeps the quotient finite; 0 in most families.
        epsilon: f32,
    },
    /// Each score divided by `max(sum, least)`.
    ClampMin {
        /// What the sum is raised to.
        least: f32,
    },
    /// Each score divided by `(sum_k score_k^p)^(1/p)` (DBRX).
    PNorm {
        /// Above 0.
        p: f32,
    },
}

impl Renormalize {
    /// Each score divided by the sum of the chosen ones.
    pub const SUM: Self = Self::Sum { epsilon: 0.0 };
}

/// What a group of experts is ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupScore {
    /// Its greatest score.
    Max,
    /// The sum of its two greatest scores.
    Top2Sum,
}

/// The score, for the choice, of an expert outside the kept groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupFill {
    /// 0: it can still be chosen where scores within the kept groups are negative.
    Zero,
    /// It is chosen only if the kept groups have fewer than K experts.
    NegativeInfinity,
}

/// Group-limited choice: experts in `count` contiguous groups of equal size, of which the `kept`
/// best take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertGroups {
    /// 1 to [`MAX_GROUPS`], a divisor of the number of experts.
    #[doc(alias = "n_group")]
    pub count: usize,
    /// 1 to `count`.
    #[doc(alias = "topk_group")]
    pub kept: usize,
    /// What groups are ranked by. Selection biases count.
    pub score: GroupScore,
    /// What becomes of the others' experts.
    pub fill: GroupFill,
}

/// Who chooses a token's experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Selection {
    /// The K greatest scores.
    TopK,
    /// A table `[vocab_size, K]`, by the token's id in the vocabulary (DeepSeek-V4's first layers).
    /// The router's logits give the weights.
    HashTable {
        /// Rows of the table.
        vocab_size: usize,
    },
}

/// How many tokens an expert takes. Those that come later, in the order of first choices before
/// second ones and of tokens within a choice, are dropped: their weight is 0 before any
/// renormalisation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Capacity {
    /// As many as are sent.
    Unlimited,
    /// So many of each sequence (Switch).
    Sequence {
        /// `expert_capacity`.
        tokens: usize,
    },
    /// `ceil(fraction * T)` of a batch of T (NLLB).
    Batch {
        /// `moe_eval_capacity_token_fraction`, above 0.
        fraction: f32,
    },
}

impl Capacity {
    /// The most tokens that an expert takes of one sequence, or of the batch, of `num_tokens`.
    pub fn tokens(self, num_tokens: usize) -> usize {
        match self {
            Self::Unlimited => usize::MAX,
            Self::Sequence { tokens } => tokens,
            // As the reference does it: in f64, of the fraction as it was written.
            Self::Batch { fraction } => (decimal(fraction) * num_tokens as f64).ceil() as usize,
        }
    }
}

/// The shortest decimal fraction that is this f32: 0.4, and not 0.4000000059604645.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// From a token to its experts and their weights.
///
/// ```text
/// x'           = x, or x / sqrt(mean(x^2) + norm_eps) * input_scale
/// logits[e]    = x' · weight[e] + bias[e]
/// capped[e]    = logits[e], or softcap * tanh(logits[e] / softcap)
/// scores       = scoring(capped)
/// ids          = the K greatest scores + selection_bias, within the kept groups; or the table's
/// weights[k]   = renormalize(scores[ids])[k] * scale * expert_scale[ids[k]]
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RouterConfig {
    /// From logits to scores.
    pub scoring: Scoring,
    /// Who chooses.
    pub selection: Selection,
    /// Which groups of experts take part.
    pub groups: Option<ExpertGroups>,
    /// From chosen scores to weights.
    #[doc(alias = "norm_topk_prob")]
    pub renormalize: Renormalize,
    /// A factor on all weights.
    #[doc(alias = "routed_scaling_factor")]
    pub scale: f32,
    /// Tokens that an expert takes.
    pub capacity: Capacity,
    /// Logits are kept within `-softcap..softcap` by a tanh.
    pub softcap: Option<f32>,
    /// The epsilon of an RMS norm on what the router sees; the router's weights then have an
    /// `input_scale [H]`, in which any factor such as `H^-0.5` is contained (Gemma-4).
    pub norm_eps: Option<f32>,
    /// The router has a bias `[E]` on its logits.
    pub bias: bool,
    /// The router has a bias `[E]` that is added to scores for the choice alone.
    #[doc(alias = "e_score_correction_bias")]
    pub selection_bias: bool,
    /// The router has a factor `[E]` on the weights.
    pub expert_scale: bool,
    /// Z: the experts `E..E + Z` have no weights; their output is their input (LongCat).
    pub zero_experts: usize,
}

impl Default for RouterConfig {
    /// Softmax over all experts, renormalised over the K greatest.
    fn default() -> Self {
        Self {
            scoring: Scoring::Softmax,
            selection: Selection::TopK,
            groups: None,
            renormalize: Renormalize::SUM,
            scale: 1.0,
            capacity: Capacity::Unlimited,
            softcap: None,
            norm_eps: None,
            bias: false,
            selection_bias: false,
            expert_scale: false,
            zero_experts: 0,
        }
    }
}

impl RouterConfig {
    /// Checks the rules against each other; `num_experts` are all that can be chosen.
    pub(super) fn validate(&self, num_experts: usize, top_k: usize) -> Result<()> {
        let positive = |name: &str, value: f32| match value > 0.0 && value.is_finite() {
            true => Ok(()),
            false => Err(Error::value(name, value, "above 0, and finite")),
        };
        let not_negative = |name: &str, value: f32| match value >= 0.0 && value.is_finite() {
            true => Ok(()),
            false => Err(Error::value(name, value, "at least 0, and finite")),
        };
        if !self.scale.is_finite() {
            return Err(Error::value("router scale", self.scale, "a finite number"));
        }
        match self.renormalize {
            Renormalize::None => {}
            Renormalize::Sum { epsilon } => not_negative("renormalize epsilon", epsilon)?,
            Renormalize::ClampMin { least } => not_negative("renormalize least", least)?,
            Renormalize::PNorm { p } => positive("renormalize p", p)?,
        }
        if let Some(softcap) = self.softcap {
            positive("router softcap", softcap)?;
        }
        if let Some(epsilon) = self.norm_eps {
            not_negative("router norm_eps", epsilon)?;
        }
        match self.capacity {
            Capacity::Batch { fraction } => positive("capacity fraction", fraction)?,
            Capacity::Sequence { tokens: 0 } => {
                return Err(Error::value("capacity tokens", 0, "at least 1"));
            }
            _ => {}
        }
        if let Some(groups) = self.groups {
            groups.validate(num_experts)?;
        }
        if let Selection::HashTable { vocab_size } = self.selection {
            if vocab_size == 0 || vocab_size > 1 << 31 {
                return Err(Error::value("vocab_size", vocab_size, "1 to 2^31"));
            }
            if self.groups.is_some() || self.selection_bias {
                let what = "groups or a selection bias beside a hash table".to_owned();
                let supported = "one of them: the table has chosen".to_owned();
                return Err(Error::Unsupported { what, supported });
            }
        }
        if let Scoring::SparseMixer { jitter } = self.scoring {
            not_negative("sparsemixer jitter", jitter)?;
            if top_k != 2 {
                return Err(Error::value("top_k", top_k, "2, with sparsemixer"));
            }
            let other = self.groups.is_some()
                || self.selection_bias
                || self.selection != Selection::TopK
                || self.renormalize != Renormalize::None
                || self.capacity != Capacity::Unlimited;
            if other {
                return Err(Error::Unsupported {
                    what: "sparsemixer with another rule of choice or renormalisation".to_owned(),
                    supported: "sparsemixer alone".to_owned(),
                });
            }
        }
        Ok(())
    }
}

impl ExpertGroups {
    fn validate(self, num_experts: usize) -> Result<()> {
        let Self { count, kept, score, .. } = self;
        if !(1..=MAX_GROUPS).contains(&count) || !num_experts.is_multiple_of(count) {
            let expected = format!("1 to {MAX_GROUPS}, a divisor of {num_experts} experts");
            return Err(Error::value("n_group", count, expected));
        }
        if !(1..=count).contains(&kept) {
            return Err(Error::value("topk_group", kept, format!("1 to {count} (n_group)")));
        }
        if score == GroupScore::Top2Sum && num_experts / count < 2 {
            let expected = format!("at most {}, for two experts in each", num_experts / 2);
            return Err(Error::value("n_group", count, expected));
        }
        Ok(())
    }
}
