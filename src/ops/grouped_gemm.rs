//! Grouped GEMM: each expert's rows times that expert's weights.

use crate::config::{ActivationFn, MoeConfig};
use crate::element::Float;
use crate::error::Result;
use crate::memory::{Buffer, Matrix, MatrixMut, Memory};

use super::RoutingPlan;

/// E, H and I of experts, and whether they have a gate projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertShape {
    /// E.
    pub num_experts: usize,
    /// H.
    pub hidden_size: usize,
    /// I.
    pub intermediate_size: usize,
    /// gate_up is `[E, 2I, H]`, of gate and up projections; without a gate `[E, I, H]`.
    pub gated: bool,
}

impl ExpertShape {
    /// Experts with gate, up and down projections.
    pub const fn gated(num_experts: usize, hidden_size: usize, intermediate_size: usize) -> Self {
        Self { num_experts, hidden_size, intermediate_size, gated: true }
    }

    /// Experts with up and down projections alone.
    pub const fn ungated(num_experts: usize, hidden_size: usize, intermediate_size: usize) -> Self {
        Self { num_experts, hidden_size, intermediate_size, gated: false }
    }

    /// Those of a layer, with the slices of a merged shared expert behind the routed experts.
    pub(crate) fn of_layer(config: &MoeConfig) -> Self {
        let routed = Self::from(config);
        Self { num_experts: routed.num_experts + config.always_on(), ..routed }
    }

    /// Columns of the first product: 2I, or I without a gate.
    pub const fn gate_up_columns(self) -> usize {
        if self.gated { 2 * self.intermediate_size } else { self.intermediate_size }
    }

    pub(crate) fn dims(self) -> [usize; 3] {
        [self.num_experts, self.hidden_size, self.intermediate_size]
    }
}

/// Of the routed experts.
impl From<&MoeConfig> for ExpertShape {
    fn from(config: &MoeConfig) -> Self {
        Self {
            num_experts: config.num_experts,
            hidden_size: config.expert_width(),
            intermediate_size: config.intermediate_size,
            gated: config.experts.activation.is_gated(),
        }
    }
}

/// What a grouped GEMM must know of the experts' weights, whatever their format and place.
pub trait Experts: std::fmt::Debug + Send + Sync {
    /// E, H and I.
    fn shape(&self) -> ExpertShape;

    /// Whether they have biases.
    fn has_biases(&self) -> bool;

    /// Bytes that the weights occupy as prepared.
    fn bytes(&self) -> usize;
}

/// Which of an expert's matrices a grouped GEMM multiplies by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Projection {
    /// gate and up, `[2I, H]`; up alone, `[I, H]`, without a gate.
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
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Epilogue {
    /// Stores them; of gate and up, the gate's columns first.
    Store,
    /// Stores the I columns `act(gate, up)`, or `act(up)` without a gate.
    Activation(ActivationFn),
}

/// `out[r] = epilogue(row_weights[r] * x[r or token_of_row[r]] · W_e^T + bias_e)` for every expert `e`
/// and each of its rows `r`; sums in f32. Without row weights they are 1, without biases 0. Rows from `expert_offsets[E]` on are neither read nor written.
#[derive(Debug)]
pub struct GroupedGemm<'a, M: Memory, T: Float, X: Experts> {
    pub(crate) x: Matrix<'a, M, T>,
    pub(crate) gather: Gather,
    pub(crate) plan: &'a RoutingPlan<M>,
    pub(crate) experts: &'a X,
    pub(crate) projection: Projection,
    pub(crate) epilogue: Epilogue,
    pub(crate) out: MatrixMut<'a, M, T>,
    pub(crate) row_weights: Option<&'a M::Buffer<f32>>,
}

impl<'a, M: Memory, T: Float, X: Experts> GroupedGemm<'a, M, T, X> {
    /// The gate and up projections: `x [T or R, H]`, `out [R, 2I]` or, activated or without a gate,
    /// `[R, I]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape), [`Error::Alignment`](crate::Error::Alignment), and
    /// [`Error::Value`](crate::Error::Value) for an activation with a gate of experts without one, or
    /// the other way around.
    pub fn gate_up(
        x: Matrix<'a, M, T>,
        gather: Gather,
        plan: &'a RoutingPlan<M>,
        experts: &'a X,
        epilogue: Epilogue,
        out: MatrixMut<'a, M, T>,
    ) -> Result<Self> {
        let shape = experts.shape();
        let columns = match epilogue {
            Epilogue::Store => shape.gate_up_columns(),
            Epilogue::Activation(function) => {
                check_gated(function, shape)?;
                shape.intermediate_size
            }
        };
        let (projection, row_weights) = (Projection::GateUp, None);
        Self { x, gather, plan, experts, projection, epilogue, out, row_weights }
            .checked(shape.hidden_size, columns)
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
        let (projection, row_weights) = (Projection::Down, None);
        Self { x, gather, plan, experts, projection, epilogue, out, row_weights }
            .checked(intermediate_size, hidden_size)
    }

    /// A factor on each row's products, before biases: `[R]`, in expert order.
    ///
    /// # Errors
    /// [`Error::View`](crate::Error::View) if it is shorter.
    pub fn with_row_weights(self, row_weights: &'a M::Buffer<f32>) -> Result<Self> {
        check_row_weights::<M>(row_weights, self.plan.num_assignments())?;
        Ok(Self { row_weights: Some(row_weights), ..self })
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

pub(crate) fn check_row_weights<M: Memory>(buffer: &M::Buffer<f32>, rows: usize) -> Result<()> {
    if buffer.len() < rows {
        let (operand, len) = ("row_weights".to_owned(), buffer.len());
        return Err(crate::Error::View { operand, needed: rows, len });
    }
    Ok(())
}

/// Checks that an activation is of a gate and an up projection where experts have both.
pub(crate) fn check_gated(function: ActivationFn, shape: ExpertShape) -> Result<()> {
    if function.is_gated() == shape.gated {
        return Ok(());
    }
    let expected = match shape.gated {
        true => "one with a gate: the experts have one",
        false => "one without a gate: the experts have none",
    };
    Err(crate::Error::value("activation", format!("{function:?}"), expected))
}
