//! Permute: tokens gathered into expert order, as a stage of its own.
//!
//! The layer does not need it: its first grouped GEMM gathers while it loads.

use crate::element::Float;
use crate::error::Result;
use crate::memory::{Matrix, MatrixMut, Memory};

use super::RoutingPlan;

/// `rows[r] = hidden_states[token_of_row[r]]` for `r < expert_offsets[E]`; later rows are left
/// as they are.
#[derive(Debug)]
pub struct Permute<'a, M: Memory, T: Float> {
    pub(crate) hidden_states: Matrix<'a, M, T>,
    pub(crate) plan: &'a RoutingPlan<M>,
    pub(crate) rows: MatrixMut<'a, M, T>,
}

impl<'a, M: Memory, T: Float> Permute<'a, M, T> {
    /// `hidden_states [T, H]`, `rows [R, H]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) and [`Error::Alignment`](crate::Error::Alignment).
    pub fn new(
        hidden_states: Matrix<'a, M, T>,
        plan: &'a RoutingPlan<M>,
        rows: MatrixMut<'a, M, T>,
    ) -> Result<Self> {
        let hidden_size = hidden_states.layout().cols;
        hidden_states.layout().expect("hidden_states", plan.num_tokens(), hidden_size)?;
        hidden_states.layout().check_alignment::<T>("hidden_states")?;
        rows.layout().expect("rows", plan.num_assignments(), hidden_size)?;
        rows.layout().check_alignment::<T>("rows")?;
        Ok(Self { hidden_states, plan, rows })
    }
}
