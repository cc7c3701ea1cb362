//! What runs on this machine, and why: driver, GPUs, kernels; and what to do where something is missing.
//!
//! ```text
//! cargo run --features cuda --example doctor
//! ```

#[cfg(not(feature = "cuda"))]
fn main() {
    println!("moe-kernels {} without the feature `cuda`: only the CPU backend", version());
    println!("  to do    cargo run --features cuda --example doctor");
}

fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

#[cfg(feature = "cuda")]
fn main() -> std::process::ExitCode {
    println!("moe-kernels {}", version());
    match report::everything() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(missing) => {
            println!("\nno kernel runs on a GPU here: {missing}");
            println!("the CPU backend runs; `run_layer --backend cpu` shows it");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(feature = "cuda")]
mod report {
    use moe_kernels::cuda::driver::{DeviceProperties, Driver, DriverError, FunctionAttributes};
    use moe_kernels::cuda::nvidia::{self, NvidiaDriver};
    use moe_kernels::cuda::tiles::{EpilogueKind, Problem, TILES, choose};
    use moe_kernels::cuda::{Path, fatbins};

    /// The report, as far as it gets; an error says what is missing and what to do.
    pub fn everything() -> Result<(), String> {
        println!("kernels    {}", fatbins::built());
        println!("driver     CUDA {}", nvidia::driver_version().map_err(text)?);
        let count = nvidia::device_count().map_err(text)?;
        let mut usable = 0;
        for ordinal in 0..count {
            match gpu(ordinal) {
                Ok(()) => usable += 1,
                Err(why) => println!("  to do    {why}"),
            }
        }
        if usable == 0 { Err("see above".to_owned()) } else { Ok(()) }
    }

    fn text(error: impl ToString) -> String {
        error.to_string()
    }

    fn gpu(ordinal: u32) -> Result<(), String> {
        let driver = NvidiaDriver::new(ordinal).map_err(text)?;
        let device = driver.properties().clone();
        let (major, minor) = (device.compute_capability / 10, device.compute_capability % 10);
        println!("GPU {ordinal}      {}, compute capability {major}.{minor}", device.name);
        println!(
            "  has      {} multiprocessors, {} KiB of shared memory for a block, {:.1} GiB",
            device.sm_count,
            device.max_shared_per_block >> 10,
            device.memory_bytes as f64 / f64::from(1 << 30)
        );
        if device.compute_capability < 80 {
            return Err("compute capability 8.0 is the least that the kernels need".to_owned());
        }
        println!("  path     {}", path(&device));
        println!("  code     {}", code(&device));
        let images = fatbins::for_device(device.compute_capability).map_err(text)?;
        let mut modules = Vec::new();
        for image in &images {
            modules.push(driver.load_module(image).map_err(text)?);
        }
        // One kernel stands for all: it has been compiled for this device, or by the driver just now.
        let find = |name: &str| -> Result<FunctionAttributes, DriverError> {
            let mut missing = DriverError::UnknownFunction { name: name.to_owned() };
            for &module in &modules {
                match driver.function(module, name) {
                    Ok(function) => return driver.function_attributes(function),
                    Err(error) => missing = error,
                }
            }
            Err(missing)
        };
        let loaded = find("plan_small").map_err(text)?;
        println!(
            "  loads    {} fatbins (plan_small: {} registers)",
            images.len(),
            loaded.registers
        );
        println!("  tiles    Qwen3-30B-A3B, grouped GEMM 1 in bf16, by tokens:");
        for tokens in [1, 16, 64, 256, 1024, 4096] {
            let problem = Problem {
                max_rows: tokens * 8,
                num_experts: 128,
                columns: 768,
                depth: 2048,
                gated: true,
                adjusted: false,
                codes: None,
            };
            let tile = choose(TILES, &problem, &device, Path::Auto).map_err(text)?;
            let kernel = tile.kernel(EpilogueKind::GateUp, "bf16");
            let registers = find(&kernel).map(|found| found.registers.to_string());
            let registers = registers.unwrap_or_else(|error| error.to_string());
            println!("    {tokens:>6}   {kernel} ({registers} registers)");
        }
        Ok(())
    }

    /// Which grouped GEMMs run, and why.
    fn path(device: &DeviceProperties) -> &'static str {
        match device.compute_capability {
            90 => "hopper: TMA and wgmma, compiled for sm_90a",
            _ => "portable: cp.async and mma.sync; the Hopper kernels run on 9.0 alone",
        }
    }

    /// Machine code, or PTX that the driver compiles at the first load.
    fn code(device: &DeviceProperties) -> String {
        let cap = device.compute_capability;
        let listed = fatbins::sass();
        match listed.iter().filter(|&&sass| sass <= cap && sass / 10 == cap / 10).max() {
            Some(sass) if *sass == cap => format!("machine code for {cap}"),
            Some(sass) => format!("machine code for {sass}, which {cap} runs too"),
            None => format!(
                "PTX for 80, which the driver compiles when it is loaded (machine code is there for \
                 {listed:?}; CUDA_COMPUTE_CAP={cap} when building adds it)"
            ),
        }
    }
}
