//! Combine: each token's expert rows, weighted and summed.

use crate::element::Float;
use crate::error::Result;
use crate::memory::{Matrix, MatrixMut, Memory};

use super::{NumTokens, RoutingPlan, check_num_tokens};

/// What becomes of what an output held before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// It is replaced; it is not read, and may be NaN.
    Overwrite,
    /// The result is added to it, in f32, and rounded once.
    Accumulate,
}

/// A layer's output, and how it is written.
#[derive(Debug)]
pub struct Output<'a, M: Memory, T: Float> {
    pub(crate) matrix: MatrixMut<'a, M, T>,
    pub(crate) write: Write,
}

impl<'a, M: Memory, T: Float> Output<'a, M, T> {
    /// Replaces what `matrix [T, H]` holds.
    pub fn overwrite(matrix: MatrixMut<'a, M, T>) -> Self {
        Self { matrix, write: Write::Overwrite }
    }

    /// Adds to what `matrix [T, H]` holds: a residual stream, a shared expert's output.
    pub fn accumulate(matrix: MatrixMut<'a, M, T>) -> Self {
        Self { matrix, write: Write::Accumulate }
    }
}

/// `out[t] (+)= sum_k topk_weights[t, k] * rows[row_of_assignment[t * K + k]]`, in f32 and in the
/// order of k, over the assignments that have a row. A token without any gets zeros, or keeps
/// its bits when accumulating.
#[derive(Debug)]
pub struct Combine<'a, M: Memory, T: Float> {
    pub(crate) rows: Matrix<'a, M, T>,
    pub(crate) topk_weights: Matrix<'a, M, f32>,
    pub(crate) plan: &'a RoutingPlan<M>,
    pub(crate) output: Output<'a, M, T>,
    pub(crate) num_tokens: NumTokens<'a, M>,
}

impl<'a, M: Memory, T: Float> Combine<'a, M, T> {
    /// `rows [R, H]`, `topk_weights [T, K]`, output `[T, H]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) and [`Error::Alignment`](crate::Error::Alignment).
    pub fn new(
        rows: Matrix<'a, M, T>,
        topk_weights: Matrix<'a, M, f32>,
        plan: &'a RoutingPlan<M>,
        output: Output<'a, M, T>,
    ) -> Result<Self> {
        let hidden_size = output.matrix.layout().cols;
        rows.layout().expect("rows", plan.num_assignments(), hidden_size)?;
        rows.layout().check_alignment::<T>("rows")?;
        topk_weights.layout().expect("topk_weights", plan.num_tokens(), plan.top_k)?;
        output.matrix.layout().expect("output", plan.num_tokens(), hidden_size)?;
        output.matrix.layout().check_alignment::<T>("output")?;
        Ok(Self { rows, topk_weights, plan, output, num_tokens: None })
    }

    /// Only the first `num_tokens[0]` tokens, a number in the backend's memory: at most T, read
    /// when the stage runs. The output of the others is left as it is.
    ///
    /// # Errors
    /// [`Error::View`](crate::Error::View) for an empty buffer.
    pub fn with_num_tokens(self, num_tokens: &'a M::Buffer<u32>) -> Result<Self> {
        check_num_tokens::<M>(num_tokens)?;
        Ok(Self { num_tokens: Some(num_tokens), ..self })
    }
}
