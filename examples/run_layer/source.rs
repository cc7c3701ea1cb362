//! Where the layer and its tokens come from: a checkpoint, a fixture, or a named model's shape.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use moe_kernels::checkpoint::{Checkpoint, CheckpointLayer, StoredTensor};
use moe_kernels::config::{ModelConfig, MoeConfig};
use moe_kernels::element::Float;
use moe_kernels::weights::{DenseExperts, LayerWeights, QuantFormat, QuantisedExperts};
use serde_json::Value;

use crate::args::Args;
use crate::shapes::{MODELS, NamedModel};
use crate::synthetic;

const DEFAULT_FIXTURE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/mixtral.safetensors");

const DEFAULT_TOKENS: usize = 64;

const STORED_TOKENS: &str = "fixture.hidden_states";
const STORED_IDS: &str = "fixture.input_ids";

pub enum Source {
    Stored { checkpoint: Checkpoint, family: &'static str, layer: Box<CheckpointLayer> },
    Named { model: &'static NamedModel, family: &'static str, config: MoeConfig },
}

impl Source {
    pub fn open(args: &Args) -> Result<Self> {
        if let Some(name) = &args.model {
            let model = MODELS.iter().find(|model| model.name == name).ok_or_else(|| {
                let names: Vec<_> = MODELS.iter().map(|model| model.name).collect();
                anyhow!("--model {name} is not known; known: {}", names.join(", "))
            })?;
            let (family, config) = (model.model()?.family.name, model.config()?);
            return Ok(Self::Named { model, family, config });
        }
        let path = args.file.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FIXTURE));
        let checkpoint = Checkpoint::open(&path)?;
        let ignored: Vec<&str> = args.ignore_key.iter().map(String::as_str).collect();
        let model = match checkpoint.metadata("fixture") {
            Some(header) => serde_json::from_str(header)
                .map_err(anyhow::Error::from)
                .and_then(|header: Value| {
                    Ok(ModelConfig::parse(&header["config"].to_string(), &ignored)?)
                })
                .with_context(|| format!("{}: metadata \"fixture\"", path.display())),
            None => checkpoint.model(&ignored).with_context(|| {
                let is_gguf = path.extension().is_some_and(|extension| extension == "gguf");
                let place = if is_gguf { "its metadata" } else { "config.json" };
                format!("{}: {place}", path.display())
            }),
        }?;
        let family = model.family.name;
        let layer = match args.layer {
            Some(layer) => layer,
            None => *checkpoint.moe_layers(model.family).first().ok_or_else(|| {
                let names = &model.family.tensors;
                let router = format!("{}{}", names.blocks[0], names.router.weight);
                let router = router.replace("{layer}", "N");
                anyhow!(
                    "{}: no layer N has a tensor \"{router}\" (family {family})",
                    path.display()
                )
            })?,
        };
        let layer = Box::new(checkpoint.layer(&model, layer)?);
        Ok(Self::Stored { checkpoint, family, layer })
    }

    pub fn config(&self) -> &MoeConfig {
        match self {
            Self::Stored { layer, .. } => layer.config(),
            Self::Named { config, .. } => config,
        }
    }

    pub fn family(&self) -> &'static str {
        match self {
            Self::Stored { family, .. } => family,
            Self::Named { family, .. } => family,
        }
    }

    /// The name of a named model.
    pub fn model(&self) -> Option<&'static str> {
        match self {
            Self::Stored { .. } => None,
            Self::Named { model, .. } => Some(model.name),
        }
    }

    /// A result of this shape that the file stores as `fixture.<name>`.
    pub fn expected(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<f64>>> {
        let Self::Stored { checkpoint, .. } = self else { return Ok(None) };
        let name = format!("fixture.{name}");
        if !checkpoint.names().any(|stored| stored == name) {
            return Ok(None);
        }
        let tensor = checkpoint.tensor(&name, "a stored result")?;
        if tensor.shape() != shape {
            bail!("{name}: expected shape {shape:?}, given {:?}", tensor.shape());
        }
        Ok(Some(tensor.read_f64()?))
    }

    /// Shape `[B, S, H]` or `[T, H]` of the tokens that the file stores, or of `requested` random
    /// ones.
    pub fn token_shape(&self, requested: Option<usize>) -> Result<Vec<usize>> {
        let hidden_size = self.config().hidden_size;
        let Some(stored) = self.stored_tokens()? else {
            return Ok(vec![requested.unwrap_or(DEFAULT_TOKENS), hidden_size]);
        };
        if requested.is_some() {
            bail!("--tokens: {} stores its own", stored.path().display());
        }
        let shape = stored.shape();
        if shape.last() != Some(&hidden_size) {
            bail!("{STORED_TOKENS}: expected shape [.., {hidden_size}], given {shape:?}");
        }
        Ok(shape.to_vec())
    }

    /// The tokens, row by row.
    pub fn tokens<T: Float>(&self, shape: &[usize]) -> Result<Vec<T>> {
        match self.stored_tokens()? {
            Some(stored) => Ok(stored.read()?),
            None => Ok(synthetic::values(synthetic::HIDDEN_STATES, 1.0, shape.iter().product())),
        }
    }

    fn stored_tokens(&self) -> Result<Option<StoredTensor>> {
        match self {
            Self::Stored { checkpoint, .. }
                if checkpoint.names().any(|name| name == STORED_TOKENS) =>
            {
                Ok(Some(checkpoint.tensor(STORED_TOKENS, "the layer's input")?))
            }
            _ => Ok(None),
        }
    }

    /// Vocabulary ids of the tokens, where the file stores any.
    pub fn token_ids(&self) -> Result<Option<Vec<u32>>> {
        let Self::Stored { checkpoint, .. } = self else { return Ok(None) };
        if !checkpoint.contains(STORED_IDS) {
            return Ok(None);
        }
        let ids = checkpoint.tensor(STORED_IDS, "the tokens' ids")?.read_f64()?;
        Ok(Some(ids.into_iter().map(|id| id as u32).collect()))
    }

    /// How the routed experts are quantised; `None` where they are not.
    pub fn quantisation(&self) -> Option<QuantFormat> {
        match self {
            Self::Stored { layer, .. } => layer.quantisation(),
            Self::Named { .. } => None,
        }
    }

    /// The weights of a layer that is not quantised; the experts' are read, and the progress shown, when
    /// the backend asks.
    pub fn weights<T: Float>(&self) -> Result<LayerWeights<DenseExperts<T>>> {
        let (verb, mut weights) = match self {
            Self::Stored { layer, .. } => ("loading", layer.weights()?),
            Self::Named { config, .. } => ("making", synthetic::weights(config)?),
        };
        let progress = self.progress(verb)?;
        weights.experts = weights.experts.inspect(move |_, _| progress());
        Ok(weights)
    }

    /// The same of a layer whose experts are quantised.
    pub fn quantised_weights<T: Float>(&self) -> Result<LayerWeights<QuantisedExperts<T>>> {
        let Self::Stored { layer, .. } = self else { bail!("named models are not quantised") };
        let mut weights = layer.quantised_weights()?;
        let progress = self.progress("loading")?;
        weights.experts = weights.experts.inspect(move |_, _| progress());
        Ok(weights)
    }

    /// A bar that each call moves on by one of the experts' matrices.
    fn progress(&self, verb: &'static str) -> Result<impl Fn() + Send + Sync + 'static> {
        let config = self.config();
        let of_each = if config.experts.activation.is_gated() { 3 } else { 2 };
        let matrices = of_each * config.num_experts as u64;
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {elapsed} ({eta})")?;
        let bar = ProgressBar::new(matrices).with_style(style).with_message(verb);
        Ok(move || {
            bar.inc(1);
            if bar.position() == matrices {
                bar.finish_and_clear();
            }
        })
    }
}
