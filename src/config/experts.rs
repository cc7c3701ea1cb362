//! What experts compute, as plain data.

use serde::{Deserialize, Serialize};

use super::check_size;
use crate::error::{Error, Result};

/// What an expert does between its two matrix products: of `g`, a row's product with the gate
/// projection, and `u`, that with the up projection; or of `u` alone, in an expert without a gate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ActivationFn {
    /// `silu(g) * u`, where `silu(g) = g / (1 + exp(-g))`.
    SwiGlu,
    /// `gelu(g) * u`, where `gelu(g) = g/2 * (1 + tanh(sqrt(2/pi) * (g + 0.044715 g^3)))`.
    GeGluTanh,
    /// `gelu(g) * u`, where `gelu(g) = g/2 * (1 + erf(g / sqrt(2)))`.
    GeGluErf,
    /// `max(g, 0) * u`.
    ReGlu,
    /// `silu(min(g, limit)) * clamp(u, -limit, limit)` (DeepSeek-V4).
    SwiGluClamped {
        /// Above 0.
        limit: f32,
    },
    /// `min(silu(g), limit) * clamp(u, -limit, limit)` (Step-3.7).
    SwiGluThenClamp {
        /// Above 0.
        limit: f32,
    },
    /// `g' * sigmoid(alpha * g') * (u' + 1)`, where `g' = min(g, limit)` and
    /// `u' = clamp(u, -limit, limit)` (gpt-oss).
    SwiGluOai {
        /// 1.702 in the released models.
        alpha: f32,
        /// Above 0.
        limit: f32,
    },
    /// `max(u, 0)`, without a gate.
    Relu,
    /// `max(u, 0)^2`, without a gate.
    Relu2,
    /// `silu(u)`, without a gate.
    Silu,
    /// `gelu(u)` by tanh, as in [`ActivationFn::GeGluTanh`], without a gate.
    GeluTanh,
    /// `gelu(u)` by erf, as in [`ActivationFn::GeGluErf`], without a gate.
    GeluErf,
}

impl ActivationFn {
    /// Whether experts have a gate projection beside the up projection.
    pub fn is_gated(self) -> bool {
        match self {
            Self::SwiGlu
            | Self::GeGluTanh
            | Self::GeGluErf
            | Self::ReGlu
            | Self::SwiGluClamped { .. }
            | Self::SwiGluThenClamp { .. }
            | Self::SwiGluOai { .. } => true,
            Self::Relu | Self::Relu2 | Self::Silu | Self::GeluTanh | Self::GeluErf => false,
        }
    }

    fn validate(self) -> Result<()> {
        let limit = match self {
            Self::SwiGluClamped { limit }
            | Self::SwiGluThenClamp { limit }
            | Self::SwiGluOai { limit, .. } => limit,
            _ => return Ok(()),
        };
        if !(limit > 0.0 && limit.is_finite()) {
            return Err(Error::value("activation limit", limit, "above 0, and finite"));
        }
        match self {
            Self::SwiGluOai { alpha, .. } if !alpha.is_finite() => {
                Err(Error::value("activation alpha", alpha, "a finite number"))
            }
            _ => Ok(()),
        }
    }
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

/// What a routing weight multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightOn {
    /// The expert's output.
    Output,
    /// The expert's input: `down(act(w * gate x, w * up x))`, unweighted afterwards (Llama-4).
    Input,
}

/// How a shared expert's output joins that of the routed ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SharedCombine {
    /// `routed + shared`.
    Sum,
    /// `routed + sigmoid(x · gate) * shared`, with a weight `gate [1, H]` (Qwen).
    SigmoidGate,
    /// `(routed + shared) / 2` (Command A+).
    Average,
}

/// An expert that every token visits. Several of equal rights are one of their summed width.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedExpert {
    /// Its I: a multiple of 8, at most 2^24.
    pub intermediate_size: usize,
    /// Between its two matrix products.
    pub activation: ActivationFn,
    /// How it joins the others.
    pub combine: SharedCombine,
    /// It runs in the routed experts' own grouped GEMMs, as one or several further experts of their width
    /// that every token visits, where [`MoeConfig::can_merge_shared`](crate::MoeConfig::can_merge_shared);
    /// beside them on the same stream otherwise.
    pub merged: bool,
}

/// What becomes of a token at its experts.
///
/// ```text
/// x'  = x, or latent_down x
/// y_k = down_e(act(gate_e x' + b, up_e x' + b)) + b        e = ids[k]
/// y   = scale * sum_k weights[k] y_k;  y = latent_up y where there is a latent_size
/// out = y + shared(x) + output_bias                        or as SharedCombine says
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ExpertsConfig {
    /// Between the two matrix products.
    #[doc(alias = "hidden_act")]
    pub activation: ActivationFn,
    /// What the routing weights multiply.
    pub weight_on: WeightOn,
    /// A factor on the sum of the routed experts' outputs.
    pub scale: f32,
    /// Experts have biases on both projections.
    pub bias: bool,
    /// The layer has a bias `[H]` on its output (JetMoE).
    pub output_bias: bool,
    /// L: routed experts work on tokens of this width, which are projected to it and back
    /// (Nemotron-H); a multiple of 8, at most 2^24.
    pub latent_size: Option<usize>,
    /// The expert that every token visits.
    pub shared: Option<SharedExpert>,
}

impl Default for ExpertsConfig {
    /// SwiGLU, weighted outputs, nothing else.
    fn default() -> Self {
        Self {
            activation: ActivationFn::SwiGlu,
            weight_on: WeightOn::Output,
            scale: 1.0,
            bias: false,
            output_bias: false,
            latent_size: None,
            shared: None,
        }
    }
}

impl ExpertsConfig {
    pub(super) fn validate(&self, zero_experts: usize) -> Result<()> {
        let unsupported = |what: &str, supported: &str| {
            let (what, supported) = (what.to_owned(), supported.to_owned());
            Err(Error::Unsupported { what, supported })
        };
        if zero_experts > 0 && self.latent_size.is_some() {
            return unsupported("experts without weights in a latent width", "either of them");
        }
        if zero_experts > 0 && self.weight_on == WeightOn::Input {
            return unsupported("experts without weights, weighted inputs", "either of them");
        }
        self.activation.validate()?;
        if !self.scale.is_finite() {
            return Err(Error::value("experts scale", self.scale, "a finite number"));
        }
        if let Some(latent_size) = self.latent_size {
            check_size("latent_size", latent_size)?;
        }
        if let Some(shared) = self.shared {
            shared.activation.validate()?;
            check_size("shared intermediate_size", shared.intermediate_size)?;
        }
        Ok(())
    }
}
