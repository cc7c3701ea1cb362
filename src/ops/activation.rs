//! Activation: between an expert's two products, as a stage of its own.
//!
//! The layer does not need it: the first grouped GEMM's epilogue computes it.

use crate::config::ActivationFn;
use crate::element::Float;
use crate::error::{Result, checked_product};
use crate::memory::{Matrix, MatrixMut, Memory};

use super::RoutingPlan;

/// `out[r, i] = act(z[r, i], z[r, I + i])`, or `act(z[r, i])` without a gate, for
/// `r < expert_offsets[E]`; later rows are left as they are.
#[derive(Debug)]
pub struct Activation<'a, M: Memory, T: Float> {
    pub(crate) function: ActivationFn,
    pub(crate) gate_up: Matrix<'a, M, T>,
    pub(crate) plan: &'a RoutingPlan<M>,
    pub(crate) out: MatrixMut<'a, M, T>,
}

impl<'a, M: Memory, T: Float> Activation<'a, M, T> {
    /// `gate_up [R, 2I]`, gate first, or `[R, I]` without a gate, and `out [R, I]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) and [`Error::Alignment`](crate::Error::Alignment).
    pub fn new(
        function: ActivationFn,
        gate_up: Matrix<'a, M, T>,
        plan: &'a RoutingPlan<M>,
        out: MatrixMut<'a, M, T>,
    ) -> Result<Self> {
        let columns = out.layout().cols;
        let gate_up_columns =
            checked_product("gate_up", &[1 + usize::from(function.is_gated()), columns])?;
        gate_up.layout().expect("gate_up", plan.num_assignments(), gate_up_columns)?;
        gate_up.layout().check_alignment::<T>("gate_up")?;
        out.layout().expect("activation output", plan.num_assignments(), columns)?;
        out.layout().check_alignment::<T>("activation output")?;
        Ok(Self { function, gate_up, plan, out })
    }
}
