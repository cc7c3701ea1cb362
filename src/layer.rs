//! A Mixture-of-Experts layer: configuration, weights and the backend that holds them.

mod memory;

pub use memory::{MemoryUse, WeightFormat};

use crate::backend::{Backend, PartsOf};
use crate::config::MoeConfig;
use crate::error::{Error, Result};
use crate::ops::{
    ExpertShape, Layer, LayerInput, LayerParts, Output, SharedExperts, SharedPart, Workspace,
};
use crate::weights::{ExpertWeights, LayerWeights, RouterWeights, SharedFormat};

/// A Mixture-of-Experts layer on backend `B` with weights in format `W`.
///
/// The layer is read-only once made: any number of threads can call [`MoeLayer::forward`], each
/// with a workspace and a stream of its own.
pub struct MoeLayer<B: Backend, W: ExpertWeights> {
    backend: B,
    config: MoeConfig,
    parts: PartsOf<B, W>,
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
    /// Takes weights into the backend's memory.
    ///
    /// # Errors
    /// The errors of [`MoeConfig::validate`], [`Error::Shape`] and [`Error::Value`] if a weight
    /// disagrees with the configuration, and those of [`Backend::prepare`].
    pub fn new(
        backend: B,
        config: MoeConfig,
        weights: LayerWeights<W>,
        stream: &B::Stream,
    ) -> Result<Self> {
        config.validate()?;
        let LayerWeights { router, experts, shared, latent, output_bias } = weights;
        // Before the experts are copied, which takes long.
        let (expected, given) = (ExpertShape::from(&config), experts.shape());
        if given != expected {
            return Err(Error::shape("experts [E, H, I]", expected.dims(), given.dims()));
        }
        let gate_shape = [config.router_experts(), config.hidden_size];
        let parts = LayerParts {
            gate: backend.prepare_gate(gate_shape, router, stream)?,
            experts: backend.prepare(experts, stream)?,
            shared: match shared {
                None => None,
                Some(shared) => Some(SharedPart {
                    gate: match shared.gate {
                        None => None,
                        Some(gate) => {
                            let shape = [1, config.hidden_size];
                            Some(backend.prepare_gate(shape, RouterWeights::new(gate), stream)?)
                        }
                    },
                    experts: match shared.experts {
                        SharedFormat::Same(experts) => {
                            SharedExperts::Same(backend.prepare(experts, stream)?)
                        }
                        SharedFormat::Dense(experts) => {
                            SharedExperts::Dense(backend.prepare(experts, stream)?)
                        }
                    },
                }),
            },
            latent: latent.map(|latent| backend.prepare(latent, stream)).transpose()?,
            output_bias: output_bias
                .map(|bias| backend.buffer_from("output_bias", &bias, stream))
                .transpose()?,
        };
        Self::from_prepared(backend, config, parts)
    }

    /// A layer of weights that the backend holds already: uploaded before, shared with another
    /// layer's configuration, or used where an engine has them.
    ///
    /// # Errors
    /// The errors of [`MoeConfig::validate`], [`Error::Shape`] and [`Error::Value`] if a weight
    /// disagrees with the configuration.
    pub fn from_prepared(backend: B, config: MoeConfig, parts: PartsOf<B, W>) -> Result<Self> {
        config.validate()?;
        parts.check(&config)?;
        Ok(Self { backend, config, parts })
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
        self.parts.bytes()
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
        let op = Layer::new(&self.config, input, &self.parts, output, workspace)?;
        self.backend.layer::<W>(op, stream)
    }
}
