//! The table of tiles, and what is written from it.
#![cfg(feature = "driver")]

use std::collections::HashSet;
use std::path::Path;
use std::{env, fs};

use moe_kernels::cuda::tiles::{EpilogueKind, TILES, header};

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
