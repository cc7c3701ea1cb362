//! Experts with one value for each weight.

use std::borrow::Cow;
use std::fmt;

use crate::config::{GateUpLayout, check_sizes};
use crate::element::Float;
use crate::error::{Error, Result, checked_product};
use crate::ops::ExpertShape;

use super::{ExpertBiases, ExpertMatrix, ExpertWeights, Format, sealed};

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
    biases: Option<ExpertBiases>,
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

    fn merged(self, shared: Self) -> Result<Self> {
        let (routed, own) = (self.shape, shared.shape);
        let width = routed.intermediate_size;
        let slices = own.intermediate_size / width;
        let whole = ExpertShape { num_experts: 1, intermediate_size: slices * width, ..routed };
        if own != whole || self.biases.is_some() || shared.biases.is_some() {
            let operand = "merged shared expert [E, H, I], without biases";
            return Err(Error::shape(operand, whole.dims(), own.dims()));
        }
        let shape = ExpertShape { num_experts: routed.num_experts + slices, ..routed };
        let source = Merged { routed: self.source, shared: shared.source, shape: routed, slices };
        Self::from_source(shape, source)
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
        let ExpertShape { num_experts, hidden_size, intermediate_size, .. } = shape;
        check_sizes(num_experts, hidden_size, intermediate_size)?;
        Ok(Self { shape, biases: None, source: Box::new(source) })
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

    /// Experts stacked in two arrays: `gate_up [E, 2I, H]` with the rows of gate and up in the
    /// order of `layout`, and `down [E, H, I]`. Without a gate, `[E, I, H]`, and `layout` says nothing.
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
        for (operand, given, columns, depth) in [
            ("gate_up", gate_up.len(), shape.gate_up_columns(), shape.hidden_size),
            ("down", down.len(), shape.hidden_size, shape.intermediate_size),
        ] {
            let expected = checked_product(operand, &[shape.num_experts, columns, depth])?;
            if given != expected {
                return Err(Error::shape(operand, [expected], [given]));
            }
        }
        Self::from_source(shape, Stacked { shape, layout, gate_up, down })
    }

    /// Calls `hook` before each matrix is read: for progress bars and logs.
    pub fn inspect(self, hook: impl Fn(usize, ExpertMatrix) + Send + Sync + 'static) -> Self {
        let source = Box::new(Inspected { source: self.source, hook });
        Self { source, ..self }
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
        if matrix == ExpertMatrix::Gate && !self.shape.gated {
            return Err(Error::value("matrix", matrix, "up_proj or down_proj: there is no gate"));
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
        if !self.shape.gated {
            return Ok(Cow::Borrowed(&self.gate_up[expert * len..][..len]));
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

/// Routed experts, and a shared one in slices of their width.
struct Merged<T: Float> {
    routed: Box<dyn ExpertSource<T>>,
    shared: Box<dyn ExpertSource<T>>,
    /// Of the routed experts.
    shape: ExpertShape,
    slices: usize,
}

impl<T: Float> ExpertSource<T> for Merged<T> {
    fn read(&self, expert: usize, matrix: ExpertMatrix) -> Result<Cow<'_, [T]>> {
        let ExpertShape { num_experts, intermediate_size: width, .. } = self.shape;
        let Some(slice) = expert.checked_sub(num_experts) else {
            return self.routed.read(expert, matrix);
        };
        let whole = self.shared.read(0, matrix)?;
        let [rows, columns] = matrix.dims(self.shape);
        let expected = self.slices * rows * columns;
        if whole.len() != expected {
            let operand = format!("{matrix} of the shared expert");
            return Err(Error::shape(operand, [expected], [whole.len()]));
        }
        Ok(Cow::Owned(match matrix {
            ExpertMatrix::Gate | ExpertMatrix::Up => {
                whole[slice * rows * columns..][..rows * columns].to_vec()
            }
            ExpertMatrix::Down => {
                let of_rows = whole.chunks_exact(self.slices * width);
                of_rows.flat_map(|row| &row[slice * width..][..width]).copied().collect()
            }
        }))
    }
}
