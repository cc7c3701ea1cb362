//! The kernels on this machine's GPU, behind NVIDIA's driver: the checks that run on the emulator, and
//! larger ones. Without a GPU each test says that it skips; with `MOE_REQUIRE_GPU=1` it fails.

#![cfg(all(feature = "cuda", feature = "cpu", feature = "checkpoint"))]

mod common;

use std::io::Write as _;

use common::*;
use half::{bf16, f16};
use moe_kernels::Cuda;
use moe_kernels::MoeConfig;
use moe_kernels::cuda::Path;
use moe_kernels::cuda::driver::{Driver, DriverError};
use moe_kernels::cuda::fatbins;
use moe_kernels::cuda::nvidia::NvidiaDriver;
use moe_kernels::cuda::tiles::TILES;
use moe_kernels::ops::Write;

type Gpu = Device<Cuda<NvidiaDriver>>;

fn stream_of(backend: Cuda<NvidiaDriver>) -> Gpu {
    let stream = backend.create_stream().unwrap();
    Device { backend, stream }
}

/// GPU 0 by each path that it has, or `None`, said aloud.
fn gpus(test: &str) -> Option<Vec<Gpu>> {
    match Cuda::open(0, Path::Portable) {
        Ok(portable) => {
            let mut gpus = vec![stream_of(portable)];
            if runs_hopper(&gpus[0]) {
                gpus.push(stream_of(Cuda::open(0, Path::Hopper).unwrap()));
            }
            Some(gpus)
        }
        Err(error) => {
            let required = std::env::var_os("MOE_REQUIRE_GPU").is_some_and(|value| value == "1");
            assert!(!required, "MOE_REQUIRE_GPU=1: {error}");
            // Past the test harness, which keeps the output of a passing test to itself.
            let _ = writeln!(std::io::stderr(), "SKIPPED on the GPU: {test}: {error}");
            None
        }
    }
}

/// There is no PTX of Hopper's kernels for the driver to compile.
fn runs_hopper(gpu: &Gpu) -> bool {
    let only_ptx = std::env::var_os("CUDA_FORCE_PTX_JIT").is_some_and(|value| value == "1");
    gpu.backend.properties().compute_capability == 90 && !only_ptx
}

fn describe(gpu: &Gpu) -> String {
    format!("{} {}", gpu.backend.properties().name, gpu.backend.path())
}

#[test]
fn layers_equal_the_oracle_bf16() {
    let Some(gpus) = gpus("layers_equal_the_oracle_bf16") else { return };
    for case in cases() {
        gpus.iter().for_each(|gpu| check_case::<_, bf16>(&describe(gpu), gpu, &case));
    }
}

#[test]
fn layers_equal_the_oracle_f16() {
    let Some(gpus) = gpus("layers_equal_the_oracle_f16") else { return };
    for case in cases() {
        gpus.iter().for_each(|gpu| check_case::<_, f16>(&describe(gpu), gpu, &case));
    }
}

#[test]
fn families_agree_with_their_reference() {
    let Some(gpus) = gpus("families_agree_with_their_reference") else { return };
    for name in golden_names() {
        gpus.iter().for_each(|gpu| check_golden::<_, bf16>(&describe(gpu), gpu, &name, 1e-2));
    }
}

#[test]
fn a_captured_graph_replays() {
    let Some(gpus) = gpus("a_captured_graph_replays") else { return };
    gpus.iter().for_each(|gpu| check_graph(&describe(gpu), gpu));
}

/// Each tile by itself, whatever the choice would be.
#[test]
fn every_tile_equals_the_oracle() {
    let Some(gpus) = gpus("every_tile_equals_the_oracle") else { return };
    let properties = gpus[0].backend.properties().clone();
    for tile in TILES.iter().filter(|t| t.family.codes().is_none() && t.fits(&properties)) {
        let (path, capability) = match tile.family.is_hopper() {
            true => (Path::Hopper, 90),
            false => (Path::Portable, 80),
        };
        if path == Path::Hopper && !runs_hopper(&gpus[0]) {
            continue;
        }
        let images = fatbins::for_device(capability).unwrap();
        let driver = NvidiaDriver::new(0).unwrap();
        let alone = std::slice::from_ref(tile);
        let gpu = stream_of(Cuda::with_tiles(driver, &images, path, alone).unwrap());
        for case in cases().iter().step_by(2) {
            check_case::<_, bf16>(&format!("{tile:?}"), &gpu, case);
        }
    }
}

/// What compute-sanitizer has the time for.
#[test]
fn small_layers() {
    let Some(gpus) = gpus("small_layers") else { return };
    for gpu in &gpus {
        let sizes = [(1, 64, 32, 4, 2), (9, 72, 40, 5, 3), (140, 128, 64, 3, 2)];
        for (tokens, hidden, intermediate, experts, top_k) in sizes {
            let config = MoeConfig::new(hidden, intermediate, experts, top_k);
            let name = format!("small [T {tokens}]");
            let case = Case { name, tokens, config, ..named("regular [") };
            check_case::<_, bf16>(&describe(gpu), gpu, &case);
        }
    }
}

/// The same bits again, on another stream, at other addresses.
#[test]
fn results_are_the_same_bits() {
    let Some(gpus) = gpus("results_are_the_same_bits") else { return };
    for gpu in &gpus {
        for case in cases().iter().step_by(3) {
            let data = Data::<bf16>::new(case);
            let run = |gpu: &Gpu| {
                let layer = layer(gpu, case, &data);
                let mut workspace = layer.workspace(case.tokens).unwrap();
                bits(&forward(gpu, &layer, &Call::new(&data.x), &mut workspace))
            };
            let first = run(gpu);
            for others in 0..4 {
                let _others: Vec<_> = (0..others).map(|_| gpu.put(&[0_u32; 5000])).collect();
                let again = stream_of(gpu.backend.clone());
                assert_eq!(run(&again), first, "{} on {}", case.name, describe(gpu));
            }
        }
    }
}

/// A layer of a real model's size, against the CPU backend.
#[test]
fn a_large_layer_agrees_with_the_cpu() {
    let Some(gpus) = gpus("a_large_layer_agrees_with_the_cpu") else { return };
    for tokens in [1, 40, 700] {
        let case = Case {
            name: format!("OLMoE's size [T {tokens}]"),
            tokens,
            config: MoeConfig::new(2048, 1024, 64, 8),
            ..named("regular [")
        };
        let data = Data::<bf16>::new(&case);
        let run_cpu = || {
            let (cpu, call) = (cpu(), Call::new(&data.x));
            let layer = layer(&cpu, &case, &data);
            let mut workspace = layer.workspace(case.tokens).unwrap();
            forward(&cpu, &layer, &call, &mut workspace)
        };
        let truth = wide(&run_cpu());
        for gpu in &gpus {
            let layer = layer(gpu, &case, &data);
            let mut workspace = layer.workspace(case.tokens).unwrap();
            let given = wide(&forward(gpu, &layer, &Call::new(&data.x), &mut workspace));
            let error = rel_l2(&given, &truth, 2048).unwrap();
            assert!(error <= 1e-2, "{} on {}: {error:e}", case.name, describe(gpu));
        }
    }
}

/// Plans of many assignments, exactly; and a stage whose rows have gaps.
#[test]
fn stages_equal_the_oracle() {
    let Some(gpus) = gpus("stages_equal_the_oracle") else { return };
    let gpu = &gpus[0];
    let mut rng = named("regular [").rng();
    for (tokens, experts, top_k) in [(1, 1, 1), (3, 1024, 32), (5000, 128, 8), (70_000, 60, 4)] {
        let what = format!("plan of {tokens} tokens, {experts} experts, {top_k} each");
        let mut ids = rng.ids(tokens, experts, top_k);
        ids.iter_mut().filter(|_| rng.below(5) == 0).for_each(|id| *id = -1);
        let given = gpu.read_plan(&gpu.plan(&ids, top_k, experts));
        check_plan(&what, &given, &reference::plan(&ids, top_k, experts, None), top_k);
    }
    for case in cases() {
        let (h, k, e) = (case.config.hidden_size, case.config.top_k, case.config.num_experts);
        let ids = Data::<bf16>::new(&case).routing(&case.config).ids;
        let plan = reference::plan(&ids, k, e, None);
        let x: Vec<bf16> = case.rng().full(case.tokens * h, 1.0);
        let rows = run_permute(gpu, &x, h, (&ids, k, e), case.pad);
        assert_eq!(bits(&rows), bits(&reference::permute(&x, &plan, h)), "{}: permute", case.name);
        let weights: Vec<f32> = case.rng().full(ids.len(), 0.7);
        let before = vec![bf16::POISON; case.tokens * h];
        let (weights, rows) = (&weights, &rows);
        let input = CombineInput {
            ids: &ids,
            top_k: k,
            experts: e,
            weights,
            rows,
            before: &before,
            hidden: h,
        };
        let given = run_combine(gpu, &input, Write::Overwrite, case.pad);
        let truth =
            |store| reference::combine(&wide(rows), &wide(weights), &plan, h, k, None, store);
        let (exact, plain) = (truth(&reference::exact), truth(&round::<bf16>));
        assert_within::<bf16>(&format!("{}: combine", case.name), &wide(&given), &exact, &plain, h);
    }
}

/// What the driver refuses leaves the device usable.
#[test]
fn refusals_leave_the_device_usable() {
    let Some(gpus) = gpus("refusals_leave_the_device_usable") else { return };
    let driver = gpus[0].backend.driver();
    assert!(matches!(driver.alloc(1 << 50), Err(DriverError::OutOfMemory { .. })));
    assert!(matches!(driver.load_module(&[]), Err(DriverError::InvalidValue { .. })));
    let module = driver.load_module(fatbins::for_device(80).unwrap()[0]).unwrap();
    let unknown = driver.function(module, "no_such_kernel");
    assert!(matches!(unknown, Err(DriverError::UnknownFunction { .. })), "{unknown:?}");
    let ptr = driver.alloc(64).unwrap();
    let stream = driver.create_stream().unwrap();
    driver.begin_capture(stream).unwrap();
    let copied = driver.copy_to_device(ptr, &[1], stream);
    assert_eq!(copied, Err(DriverError::Capturing("copy_to_device")));
    let graph = driver.end_capture(stream).unwrap();
    driver.destroy_graph(graph).unwrap();
    driver.destroy_stream(stream).unwrap();
    driver.free(ptr).unwrap();
    check_case::<_, bf16>(&describe(&gpus[0]), &gpus[0], &named("regular ["));
}
