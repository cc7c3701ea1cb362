//! The tensors of one MoE layer, found by its family's names.

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::config::{ExpertNames, ModelConfig, MoeConfig};
use crate::element::Float;
use crate::error::{Error, Result};
use crate::ops::ExpertShape;
use crate::weights::{DenseExperts, ExpertMatrix, ExpertSource, RouterWeights};

use super::{Checkpoint, StoredTensor};

/// A MoE layer in a checkpoint: every tensor is there, with the right shape and type.
#[derive(Debug)]
pub struct CheckpointLayer {
    config: MoeConfig,
    router: StoredTensor,
    experts: Vec<[StoredTensor; 3]>,
}

impl CheckpointLayer {
    pub(super) fn find(checkpoint: &Checkpoint, model: &ModelConfig, layer: usize) -> Result<Self> {
        model.check_layer(layer)?;
        let config = &model.moe;
        let names = &model.family.tensors;
        let block = names.block.replace("{layer}", &layer.to_string());
        let shape = ExpertShape::from(config);

        let mut read = BTreeSet::new();
        let mut find = |name: &str, what: &str, dims: [usize; 2]| -> Result<StoredTensor> {
            let name = format!("{block}{name}");
            let tensor = checkpoint.tensor(&name, &format!("{what} {dims:?}"))?;
            tensor.expect_shape(&dims)?;
            tensor.expect_float()?;
            read.insert(name);
            Ok(tensor)
        };
        let router = find(names.router, "the router", [config.num_experts, config.hidden_size])?;
        let ExpertNames::PerExpert { gate, up, down } = names.experts;
        let experts = (0..config.num_experts)
            .map(|expert| {
                let mut find = |name: &str, matrix: ExpertMatrix| {
                    let name = name.replace("{expert}", &expert.to_string());
                    find(&name, &format!("{matrix} of expert {expert}"), matrix.dims(shape))
                };
                Ok([
                    find(gate, ExpertMatrix::Gate)?,
                    find(up, ExpertMatrix::Up)?,
                    find(down, ExpertMatrix::Down)?,
                ])
            })
            .collect::<Result<_>>()?;

        // A tensor that nobody reads would be a part of the model that is silently left out.
        if let Some(name) = checkpoint.names().find(|n| n.starts_with(&block) && !read.contains(*n))
        {
            return Err(Error::Unsupported {
                what: format!("tensor \"{name}\" in a layer of family {}", model.family.name),
                supported: format!("{}, {gate}, {up}, {down}", names.router),
            });
        }
        Ok(Self { config: config.clone(), router, experts })
    }

    /// What the layer computes.
    pub fn config(&self) -> &MoeConfig {
        &self.config
    }

    /// The router's weight, in `T` if it is stored so, else widened to f32: never rounded.
    ///
    /// # Errors
    /// As [`StoredTensor::read`].
    pub fn router_weights<T: Float>(&self) -> Result<RouterWeights<T>> {
        match self.router.is(T::DTYPE) {
            true => self.router.read().map(RouterWeights::model),
            false => self.router.read().map(RouterWeights::f32),
        }
    }

    /// The experts' weights, to be read one matrix at a time.
    ///
    /// # Errors
    /// As [`DenseExperts::from_source`].
    pub fn experts<T: Float>(&self) -> Result<DenseExperts<T>> {
        DenseExperts::from_source(ExpertShape::from(&self.config), PerExpert(self.experts.clone()))
    }
}

struct PerExpert(Vec<[StoredTensor; 3]>);

impl<T: Float> ExpertSource<T> for PerExpert {
    fn read(&self, expert: usize, matrix: ExpertMatrix) -> Result<Cow<'_, [T]>> {
        let [gate, up, down] = &self.0[expert];
        let tensor = match matrix {
            ExpertMatrix::Gate => gate,
            ExpertMatrix::Up => up,
            ExpertMatrix::Down => down,
        };
        tensor.read().map(Cow::Owned)
    }
}
