//! The Hopper kernels.

use half::{bf16, f16};
use moe_kernels::cuda::tiles::Family::{HopperDecode, HopperPrefill};
use moe_kernels::cuda::tiles::Tile;

use crate::bench::{Rules, Shape, check, has_no_bank_conflict, tile};

const fn shape(rows: &'static [usize], hidden_size: usize, intermediate_size: usize) -> Shape {
    Shape { rows, poisoned: None, hidden_size, intermediate_size }
}

/// More experts than a warp has lanes, most without rows.
const MANY: &[usize] = &{
    let mut rows = [0; 70];
    rows[3] = 1;
    rows[31] = 9;
    rows[32] = 2;
    rows[69] = 5;
    rows
};

/// `ragged` rows, the `poisoned` expert's NaN, against tails in depth and columns of both
/// projections; one k-tile and less; more k-tiles than stages; columns of whole tiles.
fn check_tile(tile: &'static Tile, ragged: &'static [usize], poisoned: usize, deep: Shape) {
    let tails = Shape { poisoned: Some(poisoned), ..shape(ragged, 72, 136) };
    check::<bf16>(tile, &tails, Rules::of(tile, 3), 0..4);
    check::<f16>(tile, &shape(&[0, 1, 65, 0], 64, 8), Rules::of(tile, 2), 4..8);
    check::<bf16>(tile, &deep, Rules::of(tile, 1), 8..10);
    check::<f16>(tile, &shape(MANY, 24, 16), Rules::of(tile, 0), 12..13);
    has_no_bank_conflict(tile, &shape(&[64, 70], 72, 136));
}

fn check_prefill(columns: u32) {
    let tile = tile(HopperPrefill, 128, columns);
    check_tile(tile, &[0, 1, 63, 64, 0, 127, 128, 130], 3, shape(&[130, 0, 66], 456, 128));
    check::<bf16>(tile, &shape(&[64, 129], 256, 264), Rules::of(tile, 4), 10..12);
}

#[test]
fn prefill_128x128() {
    check_prefill(128);
}

#[test]
fn prefill_128x192() {
    check_prefill(192);
}

#[test]
fn prefill_128x256() {
    check_prefill(256);
}

#[test]
fn decode_8_rows() {
    for columns in [64, 128] {
        let tile = tile(HopperDecode, 8, columns);
        check_tile(tile, &[0, 1, 7, 8, 0, 9, 3, 17], 3, shape(&[9, 3], 840, 64));
    }
}

#[test]
fn decode_16_to_64_rows() {
    for rows in [16, 32, 64] {
        let tile = tile(HopperDecode, rows, 128);
        check_tile(tile, &[0, 1, 15, 16, 17, 33, 64, 65], 5, shape(&[31, 3], 456, 64));
    }
}
