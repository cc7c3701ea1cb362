//! The kernels of quantised weights.

use std::slice;

use half::bf16;
use moe_emulator::{Options, Profile};
use moe_kernels::backend::Backend;
use moe_kernels::config::ActivationFn;
use moe_kernels::cuda::Path;
use moe_kernels::cuda::tiles::{Codes, EpilogueKind, Family, TILES, Tile};
use moe_kernels::ops::ExpertShape;
use moe_kernels::weights::{ExpertBiases, QuantFormat, QuantisedExperts};

use crate::bench::Variant;
use crate::common::*;

const FORMATS: [QuantFormat; 5] = [
    QuantFormat::Fp8Block,
    QuantFormat::Mxfp4,
    QuantFormat::Int4 { group: 32 },
    QuantFormat::Int4 { group: 64 },
    QuantFormat::Int4 { group: 128 },
];

/// What the kernels multiply by: int4's products of code and scale are rounded to bf16, the others are
/// bf16 or scale sums.
fn bf16_weights(format: QuantFormat, value: f64) -> f64 {
    if matches!(format, QuantFormat::Int4 { .. }) { round::<bf16>(value) } else { value }
}

/// The tiles of a path, with the formats that they are for.
fn tiles(hopper: bool) -> impl Iterator<Item = (&'static Tile, QuantFormat)> {
    let of_format = move |format: QuantFormat| {
        let codes = Some(Codes::from(format));
        let is_it = move |t: &&Tile| t.family.is_hopper() == hopper && t.family.codes() == codes;
        TILES.iter().filter(is_it).map(move |tile| (tile, format))
    };
    FORMATS.into_iter().flat_map(of_format)
}

/// H and I that are no whole tiles and no whole blocks of depth.
fn ragged(format: QuantFormat, rows: &[usize], gated: bool) -> ExpertShape {
    let (hidden_size, intermediate_size) = match format {
        QuantFormat::Fp8Block => (208, 144),
        QuantFormat::Mxfp4 | QuantFormat::Int4 { group: 32 } => (224, 96),
        QuantFormat::Int4 { group: 64 } => (192, 64),
        _ => (384, 128),
    };
    ExpertShape { num_experts: rows.len(), hidden_size, intermediate_size, gated }
}

fn device(tile: &'static Tile, variant: Variant, options: Options) -> Option<Emulated> {
    let (path, profile) = match tile.family {
        Family::HopperQuantised(_) => (Path::Hopper, Profile::sm_90()),
        _ => (Path::Portable, variant.profile()),
    };
    let profile = profile.with_sm_count(variant.sm_count);
    let device = emulated_with(profile, path, options, slice::from_ref(tile))?;
    // Other addresses under each seed.
    device.put(&vec![0u32; 64 * variant.seed as usize]);
    Some(device)
}

/// Weights without and with biases and row weights, gathered and packed, by seeds; `seeds` under all
/// checks.
fn check(
    tile: &'static Tile,
    format: QuantFormat,
    rows: &[usize],
    shape: ExpertShape,
    draw: Draw,
    seeds: std::ops::Range<u64>,
) {
    let inputs = QuantInputs::<bf16>::new(format, shape, rows, draw);
    let mut first: [Option<QuantOutputs<bf16>>; 2] = [None, None];
    for seed in seeds {
        let variant = Variant::of(seed);
        let Some(device) = device(tile, variant, Options::checked(seed)) else { return };
        let adjusted = seed % 2 == 1;
        let given = inputs.run(&device, adjusted, variant.gather, variant.pad);
        let what = format!("{format} {}x{} {shape:?} {variant:?}", tile.rows, tile.columns);
        inputs.check(&what, &given, adjusted, draw, bf16_weights);
        let first = first[usize::from(adjusted)].get_or_insert_with(|| given.clone());
        assert_eq!(first.bits(), given.bits(), "{what}: other bits than before");
    }
}

fn check_path(hopper: bool) {
    for (which, (tile, format)) in tiles(hopper).enumerate() {
        let (high, first) = (tile.rows as usize, which as u64);
        let rows = [0, 1, high, 0, high + 1];
        let few = [3, 0, high / 2];
        let gated = |rows| ragged(format, rows, true);
        // Groups of int4 differ in where their scales lie.
        let seeds = if matches!(format, QuantFormat::Int4 { group: 64 | 128 }) { 2 } else { 4 };
        check(tile, format, &rows, gated(&rows), Draw::Exact, first..first + seeds);
        check(tile, format, &few, ragged(format, &few, false), Draw::Exact, first..first + 2);
        check(tile, format, &few, gated(&few), Draw::Any, first + 1..first + 2);
        // More blocks of depth than stages, and fewer tiles than blocks of threads.
        let deep = ExpertShape { hidden_size: 896, intermediate_size: 128, ..gated(&[5]) };
        check(tile, format, &[5], deep, Draw::Any, first..first + 1);
    }
}

#[test]
fn portable() {
    check_path(false);
}

#[test]
fn hopper() {
    check_path(true);
}

/// No shared-memory access needs more passes than its bytes do.
#[test]
fn no_bank_conflicts() {
    for (tile, format) in tiles(false).chain(tiles(true)) {
        let rows = [9, 0, 17];
        let inputs =
            QuantInputs::<bf16>::new(format, ragged(format, &rows, true), &rows, Draw::Exact);
        let options = Options { lint: true, ..Options::checked(1) };
        let Some(device) = device(tile, Variant::of(0), options) else { return };
        inputs.run(&device, false, Variant::of(0).gather, TIGHT);
        let report = device.backend.driver().lint_report();
        let ours = |line: &&str| line.starts_with("shared ");
        let lines: Vec<&str> = report.lines().filter(ours).collect();
        assert!(!lines.is_empty(), "{report}");
        for line in lines {
            assert!(line.contains(" 1.00 times the passes"), "{format}: {line}");
        }
    }
}

/// Codes and scales at the ends of their ranges: what a row of weights holds reaches its own column of
/// the output, and no other.
#[test]
fn extreme_codes_and_scales() {
    for (tile, format) in tiles(false).chain(tiles(true)) {
        let rows = [3, 2];
        let shape = ragged(format, &rows, true);
        let mut inputs = QuantInputs::<bf16>::new(format, shape, &rows, Draw::Exact);
        inputs.make_extreme();
        let Some(device) = device(tile, Variant::of(0), Options::checked(7)) else { return };
        let given = inputs.run(&device, false, Variant::of(0).gather, TIGHT);
        let kernel = tile.kernel(EpilogueKind::Store, "bf16");
        inputs.check_extreme(&format!("{format} {kernel}"), &given);
    }
}

#[test]
fn f16_activations_are_refused() {
    for format in FORMATS {
        let shape = ragged(format, &[1], true);
        let experts: QuantisedExperts<half::f16> =
            QuantData::new(format, shape, Draw::Exact, 1).experts();
        let (profile, options) = (Profile::sm_90(), Options::default());
        let Some(device) = emulated(profile, Path::Portable, options) else { return };
        refused!(
            device.backend.prepare(experts, &device.stream),
            moe_kernels::Error::Unsupported { .. },
            format,
            "f16 activations",
            "bf16"
        );
    }
}

/// As many bytes as in the checkpoint, but for what is rounded up and fp8's scales, one for a row.
#[test]
fn repacked_experts_have_the_same_size() {
    use moe_kernels::ops::Experts as _;
    for (format, per_mille) in FORMATS.into_iter().zip([1030, 1000, 1000, 1000, 1000]) {
        let shape = ExpertShape::gated(2, 512, 256);
        let data = QuantData::new(format, shape, Draw::Any, 1);
        let Some(device) = emulated(Profile::sm_90(), Path::Portable, Options::default()) else {
            return;
        };
        let biases = ExpertBiases { gate_up: vec![0.0; 1024], down: vec![0.0; 1024] };
        let experts = data.experts::<bf16>().with_biases(biases).unwrap();
        let prepared = device.backend.prepare(experts, &device.stream).unwrap();
        let bytes = 2 * (2 * format.matrix_bytes([256, 512]) + format.matrix_bytes([512, 256]));
        assert_eq!((prepared.bytes() - 2048 * 4) * 1000 / bytes, per_mille, "{format}");
        assert!(format!("{prepared:?}").contains(&format.to_string()), "{prepared:?}");
    }
}

#[test]
fn an_activation_with_limits_reaches_the_kernels() {
    let function = ActivationFn::SwiGluOai { alpha: 1.702, limit: 7.0 };
    for (tile, format) in tiles(false).chain(tiles(true)) {
        let rows = [2, 5];
        let mut inputs =
            QuantInputs::<bf16>::new(format, ragged(format, &rows, true), &rows, Draw::Any);
        inputs.function = function;
        let Some(device) = device(tile, Variant::of(1), Options::checked(3)) else { return };
        let given = inputs.run(&device, true, Variant::of(1).gather, LOOSE);
        inputs.check(&format!("{format} {function:?}"), &given, true, Draw::Any, bf16_weights);
    }
}
