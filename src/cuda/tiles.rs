//! The tiles that the grouped GEMM's kernels are built for.
//!
//! This table is the only list of them: `kernels/tile/tiles.h`, from which the kernels are
//! instantiated, is written from it (`MOE_WRITE_TILES=1 cargo test --test tiles`), and a test
//! compares.

use std::fmt;

/// A family of grouped-GEMM kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// TMA and wgmma, tokens as M: many rows of an expert.
    HopperPrefill,
    /// TMA and wgmma, weights as M: few rows of an expert.
    HopperDecode,
    /// cp.async and mma.sync, tokens as M.
    PortablePrefill,
    /// cp.async and mma.sync, weights as M.
    PortableDecode,
}

impl Family {
    /// All families.
    pub const ALL: [Self; 4] =
        [Self::HopperPrefill, Self::HopperDecode, Self::PortablePrefill, Self::PortableDecode];

    /// As it stands in the kernels' names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HopperPrefill => "hopper_prefill",
            Self::HopperDecode => "hopper_decode",
            Self::PortablePrefill => "portable_prefill",
            Self::PortableDecode => "portable_decode",
        }
    }
}

/// What a kernel does with its sums, as it stands in its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EpilogueKind {
    /// One matrix, stored.
    Store,
    /// Gate and up, activated: one column for each pair.
    Activation,
    /// Gate and up, stored side by side.
    Pair,
}

impl EpilogueKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Store, Self::Activation, Self::Pair];

    /// As it stands in the kernels' names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::Activation => "activation",
            Self::Pair => "pair",
        }
    }
}

/// A tile: what one block of threads computes at a time, and what it needs for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Its family.
    pub family: Family,
    /// Rows (tokens).
    pub rows: u32,
    /// Rows of the weights; of gate and up together, where there are two.
    pub columns: u32,
    /// Elements of the sum's depth that one stage holds.
    pub depth: u32,
    /// Stages in flight.
    pub stages: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Blocks that a multiprocessor is meant to hold.
    pub blocks_per_sm: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
}

impl Tile {
    /// The name of the kernel with this epilogue and element type (`bf16` or `f16`).
    #[must_use]
    pub fn kernel(&self, epilogue: EpilogueKind, dtype: impl fmt::Display) -> String {
        let Self { family, rows, columns, .. } = self;
        format!("grouped_gemm_{}_{rows}x{columns}_{}_{dtype}", family.name(), epilogue.name())
    }
}

const fn tile(
    family: Family,
    [rows, columns, depth, stages, threads, blocks_per_sm, shared_bytes]: [u32; 7],
) -> Tile {
    Tile { family, rows, columns, depth, stages, threads, blocks_per_sm, shared_bytes }
}

/// Every tile. A new tile is a new row.
#[rustfmt::skip]
pub const TILES: &[Tile] = &[
    //                           rows columns depth stages threads blocks shared
    tile(Family::HopperPrefill,   [128, 256, 64, 4, 384, 1, 229_440]),
    tile(Family::PortablePrefill, [128, 256, 32, 4, 256, 1, 98_432]),
    tile(Family::PortablePrefill, [128, 128, 32, 3, 128, 2, 49_280]),
    tile(Family::PortablePrefill, [ 64, 128, 32, 4, 128, 3, 49_280]),
    tile(Family::PortableDecode,  [ 32, 128, 32, 4, 128, 2, 41_088]),
    tile(Family::PortableDecode,  [ 16,  64, 64, 4,  64, 2, 41_088]),
    tile(Family::PortableDecode,  [  8,  64, 64, 5,  64, 2, 46_208]),
];

/// `kernels/tile/tiles.h`.
#[must_use]
pub fn header() -> String {
    let mut text = String::from(
        "// The tiles of the grouped GEMM, written from src/cuda/tiles.rs (MOE_WRITE_TILES=1 cargo test --test tiles).\n\
         // X(rows, columns, depth, stages, threads, blocks_per_sm, shared_bytes)\n#pragma once\n",
    );
    for family in Family::ALL {
        text += &format!("\n#define {}_TILES(X)", family.name().to_uppercase());
        for t in TILES.iter().filter(|t| t.family == family) {
            text += &format!(
                " \\\n  X({}, {}, {}, {}, {}, {}, {})",
                t.rows, t.columns, t.depth, t.stages, t.threads, t.blocks_per_sm, t.shared_bytes
            );
        }
        text += "\n";
    }
    text
}
