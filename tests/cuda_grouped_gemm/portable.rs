//! The portable kernels.

use moe_kernels::cuda::tiles::Family::{PortableDecode, PortablePrefill};

use crate::bench::{Shape, has_no_bank_conflict, proves, tile};

/// Less than a block of depth; columns below a tile's.
const SMALL: Shape =
    Shape { rows: &[0, 1, 65, 0], poisoned: None, hidden_size: 8, intermediate_size: 8 };

/// Tiles of one block of depth, and for one block of threads more of them than stages.
const MANY: Shape =
    Shape { rows: &[8, 0, 1, 9], poisoned: None, hidden_size: 8, intermediate_size: 264 };

/// H and I with tails in depth and columns, of both projections.
const fn tails(rows: &'static [usize], intermediate_size: usize) -> Shape {
    Shape { rows, poisoned: Some(3), hidden_size: 72, intermediate_size }
}

/// More blocks of depth than stages; columns of whole tiles.
const fn deep(rows: &'static [usize], hidden_size: usize, intermediate_size: usize) -> Shape {
    Shape { rows, poisoned: None, hidden_size, intermediate_size }
}

/// Rows of whole sectors.
const WHOLE: Shape =
    Shape { rows: &[16, 1, 0, 9], poisoned: None, hidden_size: 64, intermediate_size: 64 };

#[test]
fn prefill_64x128() {
    let tile = tile(PortablePrefill, 64, 128);
    proves(tile, &[SMALL, tails(&[0, 1, 63, 64, 0, 65], 72), deep(&[33, 0, 64], 328, 64)]);
    has_no_bank_conflict(tile, &WHOLE);
}

#[test]
fn prefill_128x128() {
    let tile = tile(PortablePrefill, 128, 128);
    proves(tile, &[tails(&[0, 1, 127, 128, 0, 130], 72), deep(&[33], 328, 64)]);
    has_no_bank_conflict(tile, &WHOLE);
}

#[test]
fn prefill_128x256() {
    let tile = tile(PortablePrefill, 128, 256);
    proves(tile, &[tails(&[0, 1, 63, 64, 0, 130], 136), deep(&[33], 232, 128)]);
    has_no_bank_conflict(tile, &WHOLE);
}

#[test]
fn decode_8x64() {
    let tile = tile(PortableDecode, 8, 64);
    proves(tile, &[MANY, tails(&[0, 1, 7, 8, 0, 9, 17], 40), deep(&[1, 0, 3], 456, 64)]);
    has_no_bank_conflict(tile, &WHOLE);
}

#[test]
fn decode_16x64() {
    let tile = tile(PortableDecode, 16, 64);
    proves(tile, &[tails(&[0, 1, 15, 16, 0, 17], 40), deep(&[1, 0, 3], 456, 64)]);
    has_no_bank_conflict(tile, &WHOLE);
}

#[test]
fn decode_32x128() {
    let tile = tile(PortableDecode, 32, 128);
    proves(tile, &[tails(&[0, 1, 31, 32, 0, 33], 72), deep(&[1, 0, 3], 328, 128)]);
    has_no_bank_conflict(tile, &WHOLE);
}
