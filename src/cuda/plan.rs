//! Plan: from a checked contract to launches.

use crate::error::Result;
use crate::ops::{NOT_ROUTED, Plan, RowWeights};

use super::abi::{self, PLAN_SHARED, PLAN_THREADS, PLAN_TILE, PlanArgs};
use super::driver::{Driver, KernelArg, LaunchConfig};
use super::operands::{Place, resident, token_count};
use super::{Cuda, CudaStream};

/// Names of the stage's kernels.
pub(super) const KERNELS: &[&str] = &["plan_small", "plan_count", "plan_scan", "plan_scatter"];

const _: () = assert!(NOT_ROUTED == abi::NOT_ROUTED);

/// Chunks at most: one block walks through all of them.
const MAX_CHUNKS: usize = 256;

/// Up to so many assignments one block is done before three launches would be: an estimate, which no
/// result depends on.
const SMALL: usize = 4 * PLAN_TILE as usize;

/// u32 of scratch for up to `max_assignments`: a row of counts for each chunk.
pub(super) const fn scratch_len(num_experts: usize, max_assignments: usize) -> usize {
    let chunks = max_assignments.div_ceil(PLAN_TILE as usize);
    let chunks = if chunks > MAX_CHUNKS { MAX_CHUNKS } else { chunks };
    num_experts * if chunks == 0 { 1 } else { chunks }
}

pub(super) fn run<D: Driver + 'static>(
    cuda: &Cuda<D>,
    op: Plan<'_, Cuda<D>>,
    stream: &CudaStream<D>,
) -> Result<()> {
    let Plan { topk_ids, rows: tokens, top_k, expert_map, plan, num_tokens, row_weights } =
        op.begin();
    let assignments = tokens * top_k;
    let small = assignments <= SMALL;
    let most = if small { 1 } else { MAX_CHUNKS };
    let per_chunk = assignments.div_ceil(most).max(1).next_multiple_of(PLAN_TILE as usize);
    let ids = topk_ids.map_or(Place::NONE, Place::of);
    let (weights, row_weights) = match row_weights {
        Some(RowWeights { topk_weights, out }) => (Place::of(topk_weights), out.address()),
        None => (Place::NONE, 0),
    };
    let args = PlanArgs {
        topk_ids: ids.address,
        ids_stride: ids.stride,
        // 0 means none: an empty map, which nobody reads, may lie there.
        expert_map: expert_map.map_or(0, |map| Place::of(map).address.max(16)),
        topk_weights: weights.address,
        weights_stride: weights.stride,
        tokens_per_expert: plan.tokens_per_expert.address(),
        expert_offsets: plan.expert_offsets.address(),
        token_of_row: plan.token_of_row.address(),
        row_of_assignment: plan.row_of_assignment.address(),
        row_weights,
        scratch: plan.scratch.address(),
        num_tokens: token_count(tokens, num_tokens),
        // Ids are below 2^31.
        expert_map_len: expert_map.map_or(0, |map| map.layout().cols.min(1 << 31) as u32),
        num_experts: plan.num_experts as u32,
        top_k: top_k as u32,
        assignments_per_chunk: per_chunk as u32,
    };
    let launch = |kernel, blocks| {
        let config = LaunchConfig::linear(blocks, PLAN_THREADS).with_shared(PLAN_SHARED);
        // SAFETY: the kernels take PlanArgs. The contract has checked that ids and weights lie in their
        // buffers and that the plan and the row weights have room for as many assignments, for which the
        // plan's scratch was made; the buffers are borrowed, and whoever frees them waits for the device.
        unsafe { cuda.launch(kernel, config, &[KernelArg::new(&args)], stream) }
    };
    if small {
        return launch("plan_small", 1);
    }
    let blocks = resident(cuda, assignments.div_ceil(per_chunk), PLAN_THREADS);
    launch("plan_count", blocks)?;
    launch("plan_scan", 1)?;
    launch("plan_scatter", blocks)
}
