//! What a layer takes of memory, before anything is allocated.

use serde::Serialize;

use crate::backend::Backend;
use crate::config::{MoeConfig, SharedCombine};
use crate::element::{DType, Float};
use crate::error::{Error, Result};
use crate::ops::{ExpertShape, GateParts, Workspace};
use crate::weights::QuantFormat;

/// How a layer's weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightFormat {
    /// The routed experts'; `None` for one value for each weight, in the type of the layer.
    pub experts: Option<QuantFormat>,
    /// The shared expert's.
    pub shared: Option<QuantFormat>,
    /// Of the router's matrix: the type of the layer, or f32.
    pub router: DType,
}

impl WeightFormat {
    /// Every weight in the type of the layer.
    pub fn dense<T: Float>() -> Self {
        Self { experts: None, shared: None, router: T::DTYPE }
    }

    /// Routed and shared experts quantised, the router in the type of the layer.
    pub fn quantised<T: Float>(format: QuantFormat) -> Self {
        Self { experts: Some(format), shared: Some(format), ..Self::dense::<T>() }
    }
}

/// Bytes of a layer on a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryUse {
    /// The router, and the gate of the shared expert.
    pub router: usize,
    /// All routed experts.
    pub experts: usize,
    /// The shared expert.
    pub shared: usize,
    /// Projections to and from the latent width.
    pub latent: usize,
    /// The bias of the output.
    pub output_bias: usize,
    /// [`Workspace`] for the tokens.
    pub workspace: usize,
    /// What the layer reads and writes: the tokens, twice.
    pub activations: usize,
}

impl MemoryUse {
    /// As [`MoeLayer::weight_bytes`](crate::MoeLayer::weight_bytes) counts.
    pub fn weights(&self) -> usize {
        self.router + self.experts + self.shared + self.latent + self.output_bias
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.weights() + self.workspace + self.activations
    }
}

impl MoeConfig {
    /// The bytes that a layer takes on backend `B`, with tokens of type `T` and up to `max_tokens` of
    /// them: exactly what [`MoeLayer::new`](crate::MoeLayer::new) and
    /// [`MoeLayer::workspace`](crate::MoeLayer::workspace) allocate.
    ///
    /// # Errors
    /// As [`MoeConfig::validate`] and [`Workspace::bytes`]; [`Error::Overflow`]; [`Error::Value`] for a
    /// width that the format cannot take.
    pub fn memory<B: Backend, T: Float>(
        &self,
        format: WeightFormat,
        max_tokens: usize,
    ) -> Result<MemoryUse> {
        let workspace = Workspace::<B, T>::bytes(self, max_tokens)?;
        let rules = &self.experts;
        let overflow = || Error::Overflow { what: "the layer's weights".to_owned() };
        let experts = |shape, format: Option<QuantFormat>, biases| {
            format.map_or(Ok(()), |format| format.check(shape))?;
            B::expert_bytes::<T>(shape, format, biases).ok_or_else(overflow)
        };
        let gate =
            |shape, router, parts| B::gate_bytes::<T>(shape, router, parts).ok_or_else(overflow);
        let shape = [self.router_experts(), self.hidden_size];
        let mut router = gate(shape, format.router, GateParts::of(self)?)?;
        let mut shared = 0;
        if let Some(rule) = rules.shared {
            let gated = rule.activation.is_gated();
            let shape = ExpertShape::gated(1, self.hidden_size, rule.intermediate_size);
            shared = experts(ExpertShape { gated, ..shape }, format.shared, false)?;
            if rule.combine == SharedCombine::SigmoidGate {
                router += gate([1, self.hidden_size], format.router, GateParts::default())?;
            }
        }
        let latent = match rules.latent_size {
            None => 0,
            Some(width) => experts(ExpertShape::ungated(1, self.hidden_size, width), None, false)?,
        };
        let activations = max_tokens.checked_mul(2 * self.hidden_size * T::DTYPE.size());
        let memory = MemoryUse {
            router,
            experts: experts(ExpertShape::from(self), format.experts, rules.bias)?,
            shared,
            latent,
            output_bias: if rules.output_bias { 4 * self.hidden_size } else { 0 },
            workspace,
            activations: activations.ok_or_else(overflow)?,
        };
        let parts = [memory.router, memory.experts, shared, latent, memory.output_bias, workspace];
        let sum = parts.into_iter().try_fold(memory.activations, usize::checked_add);
        sum.map(|_| memory).ok_or_else(overflow)
    }
}
