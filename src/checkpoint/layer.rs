//! The tensors of one MoE layer, found by its family's names.

use std::borrow::Cow;
use std::collections::BTreeSet;

use safetensors::tensor::Dtype;

use crate::config::{
    ExpertNames, MlpNames, ModelConfig, MoeConfig, Selection, SharedCombine, SharedExpert,
    SharedNames, TensorNames,
};
use crate::element::Float;
use crate::error::{Error, Result};
use crate::ops::ExpertShape;
use crate::weights::{
    DenseExperts, ExpertBiases, ExpertMatrix, ExpertSource, ExpertWeights, LayerWeights,
    QuantFormat, QuantisedExperts, RouterMatrix, RouterWeights, SharedFormat, SharedWeights,
};

use super::experts::{Biases, Views};
use super::quantised::{QuantViews, check_method};
use super::{Checkpoint, StoredTensor};

/// A MoE layer in a checkpoint: every tensor is there, with the right shape and type.
#[derive(Debug)]
pub struct CheckpointLayer {
    config: MoeConfig,
    router: RouterTensors,
    experts: StoredExperts,
    biases: Option<Biases>,
    shared: Option<SharedTensors>,
    latent: Option<Views>,
    output_bias: Option<StoredTensor>,
}

#[derive(Debug)]
struct RouterTensors {
    weight: StoredTensor,
    bias: Option<StoredTensor>,
    selection_bias: Option<StoredTensor>,
    expert_scale: Option<StoredTensor>,
    input_scale: Option<StoredTensor>,
    hash_table: Option<StoredTensor>,
}

#[derive(Debug)]
struct SharedTensors {
    gate: Option<StoredTensor>,
    experts: StoredExperts,
}

/// Experts' matrices, as numbers or quantised.
#[derive(Debug)]
enum StoredExperts {
    Dense(Views),
    Quantised(QuantViews),
}

impl StoredExperts {
    fn num_matrices(&self) -> usize {
        match self {
            Self::Dense(views) => views.num_matrices(),
            Self::Quantised(views) => views.num_matrices(),
        }
    }

    fn dense<T: Float>(&self, shape: ExpertShape) -> Result<DenseExperts<T>> {
        match self {
            Self::Dense(views) => DenseExperts::from_source(shape, views.clone()),
            Self::Quantised(views) => Err(Error::Unsupported {
                what: format!("experts in {} as dense weights", views.format),
                supported: "CheckpointLayer::quantised_weights".to_owned(),
            }),
        }
    }

    fn quantised<T: Float>(&self, shape: ExpertShape) -> Result<QuantisedExperts<T>> {
        match self {
            Self::Quantised(views) => {
                QuantisedExperts::from_source(views.format, shape, views.clone())
            }
            Self::Dense(_) => Err(Error::Unsupported {
                what: "experts of floating-point numbers as quantised weights".to_owned(),
                supported: "CheckpointLayer::weights".to_owned(),
            }),
        }
    }
}

/// Finds tensors, and remembers which.
pub(super) struct Finder<'a> {
    checkpoint: &'a Checkpoint,
    /// The prefix of the layer's names.
    block: String,
    read: BTreeSet<String>,
}

impl Finder<'_> {
    pub(super) fn contains(&self, name: &str) -> bool {
        self.checkpoint.contains(&format!("{}{name}", self.block))
    }

    fn tensor(&mut self, name: &str, what: &str, shapes: &[&[usize]]) -> Result<StoredTensor> {
        let name = format!("{}{name}", self.block);
        let expected = format!("{what} {:?}", shapes[0]);
        let tensor = self.checkpoint.tensor(&name, &expected)?;
        if !shapes.contains(&tensor.shape()) {
            tensor.expect_shape(shapes[0])?;
        }
        self.read.insert(name);
        Ok(tensor)
    }

    /// A tensor of floating-point numbers.
    pub(super) fn float(&mut self, name: &str, what: &str, dims: &[usize]) -> Result<StoredTensor> {
        let tensor = self.tensor(name, what, &[dims])?;
        tensor.expect_float()?;
        Ok(tensor)
    }

    /// A tensor of one of these types.
    pub(super) fn of_type(
        &mut self,
        name: &str,
        what: &str,
        dims: &[usize],
        dtypes: &[Dtype],
    ) -> Result<StoredTensor> {
        let tensor = self.tensor(name, what, &[dims])?;
        tensor.expect_dtype(dtypes)?;
        Ok(tensor)
    }

    /// A tensor that is there, not yet said to be read.
    pub(super) fn peek(&self, name: &str) -> Result<StoredTensor> {
        self.checkpoint.tensor(&format!("{}{name}", self.block), "a tensor that is there")
    }

    /// A tensor of floating-point numbers where `is_there` says so. `[1, n]` will do for `[n]`.
    fn vector(
        &mut self,
        name: &str,
        what: &str,
        is_there: bool,
        len: usize,
    ) -> Result<Option<StoredTensor>> {
        if !is_there {
            return Ok(None);
        }
        let tensor = self.tensor(name, what, &[&[len], &[1, len]])?;
        tensor.expect_float()?;
        Ok(Some(tensor))
    }
}

impl CheckpointLayer {
    pub(super) fn find(checkpoint: &Checkpoint, model: &ModelConfig, layer: usize) -> Result<Self> {
        let mut config = model.layer(layer)?;
        check_method(model)?;
        let family = model.family;
        let names = &family.tensors;
        let block = block_of(checkpoint, names, layer);
        let mut find = Finder { checkpoint, block, read: BTreeSet::new() };

        let router = find_router(&mut find, names, &mut config)?;
        let shape = ExpertShape::from(&config);
        let (experts, biases) = find_experts(&mut find, names, shape, config.experts.bias)?;
        let hidden_size = config.hidden_size;
        let shared = match (config.experts.shared, names.shared) {
            (None, _) => None,
            (Some(rule), Some(names)) => {
                let gate = rule.combine == SharedCombine::SigmoidGate;
                let gate = match gate {
                    false => None,
                    true => find.vector(names.gate, "the shared gate", true, hidden_size)?,
                };
                let shape = ExpertShape {
                    gated: rule.activation.is_gated(),
                    ..ExpertShape::gated(1, hidden_size, rule.intermediate_size)
                };
                Some(SharedTensors { gate, experts: find_shared(&mut find, names, shape)? })
            }
            (Some(_), None) => {
                return Err(Error::Unsupported {
                    what: format!("a shared expert in a layer of family {}", family.name),
                    supported: "routed experts alone".to_owned(),
                });
            }
        };
        let latent = match (config.experts.latent_size, names.latent) {
            (Some(width), Some([up, down])) => {
                let shape = ExpertShape::ungated(1, hidden_size, width);
                let mlp = MlpNames::Split { gate: "", up, down };
                Some(Views::of_one(&mut find, mlp, shape)?)
            }
            _ => None,
        };
        let output_bias = find.vector(
            names.output_bias,
            "the output's bias",
            config.experts.output_bias,
            hidden_size,
        )?;
        refuse_surplus(&find, names, family.name)?;
        let is_dense = |experts: &StoredExperts| matches!(experts, StoredExperts::Dense(_));
        if is_dense(&experts) && shared.as_ref().is_some_and(|s| is_dense(&s.experts)) {
            let merged = config.can_merge_shared();
            config.experts.shared = config.experts.shared.map(|s| SharedExpert { merged, ..s });
        }
        Ok(Self { config, router, experts, biases, shared, latent, output_bias })
    }

    /// What the layer computes.
    pub fn config(&self) -> &MoeConfig {
        &self.config
    }

    /// Matrices that [`CheckpointLayer::weights`] leaves to be read: those of all experts.
    pub fn num_matrices(&self) -> usize {
        let shared = self.shared.as_ref().map_or(0, |shared| shared.experts.num_matrices());
        let latent = self.latent.as_ref().map_or(0, Views::num_matrices);
        self.experts.num_matrices() + shared + latent
    }

    /// The router's weights; the matrix in `T` if it is stored so, else widened to f32: never rounded.
    ///
    /// # Errors
    /// As [`StoredTensor::read`].
    pub fn router_weights<T: Float>(&self) -> Result<RouterWeights<T>> {
        let RouterTensors { weight, bias, selection_bias, expert_scale, input_scale, hash_table } =
            &self.router;
        let read = |tensor: &Option<StoredTensor>| {
            tensor.as_ref().map(StoredTensor::read::<f32>).transpose()
        };
        let mut weights = RouterWeights::new(matrix(weight)?);
        weights.bias = read(bias)?;
        weights.selection_bias = read(selection_bias)?;
        weights.expert_scale = read(expert_scale)?;
        // What every family that has a scale multiplies it by.
        let root = (self.config.hidden_size as f32).sqrt().recip();
        let scaled = |scale: Vec<f32>| scale.into_iter().map(|scale| scale * root).collect();
        weights.input_scale = read(input_scale)?.map(scaled);
        weights.hash_table = hash_table.as_ref().map(StoredTensor::read_i32).transpose()?;
        Ok(weights)
    }

    /// The experts' weights, to be read one matrix at a time.
    ///
    /// # Errors
    /// As [`DenseExperts::from_source`], and of reading biases.
    pub fn experts<T: Float>(&self) -> Result<DenseExperts<T>> {
        let experts = self.experts.dense(ExpertShape::from(&self.config))?;
        match &self.biases {
            None => Ok(experts),
            Some(biases) => experts.with_biases(biases.read()?),
        }
    }

    /// How the routed experts are quantised; `None` where they are not.
    pub fn quantisation(&self) -> Option<QuantFormat> {
        match &self.experts {
            StoredExperts::Dense(_) => None,
            StoredExperts::Quantised(views) => Some(views.format),
        }
    }

    /// All weights of a layer that is not quantised.
    ///
    /// # Errors
    /// As [`StoredTensor::read`] and [`DenseExperts::from_source`]; [`Error::Unsupported`] for quantised
    /// experts.
    pub fn weights<T: Float>(&self) -> Result<LayerWeights<DenseExperts<T>>> {
        self.with_experts(self.experts()?, |shared, shape| {
            shared.dense(shape).map(SharedFormat::Same)
        })
    }

    /// All weights of a layer whose routed experts are quantised.
    ///
    /// # Errors
    /// As [`StoredTensor::read`] and [`QuantisedExperts::from_source`]; [`Error::Unsupported`] for experts
    /// that are not quantised.
    pub fn quantised_weights<T: Float>(&self) -> Result<LayerWeights<QuantisedExperts<T>>> {
        let experts = self.experts.quantised(ExpertShape::from(&self.config))?;
        let experts = match &self.biases {
            None => experts,
            Some(biases) => experts.with_biases(biases.read()?)?,
        };
        self.with_experts(experts, |shared, shape| match shared {
            StoredExperts::Dense(_) => shared.dense(shape).map(SharedFormat::Dense),
            StoredExperts::Quantised(_) => shared.quantised(shape).map(SharedFormat::Same),
        })
    }

    fn with_experts<W: ExpertWeights>(
        &self,
        experts: W,
        shared_experts: impl FnOnce(&StoredExperts, ExpertShape) -> Result<SharedFormat<W>>,
    ) -> Result<LayerWeights<W>> {
        let MoeConfig { hidden_size, experts: rules, .. } = &self.config;
        let mut weights = LayerWeights::new(self.router_weights()?, experts);
        if let (Some(shared), Some(rule)) = (&self.shared, rules.shared) {
            let gated = rule.activation.is_gated();
            let shape = ExpertShape::gated(1, *hidden_size, rule.intermediate_size);
            weights.shared = Some(SharedWeights {
                experts: shared_experts(&shared.experts, ExpertShape { gated, ..shape })?,
                gate: shared.gate.as_ref().map(matrix).transpose()?,
            });
        }
        if let (Some(latent), Some(width)) = (&self.latent, rules.latent_size) {
            let shape = ExpertShape::ungated(1, *hidden_size, width);
            weights.latent = Some(DenseExperts::from_source(shape, latent.clone())?);
        }
        weights.output_bias = self.output_bias.as_ref().map(StoredTensor::read).transpose()?;
        Ok(weights)
    }
}

fn matrix<T: Float>(tensor: &StoredTensor) -> Result<RouterMatrix<T>> {
    match tensor.is(T::DTYPE) {
        true => tensor.read().map(RouterMatrix::Model),
        false => tensor.read().map(RouterMatrix::F32),
    }
}

/// The prefix under which there is a router; without one, under which there is anything.
fn block_of(checkpoint: &Checkpoint, names: &TensorNames, layer: usize) -> String {
    let filled = |block: &&str| block.replace("{layer}", &layer.to_string());
    let has_router =
        |block: &String| checkpoint.contains(&format!("{block}{}", names.router.weight));
    let has_any = |block: &String| checkpoint.names().any(|name| name.starts_with(block));
    let blocks = || names.blocks.iter().map(filled);
    let found = blocks().find(has_router).or_else(|| blocks().find(has_any));
    found.unwrap_or_else(|| filled(&names.blocks[0]))
}

fn find_router(
    find: &mut Finder<'_>,
    names: &TensorNames,
    config: &mut MoeConfig,
) -> Result<RouterTensors> {
    let names = &names.router;
    let (experts, hidden) = (config.router_experts(), config.hidden_size);
    let weight = find.float(names.weight, "the router", &[experts, hidden])?;
    let hash_table = match !names.hash_table.is_empty() && find.contains(names.hash_table) {
        false => None,
        true => {
            let name = format!("{}{}", find.block, names.hash_table);
            let table = find.checkpoint.tensor(&name, "experts by token id")?;
            let vocab_size = table.shape().first().copied().unwrap_or(0);
            table.expect_shape(&[vocab_size, config.top_k])?;
            find.read.insert(name);
            // In place of the selection bias that the family's other layers have.
            config.router.selection_bias = false;
            config.router.selection = Selection::HashTable { vocab_size };
            Some(table)
        }
    };
    let rules = &config.router;
    Ok(RouterTensors {
        weight,
        bias: find.vector(names.bias, "the router's bias", rules.bias, experts)?,
        selection_bias: find.vector(
            names.selection_bias,
            "the selection bias",
            rules.selection_bias,
            experts,
        )?,
        expert_scale: find.vector(
            names.expert_scale,
            "the experts' scale",
            rules.expert_scale,
            experts,
        )?,
        input_scale: find.vector(
            names.input_scale,
            "the router's input scale",
            rules.norm_eps.is_some(),
            hidden,
        )?,
        hash_table,
    })
}

fn find_experts(
    find: &mut Finder<'_>,
    names: &TensorNames,
    shape: ExpertShape,
    has_biases: bool,
) -> Result<(StoredExperts, Option<Biases>)> {
    let is_there = |names: &&ExpertNames| {
        let first = match names {
            ExpertNames::PerExpert { up, .. } => up.replace("{expert}", "0"),
            ExpertNames::Fused { gate_up, .. } | ExpertNames::Transposed { gate_up, .. } => {
                (*gate_up).to_owned()
            }
            ExpertNames::Stacked { up, .. } | ExpertNames::Flat { up, .. } => (*up).to_owned(),
        };
        ["", "_packed", "_blocks"].iter().any(|suffix| find.contains(&format!("{first}{suffix}")))
    };
    let names = names.experts.iter().find(is_there).unwrap_or(&names.experts[0]);
    let experts = match QuantViews::of_experts(find, names, shape)? {
        Some(views) => StoredExperts::Quantised(views),
        None => StoredExperts::Dense(Views::of_experts(find, names, shape)?),
    };
    let biases = match has_biases {
        false => None,
        true => Some(Biases::find(find, names, shape)?),
    };
    Ok((experts, biases))
}

fn find_shared(
    find: &mut Finder<'_>,
    names: SharedNames,
    shape: ExpertShape,
) -> Result<StoredExperts> {
    Ok(match QuantViews::of_one(find, names.mlp, shape)? {
        Some(views) => StoredExperts::Quantised(views),
        None => StoredExperts::Dense(Views::of_one(find, names.mlp, shape)?),
    })
}

/// A tensor that nobody reads would be a part of the model that is silently left out.
fn refuse_surplus(find: &Finder<'_>, names: &TensorNames, family: &str) -> Result<()> {
    let is_of_layer = |name: &str| {
        name.strip_prefix(find.block.as_str())
            .is_some_and(|rest| names.parts.iter().any(|part| rest.starts_with(part)))
    };
    let surplus = |name: &&str| is_of_layer(name) && !find.read.contains(*name);
    match find.checkpoint.names().find(surplus) {
        None => Ok(()),
        Some(name) => Err(Error::Unsupported {
            what: format!("tensor \"{name}\" in a layer of family {family}"),
            supported: format!("the {} tensors that its configuration asks for", find.read.len()),
        }),
    }
}

impl<T: Float> ExpertSource<T> for Views {
    fn read(&self, expert: usize, matrix: ExpertMatrix) -> Result<Cow<'_, [T]>> {
        self.view(expert, matrix)?.read().map(Cow::Owned)
    }
}

impl Biases {
    fn read(&self) -> Result<ExpertBiases> {
        Ok(ExpertBiases { gate_up: self.gate_up()?, down: self.down()? })
    }
}
