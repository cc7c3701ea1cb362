//! Router: which experts each token is sent to, and with what weight.

use crate::config::MoeConfig;
use crate::element::Float;
use crate::error::{Error, Result};
use crate::memory::{Matrix, MatrixMut, Memory};

use super::{NumTokens, check_num_tokens};

/// What a router must know of its weight, whatever its type and place.
pub trait Gate: std::fmt::Debug + Send + Sync {
    /// E and H.
    fn shape(&self) -> [usize; 2];

    /// Bytes that the weight occupies as prepared.
    fn bytes(&self) -> usize;
}

/// Where a router's results go.
#[derive(Debug)]
pub struct RouterOutput<'a, M: Memory> {
    /// `[T, E]`: before any scoring.
    pub router_logits: MatrixMut<'a, M, f32>,
    /// `[T, K]`: expert ids in descending order of score.
    #[doc(alias = "selected_experts")]
    pub topk_ids: MatrixMut<'a, M, i32>,
    /// `[T, K]`: the factor on each expert's output.
    #[doc(alias = "routing_weights")]
    pub topk_weights: MatrixMut<'a, M, f32>,
}

/// Finished routing: from a router, or brought by the caller.
#[derive(Debug)]
pub struct Routing<'a, M: Memory> {
    /// `[T, K]`: an id outside `0..E` (by convention -1) is an assignment that is not routed here.
    pub topk_ids: Matrix<'a, M, i32>,
    /// `[T, K]`: never read where the id is not routed here.
    pub topk_weights: Matrix<'a, M, f32>,
}

impl<M: Memory> Clone for Routing<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Memory> Copy for Routing<'_, M> {}

/// `logits = x · gate^T` in f32, scores, the K best experts and their weights.
///
/// ```text
/// logits[t,e]  = sum_h x[t,h] * gate[e,h]
/// scores[t,:]  = softmax(logits[t,:])  or  sigmoid(logits[t,e])
/// ids[t,:]     = the K experts with the greatest logits; ties to the lowest id
/// weights[t,k] = scores[t,ids[t,k]]  [/ sum_j scores[t,ids[t,j]]]
/// ```
///
/// NaN ranks below every number, so the selection is always K different experts. The weights
/// follow IEEE arithmetic: with softmax a NaN or +Inf logit makes all weights of its own token
/// NaN (the fault stays visible), and no other token is touched.
#[derive(Debug)]
pub struct Router<'a, M: Memory, T: Float, G: Gate> {
    pub(crate) config: &'a MoeConfig,
    pub(crate) hidden_states: Matrix<'a, M, T>,
    pub(crate) gate: &'a G,
    pub(crate) output: RouterOutput<'a, M>,
    pub(crate) num_tokens: NumTokens<'a, M>,
}

impl<'a, M: Memory, T: Float, G: Gate> Router<'a, M, T, G> {
    /// `hidden_states [T, H]`, `gate [E, H]`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Alignment`] and the errors of [`MoeConfig::validate`].
    pub fn new(
        config: &'a MoeConfig,
        hidden_states: Matrix<'a, M, T>,
        gate: &'a G,
        output: RouterOutput<'a, M>,
    ) -> Result<Self> {
        config.validate()?;
        let num_tokens = hidden_states.layout().rows;
        config.num_assignments(num_tokens)?;
        hidden_states.layout().expect("router input", num_tokens, config.hidden_size)?;
        hidden_states.layout().check_alignment::<T>("router input")?;
        let gate_shape = [config.num_experts, config.hidden_size];
        if gate.shape() != gate_shape {
            return Err(Error::shape("gate", gate_shape, gate.shape()));
        }
        output.router_logits.layout().expect("router_logits", num_tokens, config.num_experts)?;
        output.topk_ids.layout().expect("topk_ids", num_tokens, config.top_k)?;
        output.topk_weights.layout().expect("topk_weights", num_tokens, config.top_k)?;
        Ok(Self { config, hidden_states, gate, output, num_tokens: None })
    }

    /// Only the first `num_tokens[0]` tokens, a number in the backend's memory: at most T, read
    /// when the stage runs.
    ///
    /// # Errors
    /// [`Error::View`] for an empty buffer.
    pub fn with_num_tokens(self, num_tokens: &'a M::Buffer<u32>) -> Result<Self> {
        check_num_tokens::<M>(num_tokens)?;
        Ok(Self { num_tokens: Some(num_tokens), ..self })
    }
}
