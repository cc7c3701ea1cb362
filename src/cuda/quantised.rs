//! Quantised experts in device memory, repacked in the order in which kernels/tile/dequantise.cuh takes
//! them.
//!
//! Of each projection, 32 rows are a unit: 16 columns of gate and up, or 32 of one matrix. Row
//! `16 m + 8 h + g` of a unit is column `2 g + m` of half h; the halves are gate and up, or neighbours.
//! A unit is two blocks of 16 rows, by 64 of depth. What is rounded up is 0.

use crate::element::{DType, Float};
use crate::error::{Error, Result, checked_product, vec_with_room};
use crate::memory::Buffer as _;
use crate::ops::{ExpertShape, Projection};
use crate::weights::{
    ExpertMatrix, ExpertWeights as _, FP8_BLOCK, QuantFormat, QuantisedExperts, QuantisedMatrix,
    Scales,
};

use super::abi::QuantisedMatrices;
use super::buffer::Place;
use super::driver::Driver;
use super::{Cuda, CudaBuffer, CudaStream};

/// Depth of a block.
const DEPTH: usize = 64;
/// Rows of a block.
const ROWS: usize = 16;

/// One projection of all experts.
pub(super) struct QuantisedProjection<D: Driver> {
    pub(super) format: QuantFormat,
    pub(super) matrices: QuantisedMatrices,
    codes: CudaBuffer<D, u32>,
    scales: CudaBuffer<D, u32>,
}

impl<D: Driver> QuantisedProjection<D> {
    pub(super) fn bytes(&self) -> usize {
        (self.codes.len() + self.scales.len()) * size_of::<u32>()
    }

    pub(super) fn place(&self) -> Place<'_, D> {
        self.codes.place("experts")
    }
}

impl<D: Driver + 'static> QuantisedProjection<D> {
    /// Repacks a projection, an expert at a time.
    pub(super) fn upload<T: Float>(
        cuda: &Cuda<D>,
        projection: Projection,
        experts: &QuantisedExperts<T>,
        stream: &CudaStream<D>,
    ) -> Result<Self> {
        let format = experts.format();
        if T::DTYPE != DType::Bf16 {
            return Err(Error::Unsupported {
                what: format!("{format} experts with {} activations on CUDA", T::DTYPE),
                supported: "bf16".to_owned(),
            });
        }
        let shape = experts.shape();
        let halves: &[ExpertMatrix] = match projection {
            Projection::GateUp if shape.gated => &[ExpertMatrix::Gate, ExpertMatrix::Up],
            Projection::GateUp => &[ExpertMatrix::Up],
            Projection::Down => &[ExpertMatrix::Down],
        };
        let packing = Packing::new(format, halves[0].dims(shape), halves.len());
        let buffer = |what, words| {
            CudaBuffer::<D, u32>::uninitialised(
                cuda,
                what,
                checked_product(what, &[shape.num_experts, words])?,
            )
        };
        let (codes, scales) =
            (buffer("codes", packing.code_words())?, buffer("scales", packing.scale_words())?);
        for expert in 0..shape.num_experts {
            let read = halves
                .iter()
                .map(|&matrix| experts.read(expert, matrix))
                .collect::<Result<Vec<_>>>()?;
            codes.write(expert * packing.code_words(), &packing.codes(&read)?, stream)?;
            scales.write(expert * packing.scale_words(), &packing.scales(&read)?, stream)?;
        }
        let matrices = QuantisedMatrices {
            codes: codes.address(),
            scales: scales.address(),
            codes_stride: packing.code_words() as u64 * 4,
            scales_stride: packing.scale_words() as u64 * 4,
            row_blocks: packing.row_blocks as u32,
            scale_bytes: packing.scale_block_words() as u32 * 4,
            scale_shift: packing.scale_shift(),
            reserved: 0,
        };
        Ok(Self { format, matrices, codes, scales })
    }
}

/// Bytes of a matrix of one expert, repacked.
pub(super) fn matrix_bytes(
    format: QuantFormat,
    shape: ExpertShape,
    matrix: ExpertMatrix,
) -> Option<usize> {
    let halves = if shape.gated && matrix != ExpertMatrix::Down { 2 } else { 1 };
    let packing = Packing::new(format, matrix.dims(shape), halves);
    let blocks = packing.depth_blocks().checked_mul(packing.row_blocks)?;
    let codes = blocks.checked_mul(packing.code_block_words())?;
    let words =
        codes.checked_add(packing.scale_blocks().checked_mul(packing.scale_block_words())?)?;
    Some(words.checked_mul(size_of::<u32>())? / halves)
}

/// How a projection of one expert is repacked.
struct Packing {
    format: QuantFormat,
    /// Of each half.
    rows: usize,
    depth: usize,
    /// 2: gate and up.
    halves: usize,
    row_blocks: usize,
}

/// A row of a half's matrix; none where rows are rounded up.
type Row = Option<(usize, usize)>;

impl Packing {
    fn new(format: QuantFormat, [rows, depth]: [usize; 2], halves: usize) -> Self {
        let row_blocks = match halves {
            2 => rows.div_ceil(ROWS) * 2,
            _ => rows.div_ceil(2 * ROWS) * 2,
        };
        Self { format, rows, depth, halves, row_blocks }
    }

    fn depth_blocks(&self) -> usize {
        self.depth.div_ceil(DEPTH)
    }

    /// Of a block.
    fn code_block_words(&self) -> usize {
        self.format.code_bytes([ROWS, DEPTH]) / 4
    }

    fn code_words(&self) -> usize {
        self.depth_blocks() * self.row_blocks * self.code_block_words()
    }

    /// The depth that a block's scales serve is 64 shifted by so much.
    fn scale_shift(&self) -> u32 {
        match self.format {
            QuantFormat::Fp8Block | QuantFormat::Int4 { group: 128 } => 1,
            QuantFormat::Mxfp4 | QuantFormat::Int4 { .. } => 0,
        }
    }

    /// Of a block: 16 rows of one scale or two.
    fn scale_block_words(&self) -> usize {
        match self.format {
            QuantFormat::Fp8Block | QuantFormat::Int4 { group: 32 } => 16,
            QuantFormat::Mxfp4 | QuantFormat::Int4 { .. } => 8,
        }
    }

    fn scale_words(&self) -> usize {
        self.scale_blocks() * self.scale_block_words()
    }

    fn scale_blocks(&self) -> usize {
        self.depth_blocks().div_ceil(1 << self.scale_shift()) * self.row_blocks
    }

    /// Row g or g + 8 (`high`) of a block.
    fn row(&self, block: usize, g: usize, high: usize) -> Row {
        let (unit, m) = (block / 2, block % 2);
        let (half, row) = match self.halves {
            2 => (high, unit * ROWS + 2 * g + m),
            _ => (0, unit * 2 * ROWS + high * ROWS + 2 * g + m),
        };
        (row < self.rows).then_some((half, row))
    }

    fn codes(&self, halves: &[QuantisedMatrix<'_>]) -> Result<Vec<u32>> {
        let mut words = vec_with_room("repacked codes", self.code_words())?;
        let bytes = matches!(self.format, QuantFormat::Fp8Block);
        // Depth that a word of each lane covers, with its neighbours: what fits 32 lanes of 16 bytes.
        let parts = if bytes { 2 } else { 1 };
        for first in (0..self.depth).step_by(DEPTH) {
            for block in 0..self.row_blocks {
                for (part, lane) in (0..parts * 32).map(|at| (at / 32, at % 32)) {
                    let rows = [0, 1].map(|high| self.row(block, lane / 4, high));
                    // Two neighbours in depth, of which the lower bits have the first.
                    let pair = |high: usize, at: usize| {
                        let at = first + at + lane % 4 * 2;
                        [at, at + 1].map(|at| self.code(halves, rows[high], at))
                    };
                    words.extend((0..4).map(|word| {
                        if bytes {
                            // Of a step of 16 two words, 8 apart in depth: the low row's in bytes 0
                            // and 2, the high row's in 1 and 3.
                            let at = part * 32 + word / 2 * 16 + word % 2 * 8;
                            let ([a, b], [c, d]) = (pair(0, at), pair(1, at));
                            u32::from_le_bytes([a, c, b, d])
                        } else {
                            // Fragment i in bits 4 i of both halves.
                            (0..4).fold(0, |bits, i| {
                                let [low, high] = pair(i % 2, word * 16 + i / 2 * 8);
                                bits | (u32::from(low) | u32::from(high) << 16) << (4 * i)
                            })
                        }
                    }));
                }
            }
        }
        Ok(words)
    }

    fn code(&self, halves: &[QuantisedMatrix<'_>], row: Row, at: usize) -> u8 {
        let zero = if matches!(self.format, QuantFormat::Int4 { .. }) { 8 } else { 0 };
        let Some((half, row)) = row.filter(|_| at < self.depth) else { return zero };
        let (codes, index) = (&halves[half].codes, row * self.depth + at);
        match self.format {
            QuantFormat::Fp8Block => codes[index],
            QuantFormat::Mxfp4 | QuantFormat::Int4 { .. } => {
                codes[index / 2] >> (index % 2 * 4) & 15
            }
        }
    }

    fn scales(&self, halves: &[QuantisedMatrix<'_>]) -> Result<Vec<u32>> {
        let mut words = vec_with_room("repacked scales", self.scale_words())?;
        for first in (0..self.depth).step_by(DEPTH << self.scale_shift()) {
            for block in 0..self.row_blocks {
                match self.format {
                    QuantFormat::Fp8Block => {
                        let places = (0..8).flat_map(|g| [0, 1].map(|high| (g, high)));
                        words.extend(places.map(|(g, high)| {
                            self.block_scale(halves, self.row(block, g, high), first).to_bits()
                        }));
                    }
                    QuantFormat::Mxfp4 => words.extend((0..8).map(|g| {
                        let scale = |high, at| self.scale(halves, self.row(block, g, high), at, 32);
                        let of = |high| [scale(high, first), scale(high, first + 32)];
                        let ([a, b], [c, d]) = (of(0), of(1));
                        u32::from_le_bytes([a as u8, b as u8, c as u8, d as u8])
                    })),
                    QuantFormat::Int4 { group } => {
                        for at in (first..first + DEPTH).step_by(group.min(DEPTH)) {
                            words.extend((0..8).map(|g| {
                                let [low, high] = [0, 1].map(|high| {
                                    self.scale(halves, self.row(block, g, high), at, group)
                                });
                                u32::from(low) | u32::from(high) << 16
                            }));
                        }
                    }
                }
            }
        }
        Ok(words)
    }

    /// The bits of a row's scale at one depth.
    fn scale(&self, halves: &[QuantisedMatrix<'_>], row: Row, at: usize, group: usize) -> u16 {
        let Some((half, row)) = row.filter(|_| at < self.depth) else { return 0 };
        let index = row * (self.depth / group) + at / group;
        match &halves[half].scales {
            Scales::E8m0(scales) => scales[index].into(),
            Scales::Bf16(scales) => scales[index].to_bits(),
            Scales::F32(_) => unreachable!("the weights have checked the type of their scales"),
        }
    }

    /// A row's scale of a block of fp8. Of a row with a NaN there it is NaN, as the row's sums are to be:
    /// the kernels widen codes as if all of them were numbers.
    fn block_scale(&self, halves: &[QuantisedMatrix<'_>], row: Row, first: usize) -> f32 {
        let Some((half, row)) = row else { return 0.0 };
        let last = self.depth.min(first + FP8_BLOCK);
        let codes = &halves[half].codes[row * self.depth..][first..last];
        if codes.iter().any(|code| code & 0x7f == 0x7f) {
            return f32::NAN;
        }
        let [_, columns] = self.format.scale_dims([self.rows, self.depth]);
        halves[half].scales.get(row / FP8_BLOCK * columns + first / FP8_BLOCK)
    }
}
