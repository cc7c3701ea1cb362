//! The tiles that the grouped GEMM's kernels are built for.
//!
//! This table is the only list of them: `kernels/tile/tiles.h`, from which the kernels are
//! instantiated, is written from it (`MOE_WRITE_TILES=1 cargo test --test tiles`), and a test
//! compares.

use std::fmt;

use crate::error::{Error, Result};
use crate::weights::QuantFormat;

use super::Path;
use super::driver::DeviceProperties;

/// The codes of quantised weights that kernels are built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codes {
    /// e4m3.
    Fp8,
    /// e2m1.
    Mxfp4,
    /// Whole numbers of four bits.
    Int4,
}

impl Codes {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Fp8, Self::Mxfp4, Self::Int4];
}

impl From<QuantFormat> for Codes {
    fn from(format: QuantFormat) -> Self {
        match format {
            QuantFormat::Fp8Block => Self::Fp8,
            QuantFormat::Mxfp4 => Self::Mxfp4,
            QuantFormat::Int4 { .. } => Self::Int4,
        }
    }
}

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
    /// Bulk copies and wgmma, quantised weights as M, from registers.
    HopperQuantised(Codes),
    /// cp.async and mma.sync, quantised weights as M.
    PortableQuantised(Codes),
}

impl Family {
    /// All families.
    pub const ALL: [Self; 10] = [
        Self::HopperPrefill,
        Self::HopperDecode,
        Self::PortablePrefill,
        Self::PortableDecode,
        Self::HopperQuantised(Codes::Fp8),
        Self::HopperQuantised(Codes::Mxfp4),
        Self::HopperQuantised(Codes::Int4),
        Self::PortableQuantised(Codes::Fp8),
        Self::PortableQuantised(Codes::Mxfp4),
        Self::PortableQuantised(Codes::Int4),
    ];

    /// Whether its kernels are Hopper's, whose path is [`Path::Hopper`].
    #[must_use]
    pub const fn is_hopper(self) -> bool {
        matches!(self, Self::HopperPrefill | Self::HopperDecode | Self::HopperQuantised(_))
    }

    /// What its weights are quantised to, if they are.
    #[must_use]
    pub const fn codes(self) -> Option<Codes> {
        match self {
            Self::HopperQuantised(codes) | Self::PortableQuantised(codes) => Some(codes),
            _ => None,
        }
    }

    /// Whether its kernels run on a device of this compute capability. Hopper's are compiled for
    /// sm_90a, which no other device runs.
    #[must_use]
    pub const fn runs_on(self, compute_capability: u32) -> bool {
        if self.is_hopper() { compute_capability == 90 } else { compute_capability >= 80 }
    }

    /// Whether tokens are wgmma's or mma's N, so that a tile of few rows costs little.
    #[must_use]
    pub const fn weights_as_m(self) -> bool {
        !matches!(self, Self::HopperPrefill | Self::PortablePrefill)
    }

    /// As it stands in the kernels' names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::HopperPrefill => "hopper_prefill",
            Self::HopperDecode => "hopper_decode",
            Self::PortablePrefill => "portable_prefill",
            Self::PortableDecode => "portable_decode",
            Self::HopperQuantised(Codes::Fp8) => "hopper_fp8",
            Self::HopperQuantised(Codes::Mxfp4) => "hopper_mxfp4",
            Self::HopperQuantised(Codes::Int4) => "hopper_int4",
            Self::PortableQuantised(Codes::Fp8) => "portable_fp8",
            Self::PortableQuantised(Codes::Mxfp4) => "portable_mxfp4",
            Self::PortableQuantised(Codes::Int4) => "portable_int4",
        }
    }
}

/// Which rows of x a kernel takes, as it stands in the names of Hopper's with dense
/// weights. All others take either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EpilogueKind {
    /// Packed ones, for the down projection; sums are stored.
    Store,
    /// Gathered or packed ones, for gate and up or up alone; sums are activated, or stored.
    GateUp,
}

impl EpilogueKind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Store, Self::GateUp];

    /// As it stands in the kernels' names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::GateUp => "gate_up",
        }
    }
}

/// Shared memory that the system keeps of each block, in bytes.
const RESERVED_SHARED: u32 = 1 << 10;

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
    /// Blocks that a multiprocessor is meant to hold, where it has the shared memory.
    pub blocks_per_sm: u32,
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
}

impl Tile {
    /// The name of the kernel with this epilogue and element type (`bf16` or `f16`).
    #[must_use]
    pub fn kernel(&self, epilogue: EpilogueKind, dtype: impl fmt::Display) -> String {
        let Self { family, rows, columns, .. } = self;
        let end = match family {
            Family::HopperPrefill | Family::HopperDecode => format!("{}_{dtype}", epilogue.name()),
            _ => dtype.to_string(),
        };
        format!("grouped_gemm_{}_{rows}x{columns}_{end}", family.name())
    }

    /// Whether the device runs the tile's family and a block of it has the shared memory.
    #[must_use]
    pub fn fits(&self, device: &DeviceProperties) -> bool {
        self.family.runs_on(device.compute_capability)
            && self.shared_bytes <= device.max_shared_per_block
    }

    /// Blocks that a multiprocessor of the device holds. More would wait until others end, and take a
    /// full share of the tiles even so.
    #[must_use]
    pub fn resident_blocks(&self, device: &DeviceProperties) -> u32 {
        let room = device.max_shared_per_sm / (self.shared_bytes + RESERVED_SHARED);
        self.blocks_per_sm.min(room).max(1)
    }

    /// Whether one warpgroup's epilogue runs beside the other's products, because a tile fits the
    /// registers of one: 192 sums of a thread and fewer.
    #[must_use]
    pub const fn overlaps_epilogue(&self) -> bool {
        matches!(self.family, Family::HopperPrefill) && self.rows * self.columns / 128 <= 192
    }

    /// Whether the tile's kernels weigh rows and add biases. A thread with 192 sums has no registers
    /// left for them.
    #[must_use]
    pub const fn adjusts(&self) -> bool {
        !(self.overlaps_epilogue() && self.rows * self.columns / 128 > 128)
    }

    /// Columns of a matrix that one tile computes: of gate and up together, or of one matrix.
    #[must_use]
    pub const fn output_columns(&self, gated: bool) -> u32 {
        if gated { self.columns / 2 } else { self.columns }
    }
}

/// What a grouped GEMM is to compute, as far as the choice of its tile depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem {
    /// R: rows of all experts, at most.
    pub max_rows: usize,
    /// E.
    pub num_experts: usize,
    /// Columns of one matrix.
    pub columns: usize,
    /// Length of the sums.
    pub depth: usize,
    /// Whether there are two matrices, gate and up.
    pub gated: bool,
    /// Whether rows have weights, or columns biases.
    pub adjusted: bool,
    /// What the weights are quantised to, if they are.
    pub codes: Option<Codes>,
}

impl Problem {
    /// Rows of an expert, if all that can have any have the same number.
    #[must_use]
    pub fn rows_per_expert(&self) -> usize {
        self.max_rows.div_ceil(self.num_experts.min(self.max_rows).max(1))
    }

    /// The most tiles that any routing makes of the problem.
    #[must_use]
    pub fn max_tiles(&self, tile: &Tile) -> u64 {
        let column_blocks = self.columns.div_ceil(tile.output_columns(self.gated) as usize);
        // Each expert with rows may end in a partial block.
        let partial = self.num_experts.min(self.max_rows);
        let row_blocks = (self.max_rows - partial) / tile.rows as usize + partial;
        row_blocks as u64 * column_blocks as u64
    }
}

/// A depth up to which the end of a tile is a large part of its time.
const SHALLOW: usize = 1024;

/// The tile of `tiles` for `problem` on `device`: of the families that `path` allows, the one of the
/// weights' codes; of dense weights the one with weights as M while all of an expert's rows fit one tile
/// of it, then tokens as M; of a family's
/// tiles, the smallest that holds an expert's rows, else the largest. Among tiles of the same rows, one
/// that overlaps its epilogue where sums are short; then the widest whose tiles occupy the whole
/// device, else the narrowest.
///
/// # Errors
/// [`Error::Unsupported`] if no tile fits the device.
pub fn choose<'a>(
    tiles: &'a [Tile],
    problem: &Problem,
    device: &DeviceProperties,
    path: Path,
) -> Result<&'a Tile> {
    let hopper = match path {
        Path::Auto => device.compute_capability == 90,
        Path::Hopper => true,
        Path::Portable => false,
    };
    let (decode, prefill) = match (problem.codes, hopper) {
        (None, true) => (Family::HopperDecode, Family::HopperPrefill),
        (None, false) => (Family::PortableDecode, Family::PortablePrefill),
        (Some(codes), true) => (Family::HopperQuantised(codes), Family::HopperQuantised(codes)),
        (Some(codes), false) => {
            (Family::PortableQuantised(codes), Family::PortableQuantised(codes))
        }
    };
    let takes = |tile: &Tile| tile.fits(device) && (tile.adjusts() || !problem.adjusted);
    let fitting = |family| tiles.iter().filter(move |t| t.family == family && takes(t));
    let rows = problem.rows_per_expert();
    let smallest =
        |family| fitting(family).map(|t| t.rows).filter(|&of_tile| of_tile as usize >= rows).min();
    let largest = |family| fitting(family).map(|t| t.rows).max();
    let (family, rows) = smallest(decode)
        .map(|rows| (decode, rows))
        .or_else(|| smallest(prefill).or(largest(prefill)).map(|rows| (prefill, rows)))
        .or_else(|| largest(decode).map(|rows| (decode, rows)))
        .ok_or_else(|| Error::Unsupported {
            what: format!("grouped GEMM on {} by path {path}", device.name),
            supported: "compute capability 8.0 and up; path hopper: 9.0".to_owned(),
        })?;
    let worth = |tile: &&Tile| {
        let slots = u64::from(device.sm_count * tile.resident_blocks(device));
        let occupied = problem.max_tiles(tile) >= slots;
        let width = i64::from(tile.columns) * if occupied { 1 } else { -1 };
        (tile.overlaps_epilogue() && problem.depth <= SHALLOW, occupied, width)
    };
    let same_rows = fitting(family).filter(|t| t.rows == rows);
    Ok(same_rows.max_by_key(worth).expect("the rows are of one of them"))
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
    tile(Family::HopperPrefill,   [128, 256, 64, 4, 384, 1, 230_400]),
    tile(Family::HopperPrefill,   [128, 192, 64, 5, 384, 1, 230_400]),
    tile(Family::HopperPrefill,   [128, 128, 64, 6, 384, 1, 214_016]),
    tile(Family::HopperDecode,    [  8,  64, 64, 12, 160, 2, 111_616]),
    tile(Family::HopperDecode,    [  8, 128, 64, 6, 160, 2, 105_472]),
    tile(Family::HopperDecode,    [ 16, 128, 64, 6, 160, 2, 111_616]),
    tile(Family::HopperDecode,    [ 32, 128, 64, 5, 160, 2, 103_424]),
    tile(Family::HopperDecode,    [ 64, 128, 64, 4, 160, 2, 99_328]),
    tile(Family::PortablePrefill, [128, 256, 32, 4, 256, 1, 98_432]),
    tile(Family::PortablePrefill, [128, 128, 32, 3, 128, 2, 49_280]),
    tile(Family::PortablePrefill, [ 64, 128, 32, 4, 128, 3, 49_280]),
    tile(Family::PortableDecode,  [  8,  64, 64, 5,  64, 4, 46_208]),
    tile(Family::PortableDecode,  [ 16,  64, 64, 4,  64, 4, 41_088]),
    tile(Family::PortableDecode,  [ 32, 128, 32, 4, 128, 4, 41_088]),
    tile(Family::HopperQuantised(Codes::Fp8), [ 16, 128, 64, 9, 160, 2, 97_280]),
    tile(Family::HopperQuantised(Codes::Fp8), [ 48, 128, 64, 7, 160, 2, 104_448]),
    tile(Family::HopperQuantised(Codes::Mxfp4), [ 16, 128, 64, 12, 160, 2, 77_824]),
    tile(Family::HopperQuantised(Codes::Mxfp4), [ 64, 128, 64, 6, 160, 2, 75_776]),
    tile(Family::HopperQuantised(Codes::Int4), [ 16, 128, 64, 12, 160, 2, 80_896]),
    tile(Family::HopperQuantised(Codes::Int4), [ 64, 128, 64, 6, 160, 2, 77_824]),
    tile(Family::PortableQuantised(Codes::Fp8), [ 16,  64, 64, 5,  64, 4, 32_128]),
    tile(Family::PortableQuantised(Codes::Fp8), [ 48, 128, 64, 3, 128, 2, 44_672]),
    tile(Family::PortableQuantised(Codes::Mxfp4), [ 16,  64, 64, 6,  64, 4, 25_472]),
    tile(Family::PortableQuantised(Codes::Mxfp4), [ 64, 128, 64, 3, 128, 2, 37_760]),
    tile(Family::PortableQuantised(Codes::Int4), [ 16,  64, 64, 6,  64, 4, 26_240]),
    tile(Family::PortableQuantised(Codes::Int4), [ 64, 128, 64, 3, 128, 2, 38_528]),
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
