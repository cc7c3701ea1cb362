//! A Mixture-of-Experts layer: configuration, weights and the backend that holds them.

use crate::backend::Backend;
use crate::config::MoeConfig;
use crate::error::{Error, Result};
use crate::ops::{ExpertShape, Experts, Gate, Layer, LayerInput, Output, Workspace};
use crate::weights::{ExpertWeights, RouterWeights};

/// A Mixture-of-Experts layer on backend `B` with weights in format `W`.
///
/// The layer is read-only once made: any number of threads can call [`MoeLayer::forward`], each
/// with a workspace and a stream of its own.
pub struct MoeLayer<B: Backend, W: ExpertWeights> {
    backend: B,
    config: MoeConfig,
    gate: B::Gate<W::Element>,
    experts: B::Experts<W>,
}

impl<B: Backend, W: ExpertWeights> std::fmt::Debug for MoeLayer<B, W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MoeLayer")
            .field("backend", &B::NAME)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl<B: Backend, W: ExpertWeights> MoeLayer<B, W> {
    /// Takes `router [E, H]` and `experts` into the backend's memory.
    ///
    /// # Errors
    /// The errors of [`MoeConfig::validate`], [`Error::Shape`] if a weight disagrees with the
    /// configuration, and those of [`Backend::prepare`].
    pub fn new(
        backend: B,
        config: MoeConfig,
        router: RouterWeights<W::Element>,
        experts: W,
        stream: &B::Stream,
    ) -> Result<Self> {
        config.validate()?;
        let (expected, given) = (ExpertShape::from(&config), experts.shape());
        if given != expected {
            return Err(Error::shape("experts [E, H, I]", expected.dims(), given.dims()));
        }
        let gate_shape = [config.num_experts, config.hidden_size];
        let gate = backend.prepare_gate(gate_shape, router, stream)?;
        let experts = backend.prepare(experts, stream)?;
        Ok(Self { backend, config, gate, experts })
    }

    /// A layer of weights that the backend holds already: uploaded before, shared with another
    /// layer's configuration, or used where an engine has them.
    ///
    /// # Errors
    /// The errors of [`MoeConfig::validate`], and [`Error::Shape`] if a weight disagrees with the
    /// configuration.
    pub fn from_prepared(
        backend: B,
        config: MoeConfig,
        gate: B::Gate<W::Element>,
        experts: B::Experts<W>,
    ) -> Result<Self> {
        config.validate()?;
        let (expected, given) = (ExpertShape::from(&config), experts.shape());
        if given != expected {
            return Err(Error::shape("experts [E, H, I]", expected.dims(), given.dims()));
        }
        let gate_shape = [config.num_experts, config.hidden_size];
        if gate.shape() != gate_shape {
            return Err(Error::shape("gate", gate_shape, gate.shape()));
        }
        Ok(Self { backend, config, gate, experts })
    }

    /// What the layer computes.
    pub fn config(&self) -> &MoeConfig {
        &self.config
    }

    /// Where it computes.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Bytes of the weights as the backend holds them.
    pub fn weight_bytes(&self) -> usize {
        self.gate.bytes() + self.experts.bytes()
    }

    /// A workspace for inputs of up to `max_tokens` tokens.
    ///
    /// # Errors
    /// As [`Workspace::new`].
    pub fn workspace(&self, max_tokens: usize) -> Result<Workspace<B, W::Element>> {
        Workspace::new(&self.backend, &self.config, max_tokens)
    }

    /// Sends each token through its experts. No token, no output; nothing is written when an
    /// operand is refused.
    ///
    /// # Errors
    /// As [`Layer::new`], and failures of the device.
    pub fn forward(
        &self,
        input: &LayerInput<'_, B, W::Element>,
        output: Output<'_, B, W::Element>,
        workspace: &mut Workspace<B, W::Element>,
        stream: &B::Stream,
    ) -> Result<()> {
        let op = Layer::new(&self.config, input, &self.gate, &self.experts, output, workspace)?;
        self.backend.layer::<W>(op, stream)
    }
}
