//! Weights in the host's memory, in the formats that checkpoints store: what backends prepare.

mod dense;
mod quantised;
mod router;

pub use dense::{DenseExperts, ExpertSource};
#[cfg(any(feature = "cpu", feature = "driver"))]
pub(crate) use quantised::FP8_BLOCK;
#[cfg(any(feature = "cpu", feature = "checkpoint"))]
pub(crate) use quantised::power_of_two;
#[cfg(feature = "cpu")]
pub(crate) use quantised::{E2M1, e4m3};
pub use quantised::{QuantFormat, QuantSource, QuantisedExperts, QuantisedMatrix, Scales};
pub use router::{RouterMatrix, RouterWeights};

use std::fmt;

use crate::element::Float;
use crate::error::{Error, Result, checked_product};
use crate::ops::ExpertShape;

mod sealed {
    pub trait Sealed {}
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
    /// Bytes of all experts' matrices, each of which takes `matrix`, and of their biases.
    #[cfg_attr(
        not(any(feature = "cpu", feature = "driver")),
        expect(dead_code, reason = "for backends")
    )]
    pub(crate) fn with_matrices(
        shape: ExpertShape,
        biases: bool,
        matrix: impl Fn(ExpertMatrix) -> Option<usize>,
    ) -> Option<usize> {
        let gate = if shape.gated { matrix(ExpertMatrix::Gate)? } else { 0 };
        let matrices = gate
            .checked_add(matrix(ExpertMatrix::Up)?)?
            .checked_add(matrix(ExpertMatrix::Down)?)?;
        let columns = shape.gate_up_columns().checked_add(shape.hidden_size)?;
        let biases = if biases { columns.checked_mul(4)? } else { 0 };
        matrices.checked_add(biases)?.checked_mul(shape.num_experts)
    }

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

    /// These experts, and behind them `shared`, one expert, cut into experts of their width.
    ///
    /// # Errors
    /// [`Error::Shape`] if the width does not divide the shared expert's, [`Error::Unsupported`] for a
    /// format that cannot be cut.
    fn merged(self, shared: Self) -> Result<Self>
    where
        Self: Sized;

    /// The weights, by format: what a backend matches on.
    fn into_format(self) -> Format<Self::Element>;
}

/// Every storage format.
#[derive(Debug)]
#[non_exhaustive]
pub enum Format<T: Float> {
    /// One value for each weight.
    Dense(DenseExperts<T>),
    /// Codes of few bits, and scales.
    Quantised(QuantisedExperts<T>),
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
