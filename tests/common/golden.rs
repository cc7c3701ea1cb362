//! Golden files: layers that the families' reference implementations computed.

use std::fs;
use std::path::PathBuf;

use moe_kernels::MoeLayer;
use moe_kernels::backend::Backend;
use moe_kernels::checkpoint::Checkpoint;
use moe_kernels::config::{Capacity, ModelConfig, Selection};
use moe_kernels::element::DType;
use moe_kernels::layer::WeightFormat;
use moe_kernels::memory::{Matrix, MatrixMut};
use moe_kernels::ops::{LayerInput, Output};
use moe_kernels::weights::{ExpertWeights, LayerWeights, RouterMatrix};

use super::{Device, Storage, rel_l2, wide};

/// Where golden files are. A machine that only runs the tests has them elsewhere.
pub(crate) fn golden_folder() -> PathBuf {
    let repository = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    std::env::var_os("MOE_FIXTURES").map_or(repository.into(), PathBuf::from)
}

pub(crate) fn golden(name: &str) -> Checkpoint {
    Checkpoint::open(golden_folder().join(format!("{name}.safetensors"))).unwrap()
}

/// All golden files of single layers, in alphabetical order.
pub(crate) fn golden_names() -> Vec<String> {
    let names = fs::read_dir(golden_folder()).unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let is_file = path.extension().is_some_and(|extension| extension == "safetensors");
        is_file.then(|| path.file_stem().unwrap().to_str().unwrap().to_owned())
    });
    // The layer of a sharded checkpoint has its weights there.
    let mut names: Vec<_> = names.filter(|name| !name.ends_with("-layer1")).collect();
    names.sort();
    names
}

fn header(stored: &Checkpoint) -> serde_json::Value {
    serde_json::from_str(stored.metadata("fixture").unwrap()).unwrap()
}

pub(crate) fn golden_model(stored: &Checkpoint) -> ModelConfig {
    ModelConfig::parse(&header(stored)["config"].to_string(), &[]).unwrap()
}

/// What a layer makes of the tokens that a file stores.
#[derive(Debug, PartialEq)]
pub(crate) struct Computed {
    pub(crate) output: Vec<f64>,
    pub(crate) logits: Vec<f64>,
    /// 1 where an expert is applied, and its weight.
    pub(crate) selected: Vec<f64>,
    pub(crate) weights: Vec<f64>,
}

impl Computed {
    /// Layer `layer` of `checkpoint`, on the tokens of `stored`.
    pub(crate) fn run<B: Backend, T: Storage>(
        device: &Device<B>,
        checkpoint: &Checkpoint,
        model: &ModelConfig,
        layer: usize,
        stored: &Checkpoint,
    ) -> Self {
        let source = checkpoint.layer(model, layer).unwrap();
        let config = source.config().clone();
        match source.quantisation() {
            None => {
                let weights = source.weights::<T>().unwrap();
                Self::of(device, config, weights, WeightFormat::dense::<T>(), stored)
            }
            Some(format) => {
                let weights = source.quantised_weights::<T>().unwrap();
                Self::of(device, config, weights, WeightFormat::quantised::<T>(format), stored)
            }
        }
    }

    fn of<B: Backend, W: ExpertWeights<Element: Storage>>(
        device: &Device<B>,
        config: moe_kernels::MoeConfig,
        weights: LayerWeights<W>,
        mut format: WeightFormat,
        stored: &Checkpoint,
    ) -> Self {
        if let RouterMatrix::F32(_) = weights.router.matrix {
            format.router = DType::F32;
        }
        let (backend, stream) = (&device.backend, &device.stream);
        let layer = MoeLayer::<B, W>::new(backend.clone(), config, weights, stream).unwrap();
        let config = layer.config();
        let (h, k, choices) = (config.hidden_size, config.top_k, config.router_experts());
        let x: Vec<W::Element> =
            stored.tensor("fixture.hidden_states", "").unwrap().read().unwrap();
        let tokens = x.len() / h;
        let x = device.put(&x);
        let mut out = backend.allocate::<W::Element>("out", tokens * h).unwrap();
        let mut workspace = layer.workspace(tokens).unwrap();
        let memory = config.memory::<B, W::Element>(format, tokens).unwrap();
        assert_eq!(memory.weights(), layer.weight_bytes(), "{config:?}");

        let mut input = LayerInput::new(Matrix::contiguous("x", &x, tokens, h).unwrap());
        let read = |name: &str| stored.tensor(name, "").unwrap().read_f64().unwrap();
        let token_ids = match config.router.selection {
            Selection::HashTable { .. } => {
                let ids = read("fixture.input_ids");
                Some(device.put(&ids.into_iter().map(|id| id as u32).collect::<Vec<_>>()))
            }
            _ => None,
        };
        input.token_ids = token_ids.as_ref();
        let offsets = match config.router.capacity {
            Capacity::Sequence { .. } => {
                let shape = &header(stored)["shape"];
                let [sequences, length] = ["B", "S"].map(|key| shape[key].as_u64().unwrap() as u32);
                Some(device.put(&(0..=sequences).map(|at| at * length).collect::<Vec<_>>()))
            }
            _ => None,
        };
        input.sequence_offsets = offsets.as_ref();
        let output = MatrixMut::contiguous("out", &mut out, tokens, h).unwrap();
        layer.forward(&input, Output::overwrite(output), &mut workspace, stream).unwrap();

        let routing = workspace.routing().unwrap();
        let ids = device.get(routing.topk_ids.buffer());
        let topk_weights = device.get(routing.topk_weights.buffer());
        let mut selected = vec![0.0; tokens * choices];
        let mut weights = selected.clone();
        for (assignment, (&id, &weight)) in ids[..tokens * k].iter().zip(&topk_weights).enumerate()
        {
            // Dropped tokens have no expert.
            if let Ok(id) = usize::try_from(id) {
                let place = assignment / k * choices + id;
                selected[place] = 1.0;
                weights[place] = f64::from(weight);
            }
        }
        let mut logits = wide(&device.get(workspace.router_logits().unwrap().buffer()));
        logits.truncate(tokens * choices);
        Self { output: wide(&device.get(&out)), logits, selected, weights }
    }

    /// Against what the file stores; `bound` is the output's.
    #[track_caller]
    pub(crate) fn check(&self, what: &str, stored: &Checkpoint, bound: f64) {
        let read = |name: &str| {
            let tensor = stored.tensor(&format!("fixture.{name}"), "a result").unwrap();
            (tensor.read_f64().unwrap(), *tensor.shape().last().unwrap())
        };
        assert_eq!(self.selected, read("selected").0, "{what}: selection");
        // Inputs and gates are exact in every type, and routing is in f32.
        for (name, values, bound) in [
            ("router_logits", &self.logits, 1e-6),
            ("combine_weights", &self.weights, 1e-6),
            ("f64.output", &self.output, bound),
        ] {
            let (expected, cols) = read(name);
            let error = rel_l2(values, &expected, cols).unwrap();
            assert!(error <= bound, "{what} {name}: relative L2 {error:e}, bound {bound:e}");
        }
    }
}

/// A family's golden file on a device, within the bounds of targets.md or a tighter one.
pub(crate) fn check_golden<B: Backend, T: Storage>(
    on: &str,
    device: &Device<B>,
    name: &str,
    bound: f64,
) {
    let what = format!("{name} {} on {on}", T::NAME);
    let stored = golden(name);
    let model = golden_model(&stored);
    let layers = stored.moe_layers(model.family);
    assert_eq!(layers.len(), 1, "{what}");
    let computed = Computed::run::<B, T>(device, &stored, &model, layers[0], &stored);
    computed.check(&what, &stored, bound);
}
