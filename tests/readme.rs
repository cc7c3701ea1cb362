//! The README's table of families, against the families' own rows and the golden files.
//!
//! `MOE_WRITE_README=1 cargo test --test readme` writes it.

#![cfg(all(feature = "cpu", feature = "checkpoint"))]

mod common;
#[path = "../benches/shapes.rs"]
mod shapes;

use common::*;
use moe_kernels::MoeConfig;
use moe_kernels::config::{
    ActivationFn, Capacity, FAMILIES, Renormalize, Scoring, Selection, SharedCombine, WeightOn,
};
use moe_kernels::weights::QuantFormat;

const BEGIN: &str = "<!-- families: written by tests/readme.rs -->\n";
const END: &str = "<!-- families end -->\n";

/// Layers of one family: golden ones, and those of named models.
fn layers(family: &str) -> (Vec<String>, Vec<MoeConfig>, Vec<QuantFormat>) {
    let (mut names, mut configs, mut formats) = (Vec::new(), Vec::new(), Vec::new());
    for name in golden_names() {
        let stored = golden(&name);
        let model = golden_model(&stored);
        if model.family.name == family {
            let layer = stored.layer(&model, stored.moe_layers(model.family)[0]).unwrap();
            configs.push(layer.config().clone());
            formats.extend(layer.quantisation());
            names.push(name);
        }
    }
    for named in shapes::MODELS {
        let model = named.model().unwrap();
        if model.family.name == family {
            configs.push(model.moe);
        }
    }
    (names, configs, formats)
}

/// Words for each rule that some layer has, in the order of the rules.
fn rules(configs: &[MoeConfig]) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut add = |word: &str| {
        if !words.iter().any(|known| known == word) {
            words.push(word.to_owned());
        }
    };
    for config in configs {
        add(match config.router.scoring {
            Scoring::Softmax => "softmax",
            Scoring::Sigmoid => "sigmoid",
            Scoring::SqrtSoftplus => "sqrt-softplus",
            Scoring::SparseMixer { .. } => "sparsemixer",
            _ => "?",
        });
    }
    for config in configs {
        let (router, experts) = (&config.router, &config.experts);
        let shared = experts.shared.map(|shared| shared.combine);
        for (is_so, word) in [
            (router.bias, "router bias"),
            (router.selection_bias, "selection bias"),
            (router.groups.is_some(), "groups"),
            (matches!(router.selection, Selection::HashTable { .. }), "hash table"),
            (router.norm_eps.is_some(), "router norm"),
            (router.zero_experts > 0, "zero experts"),
            (router.capacity != Capacity::Unlimited, "capacity"),
            (matches!(router.renormalize, Renormalize::PNorm { .. }), "p-norm"),
            (experts.weight_on == WeightOn::Input, "weighted input"),
            (experts.activation == ActivationFn::GeGluTanh, "GEGLU"),
            (matches!(experts.activation, ActivationFn::SwiGluClamped { .. }), "clamped SwiGLU"),
            (matches!(experts.activation, ActivationFn::SwiGluThenClamp { .. }), "clamped SwiGLU"),
            (matches!(experts.activation, ActivationFn::SwiGluOai { .. }), "gpt-oss SwiGLU"),
            (experts.activation == ActivationFn::Relu, "ReLU"),
            (experts.activation == ActivationFn::Relu2, "ReLU²"),
            (experts.bias, "expert biases"),
            (experts.output_bias, "output bias"),
            (experts.latent_size.is_some(), "latent width"),
            (shared == Some(SharedCombine::Sum), "shared expert"),
            (shared == Some(SharedCombine::SigmoidGate), "gated shared expert"),
            (shared == Some(SharedCombine::Average), "averaged shared expert"),
        ] {
            if is_so {
                add(word);
            }
        }
    }
    words.join(", ")
}

fn table() -> String {
    let mut table = "| family (`model_type`) | rules | golden layers | CPU | Hopper | portable |\n\
                     |---|---|---|---|---|---|\n"
        .to_owned();
    for family in FAMILIES {
        let (names, configs, formats) = layers(family.name);
        let rules = match configs.is_empty() {
            true => "as the family that it follows".to_owned(),
            false => rules(&configs),
        };
        // What has a golden layer is checked on it, on each path; the others by random layers of their rules.
        let (cpu, model) = match names.is_empty() {
            true => ("oracle", "model, by the oracle"),
            false => ("golden", "model, golden"),
        };
        let quantised = formats.iter().map(|format| format!("{format}")).collect::<Vec<_>>();
        let golden = match (names.is_empty(), quantised.is_empty()) {
            (true, _) => String::new(),
            (false, true) => names.join(", "),
            (false, false) => format!("{} ({})", names.join(", "), quantised.join(", ")),
        };
        table += &format!(
            "| {} (`{}`) | {rules} | {golden} | {cpu} | {model} | {model} |\n",
            family.name,
            family.model_types.join("`, `"),
        );
    }
    table
}

#[test]
fn the_table_of_families_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(path).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("the table's beginning");
    let (table_of_readme, after) = rest.split_once(END).expect("the table's end");
    if std::env::var_os("MOE_WRITE_README").is_some() {
        std::fs::write(path, [before, BEGIN, &table(), END, after].concat()).unwrap();
        return;
    }
    assert_eq!(table_of_readme, table(), "MOE_WRITE_README=1 cargo test --test readme");
}

/// Every named model's configuration is read, and is a family's.
#[test]
fn named_models_are_read() {
    for named in shapes::MODELS {
        let model = named.model().unwrap_or_else(|error| panic!("{}: {error}", named.name));
        let Some((billions, _)) = named.billions else { continue };
        let own = model.moe.parameters() as f64 * named.layers as f64 / 1e9;
        let share = own / billions;
        // Attention and embeddings are the rest; a wrong size would show.
        assert!((0.6..1.001).contains(&share), "{}: {own} B of {billions} B", named.name);
    }
}
