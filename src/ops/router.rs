//! Router: which experts each token is sent to, and with what weight.

use crate::config::{Capacity, MoeConfig, Selection};
use crate::element::Float;
use crate::error::{Error, Result, checked_product};
use crate::memory::{Buffer, Matrix, MatrixMut, Memory};

use super::{NumTokens, check_num_tokens};

/// What a router has besides its matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GateParts {
    /// A bias on the logits.
    pub bias: bool,
    /// A bias on the scores, for the choice alone.
    pub selection_bias: bool,
    /// A factor on the weights.
    pub expert_scale: bool,
    /// A factor on the normalised input, multiplied into the matrix.
    pub input_scale: bool,
    /// Elements of the table of experts by vocabulary id; 0 without one.
    pub hash_table: usize,
}

impl GateParts {
    /// Bytes of what is beside a matrix `[E, H]`; the input's scale is part of that.
    #[cfg_attr(
        not(any(feature = "cpu", feature = "driver")),
        expect(dead_code, reason = "for backends")
    )]
    pub(crate) fn bytes(self, num_experts: usize) -> Option<usize> {
        let vectors = [self.bias, self.selection_bias, self.expert_scale];
        let vectors = vectors.into_iter().map(usize::from).sum::<usize>();
        vectors.checked_mul(num_experts)?.checked_add(self.hash_table)?.checked_mul(4)
    }

    /// What `config` says there is.
    pub(crate) fn of(config: &MoeConfig) -> Result<Self> {
        let router = &config.router;
        let hash_table = match router.selection {
            Selection::HashTable { vocab_size } => {
                checked_product("hash_table", &[vocab_size, config.top_k])?
            }
            Selection::TopK => 0,
        };
        Ok(Self {
            bias: router.bias,
            selection_bias: router.selection_bias,
            expert_scale: router.expert_scale,
            input_scale: router.norm_eps.is_some(),
            hash_table,
        })
    }

    /// Checks that there is neither less nor more.
    pub(crate) fn expect(self, config: &MoeConfig) -> Result<()> {
        let expected = Self::of(config)?;
        for (name, given, expected) in [
            ("router bias", self.bias, expected.bias),
            ("router selection_bias", self.selection_bias, expected.selection_bias),
            ("router expert_scale", self.expert_scale, expected.expert_scale),
            ("router input_scale", self.input_scale, expected.input_scale),
        ] {
            let word = |there: bool| if there { "given" } else { "none" };
            if given != expected {
                let expected = format!("{}, by the configuration", word(expected));
                return Err(Error::value(name, word(given), expected));
            }
        }
        if self.hash_table != expected.hash_table {
            return Err(Error::shape("hash_table", [expected.hash_table], [self.hash_table]));
        }
        Ok(())
    }
}

/// What a router must know of its weight, whatever its type and place.
pub trait Gate: std::fmt::Debug + Send + Sync {
    /// E, of all that can be chosen, and H.
    fn shape(&self) -> [usize; 2];

    /// What there is besides the matrix.
    fn parts(&self) -> GateParts;

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

/// `logits = x · gate^T` in f32, scores, the K best experts and their weights: see
/// [`RouterConfig`](crate::config::RouterConfig) for the formula.
///
/// Where nothing but the logits decides (no selection bias, no groups), the choice is made by the
/// logits themselves, and by scores elsewhere; ties go to the lowest id.
///
/// NaN ranks below every number, so the selection is always K different experts; the ids of tokens
/// that a full expert drops become -1, their weights 0. The weights
/// follow IEEE arithmetic: with softmax a NaN or +Inf logit makes all weights of its own token
/// NaN (the fault stays visible), and no other token is touched.
#[derive(Debug)]
pub struct Router<'a, M: Memory, T: Float, G: Gate> {
    pub(crate) config: &'a MoeConfig,
    pub(crate) hidden_states: Matrix<'a, M, T>,
    pub(crate) gate: &'a G,
    pub(crate) output: RouterOutput<'a, M>,
    pub(crate) num_tokens: NumTokens<'a, M>,
    pub(crate) token_ids: Option<&'a M::Buffer<u32>>,
    pub(crate) sequence_offsets: Option<&'a M::Buffer<u32>>,
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
        check_gate(config, gate)?;
        let num_experts = config.router_experts();
        output.router_logits.layout().expect("router_logits", num_tokens, num_experts)?;
        output.topk_ids.layout().expect("topk_ids", num_tokens, config.top_k)?;
        output.topk_weights.layout().expect("topk_weights", num_tokens, config.top_k)?;
        Ok(Self {
            config,
            hidden_states,
            gate,
            output,
            num_tokens: None,
            token_ids: None,
            sequence_offsets: None,
        })
    }

    /// `[T]`: the tokens' ids in the vocabulary, for a router with a hash table. An id past the table's
    /// end gets no expert: -1, with weight 0.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of tokens.
    pub fn with_token_ids(self, token_ids: &'a M::Buffer<u32>) -> Result<Self> {
        check_token_ids::<M>(token_ids, self.hidden_states.layout().rows)?;
        Ok(Self { token_ids: Some(token_ids), ..self })
    }

    /// `[S + 1]`: where each sequence starts, for a capacity by sequence: ascending, from 0 to T. All
    /// tokens are one sequence without it.
    ///
    /// # Errors
    /// [`Error::View`] for fewer than two numbers.
    pub fn with_sequence_offsets(self, offsets: &'a M::Buffer<u32>) -> Result<Self> {
        check_sequence_offsets::<M>(offsets)?;
        Ok(Self { sequence_offsets: Some(offsets), ..self })
    }

    /// Called by a backend that is about to run the stage: whether all that the rules need is there.
    pub(crate) fn begin(self) -> Result<Self> {
        check_inputs(self.config, self.token_ids.is_some(), self.num_tokens.is_some())?;
        Ok(self)
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

pub(crate) fn check_gate(config: &MoeConfig, gate: &impl Gate) -> Result<()> {
    let gate_shape = [config.router_experts(), config.hidden_size];
    if gate.shape() != gate_shape {
        return Err(Error::shape("gate", gate_shape, gate.shape()));
    }
    gate.parts().expect(config)
}

pub(crate) fn check_token_ids<M: Memory>(ids: &M::Buffer<u32>, num_tokens: usize) -> Result<()> {
    if ids.len() != num_tokens {
        return Err(Error::shape("token_ids", [num_tokens], [ids.len()]));
    }
    Ok(())
}

pub(crate) fn check_sequence_offsets<M: Memory>(offsets: &M::Buffer<u32>) -> Result<()> {
    if offsets.len() < 2 {
        let (operand, len) = ("sequence_offsets".to_owned(), offsets.len());
        return Err(Error::View { operand, needed: 2, len });
    }
    Ok(())
}

/// Whether a router of these rules can run with what is given.
pub(crate) fn check_inputs(config: &MoeConfig, token_ids: bool, num_tokens: bool) -> Result<()> {
    if matches!(config.router.selection, Selection::HashTable { .. }) && !token_ids {
        return Err(Error::value("token_ids", "none", "the tokens' ids, for a hash table"));
    }
    if matches!(config.router.capacity, Capacity::Batch { .. }) && num_tokens {
        return Err(Error::Unsupported {
            what: "num_tokens on the device with a capacity by batch".to_owned(),
            supported: "a capacity by sequence, or none: the bound is computed on the host"
                .to_owned(),
        });
    }
    Ok(())
}
