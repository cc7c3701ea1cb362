//! The whole layer on the CPU backend, full-size models, random weights and tokens.
//!
//! ```text
//! cargo bench --bench layer                      # every model: Mixtral takes 6 GB
//! cargo bench --bench layer -- qwen3             # one model
//! cargo bench --bench layer -- bf16/T=1$         # one type and token count
//! ```
//!
//! Each layer's answer is checked before it is timed. At T = 1 tokens take turns, so that the
//! experts are read from memory and not from the cache; throughput is then the bytes of the
//! experts' weights, else FLOPs (criterion's "elem").

mod shapes;
mod synthetic;

use std::hint::black_box;

use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput, measurement::WallTime};
use half::bf16;
use moe_kernels::cpu::CpuBuffer;
use moe_kernels::element::Float;
use moe_kernels::memory::{Layout, Matrix, MatrixMut};
use moe_kernels::ops::{ExpertShape, LayerInput, Output, Workspace};
use moe_kernels::weights::{DenseExperts, ExpertMatrix};
use moe_kernels::{Cpu, MoeLayer};

use shapes::{BENCHED, MODELS, NamedModel};

const TOKENS: [usize; 2] = [1, 512];

/// Tokens that take turns at T = 1.
const TURNS: usize = 16;

type Layer<T> = MoeLayer<Cpu, DenseExperts<T>>;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    // Layers of gigabytes are only made for benchmarks that will run.
    let filters: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wanted = |prefix: &str| {
        filters.is_empty()
            || filters.iter().any(|f| {
                TOKENS.iter().any(|t| format!("{prefix}/T={t}").contains(f.trim_end_matches('$')))
            })
    };
    for model in MODELS.iter().filter(|model| BENCHED.contains(&model.name)) {
        let name = |dtype| format!("layer/{}/{dtype}", model.name);
        if wanted(&name("f32")) {
            bench_model::<f32>(&mut criterion, model, &name("f32"));
        }
        if wanted(&name("bf16")) {
            bench_model::<bf16>(&mut criterion, model, &name("bf16"));
        }
    }
    criterion.final_summary();
}

fn bench_model<T: Float>(criterion: &mut Criterion, model: &NamedModel, name: &str) {
    let config = model.config().expect("a named model's configuration is valid");
    let weights = synthetic::weights(&config).expect("a named model's shape is valid");
    let layer =
        MoeLayer::new(Cpu, config.clone(), weights, &()).expect("a named model's layer is valid");
    let most = TOKENS.into_iter().max().unwrap_or(1).max(TURNS);
    let x: CpuBuffer<T> =
        synthetic::values(synthetic::HIDDEN_STATES, 1.0, most * config.hidden_size).into();
    let mut workspace = layer.workspace(most).expect("the workspace fits");
    check_first_token(&layer, &x, &mut workspace);

    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for num_tokens in TOKENS {
        bench_tokens(&mut group, &layer, &x, &mut workspace, num_tokens);
    }
    group.finish();
}

fn bench_tokens<T: Float>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    layer: &Layer<T>,
    x: &CpuBuffer<T>,
    workspace: &mut Workspace<Cpu, T>,
    num_tokens: usize,
) {
    let config = layer.config();
    let assignments = (num_tokens * config.top_k) as u64;
    group.throughput(match num_tokens {
        1 => Throughput::Bytes(assignments * config.expert_parameters() * T::DTYPE.size() as u64),
        _ => Throughput::Elements(2 * assignments * config.expert_parameters()),
    });
    let turns = if num_tokens == 1 { TURNS } else { 1 };
    let mut out = CpuBuffer::from(vec![T::from_f32(0.0); num_tokens * config.hidden_size]);
    let mut turn = 0;
    group.bench_function(format!("T={num_tokens}"), |bencher| {
        bencher.iter(|| {
            turn = (turn + 1) % turns;
            forward(layer, x, turn, num_tokens, &mut out, workspace);
            black_box(&out);
        });
    });
}

fn forward<T: Float>(
    layer: &Layer<T>,
    x: &CpuBuffer<T>,
    first_token: usize,
    num_tokens: usize,
    out: &mut CpuBuffer<T>,
    workspace: &mut Workspace<Cpu, T>,
) {
    let hidden_size = layer.config().hidden_size;
    let layout =
        Layout { offset: first_token * hidden_size, ..Layout::contiguous(num_tokens, hidden_size) };
    let x = Matrix::new("hidden_states", x, layout).expect("the tokens are there");
    let out = MatrixMut::contiguous("output", out, num_tokens, hidden_size).expect("it fits");
    layer
        .forward(&LayerInput::new(x), Output::overwrite(out), workspace, &())
        .expect("the layer runs");
}

/// Holds the first token's output against naive f64 loops over the same weights.
fn check_first_token<T: Float>(
    layer: &Layer<T>,
    x: &CpuBuffer<T>,
    workspace: &mut Workspace<Cpu, T>,
) {
    let config = layer.config();
    let (h, i) = (config.hidden_size, config.intermediate_size);
    let mut out = CpuBuffer::from(vec![T::from_f32(0.0); h]);
    forward(layer, x, 0, 1, &mut out, workspace);

    let shape = ExpertShape::from(config);
    let weights = DenseExperts::<T>::from_source(
        shape,
        synthetic::Experts { shape, seed: synthetic::EXPERTS },
    )
    .expect("a named model's shape is valid");
    let product = |expert: usize, matrix: ExpertMatrix, x: &[f64]| -> Vec<f64> {
        let rows = weights.read(expert, matrix).expect("synthetic weights can be read");
        let dot = |row: &[T]| row.iter().zip(x).map(|(w, x)| f64::from(w.to_f32()) * x).sum();
        rows.chunks_exact(x.len()).map(dot).collect()
    };
    let routing = workspace.routing().expect("the router ran");
    let token: Vec<f64> = x[..h].iter().map(|value| value.to_f32().into()).collect();
    let mut expected = vec![0.0; h];
    for (&id, &weight) in routing.topk_ids.buffer()[..config.top_k]
        .iter()
        .zip(&routing.topk_weights.buffer()[..config.top_k])
    {
        let gate = product(id as usize, ExpertMatrix::Gate, &token);
        let up = product(id as usize, ExpertMatrix::Up, &token);
        let activated: Vec<f64> =
            gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        assert_eq!(activated.len(), i);
        for (sum, y) in
            expected.iter_mut().zip(product(id as usize, ExpertMatrix::Down, &activated))
        {
            *sum += f64::from(weight) * y;
        }
    }
    let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let difference: Vec<f64> =
        out.iter().zip(&expected).map(|(a, b)| f64::from(a.to_f32()) - b).collect();
    let error = norm(&difference) / norm(&expected);
    let bound = if T::DTYPE.size() == 4 { 1e-5 } else { 1e-2 };
    assert!(error <= bound, "relative L2 {error:e} of the first token, bound {bound:e}");
}
