//! The table of tiles, and what is written from it.
#![cfg(feature = "driver")]

use std::collections::HashSet;
use std::{env, fs};

use moe_emulator::Profile;
use moe_kernels::cuda::Path;
use moe_kernels::cuda::driver::DeviceProperties;
use moe_kernels::cuda::tiles::{Codes, EpilogueKind, Family, Problem, TILES, Tile, choose, header};

#[test]
fn the_header_of_the_kernels_is_written_from_the_table() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/tile/tiles.h");
    if env::var_os("MOE_WRITE_TILES").is_some() {
        fs::write(&path, header()).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), header(), "MOE_WRITE_TILES=1 writes it anew");
}

#[test]
fn no_two_tiles_share_a_kernel() {
    let mut names = HashSet::new();
    for tile in TILES {
        // A portable kernel has all epilogues.
        let kernels: HashSet<_> = EpilogueKind::ALL.map(|kind| tile.kernel(kind, "bf16")).into();
        let two = matches!(tile.family, Family::HopperPrefill | Family::HopperDecode);
        assert_eq!(kernels.len(), if two { 2 } else { 1 }, "{tile:?}");
        assert!(kernels.into_iter().all(|name| names.insert(name)), "{tile:?}");
    }
}

fn device(profile: Profile, sm_count: u32) -> DeviceProperties {
    profile.with_sm_count(sm_count).properties
}

/// Qwen3-30B's gate and up projections for this many tokens.
fn chosen(device: &DeviceProperties, path: Path, tokens: usize) -> &'static Tile {
    let problem = Problem {
        max_rows: 8 * tokens,
        num_experts: 128,
        columns: 768,
        depth: 2048,
        gated: true,
        adjusted: false,
        codes: None,
    };
    choose(TILES, &problem, device, path).unwrap()
}

#[test]
fn every_device_has_a_tile_for_any_number_of_rows() {
    let profiles = [
        Profile::sm_80(),
        Profile::sm_86(),
        Profile::sm_89(),
        Profile::sm_90(),
        Profile::sm_100(),
        Profile::sm_120(),
    ];
    for profile in profiles {
        let device = device(profile, 100);
        for (tokens, rows) in [(1, 8), (16, 8), (200, 16), (500, 32), (600, 64), (9000, 128)] {
            let tile = chosen(&device, Path::Portable, tokens);
            assert_eq!(tile.rows, rows, "{tokens} tokens on {}: {tile:?}", device.name);
            assert_eq!(tile.family.weights_as_m(), rows <= 32, "{tile:?}");
        }
    }
}

#[test]
fn a_narrow_tile_where_a_wide_one_leaves_multiprocessors_idle() {
    let problem = |max_rows| Problem {
        max_rows,
        num_experts: 1,
        columns: 2048,
        depth: 2048,
        gated: false,
        adjusted: false,
        codes: None,
    };
    let device = device(Profile::sm_80(), 108);
    let columns = |rows| choose(TILES, &problem(rows), &device, Path::Portable).unwrap().columns;
    assert_eq!([columns(128), columns(128 * 13), columns(128 * 14)], [128, 128, 256]);
}

#[test]
fn no_more_blocks_than_a_multiprocessor_holds() {
    let tile = |rows| {
        let wanted = |t: &&Tile| t.family == Family::PortableDecode && t.rows == rows;
        TILES.iter().find(wanted).unwrap()
    };
    // 164, 100 and 228 KB for blocks of 46 KB.
    let blocks = |profile| tile(8).resident_blocks(&device(profile, 1));
    assert_eq!([Profile::sm_80(), Profile::sm_86(), Profile::sm_90()].map(blocks), [3, 2, 4]);
}

/// The kernel for T tokens, top K, and one projection of E experts.
fn kernel(
    device: &DeviceProperties,
    [tokens, top_k, num_experts]: [usize; 3],
    [columns, depth]: [usize; 2],
    epilogue: EpilogueKind,
) -> String {
    let gated = epilogue == EpilogueKind::GateUp;
    let max_rows = tokens * top_k;
    let problem =
        Problem { max_rows, num_experts, columns, depth, gated, adjusted: false, codes: None };
    choose(TILES, &problem, device, Path::Auto).unwrap().kernel(epilogue, "bf16")
}

#[test]
fn few_rows_take_weights_as_m_and_tiles_that_occupy_the_device() {
    let hopper = device(Profile::sm_90(), 132);
    let name = |tile: &str, end: &str| format!("grouped_gemm_hopper_{tile}_{end}_bf16");
    // Eight experts of 128 with a row each: 96 tiles of 64 columns, 192 of 32, for 264 places.
    let given = kernel(&hopper, [1, 8, 128], [768, 2048], EpilogueKind::GateUp);
    assert_eq!(given, name("decode_8x64", "gate_up"));
    // Two of eight, but wide.
    let given = kernel(&hopper, [1, 2, 8], [14336, 4096], EpilogueKind::GateUp);
    assert_eq!(given, name("decode_8x128", "gate_up"));
    let given = kernel(&hopper, [1024, 8, 128], [2048, 768], EpilogueKind::Store);
    assert_eq!(given, name("decode_64x128", "store"));
}

#[test]
fn many_rows_take_tokens_as_m_and_short_sums_overlapped_epilogues() {
    let hopper = device(Profile::sm_90(), 132);
    let given = kernel(&hopper, [8192, 8, 128], [768, 2048], EpilogueKind::GateUp);
    assert_eq!(given, "grouped_gemm_hopper_prefill_128x256_gate_up_bf16");
    let given = kernel(&hopper, [8192, 8, 128], [2048, 768], EpilogueKind::Store);
    assert_eq!(given, "grouped_gemm_hopper_prefill_128x192_store_bf16");
    // One expert's few columns would leave most multiprocessors without a wide tile.
    let given = kernel(&hopper, [1024, 1, 1], [1024, 4096], EpilogueKind::Store);
    assert_eq!(given, "grouped_gemm_hopper_prefill_128x128_store_bf16");
}

/// Experts without a gate have as many columns to a tile as the down projection.
#[test]
fn one_matrix_has_whole_tiles_of_columns() {
    let tile = TILES.iter().find(|tile| tile.columns == 256).unwrap();
    let tiles = |gated| {
        let (max_rows, num_experts, columns, depth) = (128, 1, 1024, 64);
        let problem =
            Problem { max_rows, num_experts, columns, depth, gated, adjusted: false, codes: None };
        problem.max_tiles(tile)
    };
    assert_eq!([tiles(true), tiles(false)], [8, 4]);
}

#[test]
fn a_tile_without_room_for_biases_is_not_taken_for_them() {
    let hopper = device(Profile::sm_90(), 132);
    let columns = |adjusted| {
        let (max_rows, num_experts, columns, depth) = (8 * 8192, 128, 2048, 768);
        let problem =
            Problem { max_rows, num_experts, columns, depth, gated: false, adjusted, codes: None };
        choose(TILES, &problem, &hopper, Path::Hopper).unwrap().columns
    };
    assert_eq!([columns(false), columns(true)], [192, 128]);
}

/// Quantised weights have a family of their own, whose tiles are taken by their rows.
#[test]
fn quantised_weights_take_the_tiles_of_their_codes() {
    let name = |profile, codes, tokens: usize| {
        let problem = Problem {
            max_rows: 8 * tokens,
            num_experts: 128,
            columns: 768,
            depth: 2048,
            gated: true,
            adjusted: true,
            codes: Some(codes),
        };
        let device = device(profile, 100);
        choose(TILES, &problem, &device, Path::Auto).unwrap().kernel(EpilogueKind::GateUp, "bf16")
    };
    for (codes, of_codes, high) in
        [(Codes::Fp8, "fp8", 48), (Codes::Mxfp4, "mxfp4", 64), (Codes::Int4, "int4", 64)]
    {
        for (tokens, rows) in [(1, 16), (256, 16), (300, high), (9000, high)] {
            let expected = format!("grouped_gemm_hopper_{of_codes}_{rows}x128_bf16");
            assert_eq!(name(Profile::sm_90(), codes, tokens), expected);
        }
        let portable = format!("{high}x128");
        for (tokens, tile) in [(1, "16x64"), (256, "16x64"), (300, &portable), (9000, &portable)] {
            for profile in [Profile::sm_80(), Profile::sm_86(), Profile::sm_120()] {
                let expected = format!("grouped_gemm_portable_{of_codes}_{tile}_bf16");
                assert_eq!(name(profile, codes, tokens), expected);
            }
        }
    }
}
