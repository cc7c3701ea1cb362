//! Reading a checkpoint's config.json.

use serde_json::{Map, Value};

use super::families::{FAMILIES, Family, REFUSED, Rules, limited};
use super::{ActivationFn, Layers, MoeConfig};
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
    "latent",
    "text_config",
];

/// Keys with such a part that no model's MoE layer reads: sampling defaults that older versions
/// of transformers wrote into config.json, the choice of an implementation, losses, parallelism,
/// layers that predict further tokens, attention that is sparse, and the dense layers' width.
const IRRELEVANT: &[&str] = &[
    "top_k",
    "experts_implementation",
    "_experts_implementation",
    "router_aux_loss_coef",
    "router_z_loss_coef",
    "aux_loss_coef",
    "output_router_logits",
    "router_jitter_noise",
    "index_topk",
    "index_topk_blocks",
    "index_topk_freq",
    "ep_size",
    "attention_output_gate",
    "attn_output_gate",
    "num_nextn_predict_layers",
    "mamba_n_groups",
    "time_step_limit",
    "num_kv_shared_layers",
    "intermediate_size_mlp",
    "dense_intermediate_size",
    "final_logit_softcapping",
];

/// What a config.json says of its model's MoE layers.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The row of the model's family.
    pub family: &'static Family,
    /// What each MoE layer computes, apart from limits that differ from layer to layer
    /// ([`ModelConfig::layer`]).
    pub moe: MoeConfig,
    /// How the model's weights are quantised: the config's `quantization_config`.
    pub quantization: Option<Map<String, Value>>,
    num_layers: Option<usize>,
    layers: Layers,
    limits: [Option<Vec<f32>>; 2],
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
        // A model that also sees or hears describes its language model in an object of its own.
        let text = match object.get("text_config") {
            Some(Value::Object(text)) if !object.contains_key("hidden_size") => text,
            _ => &object,
        };
        let family = match find_family(text) {
            Err(_) if !std::ptr::eq(text, &object) => find_family(&object)?,
            found => found?,
        };
        let mut model = Self::read(family, text, ignored)?;
        model.quantization =
            match object.get("quantization_config").or(text.get("quantization_config")) {
                None | Some(Value::Null) => None,
                Some(Value::Object(quantization)) => Some(quantization.clone()),
                Some(other) => {
                    let keys = Keys::new(text, family.name);
                    return Err(keys.wrong_type("quantization_config", other, "an object"));
                }
            };
        Ok(model)
    }

    /// What an object's keys say, by a family's rules.
    pub(super) fn read(
        family: &'static Family,
        object: &Map<String, Value>,
        ignored: &[&str],
    ) -> Result<Self> {
        let mut keys = Keys::new(object, family.name);
        let Rules { moe, layers, limits } = (family.read)(&mut keys)?;
        let num_layers = match keys.num_layers {
            Some(layers) => Some(layers),
            None => keys.optional_size("num_hidden_layers")?,
        };
        keys.refuse_unknown(ignored)?;
        moe.validate()?;
        layers.validate()?;
        Ok(Self { family, moe, quantization: None, num_layers, layers, limits })
    }

    /// What MoE layer `layer` computes.
    ///
    /// # Errors
    /// As [`ModelConfig::check_layer`].
    pub fn layer(&self, layer: usize) -> Result<MoeConfig> {
        self.check_layer(layer)?;
        let mut moe = self.moe.clone();
        let [routed, shared] = &self.limits;
        if let Some(limits) = routed {
            moe.experts.activation = limited(limits, layer)?;
        }
        if let (Some(limits), Some(shared)) = (shared, &mut moe.experts.shared) {
            shared.activation = limited(limits, layer)?;
        }
        moe.validate()?;
        Ok(moe)
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
        self.layers.check(layer)
    }
}

fn find_family(object: &Map<String, Value>) -> Result<&'static Family> {
    let known = || FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(", ");
    let name = match object.get("model_type") {
        Some(Value::String(name)) => name.as_str(),
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
    if let Some(family) = FAMILIES.iter().find(|family| family.model_types.contains(&name)) {
        return Ok(family);
    }
    let what = match REFUSED.iter().find(|&&(refused, _)| refused == name) {
        Some((_, missing)) => format!("model_type \"{name}\", which needs {missing},"),
        None => format!("model_type \"{name}\""),
    };
    Err(Error::Unsupported { what, supported: known() })
}

/// The keys of an object of a config.json, and which of them have been read.
pub(super) struct Keys<'a> {
    object: &'a Map<String, Value>,
    family: &'static str,
    read: Vec<&'static str>,
    num_layers: Option<usize>,
}

impl<'a> Keys<'a> {
    fn new(object: &'a Map<String, Value>, family: &'static str) -> Self {
        // Read for all families together.
        Self { object, family, read: vec!["quantization_config"], num_layers: None }
    }

    fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.read.push(key);
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn wrong_type(&self, key: &str, value: &Value, expected: &str) -> Error {
        let family = self.family;
        Error::Config(format!("\"{key}\" is {value}, expected {expected} (family {family})"))
    }

    pub(super) fn missing(&self, key: &str) -> Error {
        Error::Config(format!("\"{key}\" is missing (family {})", self.family))
    }

    /// Keys that do not change what a layer computes.
    pub(super) fn irrelevant(&mut self, keys: &[&'static str]) {
        self.read.extend_from_slice(keys);
    }

    /// The four sizes of a layer, under these names and `hidden_size`.
    pub(super) fn moe(
        &mut self,
        intermediate_size: &'static str,
        num_experts: &[&'static str],
        top_k: &'static str,
    ) -> Result<MoeConfig> {
        Ok(MoeConfig::new(
            self.size("hidden_size")?,
            self.size(intermediate_size)?,
            self.size_of_any(num_experts)?,
            self.size(top_k)?,
        ))
    }

    fn as_size(&self, key: &str, value: &Value) -> Result<usize> {
        value
            .as_u64()
            .and_then(|size| usize::try_from(size).ok())
            .ok_or_else(|| self.wrong_type(key, value, "a whole number"))
    }

    fn as_number(&self, key: &str, value: &Value) -> Result<f32> {
        let number = value.as_f64().ok_or_else(|| self.wrong_type(key, value, "a number"))?;
        Ok(number as f32)
    }

    pub(super) fn optional_size(&mut self, key: &'static str) -> Result<Option<usize>> {
        self.get(key).map(|value| self.as_size(key, value)).transpose()
    }

    pub(super) fn size(&mut self, key: &'static str) -> Result<usize> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key))
    }

    pub(super) fn optional_size_of_any(&mut self, names: &[&'static str]) -> Result<Option<usize>> {
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
        Ok(found.map(|(_, size)| size))
    }

    pub(super) fn size_of_any(&mut self, names: &[&'static str]) -> Result<usize> {
        self.optional_size_of_any(names)?.ok_or_else(|| self.missing(&names.join("\" or \"")))
    }

    /// `count * width`, where `key` says how many.
    pub(super) fn product(&self, key: &str, count: usize, width: usize) -> Result<usize> {
        count.checked_mul(width).ok_or_else(|| Error::Overflow { what: key.to_owned() })
    }

    /// How many layers there are, under another name than `num_hidden_layers`.
    pub(super) fn num_layers(&mut self, key: &'static str) -> Result<()> {
        self.num_layers = self.optional_size(key)?;
        Ok(())
    }

    pub(super) fn optional_number(&mut self, key: &'static str) -> Result<Option<f32>> {
        self.get(key).map(|value| self.as_number(key, value)).transpose()
    }

    pub(super) fn number_or(&mut self, key: &'static str, default: f32) -> Result<f32> {
        Ok(self.optional_number(key)?.unwrap_or(default))
    }

    pub(super) fn bool_or(&mut self, key: &'static str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => {
                value.as_bool().ok_or_else(|| self.wrong_type(key, value, "true or false"))
            }
        }
    }

    fn must(&mut self, key: &'static str, expected: bool) -> Result<()> {
        match self.bool_or(key, expected)? == expected {
            true => Ok(()),
            false => Err(Error::Unsupported {
                what: format!("{key} = {} (family {})", !expected, self.family),
                supported: expected.to_string(),
            }),
        }
    }

    pub(super) fn must_be_true(&mut self, key: &'static str) -> Result<()> {
        self.must(key, true)
    }

    pub(super) fn must_be_false(&mut self, key: &'static str) -> Result<()> {
        self.must(key, false)
    }

    /// One of these words, of which the first is the default.
    pub(super) fn must_be(
        &mut self,
        key: &'static str,
        words: &[&'static str],
    ) -> Result<&'static str> {
        let Some(value) = self.get(key) else { return Ok(words[0]) };
        words.iter().copied().find(|&word| value == word).ok_or_else(|| Error::Unsupported {
            what: format!("{key} = {value} (family {})", self.family),
            supported: format!("\"{}\"", words.join("\", \"")),
        })
    }

    /// Another name of a size that is known.
    pub(super) fn must_agree(&mut self, key: &'static str, size: usize) -> Result<()> {
        match self.optional_size(key)? {
            Some(given) if given != size => Err(Error::Config(format!(
                "\"{key}\" is {given}, but the layer has {size} (family {})",
                self.family
            ))),
            _ => Ok(()),
        }
    }

    /// The same, where the size may be repeated for every layer.
    pub(super) fn must_agree_all(&mut self, key: &'static str, size: usize) -> Result<()> {
        if !matches!(self.object.get(key), Some(Value::Array(_))) {
            return self.must_agree(key, size);
        }
        match self.optional_list(key)?.unwrap_or_default().iter().find(|&&given| given != size) {
            Some(given) => Err(Error::Config(format!(
                "\"{key}\" has a {given}, but layers have {size} (family {})",
                self.family
            ))),
            None => Ok(()),
        }
    }

    pub(super) fn optional_list(&mut self, key: &'static str) -> Result<Option<Vec<usize>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(values)) => {
                values.iter().map(|value| self.as_size(key, value)).collect::<Result<_>>().map(Some)
            }
            Some(value) => Err(self.wrong_type(key, value, "a list of whole numbers")),
        }
    }

    /// A list of numbers, in which null is 0.
    pub(super) fn optional_numbers(&mut self, key: &'static str) -> Result<Option<Vec<f32>>> {
        let number = |value: &Value| match value {
            Value::Null => Ok(0.0),
            value => self.as_number(key, value),
        };
        match self.object.get(key) {
            None | Some(Value::Null) => {
                self.read.push(key);
                Ok(None)
            }
            Some(Value::Array(values)) => {
                let numbers = values.iter().map(number).collect::<Result<_>>()?;
                self.read.push(key);
                Ok(Some(numbers))
            }
            Some(value) => Err(self.wrong_type(key, value, "a list of numbers")),
        }
    }

    /// An object within this one.
    pub(super) fn within<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Keys<'_>) -> Result<T>,
    ) -> Result<T> {
        let empty = Map::new();
        let object = match self.get(key) {
            None => &empty,
            Some(Value::Object(object)) => object,
            Some(value) => return Err(self.wrong_type(key, value, "an object")),
        };
        let mut keys = Keys::new(object, self.family);
        let result = read(&mut keys)?;
        keys.refuse_unknown(&[])?;
        Ok(result)
    }

    /// An activation of a gate and an up projection, as transformers names them.
    pub(super) fn gated(
        &mut self,
        key: &'static str,
        default: ActivationFn,
    ) -> Result<ActivationFn> {
        self.activation(
            key,
            default,
            &[
                (&["silu", "swish"], ActivationFn::SwiGlu),
                (&["gelu_pytorch_tanh", "gelu_new", "gelu_fast"], ActivationFn::GeGluTanh),
                (&["gelu", "gelu_python"], ActivationFn::GeGluErf),
                (&["relu"], ActivationFn::ReGlu),
            ],
        )
    }

    /// An activation of an up projection alone.
    pub(super) fn ungated(
        &mut self,
        key: &'static str,
        default: ActivationFn,
    ) -> Result<ActivationFn> {
        self.activation(
            key,
            default,
            &[
                (&["relu2"], ActivationFn::Relu2),
                (&["relu"], ActivationFn::Relu),
                (&["silu", "swish"], ActivationFn::Silu),
                (&["gelu_pytorch_tanh", "gelu_new", "gelu_fast"], ActivationFn::GeluTanh),
                (&["gelu", "gelu_python"], ActivationFn::GeluErf),
            ],
        )
    }

    fn activation(
        &mut self,
        key: &'static str,
        default: ActivationFn,
        known: &[(&[&str], ActivationFn)],
    ) -> Result<ActivationFn> {
        let Some(value) = self.get(key) else { return Ok(default) };
        let found = known.iter().find(|(names, _)| names.iter().any(|&name| value == name));
        found.map(|&(_, function)| function).ok_or_else(|| Error::Unsupported {
            what: format!("{key} = {value} (family {})", self.family),
            supported: known
                .iter()
                .map(|(names, _)| format!("\"{}\"", names.join("\", \"")))
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    /// Every `decoder_sparse_step`-th layer, except those that `mlp_only_layers` lists.
    pub(super) fn sparse_step(&mut self) -> Result<Layers> {
        let step = self.optional_size("decoder_sparse_step")?.unwrap_or(1);
        let except = self.optional_list("mlp_only_layers")?.unwrap_or_default();
        Ok(Layers::Step { step, except })
    }

    /// Those that `mlp_layer_types` or `is_moe_layer` lists, or all from `first_k_dense_replace` on,
    /// every `moe_layer_freq`-th.
    pub(super) fn first_dense(&mut self, default: usize) -> Result<Layers> {
        let first = self.optional_size("first_k_dense_replace")?.unwrap_or(default);
        let every = match self.object.get("moe_layer_freq") {
            // 0 and 1 for each layer.
            Some(Value::Array(_)) => {
                let is_moe = self.optional_list("moe_layer_freq")?.unwrap_or_default();
                let layers = is_moe.iter().zip(0..).filter(|&(&is_moe, _)| is_moe != 0);
                return Ok(Layers::Listed(layers.map(|(_, layer)| layer).collect()));
            }
            _ => self.optional_size("moe_layer_freq")?.unwrap_or(1),
        };
        let listed = self.listed("mlp_layer_types", &["sparse"])?;
        Ok(listed.unwrap_or(Layers::From { first, every }))
    }

    /// The layers whose entry in the list `key` is one of these words.
    pub(super) fn listed(&mut self, key: &'static str, words: &[&str]) -> Result<Option<Layers>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(types)) => {
                let is_moe = |value: &Value| words.iter().any(|&word| value == word);
                let layers = types.iter().zip(0..).filter(|&(value, _)| is_moe(value));
                Ok(Some(Layers::Listed(layers.map(|(_, layer)| layer).collect())))
            }
            Some(value) => Err(self.wrong_type(key, value, "a list of words")),
        }
    }

    fn refuse_unknown(&self, ignored: &[&str]) -> Result<()> {
        for (key, value) in self.object {
            let lower = key.to_ascii_lowercase();
            let key = key.as_str();
            // Written by many classes for layers that have no such bias, the MoE layer's included.
            let is_absent = key == "mlp_bias" && *value == Value::Bool(false);
            if MOE_KEY_PARTS.iter().any(|part| lower.contains(part))
                && !is_absent
                && !self.read.contains(&key)
                && !IRRELEVANT.contains(&key)
                && !ignored.contains(&key)
            {
                return Err(Error::UnknownConfigKey {
                    key: key.to_owned(),
                    // A table can be pages long.
                    value: value.to_string().chars().take(80).collect(),
                    family: self.family,
                });
            }
        }
        Ok(())
    }
}
