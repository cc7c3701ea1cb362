//! The Hopper kernels.

use moe_kernels::cuda::tiles::Family::{HopperDecode, HopperPrefill};

use crate::bench::{Shape, has_no_bank_conflict, proves, tile};

/// One k-tile and less; columns below a tile's.
const SMALL: Shape =
    Shape { rows: &[0, 1, 65, 0], poisoned: None, hidden_size: 64, intermediate_size: 8 };

/// H and I with tails in depth and columns, of both projections.
const fn tails(rows: &'static [usize], poisoned: Option<usize>) -> Shape {
    Shape { rows, poisoned, hidden_size: 72, intermediate_size: 136 }
}

#[test]
fn prefill_128x256() {
    let tile = tile(HopperPrefill, 128, 256);
    proves(
        tile,
        &[
            SMALL,
            tails(&[0, 1, 63, 64, 0, 127, 128, 130], Some(3)),
            // More k-tiles than stages; columns of a tile and one more of both projections.
            Shape { rows: &[130, 0, 66], poisoned: None, hidden_size: 328, intermediate_size: 128 },
            Shape { rows: &[64, 129], poisoned: None, hidden_size: 256, intermediate_size: 264 },
        ],
    );
    has_no_bank_conflict(tile, &tails(&[64, 130], None));
}

#[test]
fn decode_8_rows() {
    const ROWS: &[usize] = &[0, 1, 7, 8, 0, 9, 3, 17];
    for columns in [64, 128] {
        let tile = tile(HopperDecode, 8, columns);
        proves(
            tile,
            &[
                SMALL,
                tails(ROWS, Some(3)),
                // More k-tiles than stages.
                Shape { rows: &[9, 3], poisoned: None, hidden_size: 840, intermediate_size: 64 },
            ],
        );
        has_no_bank_conflict(tile, &tails(ROWS, None));
    }
}

#[test]
fn decode_16_to_64_rows() {
    for rows in [16, 32, 64] {
        let tile = tile(HopperDecode, rows, 128);
        proves(
            tile,
            &[
                SMALL,
                tails(&[0, 1, 15, 16, 17, 33, 64, 65], Some(5)),
                Shape { rows: &[31, 3], poisoned: None, hidden_size: 456, intermediate_size: 64 },
            ],
        );
        has_no_bank_conflict(tile, &tails(&[16, 33, 70], None));
    }
}
