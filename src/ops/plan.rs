//! Plan: the order of assignments by expert, which every later stage shares.

use crate::config::{MAX_EXPERTS, MAX_TOP_K};
use crate::error::{Error, Result, checked_product};
use crate::memory::{Allocator, Buffer, Matrix, Memory};

use super::{NumTokens, check_num_tokens};

/// In [`RoutingPlan::row_of_assignment`]: the assignment has no row here.
pub const NOT_ROUTED: u32 = u32::MAX;

/// Which row each assignment has, expert by expert. All that stages share besides tensors.
///
/// ```text
/// expert    0         1    2 (no token)  3
/// rows    | 0  1  2 | 3  4 |           | 5  6  7 |      expert_offsets = [0, 3, 5, 5, 8]
/// token     0  1  3   0  2               1  2  3        token_of_row
/// ```
///
/// Within an expert, rows are in the order of their assignments. Maps read value_of_key.
#[derive(Debug)]
pub struct RoutingPlan<M: Memory> {
    pub(crate) num_experts: usize,
    pub(crate) num_tokens: usize,
    pub(crate) top_k: usize,
    /// Of them, those that ids chose; every token has the others.
    pub(crate) routed_k: usize,
    pub(crate) tokens_per_expert: M::Buffer<u32>,
    pub(crate) expert_offsets: M::Buffer<u32>,
    pub(crate) token_of_row: M::Buffer<u32>,
    pub(crate) row_of_assignment: M::Buffer<u32>,
    /// The stage's own, between its launches.
    #[cfg_attr(not(feature = "driver"), expect(dead_code, reason = "the CPU's plan needs none"))]
    pub(crate) scratch: M::Buffer<u32>,
}

impl<M: Memory> RoutingPlan<M> {
    /// A plan with room for `max_assignments` rows of `num_experts` experts.
    ///
    /// # Errors
    /// [`Error::Value`] outside 1 to [`MAX_EXPERTS`] experts or from 2^31 assignments on,
    /// [`Error::OutOfMemory`].
    pub fn new(memory: &M, num_experts: usize, max_assignments: usize) -> Result<Self> {
        Self::in_memory(&mut &*memory, num_experts, max_assignments)
    }

    pub(crate) fn in_memory(
        memory: &mut impl Allocator<M>,
        num_experts: usize,
        max_assignments: usize,
    ) -> Result<Self> {
        if !(1..=MAX_EXPERTS).contains(&num_experts) {
            return Err(Error::value("num_experts", num_experts, format!("1 to {MAX_EXPERTS}")));
        }
        if max_assignments >= 1 << 31 {
            return Err(Error::value("max_assignments", max_assignments, "less than 2^31"));
        }
        Ok(Self {
            num_experts,
            num_tokens: 0,
            top_k: 0,
            routed_k: 0,
            tokens_per_expert: memory.allocate("tokens_per_expert", num_experts)?,
            expert_offsets: memory.allocate("expert_offsets", num_experts + 1)?,
            token_of_row: memory.allocate("token_of_row", max_assignments)?,
            row_of_assignment: memory.allocate("row_of_assignment", max_assignments)?,
            scratch: memory
                .allocate("plan scratch", M::plan_scratch_len(num_experts, max_assignments))?,
        })
    }

    /// E.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// T of the routing that the plan was last made from.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// R = T * K of the routing that the plan was last made from: an upper bound of
    /// `expert_offsets[E]`, which lies in the backend's memory.
    pub fn num_assignments(&self) -> usize {
        self.num_tokens * self.top_k
    }

    /// `[E]`.
    pub fn tokens_per_expert(&self) -> &M::Buffer<u32> {
        &self.tokens_per_expert
    }

    /// `[E+1]`: expert e has the rows `expert_offsets[e]..expert_offsets[e + 1]`.
    pub fn expert_offsets(&self) -> &M::Buffer<u32> {
        &self.expert_offsets
    }

    /// The token of each row. As long as the plan has room for, of which the first
    /// `expert_offsets[E]` are meaningful.
    #[doc(alias = "sorted_token_ids")]
    pub fn token_of_row(&self) -> &M::Buffer<u32> {
        &self.token_of_row
    }

    /// The row of each assignment, or [`NOT_ROUTED`]. As long as the plan has room for, of which
    /// the first `num_assignments` are meaningful.
    pub fn row_of_assignment(&self) -> &M::Buffer<u32> {
        &self.row_of_assignment
    }

    pub(crate) fn bytes(num_experts: usize, max_assignments: usize) -> usize {
        let scratch = M::plan_scratch_len(num_experts, max_assignments);
        size_of::<u32>() * (2 * num_experts + 1 + 2 * max_assignments + scratch)
    }
}

/// Histogram of the ids, their offsets, and a stable rank of each assignment.
///
/// ```text
/// local[a]             = expert_map[ids[a]], or ids[a] without a map; none if outside 0..E;
///                        E, E + 1, ... for the columns of experts that every token visits
/// tokens_per_expert[e] = #{a : local[a] = e}
/// expert_offsets[e]    = sum_{j < e} tokens_per_expert[j]
/// row_of_assignment[a] = expert_offsets[local[a]] + #{b < a : local[b] = local[a]}
/// token_of_row[row_of_assignment[a]] = a / K
/// row_weights[row_of_assignment[a]]  = topk_weights[a], where they are asked for
/// ```
#[derive(Debug)]
pub struct Plan<'a, M: Memory> {
    /// None where nothing is chosen.
    pub(crate) topk_ids: Option<Matrix<'a, M, i32>>,
    pub(crate) rows: usize,
    /// Columns of ids, and of the experts that every token visits, which are the plan's last ones.
    pub(crate) routed_k: usize,
    pub(crate) always_on: usize,
    pub(crate) expert_map: Option<Matrix<'a, M, i32>>,
    pub(crate) plan: &'a mut RoutingPlan<M>,
    pub(crate) num_tokens: NumTokens<'a, M>,
    pub(crate) row_weights: Option<RowWeights<'a, M>>,
}

/// Weights of assignments, and where they go in the order of rows.
#[derive(Debug)]
pub(crate) struct RowWeights<'a, M: Memory> {
    pub(crate) topk_weights: Matrix<'a, M, f32>,
    pub(crate) out: &'a mut M::Buffer<f32>,
}

impl<'a, M: Memory> Plan<'a, M> {
    /// `topk_ids [T, K]`; `expert_map [1, E_global]` gives a global id's local one, or -1.
    ///
    /// # Errors
    /// [`Error::Value`] for more than [`MAX_TOP_K`] ids a token, [`Error::Shape`] for a map of
    /// more than one row, [`Error::View`] if the plan has room for fewer assignments.
    pub fn new(
        topk_ids: Matrix<'a, M, i32>,
        expert_map: Option<Matrix<'a, M, i32>>,
        plan: &'a mut RoutingPlan<M>,
    ) -> Result<Self> {
        let layout = topk_ids.layout();
        if !(1..=MAX_TOP_K).contains(&layout.cols) {
            return Err(Error::value("top_k", layout.cols, format!("1 to {MAX_TOP_K}")));
        }
        if let Some(map) = &expert_map {
            map.layout().expect("expert_map", 1, map.layout().cols)?;
        }
        Self::of(Some(topk_ids), [layout.rows, layout.cols, 0], expert_map, plan)
    }

    /// The plan's last `count` experts are not chosen: every token visits each of them. Its K is that
    /// of the ids and `count` more.
    ///
    /// # Errors
    /// [`Error::Value`] if the plan has no more experts, or for more than [`MAX_TOP_K`] in all;
    /// [`Error::View`] if it has room for fewer assignments.
    pub fn with_always_on(self, count: usize) -> Result<Self> {
        let most = self.plan.num_experts.saturating_sub(1).min(MAX_TOP_K - self.routed_k);
        if count > most {
            return Err(Error::value(
                "experts that are always on",
                count,
                format!("at most {most}"),
            ));
        }
        let Self { topk_ids, rows, routed_k, expert_map, plan, num_tokens, .. } = self;
        let op = Self::of(topk_ids, [rows, routed_k, count], expert_map, plan)?;
        Ok(Self { num_tokens, ..op })
    }

    /// Every one of `num_tokens` tokens visits the plan's last expert: the plan of a layer that is not
    /// sparse.
    ///
    /// # Errors
    /// [`Error::View`] if the plan has room for fewer tokens.
    pub fn dense(num_tokens: usize, plan: &'a mut RoutingPlan<M>) -> Result<Self> {
        Self::of(None, [num_tokens, 0, 1], None, plan)
    }

    fn of(
        topk_ids: Option<Matrix<'a, M, i32>>,
        [rows, routed_k, always_on]: [usize; 3],
        expert_map: Option<Matrix<'a, M, i32>>,
        plan: &'a mut RoutingPlan<M>,
    ) -> Result<Self> {
        let needed = checked_product("topk_ids", &[rows, routed_k + always_on])?;
        let len = plan.token_of_row.len();
        if needed > len {
            return Err(Error::View { operand: "routing plan".to_owned(), needed, len });
        }
        let (num_tokens, row_weights) = (None, None);
        Ok(Self { topk_ids, rows, routed_k, always_on, expert_map, plan, num_tokens, row_weights })
    }

    /// Also `out[row_of_assignment[t * K + k]] = topk_weights[t, k]`, for `topk_weights` as the ids; 1 for
    /// experts that every token visits.
    ///
    /// # Errors
    /// [`Error::Shape`], and [`Error::View`] if `out` has fewer than `T * K` elements.
    pub fn with_row_weights(
        self,
        topk_weights: Matrix<'a, M, f32>,
        out: &'a mut M::Buffer<f32>,
    ) -> Result<Self> {
        topk_weights.layout().expect("topk_weights", self.rows, self.routed_k)?;
        super::check_row_weights::<M>(out, self.rows * (self.routed_k + self.always_on))?;
        Ok(Self { row_weights: Some(RowWeights { topk_weights, out }), ..self })
    }

    /// Only the first `num_tokens[0]` tokens, a number in the backend's memory: at most T, read
    /// when the stage runs. Assignments of the others have no row.
    ///
    /// # Errors
    /// [`Error::View`] for an empty buffer.
    pub fn with_num_tokens(self, num_tokens: &'a M::Buffer<u32>) -> Result<Self> {
        check_num_tokens::<M>(num_tokens)?;
        Ok(Self { num_tokens: Some(num_tokens), ..self })
    }

    /// Called by a backend that is about to run the stage: from here on the plan is one of these
    /// ids.
    pub(crate) fn begin(self) -> Self {
        self.plan.num_tokens = self.rows;
        self.plan.top_k = self.routed_k + self.always_on;
        self.plan.routed_k = self.routed_k;
        self
    }
}
