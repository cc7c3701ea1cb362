//! A router's weights in the host's memory.

use crate::element::Float;
use crate::error::{Error, Result, checked_product};
use crate::ops::GateParts;

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
