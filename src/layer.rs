//! A Mixture-of-Experts layer: configuration, weights and the backend that holds them.

use crate::backend::Backend;
use crate::config::MoeConfig;
use crate::element::Float;
use crate::error::{Error, Result};
use crate::memory::{Matrix, Memory};
use crate::ops::{ExpertShape, Experts, GateWeight, Layer, LayerInput, Output, Workspace};
use crate::weights::{ExpertWeights, RouterWeights};

/// A Mixture-of-Experts layer on backend `B` with weights in format `W`.
///
/// The layer is read-only once made: any number of threads can call [`MoeLayer::forward`], each
/// with a workspace and a stream of its own.
pub struct MoeLayer<B: Backend, W: ExpertWeights> {
    backend: B,
    config: MoeConfig,
    gate: Gate<B, W::Element>,
    experts: B::Experts<W>,
}

enum Gate<M: Memory, T: Float> {
    F32(M::Buffer<f32>),
    Model(M::Buffer<T>),
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
        let (e, h) = (config.num_experts, config.hidden_size);
        let (expected, given) = (ExpertShape::from(&config), experts.shape());
        if given != expected {
            return Err(Error::shape("experts [E, H, I]", expected.dims(), given.dims()));
        }
        let len = match &router {
            RouterWeights::F32(weight) => weight.len(),
            RouterWeights::Model(weight) => weight.len(),
        };
        if len != e * h {
            return Err(Error::shape("router weight", [e * h], [len]));
        }
        let gate = match router {
            RouterWeights::F32(w) => Gate::F32(backend.buffer_from("router weight", &w, stream)?),
            RouterWeights::Model(w) => {
                Gate::Model(backend.buffer_from("router weight", &w, stream)?)
            }
        };
        let experts = backend.prepare(experts)?;
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
        let elements = self.config.num_experts * self.config.hidden_size;
        let gate = match &self.gate {
            Gate::F32(_) => elements * size_of::<f32>(),
            Gate::Model(_) => elements * size_of::<W::Element>(),
        };
        gate + self.experts.bytes()
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
        let (e, h) = (self.config.num_experts, self.config.hidden_size);
        let gate = match &self.gate {
            Gate::F32(w) => GateWeight::F32(Matrix::contiguous("router weight", w, e, h)?),
            Gate::Model(w) => GateWeight::Model(Matrix::contiguous("router weight", w, e, h)?),
        };
        let op = Layer::new(&self.config, input, gate, &self.experts, output, workspace)?;
        self.backend.layer::<W>(op, stream)
    }
}
