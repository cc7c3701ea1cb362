//! The crate's main job in one command: load a MoE layer, run it, check it.
//!
//! ```text
//! cargo run --release --example run_layer                                  # the Mixtral fixture
//! cargo run --release --example run_layer -- path/to/checkpoint --layer 3
//! cargo run --release --example run_layer -- --model qwen3-30b-a3b --tokens 512 --repeat 10
//! ```

mod args;
mod check;
mod device;
mod launches;
mod memory;
mod report;
mod save;
#[path = "../../benches/shapes.rs"]
mod shapes;
mod source;
#[path = "../../benches/synthetic.rs"]
mod synthetic;

use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, anyhow, bail};
use clap::Parser;
use half::{bf16, f16};
use moe_kernels::config::{Capacity, Selection};
use moe_kernels::element::{Element, Float};
use moe_kernels::memory::{Matrix, MatrixMut, Memory};
use moe_kernels::ops::{LayerInput, Output};
use moe_kernels::weights::{ExpertWeights, LayerWeights};
use moe_kernels::{Error, MoeLayer};

use args::{Args, BackendName, DTypeName};
use check::{Check, Computed};
use device::{Device, OnCpu};
use launches::Launches;
use report::Report;
use source::Source;

fn main() -> ExitCode {
    let result = match Args::try_parse() {
        Ok(args) => run(&args),
        Err(help) if !help.use_stderr() => help.exit(),
        Err(error) => Err(anyhow!(args::one_line(&error))),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether every stored result is met.
fn run(args: &Args) -> Result<bool> {
    if let Some(path) = &args.save {
        save::check_path(path)?;
    }
    match args.backend {
        // A type that the kernels do not take asks for the CPU.
        #[cfg(feature = "cuda")]
        BackendName::Auto if args.dtype != Some(DTypeName::F32) && device::has_gpu() => {
            run_kernels(args, &device::nvidia(args.path)?)
        }
        BackendName::Auto | BackendName::Cpu => {
            device::check_cpu_path(args.path)?;
            match args.dtype.unwrap_or(DTypeName::F32) {
                DTypeName::F32 => run_on::<_, f32>(args, &OnCpu),
                DTypeName::Bf16 => run_on::<_, bf16>(args, &OnCpu),
                DTypeName::F16 => run_on::<_, f16>(args, &OnCpu),
            }
        }
        BackendName::Emulator => run_kernels(args, &device::emulated(args.path)?),
        #[cfg(feature = "cuda")]
        BackendName::Cuda => run_kernels(args, &device::nvidia(args.path)?),
        #[cfg(not(feature = "cuda"))]
        BackendName::Cuda => Err(Error::Unsupported {
            what: "--backend cuda, which is not built without the feature cuda,".to_owned(),
            supported: "cpu, emulator".to_owned(),
        }
        .into()),
    }
}

/// In a type that the kernels take.
fn run_kernels<D: Device>(args: &Args, device: &D) -> Result<bool> {
    match args.dtype.unwrap_or(DTypeName::Bf16) {
        DTypeName::F32 => Err(Error::Unsupported {
            what: format!("--dtype f32 on --backend {}", D::NAME),
            supported: "bf16, f16".to_owned(),
        }
        .into()),
        DTypeName::Bf16 => run_on::<_, bf16>(args, device),
        DTypeName::F16 => run_on::<_, f16>(args, device),
    }
}

/// Where each of the sequences of `[B, S, H]` starts.
fn sequences(shape: &[usize]) -> Vec<u32> {
    let length = shape[shape.len() - 2];
    let count = shape[..shape.len() - 2].iter().product::<usize>();
    (0..=count).map(|sequence| (sequence * length) as u32).collect()
}

fn run_on<D: Device, T: Float>(args: &Args, device: &D) -> Result<bool> {
    let source = Source::open(args)?;
    match source.quantisation() {
        None => run_weights(args, device, &source, Source::weights::<T>),
        Some(_) => run_weights(args, device, &source, Source::quantised_weights::<T>),
    }
}

/// With weights in format `W`.
fn run_weights<D: Device, W: ExpertWeights>(
    args: &Args,
    device: &D,
    source: &Source,
    weights: impl FnOnce(&Source) -> Result<LayerWeights<W>>,
) -> Result<bool> {
    let config = source.config().clone();
    let shape = source.token_shape(args.tokens)?;
    let num_tokens = shape[..shape.len() - 1].iter().product();
    memory::ensure_fits::<D::Backend, W::Element>(source, num_tokens, device.memory_bytes())?;

    let (backend, stream) = (device.backend(), device.stream());
    let weights = weights(source)?;
    let layer = MoeLayer::<_, W>::new(backend.clone(), config.clone(), weights, stream)?;
    let mut workspace = layer.workspace(num_tokens)?;
    let x = backend.buffer_from("hidden_states", &source.tokens::<W::Element>(&shape)?, stream)?;
    let mut out = backend.allocate::<W::Element>("output", num_tokens * config.hidden_size)?;

    let mut input =
        LayerInput::new(Matrix::contiguous("hidden_states", &x, num_tokens, config.hidden_size)?);
    let token_ids = match (config.router.selection, source.token_ids()?) {
        (Selection::HashTable { .. }, Some(ids)) => {
            Some(backend.buffer_from("token_ids", &ids, stream)?)
        }
        _ => None,
    };
    input.token_ids = token_ids.as_ref();
    let sequence_offsets = match config.router.capacity {
        Capacity::Sequence { .. } => {
            Some(backend.buffer_from("sequence_offsets", &sequences(&shape), stream)?)
        }
        _ => None,
    };
    input.sequence_offsets = sequence_offsets.as_ref();
    let warm_up = u64::from(args.repeat > 1);
    let mut seconds = Vec::new();
    let mut kernels = Vec::new();
    for run in 0..u64::from(args.repeat) + warm_up {
        let output = MatrixMut::contiguous("output", &mut out, num_tokens, config.hidden_size)?;
        let start = Instant::now();
        let (done, launched) = Launches::of(|| {
            layer.forward(&input, Output::overwrite(output), &mut workspace, stream)?;
            device.finish()
        });
        done?;
        if run >= warm_up {
            seconds.push(start.elapsed().as_secs_f64());
        }
        kernels = launched;
    }

    let computed = Computed::download(backend, &workspace, &out, &config, stream)?;
    let check = Check::new(source, &computed, W::Element::DTYPE, &shape)?;
    if let Some(path) = &args.save {
        save::save(&computed, path, &shape)?;
    }
    let report = Report {
        family: source.family(),
        model: source.model(),
        backend: D::NAME,
        path: launches::path(&kernels),
        kernels: &kernels,
        wgmmas: device.wgmmas(),
        dtype: W::Element::DTYPE,
        num_tokens,
        config: &config,
        weight_bytes: layer.weight_bytes(),
        tokens_per_expert: &computed.tokens_per_expert,
        seconds,
        check: &check,
    };
    let text = if args.json { report.json() + "\n" } else { report.to_string() };
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // A reader that has seen enough is no failure of ours.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => bail!("standard output: {error}"),
        _ => Ok(check.passed()),
    }
}
