//! Layer: all stages, from tokens to tokens.

use crate::config::{Capacity, MoeConfig, Selection, SharedCombine, SharedExpert, WeightOn};
use crate::element::{Element, Float};
use crate::error::{Error, Result, checked_product};
use crate::memory::{Allocator, Buffer, Matrix, MatrixMut, Memory};

use super::{
    ExpertShape, Experts, Gate, GateParts, Output, RouterOutput, Routing, RoutingPlan, check_gate,
    check_inputs, check_num_tokens, check_sequence_offsets, check_token_ids,
};

/// All weights of a layer, as a backend has prepared them.
#[derive(Debug)]
pub struct LayerParts<M: Memory, G, X, D> {
    /// The router's.
    pub gate: G,
    /// The routed experts'.
    pub experts: X,
    /// The shared expert's.
    pub shared: Option<SharedPart<G, X, D>>,
    /// Projections to and from the latent width: up `[L, H]` and down `[H, L]` of one expert.
    pub latent: Option<D>,
    /// `[H]`.
    pub output_bias: Option<M::Buffer<f32>>,
}

impl<M: Memory, G, X, D> LayerParts<M, G, X, D> {
    /// A router and experts, and nothing besides.
    pub fn new(gate: G, experts: X) -> Self {
        Self { gate, experts, shared: None, latent: None, output_bias: None }
    }
}

/// A shared expert.
#[derive(Debug)]
pub struct SharedPart<G, X, D> {
    /// `[1, H]`, of its sigmoid gate.
    pub gate: Option<G>,
    /// One expert.
    pub experts: SharedExperts<X, D>,
}

/// A shared expert's weights: in the format of the routed ones, or dense beside quantised ones.
#[derive(Debug)]
pub enum SharedExperts<X, D> {
    /// As the routed experts.
    Same(X),
    /// One value for each weight.
    Dense(D),
    /// Among the routed experts, as the last ones of them ([`SharedExpert::merged`]).
    Merged,
}

impl<X: Experts, D: Experts> SharedExperts<X, D> {
    /// What a grouped GEMM of its own must know; none where there is none.
    pub fn experts(&self) -> Option<&dyn Experts> {
        match self {
            Self::Same(experts) => Some(experts),
            Self::Dense(experts) => Some(experts),
            Self::Merged => None,
        }
    }
}

impl<M: Memory, G: Gate, X: Experts, D: Experts> LayerParts<M, G, X, D> {
    /// Bytes of the weights as prepared.
    pub fn bytes(&self) -> usize {
        let shared = self.shared.as_ref().map_or(0, |shared| {
            let experts = shared.experts.experts().map_or(0, |experts| experts.bytes());
            experts + shared.gate.as_ref().map_or(0, Gate::bytes)
        });
        let bias = self.output_bias.as_ref().map_or(0, |bias| bias.len() * size_of::<f32>());
        let latent = self.latent.as_ref().map_or(0, Experts::bytes);
        self.gate.bytes() + self.experts.bytes() + shared + latent + bias
    }

    /// Checks that there is what `config` says, of the shapes that it says.
    pub(crate) fn check(&self, config: &MoeConfig) -> Result<()> {
        let (rules, hidden_size) = (&config.experts, config.hidden_size);
        check_gate(config, &self.gate)?;
        check_experts("experts", &self.experts, ExpertShape::of_layer(config), rules.bias)?;
        check_presence("shared expert", self.shared.is_some(), rules.shared.is_some())?;
        check_presence("latent projections", self.latent.is_some(), rules.latent_size.is_some())?;
        check_presence("output_bias", self.output_bias.is_some(), rules.output_bias)?;
        if let (Some(shared), Some(rule)) = (&self.shared, rules.shared) {
            let (width, gated) = (rule.intermediate_size, rule.activation.is_gated());
            let shape = ExpertShape { gated, ..ExpertShape::gated(1, hidden_size, width) };
            let own = shared.experts.experts();
            check_presence("shared expert beside the routed ones", own.is_some(), !rule.merged)?;
            own.map_or(Ok(()), |own| check_experts("shared expert", own, shape, false))?;
            let gate = rule.combine == SharedCombine::SigmoidGate;
            check_presence("shared expert's gate", shared.gate.is_some(), gate)?;
            if let Some(gate) = &shared.gate {
                if gate.shape() != [1, hidden_size] {
                    let operand = "shared expert's gate";
                    return Err(Error::shape(operand, [1, hidden_size], gate.shape()));
                }
                if gate.parts() != GateParts::default() {
                    let expected = "a matrix and nothing besides";
                    let given = format!("{:?}", gate.parts());
                    return Err(Error::value("shared expert's gate", given, expected));
                }
            }
        }
        if let (Some(latent), Some(width)) = (&self.latent, rules.latent_size) {
            let shape = ExpertShape::ungated(1, hidden_size, width);
            check_experts("latent projections", latent, shape, false)?;
        }
        match &self.output_bias {
            Some(bias) if bias.len() != hidden_size => {
                Err(Error::shape("output_bias", [hidden_size], [bias.len()]))
            }
            _ => Ok(()),
        }
    }
}

fn check_presence(what: &str, given: bool, expected: bool) -> Result<()> {
    let word = |there: bool| if there { "given" } else { "none" };
    if given == expected {
        return Ok(());
    }
    Err(Error::value(what, word(given), format!("{}, by the configuration", word(expected))))
}

fn check_experts(
    what: &str,
    experts: &dyn Experts,
    expected: ExpertShape,
    biases: bool,
) -> Result<()> {
    let given = experts.shape();
    if given.gated != expected.gated {
        let word = |gated: bool| if gated { "with a gate" } else { "without a gate" };
        return Err(Error::value(what, word(given.gated), word(expected.gated)));
    }
    if given != expected {
        return Err(Error::shape(format!("{what} [E, H, I]"), expected.dims(), given.dims()));
    }
    check_presence(&format!("biases of {what}"), experts.has_biases(), biases)
}

/// What a layer reads. Start from [`LayerInput::new`] and set what the family or the engine adds.
#[derive(Debug)]
#[non_exhaustive]
pub struct LayerInput<'a, M: Memory, T: Float> {
    /// `[T, H]`: what the experts see, and the router too unless it has an input of its own.
    pub hidden_states: Matrix<'a, M, T>,
    /// `[T, H]`: what the router sees, where that differs (Gemma-4).
    pub router_input: Option<Matrix<'a, M, T>>,
    /// `[T]`: vocabulary ids, for routers that hash them (DeepSeek-V4).
    pub token_ids: Option<&'a M::Buffer<u32>>,
    /// `[S+1]`: where each sequence starts, for capacities by sequence; without it all tokens are one.
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
        if self.routing.is_some() && self.router_input.is_some() {
            return Err(Error::Unsupported {
                what: "LayerInput::router_input beside LayerInput::routing".to_owned(),
                supported: "one of them: with routing given, no router runs".to_owned(),
            });
        }
        if self.mask.is_some() {
            return Err(Error::Unsupported {
                what: "LayerInput::mask".to_owned(),
                supported: "hidden_states, router_input, token_ids, sequence_offsets, routing, \
                            expert_map, num_tokens"
                    .to_owned(),
            });
        }
        Ok(())
    }

    /// Checks what only some routers read: by their rules, and without a router that runs nothing.
    fn check_router_inputs(&self, config: &MoeConfig) -> Result<()> {
        let rows = self.hidden_states.layout().rows;
        let hashes = matches!(config.router.selection, Selection::HashTable { .. });
        let by_sequence = matches!(config.router.capacity, Capacity::Sequence { .. });
        for (field, given, read) in [
            ("LayerInput::token_ids", self.token_ids.is_some(), hashes),
            ("LayerInput::sequence_offsets", self.sequence_offsets.is_some(), by_sequence),
        ] {
            if given && !read {
                return Err(Error::Unsupported {
                    what: format!("{field} with a router that does not read it"),
                    supported: "token_ids with a hash table, sequence_offsets with a capacity by \
                                sequence"
                        .to_owned(),
                });
            }
        }
        if let Some(ids) = self.token_ids {
            check_token_ids::<M>(ids, rows)?;
        }
        if let Some(offsets) = self.sequence_offsets {
            check_sequence_offsets::<M>(offsets)?;
        }
        if self.expert_map.is_some() && config.router.zero_experts > 0 {
            return Err(Error::Unsupported {
                what: "LayerInput::expert_map with experts without weights".to_owned(),
                supported: "one of them: each shard would add such an expert's output".to_owned(),
            });
        }
        if self.routing.is_none() {
            check_inputs(config, self.token_ids.is_some(), self.num_tokens.is_some())?;
        }
        Ok(())
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
    /// `[R, H]`, or of the latent width: after GEMM 2.
    pub(crate) expert_rows: M::Buffer<T>,
    /// `[R]`: where weights multiply the experts' input.
    pub(crate) row_weights: M::Buffer<f32>,
    /// The shared expert's gate: `[T, 1]` logits, ids and weights.
    pub(crate) gate_logits: M::Buffer<f32>,
    pub(crate) gate_ids: M::Buffer<i32>,
    pub(crate) gate_weights: M::Buffer<f32>,
    /// What every token passes through.
    pub(crate) dense: Option<DenseWorkspace<M, T>>,
}

/// What lies between the stages of a shared expert and of latent projections.
#[derive(Debug)]
pub(crate) struct DenseWorkspace<M: Memory, T: Float> {
    pub(crate) plan: RoutingPlan<M>,
    /// The shared expert: `[T, I]`, `[T, H]`.
    pub(crate) shared_activated: M::Buffer<T>,
    pub(crate) shared_rows: M::Buffer<T>,
    /// Latent tokens, their routed sum `[T, L]`, and what it is projected to, `[T, H]`.
    pub(crate) latent_tokens: M::Buffer<T>,
    pub(crate) latent_sum: M::Buffer<T>,
    pub(crate) latent_rows: M::Buffer<T>,
}

/// Elements of a workspace's buffers.
struct Sizes {
    assignments: usize,
    rows: usize,
    gate: usize,
    logits: usize,
    activated: usize,
    expert_rows: usize,
    row_weights: usize,
    dense: Option<DenseSizes>,
}

struct DenseSizes {
    tokens: usize,
    shared_activated: usize,
    shared_rows: usize,
    latent_tokens: usize,
    latent_rows: usize,
}

impl Sizes {
    fn of(config: &MoeConfig, max_tokens: usize) -> Result<Self> {
        config.validate()?;
        let rows = config.num_assignments(max_tokens)?;
        let rules = &config.experts;
        let of_tokens = |what: &str, width: Option<usize>| {
            checked_product(what, &[max_tokens, width.unwrap_or(0)])
        };
        let has_gate = |rule: SharedExpert| rule.combine == SharedCombine::SigmoidGate;
        let shared = rules.shared.filter(|shared| !shared.merged);
        let dense = match shared.is_some() || rules.latent_size.is_some() {
            false => None,
            true => Some(DenseSizes {
                tokens: max_tokens,
                shared_activated: of_tokens(
                    "shared activated rows",
                    shared.map(|shared| shared.intermediate_size),
                )?,
                shared_rows: of_tokens("shared rows", shared.map(|_| config.hidden_size))?,
                latent_tokens: of_tokens("latent tokens", rules.latent_size)?,
                latent_rows: of_tokens(
                    "latent rows",
                    rules.latent_size.map(|_| config.hidden_size),
                )?,
            }),
        };
        Ok(Self {
            assignments: max_tokens * config.top_k,
            rows,
            gate: if rules.shared.is_some_and(has_gate) { max_tokens } else { 0 },
            logits: checked_product("router_logits", &[max_tokens, config.router_experts()])?,
            activated: checked_product("activated rows", &[rows, config.intermediate_size])?,
            expert_rows: checked_product("expert rows", &[rows, config.expert_width()])?,
            row_weights: if rules.weight_on == WeightOn::Input { rows } else { 0 },
            dense,
        })
    }

    fn bytes<M: Memory>(&self, num_experts: usize, element: usize) -> Option<usize> {
        let words = [self.logits, 2 * self.assignments, self.row_weights, 3 * self.gate];
        let mut elements = vec![self.activated, self.expert_rows];
        let mut bytes = vec![RoutingPlan::<M>::bytes(num_experts, self.rows)];
        if let Some(dense) = &self.dense {
            bytes.push(RoutingPlan::<M>::bytes(1, dense.tokens));
            elements.extend([dense.shared_activated, dense.shared_rows, dense.latent_tokens]);
            elements.extend([dense.latent_tokens, dense.latent_rows]);
        }
        let words = words.into_iter().map(|len| len.checked_mul(4));
        let elements = elements.into_iter().map(|len| len.checked_mul(element));
        words
            .chain(elements)
            .chain(bytes.into_iter().map(Some))
            .try_fold(0usize, |sum, bytes| sum.checked_add(bytes?))
    }
}

impl<M: Memory, T: Float> Workspace<M, T> {
    /// Buffers, those of the plans included.
    #[cfg_attr(not(feature = "driver"), expect(dead_code, reason = "for the gaps between them"))]
    pub(crate) const BUFFERS: usize = 9 + 5 + 5 + 5;

    /// The bytes that [`Workspace::new`] allocates.
    ///
    /// # Errors
    /// [`Error::Overflow`], and the errors of [`MoeConfig::validate`] and
    /// [`MoeConfig::num_assignments`].
    pub fn bytes(config: &MoeConfig, max_tokens: usize) -> Result<usize> {
        Sizes::of(config, max_tokens)?
            .bytes::<M>(config.num_experts + config.always_on(), T::DTYPE.size())
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
        Self::bytes(config, max_tokens)?;
        let sizes = Sizes::of(config, max_tokens)?;
        let dense = match &sizes.dense {
            None => None,
            Some(dense) => Some(DenseWorkspace {
                plan: RoutingPlan::in_memory(memory, 1, dense.tokens)?,
                shared_activated: memory
                    .allocate("shared activated rows", dense.shared_activated)?,
                shared_rows: memory.allocate("shared rows", dense.shared_rows)?,
                latent_tokens: memory.allocate("latent tokens", dense.latent_tokens)?,
                latent_sum: memory.allocate("latent sum", dense.latent_tokens)?,
                latent_rows: memory.allocate("latent rows", dense.latent_rows)?,
            }),
        };
        Ok(Self {
            max_tokens,
            config: config.clone(),
            routed_tokens: 0,
            router_logits: memory.allocate("router_logits", sizes.logits)?,
            topk_ids: memory.allocate("topk_ids", sizes.assignments)?,
            topk_weights: memory.allocate("topk_weights", sizes.assignments)?,
            plan: RoutingPlan::in_memory(
                memory,
                config.num_experts + config.always_on(),
                sizes.rows,
            )?,
            activated: memory.allocate("activated rows", sizes.activated)?,
            expert_rows: memory.allocate("expert rows", sizes.expert_rows)?,
            row_weights: memory.allocate("row weights", sizes.row_weights)?,
            gate_logits: memory.allocate("shared gate's logits", sizes.gate)?,
            gate_ids: memory.allocate("shared gate's ids", sizes.gate)?,
            gate_weights: memory.allocate("shared gate's weights", sizes.gate)?,
            dense,
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
        self.routed("router_logits", &self.router_logits, self.config.router_experts())
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
        let (num_experts, top_k) = (self.config.router_experts(), self.config.top_k);
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

/// From tokens to tokens, by the formulae of [`RouterConfig`](crate::config::RouterConfig) and
/// [`ExpertsConfig`](crate::config::ExpertsConfig).
#[derive(Debug)]
pub struct Layer<'a, M: Memory, T: Float, G: Gate, X: Experts, D: Experts> {
    pub(crate) config: &'a MoeConfig,
    pub(crate) input: &'a LayerInput<'a, M, T>,
    pub(crate) parts: &'a LayerParts<M, G, X, D>,
    pub(crate) output: Output<'a, M, T>,
    pub(crate) workspace: &'a mut Workspace<M, T>,
}

impl<'a, M: Memory, T: Float, G: Gate, X: Experts, D: Experts> Layer<'a, M, T, G, X, D> {
    /// Checks all that the stages will: nothing is written if an operand is refused.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Alignment`] and [`Error::Value`] for tokens, output and weights that
    /// disagree with the configuration, [`Error::Workspace`] if the input is longer than the workspace,
    /// [`Error::Value`] if that was made for another configuration, [`Error::Unsupported`] for fields of
    /// the input that this layer does not read.
    pub fn new(
        config: &'a MoeConfig,
        input: &'a LayerInput<'a, M, T>,
        parts: &'a LayerParts<M, G, X, D>,
        output: Output<'a, M, T>,
        workspace: &'a mut Workspace<M, T>,
    ) -> Result<Self> {
        let num_tokens = input.hidden_states.layout().rows;
        input.refuse_unsupported()?;
        parts.check(config)?;
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
        input.check_router_inputs(config)?;
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
        Ok(Self { config, input, parts, output, workspace })
    }
}
