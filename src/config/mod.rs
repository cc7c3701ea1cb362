//! What a Mixture-of-Experts layer computes, as plain data.

mod families;
mod hf;

pub use families::{ExpertNames, FAMILIES, Family, TensorNames};
pub use hf::ModelConfig;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The most experts that a layer can have.
pub const MAX_EXPERTS: usize = 1024;

/// The most experts that a token can be sent to.
pub const MAX_TOP_K: usize = 32;

/// How router logits become scores, one for each expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Scoring {
    /// `exp(logit_e) / sum_j exp(logit_j)` over all experts, before top-k.
    Softmax,
    /// `1 / (1 + exp(-logit_e))`, each expert by itself.
    Sigmoid,
}

/// How the scores of the chosen experts become weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Renormalize {
    /// The scores are the weights; their sum is what it is.
    None,
    /// Each score divided by the sum of the chosen ones.
    Sum,
}

/// What an expert does between its two matrix products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ActivationFn {
    /// `silu(gate) * up`, where `silu(g) = g / (1 + exp(-g))`.
    SwiGlu,
}

/// The order of an expert's gate and up rows in `gate_up [2I, H]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateUpLayout {
    /// Rows `0..I` are the gate, `I..2I` the up projection.
    GateFirst,
    /// Rows `0..I` are the up projection, `I..2I` the gate.
    UpFirst,
    /// Even rows are the gate, odd ones the up projection.
    Interleaved,
}

/// Checks E, H and I by themselves. The bound on H and I keeps a layer's bytes within 64 bits.
pub(crate) fn check_sizes(
    num_experts: usize,
    hidden_size: usize,
    intermediate_size: usize,
) -> Result<()> {
    for (name, size) in [("hidden_size", hidden_size), ("intermediate_size", intermediate_size)] {
        if size == 0 || !size.is_multiple_of(8) || size > 1 << 24 {
            return Err(Error::value(name, size, "a positive multiple of 8, at most 2^24"));
        }
    }
    if !(1..=MAX_EXPERTS).contains(&num_experts) {
        return Err(Error::value("num_experts", num_experts, format!("1 to {MAX_EXPERTS}")));
    }
    Ok(())
}

/// A Mixture-of-Experts layer's shape and rules.
///
/// ```
/// use moe_kernels::MoeConfig;
///
/// let config = MoeConfig::new(2048, 768, 128, 8);
/// config.validate()?;
/// assert_eq!(config.expert_parameters(), 3 * 2048 * 768);
/// # Ok::<(), moe_kernels::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MoeConfig {
    /// H: the width of a token; a multiple of 8, at most 2^24.
    pub hidden_size: usize,
    /// I: the width between an expert's two matrix products; a multiple of 8, at most 2^24.
    pub intermediate_size: usize,
    /// E: 1 to [`MAX_EXPERTS`].
    pub num_experts: usize,
    /// K, the experts of one token: 1 to [`MAX_TOP_K`], at most E.
    #[doc(alias = "num_experts_per_tok")]
    pub top_k: usize,
    /// From logits to scores.
    pub scoring: Scoring,
    /// From chosen scores to weights.
    #[doc(alias = "norm_topk_prob")]
    pub renormalize: Renormalize,
    /// Between the two matrix products.
    #[doc(alias = "hidden_act")]
    pub activation: ActivationFn,
}

impl MoeConfig {
    /// Softmax over all experts, renormalised over the chosen ones, SwiGLU.
    pub fn new(
        hidden_size: usize,
        intermediate_size: usize,
        num_experts: usize,
        top_k: usize,
    ) -> Self {
        Self {
            hidden_size,
            intermediate_size,
            num_experts,
            top_k,
            scoring: Scoring::Softmax,
            renormalize: Renormalize::Sum,
            activation: ActivationFn::SwiGlu,
        }
    }

    /// Checks every bound that the fields' documentation names.
    ///
    /// # Errors
    /// [`Error::Value`] names the field.
    pub fn validate(&self) -> Result<()> {
        check_sizes(self.num_experts, self.hidden_size, self.intermediate_size)?;
        let most = self.num_experts.min(MAX_TOP_K);
        if !(1..=most).contains(&self.top_k) {
            return Err(Error::value(
                "top_k",
                self.top_k,
                format!("1 to {most} (num_experts = {}, at most {MAX_TOP_K})", self.num_experts),
            ));
        }
        Ok(())
    }

    /// R, the rows of the grouped GEMMs when every assignment is local: `num_tokens * top_k`.
    ///
    /// # Errors
    /// [`Error::Value`] from 2^31 rows on: expert rows are addressed by 32-bit TMA coordinates.
    pub fn num_assignments(&self, num_tokens: usize) -> Result<usize> {
        match num_tokens.checked_mul(self.top_k) {
            Some(rows) if rows < 1 << 31 => Ok(rows),
            _ => Err(Error::value(
                "num_tokens * top_k",
                format!("{num_tokens} * {}", self.top_k),
                "less than 2^31",
            )),
        }
    }

    /// Weights of one expert: `3 * H * I` for a gated one. This and the other counts saturate
    /// where [`MoeConfig::validate`] would fail.
    pub fn expert_parameters(&self) -> u64 {
        (self.hidden_size as u64).saturating_mul(self.intermediate_size as u64).saturating_mul(3)
    }

    /// Weights of the layer, router included.
    pub fn parameters(&self) -> u64 {
        let with_router = self.expert_parameters().saturating_add(self.hidden_size as u64);
        with_router.saturating_mul(self.num_experts as u64)
    }

    /// Weights that one token meets: K experts and the router.
    pub fn active_parameters(&self) -> u64 {
        let router = (self.num_experts as u64).saturating_mul(self.hidden_size as u64);
        self.expert_parameters().saturating_mul(self.top_k as u64).saturating_add(router)
    }
}
