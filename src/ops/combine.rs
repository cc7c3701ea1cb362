//! Combine: each token's expert rows, weighted and summed.

use crate::element::Float;
use crate::error::{Error, Result};
use crate::memory::{Buffer, Matrix, MatrixMut, Memory};

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

/// A term of [`Combine`] that every token has: a shared expert's output.
#[derive(Debug)]
pub struct SharedRows<'a, M: Memory, T: Float> {
    /// `[T, H]`, in the order of tokens.
    pub rows: Matrix<'a, M, T>,
    /// `[T, 1]`: a factor on each row; 1 without it.
    pub weights: Option<Matrix<'a, M, f32>>,
    /// A factor on all.
    pub scale: f32,
}

impl<M: Memory, T: Float> Clone for SharedRows<'_, M, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Memory, T: Float> Copy for SharedRows<'_, M, T> {}

/// Experts whose output is their input.
#[derive(Debug)]
pub(crate) struct ZeroExperts<'a, M: Memory, T: Float> {
    /// `[T, H]`.
    pub(crate) x: Matrix<'a, M, T>,
    /// `[T, K]`.
    pub(crate) topk_ids: Matrix<'a, M, i32>,
    /// Their ids.
    pub(crate) ids: std::ops::Range<usize>,
}

/// Each token's expert rows, weighted and summed, with what else is part of its output:
///
/// ```text
/// out[t] = [out[t]]
///        + sum_k scale * topk_weights[t,k] * (rows[row_of_assignment[t * K + k]], or x[t] where ids[t,k] is
///                                             an expert without weights)
///        + shared.scale * shared.weights[t] * shared.rows[t]
///        + bias
/// ```
///
/// Where the plan has experts that every token visits, their columns of k have `always_on.scale *
/// always_on.weights[t]` in place of `scale * topk_weights[t,k]`.
///
/// All in f32 and in this order, over the assignments that have a row, rounded once. A token without any
/// term gets zeros, or keeps its bits when accumulating.
#[derive(Debug)]
pub struct Combine<'a, M: Memory, T: Float> {
    pub(crate) rows: Matrix<'a, M, T>,
    pub(crate) topk_weights: Option<Matrix<'a, M, f32>>,
    pub(crate) plan: &'a RoutingPlan<M>,
    pub(crate) output: Output<'a, M, T>,
    pub(crate) num_tokens: NumTokens<'a, M>,
    pub(crate) scale: f32,
    pub(crate) zero_experts: Option<ZeroExperts<'a, M, T>>,
    pub(crate) shared: Option<SharedRows<'a, M, T>>,
    pub(crate) bias: Option<&'a M::Buffer<f32>>,
    pub(crate) always_on: AlwaysOn<'a, M>,
}

/// Weights of the experts that every token visits: `[T, 1]`, or 1, and a factor.
#[derive(Debug)]
pub(crate) struct AlwaysOn<'a, M: Memory> {
    pub(crate) weights: Option<Matrix<'a, M, f32>>,
    pub(crate) scale: f32,
}

impl<'a, M: Memory, T: Float> Combine<'a, M, T> {
    /// `rows [R, H]`, `topk_weights [T, K]`, output `[T, H]`.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Alignment`].
    pub fn new(
        rows: Matrix<'a, M, T>,
        topk_weights: Matrix<'a, M, f32>,
        plan: &'a RoutingPlan<M>,
        output: Output<'a, M, T>,
    ) -> Result<Self> {
        topk_weights.layout().expect("topk_weights", plan.num_tokens(), plan.routed_k)?;
        let combine = Self::unweighted(rows, plan, output)?;
        Ok(Self { topk_weights: Some(topk_weights), ..combine })
    }

    /// The same with all weights 1.
    ///
    /// # Errors
    /// As [`Combine::new`].
    pub fn unweighted(
        rows: Matrix<'a, M, T>,
        plan: &'a RoutingPlan<M>,
        output: Output<'a, M, T>,
    ) -> Result<Self> {
        let hidden_size = output.matrix.layout().cols;
        rows.layout().expect("rows", plan.num_assignments(), hidden_size)?;
        rows.layout().check_alignment::<T>("rows")?;
        output.matrix.layout().expect("output", plan.num_tokens(), hidden_size)?;
        output.matrix.layout().check_alignment::<T>("output")?;
        Ok(Self {
            rows,
            topk_weights: None,
            plan,
            output,
            num_tokens: None,
            scale: 1.0,
            zero_experts: None,
            shared: None,
            bias: None,
            always_on: AlwaysOn { weights: None, scale: 1.0 },
        })
    }

    /// A factor for each token, `[T, 1]`, and one for all, on the experts that every token visits
    /// ([`Plan::with_always_on`](super::Plan::with_always_on)).
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn with_always_on(self, weights: Option<Matrix<'a, M, f32>>, scale: f32) -> Result<Self> {
        if let Some(weights) = &weights {
            weights.layout().expect("always-on weights", self.plan.num_tokens(), 1)?;
        }
        Ok(Self { always_on: AlwaysOn { weights, scale }, ..self })
    }

    /// A factor on the sum over k.
    pub fn with_scale(self, scale: f32) -> Self {
        Self { scale, ..self }
    }

    /// The ids of `topk_ids [T, K]` in `ids` are experts whose output is their input, `x [T, H]`.
    ///
    /// # Errors
    /// As [`Combine::new`].
    pub fn with_zero_experts(
        self,
        x: Matrix<'a, M, T>,
        topk_ids: Matrix<'a, M, i32>,
        ids: std::ops::Range<usize>,
    ) -> Result<Self> {
        self.expect_tokens("zero experts' input", x)?;
        topk_ids.layout().expect("topk_ids", self.plan.num_tokens(), self.plan.routed_k)?;
        Ok(Self { zero_experts: Some(ZeroExperts { x, topk_ids, ids }), ..self })
    }

    /// A term that every token has.
    ///
    /// # Errors
    /// As [`Combine::new`].
    pub fn with_shared(self, shared: SharedRows<'a, M, T>) -> Result<Self> {
        self.expect_tokens("shared rows", shared.rows)?;
        if let Some(weights) = &shared.weights {
            weights.layout().expect("shared weights", self.plan.num_tokens(), 1)?;
        }
        Ok(Self { shared: Some(shared), ..self })
    }

    /// `[H]`: added to each token.
    ///
    /// # Errors
    /// [`Error::Shape`] for another length.
    pub fn with_bias(self, bias: &'a M::Buffer<f32>) -> Result<Self> {
        let hidden_size = self.output.matrix.layout().cols;
        if bias.len() != hidden_size {
            return Err(Error::shape("output bias", [hidden_size], [bias.len()]));
        }
        Ok(Self { bias: Some(bias), ..self })
    }

    fn expect_tokens(&self, operand: &str, matrix: Matrix<'a, M, T>) -> Result<()> {
        let hidden_size = self.output.matrix.layout().cols;
        matrix.layout().expect(operand, self.plan.num_tokens(), hidden_size)?;
        matrix.layout().check_alignment::<T>(operand)
    }

    /// Only the first `num_tokens[0]` tokens, a number in the backend's memory: at most T, read
    /// when the stage runs. The output of the others is left as it is.
    ///
    /// # Errors
    /// [`Error::View`] for an empty buffer.
    pub fn with_num_tokens(self, num_tokens: &'a M::Buffer<u32>) -> Result<Self> {
        check_num_tokens::<M>(num_tokens)?;
        Ok(Self { num_tokens: Some(num_tokens), ..self })
    }
}
