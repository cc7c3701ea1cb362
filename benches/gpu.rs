//! The whole layer on this machine's GPU, full-size models, random weights and tokens, as CSV.
//!
//! ```text
//! cargo bench --features cuda --bench gpu > gpu.csv
//! cargo bench --features cuda --bench gpu -- qwen3      # models by a part of their name
//! ```
//!
//! A forward is captured once and launched as a graph; the time of a launch is that between two events, with
//! [`INNER`] launches between them. The weights of the experts that a few tokens choose may stay in L2.

mod shapes;
mod synthetic;

use half::bf16;
use moe_kernels::cuda::Path;
use moe_kernels::cuda::driver::Driver;
use moe_kernels::cuda::nvidia::NvidiaDriver;
use moe_kernels::memory::{Matrix, MatrixMut, Memory};
use moe_kernels::ops::{LayerInput, Output};
use moe_kernels::{Cuda, MoeLayer, Result};

use shapes::{BENCHED, MODELS, NamedModel};

const TOKENS: [usize; 8] = [1, 4, 16, 64, 256, 1024, 4096, 16384];
/// Measurements, of which the median, the least and the most are printed.
const SAMPLES: usize = 21;
/// Launches of one measurement.
const INNER: u32 = 10;

fn main() -> std::process::ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let capability = match NvidiaDriver::new(0) {
        Ok(driver) => driver.properties().compute_capability,
        Err(error) => {
            eprintln!("SKIPPED on the GPU: the bench: {error}");
            return std::process::ExitCode::SUCCESS;
        }
    };
    println!("device,model,path,dtype,tokens,median_us,least_us,most_us,tflops,weights_gb_s");
    let paths =
        if capability == 90 { &[Path::Hopper, Path::Portable][..] } else { &[Path::Portable] };
    for model in MODELS.iter().filter(|model| BENCHED.contains(&model.name)) {
        if !wanted.is_empty() && !wanted.iter().any(|part| model.name.contains(part.as_str())) {
            continue;
        }
        for &path in paths {
            if let Err(error) = bench(model, path) {
                eprintln!("{} by {path}: {error}", model.name);
                return std::process::ExitCode::FAILURE;
            }
        }
    }
    std::process::ExitCode::SUCCESS
}

fn bench(model: &NamedModel, path: Path) -> Result<()> {
    let cuda = Cuda::open(0, path)?;
    let stream = cuda.create_stream()?;
    let (config, driver) = (model.config()?, cuda.driver());
    let (h, most) = (config.hidden_size, TOKENS[TOKENS.len() - 1]);
    let weights = synthetic::weights::<bf16>(&config)?;
    let layer = MoeLayer::new(cuda.clone(), config.clone(), weights, &stream)?;
    let values: Vec<bf16> = synthetic::values(synthetic::HIDDEN_STATES, 1.0, most * h);
    let x = cuda.buffer_from("hidden_states", &values, &stream)?;
    let mut out = cuda.allocate::<bf16>("output", most * h)?;
    let (start, end) = (driver.create_event()?, driver.create_event()?);
    for tokens in TOKENS {
        let mut workspace = layer.workspace(tokens)?;
        let input = LayerInput::new(Matrix::contiguous("hidden_states", &x, tokens, h)?);
        driver.begin_capture(stream.raw())?;
        let output = Output::overwrite(MatrixMut::contiguous("output", &mut out, tokens, h)?);
        layer.forward(&input, output, &mut workspace, &stream)?;
        let graph = driver.end_capture(stream.raw())?;
        let mut micros = Vec::new();
        // The first two warm up.
        for sample in 0..SAMPLES + 2 {
            driver.record_event(start, stream.raw())?;
            for _ in 0..INNER {
                // SAFETY: the buffers of the captured forward live until the end of the loop.
                #[allow(unsafe_code)]
                unsafe { driver.launch_graph(graph, stream.raw()) }?;
            }
            driver.record_event(end, stream.raw())?;
            let elapsed = driver.elapsed_ms(start, end)?;
            if sample >= 2 {
                micros.push(elapsed * 1e3 / INNER as f32);
            }
        }
        driver.destroy_graph(graph)?;
        micros.sort_by(f32::total_cmp);
        let (least, median, longest) = (micros[0], micros[SAMPLES / 2], micros[SAMPLES - 1]);
        let assignments = (tokens * config.top_k) as u64;
        let parameters = config.expert_parameters();
        let tflops = 2.0 * (assignments * parameters) as f64 / f64::from(median) / 1e6;
        let read = assignments.min(config.num_experts as u64) * parameters * 2;
        let gb_s = read as f64 / f64::from(median) / 1e3;
        println!(
            "{},{},{path},bf16,{tokens},{median:.2},{least:.2},{longest:.2},{tflops:.1},{gb_s:.0}",
            cuda.properties().name,
            model.name
        );
    }
    driver.destroy_event(start)?;
    driver.destroy_event(end)?;
    Ok(())
}
