//! Quantised weights for the micro-kernel: packed as they are, widened a block at a time.
//!
//! Codes lie as [`PackedMatrix`](super::gemm::PackedMatrix) lays out elements, `[k / DEPTH][n / PANEL]
//! [DEPTH][PANEL]`, of two 4-bit codes in a byte the low one for the lower column.

use std::sync::LazyLock;

use half::bf16;

use crate::error::{Result, vec_with_room};
use crate::weights::{E2M1, FP8_BLOCK, QuantFormat, QuantisedMatrix, Scales, e4m3, power_of_two};

use super::gemm::{DEPTH, PANEL, Panels, Step, Widen};

/// A quantised matrix `[n, k]`, packed for [`multiply`](super::gemm::multiply).
#[derive(Debug)]
pub(super) struct PackedCodes {
    n: usize,
    k: usize,
    format: QuantFormat,
    codes: Vec<u8>,
    scales: PackedScales,
}

/// Of blocks `[k / 128][n / 128]`, or of groups of depth `[k / group][n / PANEL][PANEL]`.
#[derive(Debug)]
enum PackedScales {
    F32(Vec<f32>),
    E8m0(Vec<[u8; PANEL]>),
    Bf16(Vec<[bf16; PANEL]>),
}

impl PackedCodes {
    pub(super) fn pack(
        format: QuantFormat,
        [n, k]: [usize; 2],
        matrix: &QuantisedMatrix<'_>,
    ) -> Result<Self> {
        let panels = n.div_ceil(PANEL);
        let code = |row: usize, column: usize| match format {
            _ if row >= n => zero(format),
            QuantFormat::Fp8Block => matrix.codes[row * k + column],
            QuantFormat::Mxfp4 | QuantFormat::Int4 { .. } => {
                let index = row * k + column;
                matrix.codes[index / 2] >> (index % 2 * 4) & 15
            }
        };
        let mut codes = vec_with_room("packed codes", panels * k * step_bytes(format))?;
        for first in (0..k).step_by(DEPTH) {
            for panel in 0..panels {
                for column in first..k.min(first + DEPTH) {
                    let lane = |lane: usize| code(panel * PANEL + lane, column);
                    match format {
                        QuantFormat::Fp8Block => codes.extend((0..PANEL).map(lane)),
                        QuantFormat::Mxfp4 | QuantFormat::Int4 { .. } => codes
                            .extend((0..PANEL).step_by(2).map(|at| lane(at) | lane(at + 1) << 4)),
                    }
                }
            }
        }
        let [_, groups] = format.scale_dims([n, k]);
        let scales = match &matrix.scales {
            Scales::F32(scales) => {
                let blocks = n.div_ceil(FP8_BLOCK);
                let transposed = (0..groups)
                    .flat_map(|group| (0..blocks).map(move |block| block * groups + group));
                PackedScales::F32(transposed.map(|index| scales[index]).collect())
            }
            Scales::E8m0(scales) => PackedScales::E8m0(by_lane(scales, [n, groups])),
            Scales::Bf16(scales) => PackedScales::Bf16(by_lane(scales, [n, groups])),
        };
        Ok(Self { n, k, format, codes, scales })
    }

    /// Bytes of a matrix `[n, k]` as packed.
    pub(super) fn bytes_of(format: QuantFormat, [n, k]: [usize; 2]) -> Option<usize> {
        let padded = n.next_multiple_of(PANEL);
        let codes = (padded / PANEL).checked_mul(k)?.checked_mul(step_bytes(format))?;
        let rows = if format == QuantFormat::Fp8Block { n } else { padded };
        let [rows, columns] = format.scale_dims([rows, k]);
        codes.checked_add(rows.checked_mul(columns)?.checked_mul(format.scale_bytes())?)
    }

    pub(super) fn bytes(&self) -> usize {
        let scales = match &self.scales {
            PackedScales::F32(scales) => size_of_val(&**scales),
            PackedScales::E8m0(scales) => size_of_val(&**scales),
            PackedScales::Bf16(scales) => size_of_val(&**scales),
        };
        self.codes.len() + scales
    }
}

/// `[n, groups]`, row by row, as `[groups][n / PANEL][PANEL]`.
fn by_lane<S: Copy + Default>(scales: &[S], [n, groups]: [usize; 2]) -> Vec<[S; PANEL]> {
    let lane = |group: usize, row: usize| match row < n {
        true => scales[row * groups + group],
        false => S::default(),
    };
    let panels = n.div_ceil(PANEL);
    let places = (0..groups).flat_map(|group| (0..panels).map(move |panel| (group, panel)));
    places.map(|(group, panel)| std::array::from_fn(|at| lane(group, panel * PANEL + at))).collect()
}

/// The code of 0.
fn zero(format: QuantFormat) -> u8 {
    match format {
        QuantFormat::Fp8Block | QuantFormat::Mxfp4 => 0,
        QuantFormat::Int4 { .. } => 8,
    }
}

/// Bytes of the codes of a panel's columns at one depth.
fn step_bytes(format: QuantFormat) -> usize {
    match format {
        QuantFormat::Fp8Block => PANEL,
        QuantFormat::Mxfp4 | QuantFormat::Int4 { .. } => PANEL / 2,
    }
}

static E4M3: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|code| e4m3(code as u8)));

fn int4(code: u8) -> f32 {
    f32::from(code) - 8.0
}

impl Panels for PackedCodes {
    fn n(&self) -> usize {
        self.n
    }

    fn k(&self) -> usize {
        self.k
    }

    fn block<'a>(
        &'a self,
        first: usize,
        panel: usize,
        _: Widen<'_>,
        buffer: &'a mut Vec<Step<f32>>,
    ) -> &'a [Step<f32>] {
        buffer.resize(DEPTH, Step([0.0; PANEL]));
        let codes = self.memory(first, panel);
        let steps = codes.chunks_exact(step_bytes(self.format)).zip(&mut *buffer);
        let panels = self.n.div_ceil(PANEL);
        match &self.scales {
            PackedScales::F32(scales) => {
                let blocks = self.n.div_ceil(FP8_BLOCK);
                for (column, (codes, Step(to))) in (first..).zip(steps) {
                    let block = panel * PANEL / FP8_BLOCK;
                    let scale = scales[column / FP8_BLOCK * blocks + block];
                    to.iter_mut().zip(codes).for_each(|(to, &code)| {
                        *to = E4M3[usize::from(code)] * scale;
                    });
                }
            }
            PackedScales::E8m0(scales) => {
                for (column, (codes, Step(to))) in (first..).zip(steps) {
                    let scales = &scales[column / 32 * panels + panel];
                    widen_nibbles(codes, to, |code| E2M1[usize::from(code)]);
                    to.iter_mut().zip(scales).for_each(|(to, &b)| *to *= power_of_two(b));
                }
            }
            PackedScales::Bf16(scales) => {
                let QuantFormat::Int4 { group } = self.format else {
                    unreachable!("the weights have checked the type of their scales");
                };
                for (column, (codes, Step(to))) in (first..).zip(steps) {
                    let scales = &scales[column / group * panels + panel];
                    widen_nibbles(codes, to, int4);
                    to.iter_mut().zip(scales).for_each(|(to, scale)| *to *= scale.to_f32());
                }
            }
        }
        &buffer[..DEPTH.min(self.k - first)]
    }

    fn memory(&self, first: usize, panel: usize) -> &[u8] {
        let (depth, bytes) = (DEPTH.min(self.k - first), step_bytes(self.format));
        let start = first * self.n.div_ceil(PANEL) + panel * depth;
        &self.codes[start * bytes..][..depth * bytes]
    }
}

fn widen_nibbles(codes: &[u8], to: &mut [f32; PANEL], value: impl Fn(u8) -> f32) {
    for (pair, &codes) in to.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
        *pair = [value(codes & 15), value(codes >> 4)];
    }
}
