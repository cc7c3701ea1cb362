//! What a Mixture-of-Experts layer computes, as plain data.

mod experts;
mod families;
mod gguf;
mod hf;
mod layers;
mod router;

pub use experts::{
    ActivationFn, ExpertsConfig, GateUpLayout, SharedCombine, SharedExpert, WeightOn,
};
pub use families::{
    ExpertNames, FAMILIES, Family, MlpNames, RouterNames, SharedNames, TensorNames,
};
pub use hf::ModelConfig;
use layers::Layers;
pub use router::{
    Capacity, ExpertGroups, GroupFill, GroupScore, MAX_GROUPS, Renormalize, RouterConfig, Scoring,
    Selection,
};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The most experts that a layer can have.
pub const MAX_EXPERTS: usize = 1024;

/// The most experts that a token can be sent to.
pub const MAX_TOP_K: usize = 32;

/// Checks a width by itself.
pub(crate) fn check_size(name: &str, size: usize) -> Result<()> {
    if size == 0 || !size.is_multiple_of(8) || size > 1 << 24 {
        return Err(Error::value(name, size, "a positive multiple of 8, at most 2^24"));
    }
    Ok(())
}

/// Checks E, H and I by themselves. The bound on H and I keeps a layer's bytes within 64 bits.
pub(crate) fn check_sizes(
    num_experts: usize,
    hidden_size: usize,
    intermediate_size: usize,
) -> Result<()> {
    check_size("hidden_size", hidden_size)?;
    check_size("intermediate_size", intermediate_size)?;
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// From a token to its experts and their weights.
    pub router: RouterConfig,
    /// What becomes of it there.
    pub experts: ExpertsConfig,
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
            router: RouterConfig::default(),
            experts: ExpertsConfig::default(),
        }
    }

    /// Checks every bound that the fields' documentation names.
    ///
    /// # Errors
    /// [`Error::Value`] names the field; [`Error::Unsupported`] names rules that exclude each other.
    pub fn validate(&self) -> Result<()> {
        check_sizes(self.num_experts, self.hidden_size, self.intermediate_size)?;
        let choices = self.router_experts();
        if choices > MAX_EXPERTS {
            let expected = format!("at most {MAX_EXPERTS} with num_experts");
            return Err(Error::value("zero_experts", self.router.zero_experts, expected));
        }
        let most = choices.min(MAX_TOP_K);
        if !(1..=most).contains(&self.top_k) {
            return Err(Error::value(
                "top_k",
                self.top_k,
                format!("1 to {most} (num_experts = {choices}, at most {MAX_TOP_K})"),
            ));
        }
        self.router.validate(choices, self.top_k)?;
        self.experts.validate(self.router.zero_experts)?;
        if self.experts.shared.is_some_and(|shared| shared.merged) && !self.can_merge_shared() {
            return Err(Error::Unsupported {
                what: "a merged shared expert of another width, activation or kind".to_owned(),
                supported: "one that can_merge_shared says can be".to_owned(),
            });
        }
        Ok(())
    }

    /// All that a router chooses among: E and the experts without weights.
    pub fn router_experts(&self) -> usize {
        self.num_experts.saturating_add(self.router.zero_experts)
    }

    /// The width of what routed experts read and write: H, or the latent size.
    pub fn expert_width(&self) -> usize {
        self.experts.latent_size.unwrap_or(self.hidden_size)
    }

    /// Whether a shared expert can run in the routed experts' grouped GEMMs: it has their activation and a
    /// multiple of their width, neither has biases, there is no latent width, and K and E leave room.
    pub fn can_merge_shared(&self) -> bool {
        let Some(shared) = self.experts.shared else { return false };
        let further = shared.intermediate_size / self.intermediate_size.max(1);
        shared.intermediate_size.is_multiple_of(self.intermediate_size)
            && shared.activation == self.experts.activation
            && !self.experts.bias
            && self.experts.latent_size.is_none()
            && self.top_k + further <= MAX_TOP_K
            && self.router_experts() + further <= MAX_EXPERTS
    }

    /// Experts that every token visits in the routed ones' grouped GEMMs.
    pub(crate) fn always_on(&self) -> usize {
        match self.experts.shared {
            Some(shared) if shared.merged => shared.intermediate_size / self.intermediate_size,
            _ => 0,
        }
    }

    /// R, the rows of the grouped GEMMs when every assignment is local: `num_tokens * top_k`, and
    /// those of a merged shared expert.
    ///
    /// # Errors
    /// [`Error::Value`] from 2^31 rows on: expert rows are addressed by 32-bit TMA coordinates.
    pub fn num_assignments(&self, num_tokens: usize) -> Result<usize> {
        let of_each = self.top_k + self.always_on();
        match num_tokens.checked_mul(of_each) {
            Some(rows) if rows < 1 << 31 => Ok(rows),
            _ => Err(Error::value(
                "num_tokens * top_k",
                format!("{num_tokens} * {of_each}"),
                "less than 2^31",
            )),
        }
    }

    /// Weights of one routed expert: three matrices, or two without a gate; biases apart. This and
    /// the other counts saturate where [`MoeConfig::validate`] would fail.
    pub fn expert_parameters(&self) -> u64 {
        mlp_parameters(self.expert_width(), self.intermediate_size, self.experts.activation)
    }

    /// Weights that every token meets: the router, the shared expert with its gate, projections to
    /// and from a latent width.
    fn common_parameters(&self) -> u64 {
        let hidden = self.hidden_size as u64;
        let router = hidden.saturating_mul(self.router_experts() as u64);
        let shared = self.experts.shared.map_or(0, |shared| {
            let gate = if shared.combine == SharedCombine::SigmoidGate { hidden } else { 0 };
            mlp_parameters(self.hidden_size, shared.intermediate_size, shared.activation)
                .saturating_add(gate)
        });
        let latent = self.experts.latent_size.map_or(0, |latent| 2 * hidden * latent as u64);
        router.saturating_add(shared).saturating_add(latent)
    }

    /// Weights of the layer's matrices, router included.
    pub fn parameters(&self) -> u64 {
        let routed = self.expert_parameters().saturating_mul(self.num_experts as u64);
        routed.saturating_add(self.common_parameters())
    }

    /// Weights that one token meets: K experts, the router, and what every token meets.
    pub fn active_parameters(&self) -> u64 {
        let routed = self.expert_parameters().saturating_mul(self.top_k as u64);
        routed.saturating_add(self.common_parameters())
    }
}

fn mlp_parameters(hidden_size: usize, intermediate_size: usize, activation: ActivationFn) -> u64 {
    let matrices = if activation.is_gated() { 3 } else { 2 };
    (hidden_size as u64).saturating_mul(intermediate_size as u64).saturating_mul(matrices)
}
