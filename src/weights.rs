//! Weights in the host's memory, in the formats that checkpoints store: what backends prepare.

use std::borrow::Cow;
use std::fmt;

use crate::config::{GateUpLayout, check_sizes};
use crate::element::Float;
use crate::error::{Error, Result, checked_product};
use crate::ops::ExpertShape;

mod sealed {
    pub trait Sealed {}
}

/// The router's weight `[E, H]`, row by row. f32 weights stay f32 whatever the layer's type.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RouterWeights<T: Float> {
    /// As stored by families that route in f32, or widened from another type.
    F32(Vec<f32>),
    /// In the type of the layer.
    Model(Vec<T>),
}

/// A storage format of the experts' weights.
pub trait ExpertWeights: sealed::Sealed + Send + 'static {
    /// The type of the activations that these weights are multiplied with.
    type Element: Float;

    /// E, H and I.
    fn shape(&self) -> ExpertShape;

    /// The weights, by format: what a backend matches on.
    fn into_format(self) -> Format<Self::Element>;
}

/// Every storage format.
#[derive(Debug)]
#[non_exhaustive]
pub enum Format<T: Float> {
    /// One value for each weight.
    Dense(DenseExperts<T>),
}

/// One of an expert's three matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertMatrix {
    /// `[I, H]`.
    Gate,
    /// `[I, H]`.
    Up,
    /// `[H, I]`.
    Down,
}

impl ExpertMatrix {
    /// Rows and columns.
    pub fn dims(self, shape: ExpertShape) -> [usize; 2] {
        let ExpertShape { hidden_size, intermediate_size, .. } = shape;
        match self {
            Self::Gate | Self::Up => [intermediate_size, hidden_size],
            Self::Down => [hidden_size, intermediate_size],
        }
    }
}

impl fmt::Display for ExpertMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        })
    }
}

/// Where experts come from, a matrix at a time: a stack in memory, a mapped file, a generator.
///
/// A backend that repacks reads one matrix after the other, so that the unpacked weights need
/// never be in memory together.
pub trait ExpertSource<T: Float>: Send + Sync {
    /// The matrix's elements, row by row.
    ///
    /// # Errors
    /// Whatever keeps the matrix from being read.
    fn read(&self, expert: usize, matrix: ExpertMatrix) -> Result<Cow<'_, [T]>>;
}

/// Experts with one value for each weight.
pub struct DenseExperts<T: Float> {
    shape: ExpertShape,
    source: Box<dyn ExpertSource<T>>,
}

impl<T: Float> fmt::Debug for DenseExperts<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DenseExperts")
            .field("dtype", &T::DTYPE)
            .field("shape", &self.shape)
            .finish()
    }
}

impl<T: Float> sealed::Sealed for DenseExperts<T> {}

impl<T: Float> ExpertWeights for DenseExperts<T> {
    type Element = T;

    fn shape(&self) -> ExpertShape {
        self.shape
    }

    fn into_format(self) -> Format<T> {
        Format::Dense(self)
    }
}

impl<T: Float> DenseExperts<T> {
    /// Experts that `source` reads.
    ///
    /// # Errors
    /// [`Error::Value`] for a shape that no [`MoeConfig`](crate::MoeConfig) can have.
    pub fn from_source(shape: ExpertShape, source: impl ExpertSource<T> + 'static) -> Result<Self> {
        let ExpertShape { num_experts, hidden_size, intermediate_size } = shape;
        check_sizes(num_experts, hidden_size, intermediate_size)?;
        Ok(Self { shape, source: Box::new(source) })
    }

    /// Experts stacked in two arrays: `gate_up [E, 2I, H]` with the rows of gate and up in the
    /// order of `layout`, and `down [E, H, I]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if a length disagrees with `shape`, and as
    /// [`DenseExperts::from_source`].
    pub fn stacked(
        shape: ExpertShape,
        layout: GateUpLayout,
        gate_up: Vec<T>,
        down: Vec<T>,
    ) -> Result<Self> {
        let ExpertShape { num_experts, hidden_size, intermediate_size } = shape;
        let matrix = checked_product("expert", &[hidden_size, intermediate_size])?;
        for (operand, given, matrices) in [("gate_up", gate_up.len(), 2), ("down", down.len(), 1)] {
            let expected = checked_product(operand, &[num_experts, matrices, matrix])?;
            if given != expected {
                return Err(Error::shape(operand, [expected], [given]));
            }
        }
        Self::from_source(shape, Stacked { shape, layout, gate_up, down })
    }

    /// Calls `hook` before each matrix is read: for progress bars and logs.
    pub fn inspect(self, hook: impl Fn(usize, ExpertMatrix) + Send + Sync + 'static) -> Self {
        let source = Box::new(Inspected { source: self.source, hook });
        Self { shape: self.shape, source }
    }

    /// The matrix's elements, row by row.
    ///
    /// # Errors
    /// The source's own, [`Error::Value`] for an expert that does not exist, and
    /// [`Error::Shape`] if the source reads another number of elements.
    pub fn read(&self, expert: usize, matrix: ExpertMatrix) -> Result<Cow<'_, [T]>> {
        if expert >= self.shape.num_experts {
            let expected = format!("less than {}", self.shape.num_experts);
            return Err(Error::value("expert", expert, expected));
        }
        let elements = self.source.read(expert, matrix)?;
        let [rows, columns] = matrix.dims(self.shape);
        if elements.len() != rows * columns {
            let operand = format!("{matrix} of expert {expert}");
            return Err(Error::shape(operand, [rows * columns], [elements.len()]));
        }
        Ok(elements)
    }
}

struct Stacked<T> {
    shape: ExpertShape,
    layout: GateUpLayout,
    gate_up: Vec<T>,
    down: Vec<T>,
}

impl<T: Float> ExpertSource<T> for Stacked<T> {
    fn read(&self, expert: usize, matrix: ExpertMatrix) -> Result<Cow<'_, [T]>> {
        let width = self.shape.hidden_size;
        let len = width * self.shape.intermediate_size;
        if matrix == ExpertMatrix::Down {
            return Ok(Cow::Borrowed(&self.down[expert * len..][..len]));
        }
        let gate_up = &self.gate_up[2 * expert * len..][..2 * len];
        let second = match self.layout {
            GateUpLayout::GateFirst => matrix == ExpertMatrix::Up,
            GateUpLayout::UpFirst => matrix == ExpertMatrix::Gate,
            GateUpLayout::Interleaved => {
                let odd = usize::from(matrix == ExpertMatrix::Up);
                let rows = gate_up.chunks_exact(width).skip(odd).step_by(2);
                return Ok(Cow::Owned(rows.flatten().copied().collect()));
            }
        };
        Ok(Cow::Borrowed(&gate_up[usize::from(second) * len..][..len]))
    }
}

struct Inspected<T: Float, F> {
    source: Box<dyn ExpertSource<T>>,
    hook: F,
}

impl<T: Float, F: Fn(usize, ExpertMatrix) + Send + Sync> ExpertSource<T> for Inspected<T, F> {
    fn read(&self, expert: usize, matrix: ExpertMatrix) -> Result<Cow<'_, [T]>> {
        (self.hook)(expert, matrix);
        self.source.read(expert, matrix)
    }
}
