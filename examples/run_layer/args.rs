//! The command line.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Load a model's MoE layer, route its tokens, run its experts, check the result.
///
/// Without arguments: the Mixtral layer in tests/fixtures. Exit status: 0 if every stored result
/// is met within tolerance, 1 if not, 2 for bad input.
#[derive(Debug, Parser)]
#[command(name = "run_layer", version)]
pub struct Args {
    /// A .safetensors file or a checkpoint folder [default: the Mixtral fixture]
    pub file: Option<PathBuf>,

    /// The layer of the checkpoint [default: its first MoE layer]
    #[arg(long, value_name = "N", conflicts_with = "model")]
    pub layer: Option<usize>,

    /// Where to run
    #[arg(long, value_enum, default_value_t = BackendName::Auto)]
    pub backend: BackendName,

    /// Which kernels to run, on cuda and emulator
    #[arg(long, value_enum, default_value_t = PathName::Auto)]
    pub path: PathName,

    /// Element type of weights and activations [default: f32 on the cpu, bf16 elsewhere]
    #[arg(long, value_enum)]
    pub dtype: Option<DTypeName>,

    /// A full-size layer of a named model, with random weights, instead of a file
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    pub model: Option<String>,

    /// Number of random tokens, where the file stores none [default: 64]
    #[arg(long, value_name = "T")]
    pub tokens: Option<usize>,

    /// Timed runs, after one that is not timed if there are several
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub repeat: u32,

    /// A key of config.json that does not change the layer's result, though its name looks so
    #[arg(long, value_name = "KEY")]
    pub ignore_key: Vec<String>,

    /// Print one JSON object on one line instead of the report (an error with NaN in it is null)
    #[arg(long)]
    pub json: bool,

    /// Write output, router_logits, selected and combine_weights to a .safetensors file
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    Auto,
    Cpu,
    Cuda,
    Emulator,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PathName {
    Auto,
    Hopper,
    Portable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DTypeName {
    F32,
    Bf16,
    F16,
}

/// What clap says over several lines, in one.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let reason = text.split("\n\n").next().unwrap_or_default();
    let reason = reason.strip_prefix("error: ").unwrap_or(reason);
    reason.split_whitespace().collect::<Vec<_>>().join(" ")
}
