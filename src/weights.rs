//! Weights in the host's memory, in the formats that checkpoints store: what backends prepare.

use std::borrow::Cow;
use std::fmt;

use crate::config::{GateUpLayout, check_sizes};
use crate::element::Float;
use crate::error::{Error, Result, checked_product};
use crate::ops::{ExpertShape, GateParts};

mod sealed {
    pub trait Sealed {}
}

/// A router's matrix `[E, H]`, row by row. f32 weights stay f32 whatever the layer's type.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RouterMatrix<T: Float> {
    /// As stored by families that route in f32, or widened from another type.
    F32(Vec<f32>),
    /// In the type of the layer.
    Model(Vec<T>),
}

/// What a router is made of: its matrix, and what [`RouterConfig`](crate::config::RouterConfig) says
/// that it has besides. E counts experts without weights too.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RouterWeights<T: Float> {
    /// `[E, H]`.
    pub matrix: RouterMatrix<T>,
    /// `[E]`: added to the logits.
    pub bias: Option<Vec<f32>>,
    /// `[E]`: added to the scores, for the choice alone.
    pub selection_bias: Option<Vec<f32>>,
    /// `[E]`: a factor on the weights.
    pub expert_scale: Option<Vec<f32>>,
    /// `[H]`: a factor on the normalised input.
    pub input_scale: Option<Vec<f32>>,
    /// `[vocab_size, K]`: the experts of each token of the vocabulary.
    pub hash_table: Option<Vec<i32>>,
}

impl<T: Float> RouterWeights<T> {
    /// A matrix, and nothing besides.
    pub fn new(matrix: RouterMatrix<T>) -> Self {
        Self {
            matrix,
            bias: None,
            selection_bias: None,
            expert_scale: None,
            input_scale: None,
            hash_table: None,
        }
    }

    /// A matrix in f32, and nothing besides.
    pub fn f32(matrix: Vec<f32>) -> Self {
        Self::new(RouterMatrix::F32(matrix))
    }

    /// A matrix in the type of the layer, and nothing besides.
    pub fn model(matrix: Vec<T>) -> Self {
        Self::new(RouterMatrix::Model(matrix))
    }

    /// Which parts there are.
    pub fn parts(&self) -> GateParts {
        GateParts {
            bias: self.bias.is_some(),
            selection_bias: self.selection_bias.is_some(),
            expert_scale: self.expert_scale.is_some(),
            input_scale: self.input_scale.is_some(),
            hash_table: self.hash_table.as_ref().map_or(0, Vec::len),
        }
    }

    /// Checks every part's length against `[E, H]`, and multiplies `input_scale` into the matrix: what
    /// backends prepare.
    #[cfg_attr(
        not(any(feature = "cpu", feature = "driver")),
        expect(dead_code, reason = "for backends")
    )]
    pub(crate) fn folded(mut self, [experts, hidden]: [usize; 2]) -> Result<Self> {
        let expected = checked_product("router weight", &[experts, hidden])?;
        let given = match &self.matrix {
            RouterMatrix::F32(matrix) => matrix.len(),
            RouterMatrix::Model(matrix) => matrix.len(),
        };
        if given != expected {
            return Err(Error::shape("router weight", [expected], [given]));
        }
        for (operand, part, len) in [
            ("router bias", &self.bias, experts),
            ("router selection_bias", &self.selection_bias, experts),
            ("router expert_scale", &self.expert_scale, experts),
            ("router input_scale", &self.input_scale, hidden),
        ] {
            if let Some(part) = part
                && part.len() != len
            {
                return Err(Error::shape(operand, [len], [part.len()]));
            }
        }
        if let Some(scale) = &self.input_scale {
            let scaled = |weight: f32, index: usize| weight * scale[index % hidden];
            let matrix = match self.matrix {
                RouterMatrix::F32(matrix) => {
                    matrix.into_iter().zip(0..).map(|(w, at)| scaled(w, at)).collect()
                }
                RouterMatrix::Model(matrix) => {
                    matrix.into_iter().zip(0..).map(|(w, at)| scaled(w.to_f32(), at)).collect()
                }
            };
            self.matrix = RouterMatrix::F32(matrix);
        }
        Ok(self)
    }
}

/// Biases of experts, in f32: gate_up `[E, 2I]` with all of the gate's first, or `[E, I]` without a
/// gate, and down `[E, H]`.
#[derive(Clone, Debug, Default)]
pub struct ExpertBiases {
    /// Added to the first product.
    pub gate_up: Vec<f32>,
    /// Added to the second product.
    pub down: Vec<f32>,
}

impl ExpertBiases {
    fn check(&self, shape: ExpertShape) -> Result<()> {
        for (operand, given, columns) in [
            ("gate_up bias", self.gate_up.len(), shape.gate_up_columns()),
            ("down bias", self.down.len(), shape.hidden_size),
        ] {
            let expected = checked_product(operand, &[shape.num_experts, columns])?;
            if given != expected {
                return Err(Error::shape(operand, [expected], [given]));
            }
        }
        Ok(())
    }
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

/// An expert that every token visits, as [`SharedExpert`](crate::config::SharedExpert) says.
#[derive(Debug)]
pub struct SharedWeights<X, T: Float> {
    /// One expert `[1, H, I]`.
    pub experts: X,
    /// `[1, H]`: with a sigmoid gate.
    pub gate: Option<RouterMatrix<T>>,
}

/// All weights of a layer. Start from [`LayerWeights::new`] and set what the configuration adds.
#[derive(Debug)]
#[non_exhaustive]
pub struct LayerWeights<W: ExpertWeights> {
    /// The router's.
    pub router: RouterWeights<W::Element>,
    /// The routed experts'.
    pub experts: W,
    /// The shared expert's.
    pub shared: Option<SharedWeights<SharedFormat<W>, W::Element>>,
    /// Projections to and from the latent width: one expert `[1, H, L]` without a gate, of which the
    /// up projection leads to the latent width and the down projection back.
    pub latent: Option<DenseExperts<W::Element>>,
    /// `[H]`.
    pub output_bias: Option<Vec<f32>>,
}

impl<W: ExpertWeights> LayerWeights<W> {
    /// A router and experts, and nothing besides.
    pub fn new(router: RouterWeights<W::Element>, experts: W) -> Self {
        Self { router, experts, shared: None, latent: None, output_bias: None }
    }
}

/// A shared expert's format: that of the routed ones, or dense beside quantised ones.
#[derive(Debug)]
pub enum SharedFormat<W: ExpertWeights> {
    /// As the routed experts.
    Same(W),
    /// One value for each weight.
    Dense(DenseExperts<W::Element>),
}
