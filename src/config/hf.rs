//! Reading a checkpoint's config.json.

use serde_json::{Map, Value};

use super::families::{FAMILIES, Family, LayerRule, RenormalizeRule};
use super::{ActivationFn, MoeConfig, Renormalize};
use crate::error::{Error, Result};

/// A key with one of these in its name concerns the MoE layer, and must be understood.
const MOE_KEY_PARTS: &[&str] = &[
    "expert",
    "moe",
    "router",
    "routed",
    "top_k",
    "topk",
    "gate",
    "shared",
    "swiglu",
    "scor",
    "sparse",
    "mlp_only",
    "n_group",
    "hidden_act",
    "act_fn",
    "activation",
    "ffn",
    "mlp_bias",
    "clamp",
    "limit",
    "dense_replace",
    "text_config",
];

/// Keys with such a part that no model's MoE layer reads: sampling defaults that older versions
/// of transformers wrote into config.json, and the choice of an implementation.
const IRRELEVANT: &[&str] = &["top_k", "experts_implementation", "_experts_implementation"];

/// What a config.json says of its model's MoE layers.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The row of the model's family.
    pub family: &'static Family,
    /// What each MoE layer computes.
    pub moe: MoeConfig,
    num_layers: Option<usize>,
    sparse_step: usize,
    dense_layers: Vec<usize>,
}

impl MoeConfig {
    /// Reads a checkpoint's config.json. Families: see [`FAMILIES`].
    ///
    /// # Errors
    /// [`Error::Config`] for text that is not a config of a known family,
    /// [`Error::UnknownConfigKey`] for a key that concerns the MoE layer and is not understood,
    /// [`Error::Value`] and [`Error::Unsupported`] for values out of bounds.
    pub fn from_hf_config(json: &str) -> Result<Self> {
        Self::from_hf_config_ignoring(json, &[])
    }

    /// [`MoeConfig::from_hf_config`], with keys that the caller knows not to change the layer's
    /// result.
    ///
    /// # Errors
    /// As [`MoeConfig::from_hf_config`].
    pub fn from_hf_config_ignoring(json: &str, ignored: &[&str]) -> Result<Self> {
        ModelConfig::parse(json, ignored).map(|model| model.moe)
    }
}

impl ModelConfig {
    /// Reads a checkpoint's config.json; `ignored` as in [`MoeConfig::from_hf_config_ignoring`].
    ///
    /// # Errors
    /// As [`MoeConfig::from_hf_config`].
    pub fn parse(json: &str, ignored: &[&str]) -> Result<Self> {
        let object: Map<String, Value> = serde_json::from_str(json)
            .map_err(|error| Error::Config(format!("not a JSON object: {error}")))?;
        let mut keys = Keys { object: &object, family: find_family(&object)?, read: Vec::new() };
        let rule = &keys.family.keys;

        let mut moe = MoeConfig::new(
            keys.size("hidden_size")?,
            keys.size(rule.intermediate_size)?,
            keys.size_of_any(rule.num_experts)?,
            keys.size(rule.top_k)?,
        );
        moe.experts.activation = keys.activation()?;
        moe.router.renormalize = match rule.renormalize {
            RenormalizeRule::Always => Renormalize::SUM,
            RenormalizeRule::Key { name, default } => match keys.bool_or(name, default)? {
                true => Renormalize::SUM,
                false => Renormalize::None,
            },
        };
        let (sparse_step, dense_layers) = match rule.layers {
            LayerRule::All => (1, Vec::new()),
            LayerRule::SparseStep => (
                keys.optional_size("decoder_sparse_step")?.unwrap_or(1),
                keys.list("mlp_only_layers")?,
            ),
        };
        let num_layers = keys.optional_size("num_hidden_layers")?;

        keys.refuse_unknown(ignored)?;
        moe.validate()?;
        if sparse_step == 0 {
            return Err(Error::value("decoder_sparse_step", 0, "at least 1"));
        }
        Ok(Self { family: keys.family, moe, num_layers, sparse_step, dense_layers })
    }

    /// Checks that the model has a layer `layer` and that it is a MoE layer.
    ///
    /// # Errors
    /// [`Error::Value`] says which layers are.
    pub fn check_layer(&self, layer: usize) -> Result<()> {
        if let Some(layers) = self.num_layers
            && layer >= layers
        {
            return Err(Error::value("layer", layer, format!("less than {layers}")));
        }
        if self.dense_layers.contains(&layer) || layer % self.sparse_step != self.sparse_step - 1 {
            return Err(Error::value(
                "layer",
                layer,
                format!(
                    "a MoE layer: every {} (decoder_sparse_step), except {:?} (mlp_only_layers)",
                    self.sparse_step, self.dense_layers
                ),
            ));
        }
        Ok(())
    }
}

fn find_family(object: &Map<String, Value>) -> Result<&'static Family> {
    let known = || FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(", ");
    let name = match object.get("model_type") {
        Some(Value::String(name)) => name,
        Some(other) => {
            return Err(Error::Config(format!("\"model_type\" is {other}, expected a string")));
        }
        None => {
            return Err(Error::Config(format!(
                "\"model_type\" is missing; supported: {}",
                known()
            )));
        }
    };
    FAMILIES.iter().find(|family| family.name == name).ok_or_else(|| Error::Unsupported {
        what: format!("model_type \"{name}\""),
        supported: known(),
    })
}

/// The object's keys, and which of them have been read.
struct Keys<'a> {
    object: &'a Map<String, Value>,
    family: &'static Family,
    read: Vec<&'static str>,
}

impl<'a> Keys<'a> {
    fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.read.push(key);
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn wrong_type(&self, key: &str, value: &Value, expected: &str) -> Error {
        let family = self.family.name;
        Error::Config(format!("\"{key}\" is {value}, expected {expected} (family {family})"))
    }

    fn as_size(&self, key: &str, value: &Value) -> Result<usize> {
        value
            .as_u64()
            .and_then(|size| usize::try_from(size).ok())
            .ok_or_else(|| self.wrong_type(key, value, "a whole number"))
    }

    fn optional_size(&mut self, key: &'static str) -> Result<Option<usize>> {
        self.get(key).map(|value| self.as_size(key, value)).transpose()
    }

    fn size(&mut self, key: &'static str) -> Result<usize> {
        let family = self.family.name;
        self.optional_size(key)?
            .ok_or_else(|| Error::Config(format!("\"{key}\" is missing (family {family})")))
    }

    fn size_of_any(&mut self, names: &[&'static str]) -> Result<usize> {
        let mut found = None;
        for &name in names {
            let Some(size) = self.optional_size(name)? else { continue };
            match found {
                Some((other, value)) if value != size => {
                    return Err(Error::Config(format!(
                        "\"{other}\" is {value}, but \"{name}\" is {size}"
                    )));
                }
                _ => found = Some((name, size)),
            }
        }
        let (names, family) = (names.join("\" or \""), self.family.name);
        found
            .map(|(_, size)| size)
            .ok_or_else(|| Error::Config(format!("\"{names}\" is missing (family {family})")))
    }

    fn bool_or(&mut self, key: &'static str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                value.as_bool().ok_or_else(|| self.wrong_type(key, value, "true or false"))
            }
        }
    }

    fn list(&mut self, key: &'static str) -> Result<Vec<usize>> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => {
                values.iter().map(|value| self.as_size(key, value)).collect()
            }
            Some(value) => Err(self.wrong_type(key, value, "a list of layer numbers")),
        }
    }

    fn activation(&mut self) -> Result<ActivationFn> {
        match self.get("hidden_act") {
            // The default of every family's class.
            None => Ok(ActivationFn::SwiGlu),
            Some(Value::String(name)) if name == "silu" || name == "swish" => {
                Ok(ActivationFn::SwiGlu)
            }
            Some(other) => Err(Error::Unsupported {
                what: format!("hidden_act = {other} (family {})", self.family.name),
                supported: "\"silu\"".to_owned(),
            }),
        }
    }

    fn refuse_unknown(&self, ignored: &[&str]) -> Result<()> {
        for (key, value) in self.object {
            let lower = key.to_ascii_lowercase();
            let key = key.as_str();
            if MOE_KEY_PARTS.iter().any(|part| lower.contains(part))
                && !self.read.contains(&key)
                && !self.family.keys.irrelevant.contains(&key)
                && !IRRELEVANT.contains(&key)
                && !ignored.contains(&key)
            {
                return Err(Error::UnknownConfigKey {
                    key: key.to_owned(),
                    // A quantisation table can be pages long.
                    value: value.to_string().chars().take(80).collect(),
                    family: self.family.name,
                });
            }
        }
        Ok(())
    }
}
