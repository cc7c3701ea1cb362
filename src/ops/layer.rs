//! Layer: all stages, from tokens to tokens.

use crate::config::MoeConfig;
use crate::element::{Element, Float};
use crate::error::{Error, Result, checked_product};
use crate::memory::{Allocator, Matrix, MatrixMut, Memory};

use super::{
    ExpertShape, Experts, Gate, Output, RouterOutput, Routing, RoutingPlan, check_num_tokens,
};

/// What a layer reads. Start from [`LayerInput::new`] and set what the family or the engine adds.
#[derive(Debug)]
#[non_exhaustive]
pub struct LayerInput<'a, M: Memory, T: Float> {
    /// `[T, H]`: what the experts see, and the router too unless it has an input of its own.
    pub hidden_states: Matrix<'a, M, T>,
    /// `[T, H]`: what the router sees, where that differs (Gemma-4).
    pub router_input: Option<Matrix<'a, M, T>>,
    /// `[T]`: vocabulary ids, for routers that hash them (DeepSeek-V4). Not supported yet.
    pub token_ids: Option<&'a M::Buffer<u32>>,
    /// `[S+1]`: where each sequence starts, for losses and capacities by sequence. Not supported
    /// yet.
    pub sequence_offsets: Option<&'a M::Buffer<u32>>,
    /// `[T]`: 0 where the token is padding. Not supported yet.
    pub mask: Option<&'a M::Buffer<u8>>,
    /// Routing that the caller made: the layer's own router does not run.
    pub routing: Option<Routing<'a, M>>,
    /// `[1, E_global]`: the layer's own id of each expert that the routing names, or -1 where it is
    /// not here. For a shard of the experts, or one that holds them in another order.
    pub expert_map: Option<Matrix<'a, M, i32>>,
    /// One number in the backend's memory: only so many of the T tokens are there. It is read when
    /// the work runs, so that a captured graph serves any batch up to T.
    pub num_tokens: Option<&'a M::Buffer<u32>>,
}

impl<'a, M: Memory, T: Float> LayerInput<'a, M, T> {
    /// Tokens, and nothing else.
    pub fn new(hidden_states: Matrix<'a, M, T>) -> Self {
        Self {
            hidden_states,
            router_input: None,
            token_ids: None,
            sequence_offsets: None,
            mask: None,
            routing: None,
            expert_map: None,
            num_tokens: None,
        }
    }

    fn refuse_unsupported(&self) -> Result<()> {
        let fields = [
            ("LayerInput::token_ids", self.token_ids.is_some()),
            ("LayerInput::sequence_offsets", self.sequence_offsets.is_some()),
            ("LayerInput::mask", self.mask.is_some()),
        ];
        if self.routing.is_some() && self.router_input.is_some() {
            return Err(Error::Unsupported {
                what: "LayerInput::router_input beside LayerInput::routing".to_owned(),
                supported: "one of them: with routing given, no router runs".to_owned(),
            });
        }
        match fields.into_iter().find(|&(_, given)| given) {
            None => Ok(()),
            Some((field, _)) => Err(Error::Unsupported {
                what: field.to_owned(),
                supported: "hidden_states, router_input, routing, expert_map, num_tokens"
                    .to_owned(),
            }),
        }
    }
}

/// Memory for what lies between a layer's stages, for up to `max_tokens` tokens. It belongs to
/// one stream at a time, and any number of layers of the same configuration can take turns.
///
/// After a forward it still holds what the router computed.
#[derive(Debug)]
pub struct Workspace<M: Memory, T: Float> {
    pub(crate) max_tokens: usize,
    pub(crate) config: MoeConfig,
    /// T of the last forward that ran the layer's own router.
    pub(crate) routed_tokens: usize,
    pub(crate) router_logits: M::Buffer<f32>,
    pub(crate) topk_ids: M::Buffer<i32>,
    pub(crate) topk_weights: M::Buffer<f32>,
    pub(crate) plan: RoutingPlan<M>,
    /// `[R, I]`: after GEMM 1.
    pub(crate) activated: M::Buffer<T>,
    /// `[R, H]`: after GEMM 2.
    pub(crate) expert_rows: M::Buffer<T>,
}

impl<M: Memory, T: Float> Workspace<M, T> {
    /// The bytes that [`Workspace::new`] allocates.
    ///
    /// # Errors
    /// [`Error::Overflow`], and the errors of [`MoeConfig::validate`] and
    /// [`MoeConfig::num_assignments`].
    pub fn bytes(config: &MoeConfig, max_tokens: usize) -> Result<usize> {
        config.validate()?;
        let rows = config.num_assignments(max_tokens)?;
        let logits = checked_product("router_logits", &[max_tokens, config.num_experts, 4])?;
        let width = config.hidden_size + config.intermediate_size;
        let rows_bytes = checked_product("expert rows", &[rows, width, T::DTYPE.size()])?;
        [logits, 8 * rows, RoutingPlan::<M>::bytes(config.num_experts, rows), rows_bytes]
            .into_iter()
            .try_fold(0usize, usize::checked_add)
            .ok_or_else(|| Error::Overflow { what: "workspace".to_owned() })
    }

    /// A workspace for `config` and up to `max_tokens` tokens.
    ///
    /// # Errors
    /// As [`Workspace::bytes`], and [`Error::OutOfMemory`].
    pub fn new(memory: &M, config: &MoeConfig, max_tokens: usize) -> Result<Self> {
        Self::in_memory(&mut &*memory, config, max_tokens)
    }

    pub(crate) fn in_memory(
        memory: &mut impl Allocator<M>,
        config: &MoeConfig,
        max_tokens: usize,
    ) -> Result<Self> {
        // Every size that is multiplied below has been checked by this.
        Self::bytes(config, max_tokens)?;
        let rows = config.num_assignments(max_tokens)?;
        Ok(Self {
            max_tokens,
            config: config.clone(),
            routed_tokens: 0,
            router_logits: memory.allocate("router_logits", max_tokens * config.num_experts)?,
            topk_ids: memory.allocate("topk_ids", rows)?,
            topk_weights: memory.allocate("topk_weights", rows)?,
            plan: RoutingPlan::in_memory(memory, config.num_experts, rows)?,
            activated: memory.allocate("activated rows", rows * config.intermediate_size)?,
            expert_rows: memory.allocate("expert rows", rows * config.hidden_size)?,
        })
    }

    /// T of the longest input that fits.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// `[T, E]` logits of the last forward that ran the layer's own router; no row before one.
    ///
    /// # Errors
    /// None: the view is within the workspace.
    pub fn router_logits(&self) -> Result<Matrix<'_, M, f32>> {
        self.routed("router_logits", &self.router_logits, self.config.num_experts)
    }

    /// `[T, K]` ids and weights of the last forward that ran the layer's own router; no row before
    /// one.
    ///
    /// # Errors
    /// None: the views are within the workspace.
    pub fn routing(&self) -> Result<Routing<'_, M>> {
        let top_k = self.config.top_k;
        Ok(Routing {
            topk_ids: self.routed("topk_ids", &self.topk_ids, top_k)?,
            topk_weights: self.routed("topk_weights", &self.topk_weights, top_k)?,
        })
    }

    /// The plan of the last forward.
    pub fn plan(&self) -> &RoutingPlan<M> {
        &self.plan
    }

    fn routed<'a, U: Element>(
        &'a self,
        operand: &'static str,
        buffer: &'a M::Buffer<U>,
        cols: usize,
    ) -> Result<Matrix<'a, M, U>> {
        Matrix::contiguous(operand, buffer, self.routed_tokens, cols)
    }

    /// Where the router writes what it computes of `num_tokens` tokens.
    pub(crate) fn router_output(&mut self, num_tokens: usize) -> Result<RouterOutput<'_, M>> {
        let MoeConfig { num_experts, top_k, .. } = self.config;
        self.routed_tokens = num_tokens;
        Ok(RouterOutput {
            router_logits: MatrixMut::contiguous(
                "router_logits",
                &mut self.router_logits,
                num_tokens,
                num_experts,
            )?,
            topk_ids: MatrixMut::contiguous("topk_ids", &mut self.topk_ids, num_tokens, top_k)?,
            topk_weights: MatrixMut::contiguous(
                "topk_weights",
                &mut self.topk_weights,
                num_tokens,
                top_k,
            )?,
        })
    }
}

/// `out[t] (+)= sum_k w[t,k] * down_e(act(gate_e x_t) * up_e x_t)`, `e = ids[t,k]`.
#[derive(Debug)]
pub struct Layer<'a, M: Memory, T: Float, G: Gate, X: Experts> {
    pub(crate) config: &'a MoeConfig,
    pub(crate) input: &'a LayerInput<'a, M, T>,
    pub(crate) gate: &'a G,
    pub(crate) experts: &'a X,
    pub(crate) output: Output<'a, M, T>,
    pub(crate) workspace: &'a mut Workspace<M, T>,
}

impl<'a, M: Memory, T: Float, G: Gate, X: Experts> Layer<'a, M, T, G, X> {
    /// Checks all that the stages will: nothing is written if an operand is refused.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Alignment`] for tokens, output and weights, [`Error::Workspace`] if
    /// the input is longer than the workspace, [`Error::Value`] if that was made for another
    /// configuration, [`Error::Unsupported`] for fields of the input that are not built yet.
    pub fn new(
        config: &'a MoeConfig,
        input: &'a LayerInput<'a, M, T>,
        gate: &'a G,
        experts: &'a X,
        output: Output<'a, M, T>,
        workspace: &'a mut Workspace<M, T>,
    ) -> Result<Self> {
        let num_tokens = input.hidden_states.layout().rows;
        input.refuse_unsupported()?;
        let shape = ExpertShape::from(config);
        if experts.shape() != shape {
            return Err(Error::shape("experts [E, H, I]", shape.dims(), experts.shape().dims()));
        }
        let gate_shape = [config.num_experts, config.hidden_size];
        if gate.shape() != gate_shape {
            return Err(Error::shape("gate", gate_shape, gate.shape()));
        }
        for (operand, layout) in [
            ("hidden_states", input.hidden_states.layout()),
            ("router_input", input.router_input.unwrap_or(input.hidden_states).layout()),
            ("output", output.matrix.layout()),
        ] {
            layout.expect(operand, num_tokens, config.hidden_size)?;
            layout.check_alignment::<T>(operand)?;
        }
        if let Some(routing) = &input.routing {
            routing.topk_ids.layout().expect("topk_ids", num_tokens, config.top_k)?;
            routing.topk_weights.layout().expect("topk_weights", num_tokens, config.top_k)?;
        }
        if let Some(map) = &input.expert_map {
            map.layout().expect("expert_map", 1, map.layout().cols)?;
        }
        if let Some(num_tokens) = input.num_tokens {
            check_num_tokens::<M>(num_tokens)?;
        }
        if workspace.config != *config {
            return Err(Error::value(
                "workspace's configuration",
                format!("{:?}", workspace.config),
                format!("the layer's {config:?}"),
            ));
        }
        if num_tokens > workspace.max_tokens {
            return Err(Error::Workspace { max_tokens: workspace.max_tokens, num_tokens });
        }
        Ok(Self { config, input, gate, experts, output, workspace })
    }
}
