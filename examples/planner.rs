//! What a model's MoE layers weigh, compute and move, and what of it fits in a given memory.
//!
//! ```text
//! cargo run --release --example planner                           # every named model
//! cargo run --release --example planner -- --memory 141 qwen3     # those that fit on a GPU of 141 GB
//! cargo run --release --example planner -- --tokens 8192 deepseek-v3
//! ```

use anyhow::{Result, bail};
use clap::Parser;
use half::bf16;
use moe_emulator::EmulatedDriver;
use moe_kernels::element::DType;
use moe_kernels::layer::{MemoryUse, WeightFormat};
use moe_kernels::weights::QuantFormat;
use moe_kernels::{Cuda, MoeConfig};

#[path = "../benches/shapes.rs"]
mod shapes;

use shapes::{MODELS, NamedModel};

/// What MoE layers weigh, compute and move, and what of it fits.
#[derive(Parser)]
struct Args {
    /// Parts of models' names; all models without one.
    models: Vec<String>,
    /// Tokens of a forward.
    #[arg(long, default_value_t = 4096)]
    tokens: usize,
    /// Gigabytes (10^9) of memory that the MoE layers may take.
    #[arg(long)]
    memory: Option<f64>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let is_wanted = |model: &&NamedModel| {
        args.models.is_empty() || args.models.iter().any(|part| model.name.contains(part.as_str()))
    };
    let models: Vec<_> = MODELS.iter().filter(is_wanted).collect();
    if models.is_empty() {
        let names: Vec<_> = MODELS.iter().map(|model| model.name).collect();
        bail!("no model is called {:?}; known: {}", args.models, names.join(", "));
    }
    println!("All MoE layers of a model, on the CUDA backend; GB is 10^9 bytes.\n");
    for model in models {
        print_model(model, &args)?;
    }
    Ok(())
}

fn print_model(model: &NamedModel, args: &Args) -> Result<()> {
    let config = model.config()?;
    let MoeConfig { hidden_size, intermediate_size, top_k, .. } = config;
    let layers = model.layers as f64;
    let billions = |parameters: u64| parameters as f64 * layers / 1e9;
    println!(
        "{}: {} MoE layers, H {hidden_size}, I {intermediate_size}, E {}, K {top_k}",
        model.name, model.layers, config.num_experts
    );
    print!(
        "  parameters  {:.1} B in MoE layers, {:.2} B of them for each token",
        billions(config.parameters()),
        billions(config.active_parameters())
    );
    match model.billions {
        Some((total, active)) => println!(" (whole model {total} B, {active} B)"),
        None => println!(),
    }
    println!(
        "  a token     {:.2} GFLOP; {:.2} GB of weights read in bf16 where it is alone",
        2.0 * billions(config.active_parameters()),
        2.0 * billions(config.active_parameters())
    );
    let [as_wide, all] = dense_equivalent(&config);
    println!("  dense       an FFN of I = {as_wide} does the same work; one of {all} is as large");
    for (name, format) in [
        ("bf16", None),
        ("fp8", Some(QuantFormat::Fp8Block)),
        ("mxfp4", Some(QuantFormat::Mxfp4)),
        ("int4", Some(QuantFormat::Int4 { group: 32 })),
    ] {
        let memory = memory(&config, format, args.tokens)?;
        // Layers take turns with one workspace.
        let weights = memory.weights() as f64 * layers / 1e9;
        let rest = (memory.workspace + memory.activations) as f64 / 1e9;
        print!(
            "  {name:<10}  {weights:>8.2} GB of weights, {rest:.2} GB for {} tokens",
            args.tokens
        );
        match args.memory {
            None => println!(),
            Some(limit) if weights + rest <= limit => println!("; fits"),
            Some(limit) => {
                let fitting = ((limit - rest) * 1e9 / memory.weights() as f64).max(0.0).floor();
                println!("; {fitting} layers of {layers} fit");
            }
        }
    }
    println!();
    Ok(())
}

fn memory(config: &MoeConfig, format: Option<QuantFormat>, tokens: usize) -> Result<MemoryUse> {
    // The bytes do not depend on the driver.
    type Backend = Cuda<EmulatedDriver>;
    let format = WeightFormat { experts: format, shared: format, router: DType::Bf16 };
    Ok(config.memory::<Backend, bf16>(format, tokens)?)
}

/// The widths of dense FFNs of the same kind: one that does the same work for a token, and one that has
/// as many weights.
fn dense_equivalent(config: &MoeConfig) -> [usize; 2] {
    let shared = config.experts.shared.map_or(0, |shared| shared.intermediate_size);
    let width = config.intermediate_size * config.expert_width() / config.hidden_size;
    [config.top_k * width + shared, config.num_experts * width + shared]
}
