//! The table of tiles, and what is written from it.
#![cfg(feature = "driver")]

use std::collections::HashSet;
use std::path::Path;
use std::{env, fs};

use moe_kernels::cuda;
use moe_kernels::cuda::driver::DeviceProperties;
use moe_kernels::cuda::tiles::EpilogueKind::{self, Activation, Store};
use moe_kernels::cuda::tiles::{Problem, TILES, choose, header};

#[test]
fn the_header_of_the_kernels_is_written_from_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/tile/tiles.h");
    if env::var_os("MOE_WRITE_TILES").is_some() {
        fs::write(&path, header()).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), header(), "MOE_WRITE_TILES=1 writes it anew");
}

#[test]
fn no_two_tiles_share_a_kernel() {
    let mut names = HashSet::new();
    for tile in TILES {
        for epilogue in EpilogueKind::ALL {
            assert!(names.insert(tile.kernel(epilogue, "bf16")), "{tile:?}");
        }
    }
}

fn device(compute_capability: u32, sm_count: u32, shared_kib: u32) -> DeviceProperties {
    DeviceProperties {
        name: format!("device of {compute_capability}"),
        compute_capability,
        sm_count,
        max_shared_per_block: shared_kib << 10,
        max_shared_per_sm: (shared_kib + 1) << 10,
        l2_bytes: 50 << 20,
        memory_bytes: 80 << 30,
    }
}

/// The kernel for T tokens, top K, and one projection of E experts.
fn chosen(
    device: &DeviceProperties,
    [tokens, top_k, num_experts]: [usize; 3],
    [columns, depth]: [usize; 2],
    epilogue: EpilogueKind,
) -> String {
    let problem = Problem { max_rows: tokens * top_k, num_experts, columns, depth, epilogue };
    choose(TILES, &problem, device, cuda::Path::Auto).unwrap().kernel(epilogue, "bf16")
}

#[test]
fn few_rows_take_weights_as_m_and_tiles_that_occupy_the_device() {
    let hopper = device(90, 132, 227);
    let name = |tile: &str, end: &str| format!("grouped_gemm_hopper_{tile}_{end}_bf16");
    // Eight experts of 128 with a row each: 96 tiles of 64 columns, 192 of 32, for 264 places.
    let given = chosen(&hopper, [1, 8, 128], [768, 2048], Activation);
    assert_eq!(given, name("decode_8x64", "activation"));
    // Two of eight, but wide.
    let given = chosen(&hopper, [1, 2, 8], [14336, 4096], Activation);
    assert_eq!(given, name("decode_8x128", "activation"));
    let given = chosen(&hopper, [1024, 8, 128], [2048, 768], Store);
    assert_eq!(given, name("decode_64x128", "store"));
}

#[test]
fn many_rows_take_tokens_as_m_and_short_sums_overlapped_epilogues() {
    let hopper = device(90, 132, 227);
    let given = chosen(&hopper, [8192, 8, 128], [768, 2048], Activation);
    assert_eq!(given, "grouped_gemm_hopper_prefill_128x256_activation_bf16");
    let given = chosen(&hopper, [8192, 8, 128], [2048, 768], Store);
    assert_eq!(given, "grouped_gemm_hopper_prefill_128x192_store_bf16");
    // One expert's few columns would leave most multiprocessors without a wide tile.
    let given = chosen(&hopper, [1024, 1, 1], [1024, 4096], Store);
    assert_eq!(given, "grouped_gemm_hopper_prefill_128x128_store_bf16");
}

#[test]
fn every_device_from_ampere_on_has_a_tile_that_fits() {
    for (capability, shared) in [(80, 163), (86, 99), (89, 99), (90, 227), (100, 227), (120, 99)] {
        let device = device(capability, 100, shared);
        for tokens in [1, 8, 100, 1000, 100_000] {
            for epilogue in EpilogueKind::ALL {
                let name = chosen(&device, [tokens, 4, 32], [2880, 2880], epilogue);
                assert_eq!(name.contains("hopper"), capability == 90, "{name} on {capability}");
                let tile = TILES.iter().find(|t| t.kernel(epilogue, "bf16") == name).unwrap();
                assert!(tile.fits(&device), "{name} on {capability}");
            }
        }
    }
}
