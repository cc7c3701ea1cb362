//! Grouped GEMM: each expert's rows times that expert's weights.

use crate::config::{ActivationFn, MoeConfig};
use crate::element::Float;
use crate::error::Result;
use crate::memory::{Matrix, MatrixMut, Memory};

use super::RoutingPlan;

/// E, H and I of a layer's experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertShape {
    /// E.
    pub num_experts: usize,
    /// H.
    pub hidden_size: usize,
    /// I.
    pub intermediate_size: usize,
}

impl ExpertShape {
    pub(crate) fn dims(self) -> [usize; 3] {
        [self.num_experts, self.hidden_size, self.intermediate_size]
    }
}

impl From<&MoeConfig> for ExpertShape {
    fn from(config: &MoeConfig) -> Self {
        let &MoeConfig { num_experts, hidden_size, intermediate_size, .. } = config;
        Self { num_experts, hidden_size, intermediate_size }
    }
}

/// What a grouped GEMM must know of the experts' weights, whatever their format and place.
pub trait Experts: std::fmt::Debug + Send + Sync {
    /// E, H and I.
    fn shape(&self) -> ExpertShape;

    /// Bytes that the weights occupy as prepared.
    fn bytes(&self) -> usize;
}

/// Which of an expert's matrices a grouped GEMM multiplies by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Projection {
    /// gate and up, `[2I, H]`.
    GateUp,
    /// down, `[H, I]`.
    Down,
}

/// Where a grouped GEMM finds the operand of row `r`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gather {
    /// In row `r`: the operand is in expert order.
    Packed,
    /// In row `token_of_row[r]`: the operand is in token order.
    TokenOfRow,
}

/// What a grouped GEMM does with its f32 sums before it stores them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Epilogue {
    /// Stores them; of gate and up, the gate's columns first.
    Store,
    /// Stores the I columns `act(gate) * up`.
    Activation(ActivationFn),
}

/// `out[r] = epilogue(x[r or token_of_row[r]] · W_e^T)` for every expert `e` and each of its rows
/// `r`; sums in f32. Rows from `expert_offsets[E]` on are neither read nor written.
#[derive(Debug)]
pub struct GroupedGemm<'a, M: Memory, T: Float, X: Experts> {
    pub(crate) x: Matrix<'a, M, T>,
    pub(crate) gather: Gather,
    pub(crate) plan: &'a RoutingPlan<M>,
    pub(crate) experts: &'a X,
    pub(crate) projection: Projection,
    pub(crate) epilogue: Epilogue,
    pub(crate) out: MatrixMut<'a, M, T>,
}

impl<'a, M: Memory, T: Float, X: Experts> GroupedGemm<'a, M, T, X> {
    /// The gate and up projections: `x [T or R, H]`, `out [R, 2I]` or, activated, `[R, I]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) and [`Error::Alignment`](crate::Error::Alignment).
    pub fn gate_up(
        x: Matrix<'a, M, T>,
        gather: Gather,
        plan: &'a RoutingPlan<M>,
        experts: &'a X,
        epilogue: Epilogue,
        out: MatrixMut<'a, M, T>,
    ) -> Result<Self> {
        let columns = match epilogue {
            Epilogue::Store => 2 * experts.shape().intermediate_size,
            Epilogue::Activation(_) => experts.shape().intermediate_size,
        };
        let depth = experts.shape().hidden_size;
        Self { x, gather, plan, experts, projection: Projection::GateUp, epilogue, out }
            .checked(depth, columns)
    }

    /// The down projection: `x [R, I]` in expert order, `out [R, H]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) and [`Error::Alignment`](crate::Error::Alignment).
    pub fn down(
        x: Matrix<'a, M, T>,
        plan: &'a RoutingPlan<M>,
        experts: &'a X,
        out: MatrixMut<'a, M, T>,
    ) -> Result<Self> {
        let ExpertShape { hidden_size, intermediate_size, .. } = experts.shape();
        let (gather, epilogue) = (Gather::Packed, Epilogue::Store);
        Self { x, gather, plan, experts, projection: Projection::Down, epilogue, out }
            .checked(intermediate_size, hidden_size)
    }

    fn checked(self, depth: usize, columns: usize) -> Result<Self> {
        if self.experts.shape().num_experts != self.plan.num_experts() {
            return Err(crate::Error::value(
                "experts of the plan",
                self.plan.num_experts(),
                format!("the weights' {}", self.experts.shape().num_experts),
            ));
        }
        let x_rows = match self.gather {
            Gather::Packed => self.plan.num_assignments(),
            Gather::TokenOfRow => self.plan.num_tokens(),
        };
        self.x.layout().expect("grouped GEMM input", x_rows, depth)?;
        self.x.layout().check_alignment::<T>("grouped GEMM input")?;
        self.out.layout().expect("grouped GEMM output", self.plan.num_assignments(), columns)?;
        self.out.layout().check_alignment::<T>("grouped GEMM output")?;
        Ok(self)
    }
}
