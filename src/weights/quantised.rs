//! Experts with codes of few bits, and scales.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use half::bf16;
use serde::{Deserialize, Serialize};

use crate::config::check_sizes;
use crate::element::Float;
use crate::error::{Error, Result};
use crate::ops::ExpertShape;

use super::{ExpertBiases, ExpertMatrix, ExpertWeights, Format, sealed};

/// How weights are quantised. A matrix `[rows, depth]` has its codes row by row; of two 4-bit codes
/// in a byte the low one comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum QuantFormat {
    /// e4m3, times an f32 scale for each block of 128 x 128: `[ceil(rows / 128), ceil(depth / 128)]`
    /// (DeepSeek-V3). The depth is a multiple of 16.
    Fp8Block,
    /// e2m1, times a power of two, `2^(b - 127)`, for each 32 of depth: `[rows, depth / 32]` (gpt-oss).
    /// The depth is a multiple of 32.
    Mxfp4,
    /// Whole numbers from -8 to 7, stored 8 higher, times a bf16 scale for each `group` of depth:
    /// `[rows, depth / group]` (Kimi-K2). The depth is a multiple of the group.
    Int4 {
        /// 32, 64 or 128.
        group: usize,
    },
}

/// Rows and depth of a block of [`QuantFormat::Fp8Block`].
pub(crate) const FP8_BLOCK: usize = 128;

impl QuantFormat {
    /// Bytes of a matrix's codes.
    pub fn code_bytes(self, [rows, depth]: [usize; 2]) -> usize {
        match self {
            Self::Fp8Block => rows * depth,
            Self::Mxfp4 | Self::Int4 { .. } => rows * depth / 2,
        }
    }

    /// Rows and columns of a matrix's scales.
    pub fn scale_dims(self, [rows, depth]: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Fp8Block => [rows.div_ceil(FP8_BLOCK), depth.div_ceil(FP8_BLOCK)],
            Self::Mxfp4 => [rows, depth / 32],
            Self::Int4 { group } => [rows, depth / group],
        }
    }

    /// Bytes of one scale.
    pub fn scale_bytes(self) -> usize {
        match self {
            Self::Fp8Block => 4,
            Self::Mxfp4 => 1,
            Self::Int4 { .. } => 2,
        }
    }

    /// Bytes of a matrix, scales included.
    pub fn matrix_bytes(self, dims: [usize; 2]) -> usize {
        let [rows, columns] = self.scale_dims(dims);
        self.code_bytes(dims) + rows * columns * self.scale_bytes()
    }

    /// Whether experts of this shape can be stored so.
    pub(crate) fn check(self, shape: ExpertShape) -> Result<()> {
        let step = match self {
            Self::Fp8Block => 16,
            Self::Mxfp4 => 32,
            Self::Int4 { group: group @ (32 | 64 | 128) } => group,
            Self::Int4 { group } => {
                return Err(Error::value("int4 group", group, "32, 64 or 128"));
            }
        };
        for (name, depth) in
            [("hidden_size", shape.hidden_size), ("intermediate_size", shape.intermediate_size)]
        {
            if !depth.is_multiple_of(step) {
                let expected = format!("a multiple of {step}, for weights in {self}");
                return Err(Error::value(name, depth, expected));
            }
        }
        Ok(())
    }
}

impl fmt::Display for QuantFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fp8Block => f.write_str("fp8 (e4m3, 128 x 128 blocks)"),
            Self::Mxfp4 => f.write_str("mxfp4"),
            Self::Int4 { group } => write!(f, "int4 (groups of {group})"),
        }
    }
}

/// Scales of a matrix, row by row, in the type of the format.
#[derive(Clone, Debug)]
pub enum Scales<'a> {
    /// Of [`QuantFormat::Fp8Block`].
    F32(Cow<'a, [f32]>),
    /// Of [`QuantFormat::Mxfp4`]: exponents, 127 higher.
    E8m0(Cow<'a, [u8]>),
    /// Of [`QuantFormat::Int4`].
    Bf16(Cow<'a, [bf16]>),
}

impl Scales<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(scales) => scales.len(),
            Self::E8m0(scales) => scales.len(),
            Self::Bf16(scales) => scales.len(),
        }
    }

    /// Scale number `index`.
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(scales) => scales[index],
            Self::E8m0(scales) => power_of_two(scales[index]),
            Self::Bf16(scales) => scales[index].to_f32(),
        }
    }

    fn are_of(&self, format: QuantFormat) -> bool {
        matches!(
            (self, format),
            (Self::F32(_), QuantFormat::Fp8Block)
                | (Self::E8m0(_), QuantFormat::Mxfp4)
                | (Self::Bf16(_), QuantFormat::Int4 { .. })
        )
    }
}

/// `2^(exponent - 127)`; NaN for 255.
pub(crate) fn power_of_two(exponent: u8) -> f32 {
    match exponent {
        // A subnormal f32.
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

/// The value of an e4m3 code: a sign, four bits of exponent, three of mantissa; no infinities.
#[cfg(feature = "cpu")]
pub(crate) fn e4m3(code: u8) -> f32 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => sign * mantissa / 512.0,
        _ => sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    }
}

/// The values of e2m1 codes: a sign, two bits of exponent, one of mantissa.
#[cfg(feature = "cpu")]
pub(crate) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// A matrix's codes and scales.
#[derive(Clone, Debug)]
pub struct QuantisedMatrix<'a> {
    /// Row by row.
    pub codes: Cow<'a, [u8]>,
    /// Row by row.
    pub scales: Scales<'a>,
}

/// Where quantised experts come from, a matrix at a time.
pub trait QuantSource: Send + Sync {
    /// The matrix's codes and scales.
    ///
    /// # Errors
    /// Whatever keeps the matrix from being read.
    fn read(&self, expert: usize, matrix: ExpertMatrix) -> Result<QuantisedMatrix<'_>>;
}

/// Experts with quantised weights, for activations of type `T`.
pub struct QuantisedExperts<T: Float> {
    format: QuantFormat,
    shape: ExpertShape,
    biases: Option<ExpertBiases>,
    source: Box<dyn QuantSource>,
    element: PhantomData<T>,
}

impl<T: Float> fmt::Debug for QuantisedExperts<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuantisedExperts")
            .field("format", &self.format)
            .field("shape", &self.shape)
            .finish()
    }
}

impl<T: Float> sealed::Sealed for QuantisedExperts<T> {}

impl<T: Float> ExpertWeights for QuantisedExperts<T> {
    type Element = T;

    fn shape(&self) -> ExpertShape {
        self.shape
    }

    fn merged(self, _: Self) -> Result<Self> {
        Err(Error::Unsupported {
            what: format!("a shared expert among experts in {}", self.format),
            supported: "one beside them: SharedExpert::merged is for dense weights".to_owned(),
        })
    }

    fn into_format(self) -> Format<T> {
        Format::Quantised(self)
    }
}

impl<T: Float> QuantisedExperts<T> {
    /// Experts that `source` reads.
    ///
    /// # Errors
    /// [`Error::Value`] for a shape that no layer can have, or not in this format.
    pub fn from_source(
        format: QuantFormat,
        shape: ExpertShape,
        source: impl QuantSource + 'static,
    ) -> Result<Self> {
        check_sizes(shape.num_experts, shape.hidden_size, shape.intermediate_size)?;
        format.check(shape)?;
        let (biases, element) = (None, PhantomData);
        Ok(Self { format, shape, biases, source: Box::new(source), element })
    }

    /// The same experts with biases.
    ///
    /// # Errors
    /// [`Error::Shape`] if a length disagrees with the shape.
    pub fn with_biases(self, biases: ExpertBiases) -> Result<Self> {
        biases.check(self.shape)?;
        Ok(Self { biases: Some(biases), ..self })
    }

    /// The biases, where there are any.
    pub fn biases(&self) -> Option<&ExpertBiases> {
        self.biases.as_ref()
    }

    /// How the weights are quantised.
    pub fn format(&self) -> QuantFormat {
        self.format
    }

    /// Calls `hook` before each matrix is read: for progress bars and logs.
    pub fn inspect(self, hook: impl Fn(usize, ExpertMatrix) + Send + Sync + 'static) -> Self {
        let source = Box::new(Inspected { source: self.source, hook });
        Self { source, ..self }
    }

    /// The matrix's codes and scales.
    ///
    /// # Errors
    /// The source's own, [`Error::Value`] for an expert or a matrix that does not exist and for scales
    /// of another type than the format's, [`Error::Shape`] for another number of codes or scales.
    pub fn read(&self, expert: usize, matrix: ExpertMatrix) -> Result<QuantisedMatrix<'_>> {
        if expert >= self.shape.num_experts {
            let expected = format!("less than {}", self.shape.num_experts);
            return Err(Error::value("expert", expert, expected));
        }
        if matrix == ExpertMatrix::Gate && !self.shape.gated {
            return Err(Error::value("matrix", matrix, "up_proj or down_proj: there is no gate"));
        }
        let read = self.source.read(expert, matrix)?;
        let dims = matrix.dims(self.shape);
        let [rows, columns] = self.format.scale_dims(dims);
        let operand = |what: &str| format!("{what} of {matrix} of expert {expert}");
        for (what, given, expected) in [
            ("codes", read.codes.len(), self.format.code_bytes(dims)),
            ("scales", read.scales.len(), rows * columns),
        ] {
            if given != expected {
                return Err(Error::shape(operand(what), [expected], [given]));
            }
        }
        if !read.scales.are_of(self.format) {
            let expected = format!("those of {}", self.format);
            return Err(Error::value(operand("scales"), "of another type", expected));
        }
        Ok(read)
    }
}

struct Inspected<F> {
    source: Box<dyn QuantSource>,
    hook: F,
}

impl<F: Fn(usize, ExpertMatrix) + Send + Sync> QuantSource for Inspected<F> {
    fn read(&self, expert: usize, matrix: ExpertMatrix) -> Result<QuantisedMatrix<'_>> {
        (self.hook)(expert, matrix);
        self.source.read(expert, matrix)
    }
}
