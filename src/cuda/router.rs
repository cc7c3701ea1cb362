//! Router: from a checked contract to launches.

use crate::config::{Capacity, GroupFill, GroupScore, MoeConfig, Renormalize, Scoring, Selection};
use crate::element::{DType, Float};
use crate::error::{Error, Result};
use crate::memory::Buffer;
use crate::ops::{Router, RouterOutput};

use super::abi::{
    GROUP_MAX, GROUP_TOP2_SUM, LOGITS_EXPERTS, LOGITS_FEW_EXPERTS, LOGITS_FEW_SHARED,
    LOGITS_FEW_TOKENS, LOGITS_SHARED, LOGITS_TOKENS, RENORMALIZE_CLAMP_MIN, RENORMALIZE_NONE,
    RENORMALIZE_P_NORM, RENORMALIZE_SUM, ROUTER_THREADS, ROUTER_VALUE_BYTES, RouterCapacityArgs,
    RouterLogitsArgs, RouterTopKArgs, SCORING_SIGMOID, SCORING_SOFTMAX, SCORING_SPARSEMIXER,
    SCORING_SQRT_SOFTPLUS,
};
use super::context::float16;
use super::driver::{Dim3, Driver, KernelArg, LaunchConfig};
use super::operands::{Place, resident, token_count};
use super::weights::GateValues;
use super::{Cuda, CudaBuffer, CudaGate, CudaStream};

/// Names of the stage's kernels.
pub(super) const KERNELS: &[&str] = &[
    "router_logits_bf16_f32",
    "router_logits_bf16_model",
    "router_logits_f16_f32",
    "router_logits_f16_model",
    "router_logits_few_bf16_f32",
    "router_logits_few_bf16_model",
    "router_logits_few_f16_f32",
    "router_logits_few_f16_model",
    "router_topk_64",
    "router_topk_128",
    "router_topk_256",
    "router_topk_512",
    "router_topk_1024",
    "router_capacity",
];

pub(super) fn run<D: Driver + 'static, T: Float>(
    cuda: &Cuda<D>,
    op: Router<'_, Cuda<D>, T, CudaGate<D, T>>,
    stream: &CudaStream<D>,
) -> Result<()> {
    let dtype = float16::<T>("router")?;
    let Router { config, hidden_states, gate, output, num_tokens, token_ids, sequence_offsets } =
        op.begin()?;
    let RouterOutput { router_logits, topk_ids, topk_weights } = output;
    let tokens = hidden_states.layout().rows;
    if tokens == 0 {
        return Ok(());
    }
    let num_tokens = token_count(tokens, num_tokens);
    let num_experts = config.router_experts() as u32;
    let (x, logits) = (Place::of(hidden_states), Place::of_mut(router_logits));
    let (gate_dtype, matrix) = match &gate.values {
        GateValues::F32(values) => ("f32", values.address()),
        GateValues::Model(values) => ("model", values.address()),
    };
    let args = RouterLogitsArgs {
        x: x.address,
        gate: matrix,
        logits: logits.address,
        x_stride: x.stride,
        logits_stride: logits.stride,
        num_tokens,
        hidden_size: config.hidden_size as u32,
        num_experts,
    };
    // Both kernels give the same bits. Large tiles do less work, but half of the multiprocessors
    // should have one: an estimate.
    let tiles = |of_tokens, of_experts: u32| Dim3 {
        x: num_experts.div_ceil(of_experts),
        y: tokens.div_ceil(of_tokens as usize).min(65_535) as u32,
        z: 1,
    };
    let large = tiles(LOGITS_TOKENS, LOGITS_EXPERTS);
    let (few, grid, shared) = if 2 * large.volume() >= cuda.properties().sm_count.into() {
        ("", large, LOGITS_SHARED)
    } else {
        ("few_", tiles(LOGITS_FEW_TOKENS, LOGITS_FEW_EXPERTS), LOGITS_FEW_SHARED)
    };
    let kernel = format!("router_logits_{few}{dtype}_{gate_dtype}");
    let launch = LaunchConfig { grid, ..LaunchConfig::linear(1, ROUTER_THREADS) };
    // SAFETY: the kernel takes RouterLogitsArgs; the contract has checked that every row lies in its
    // buffer, which is borrowed, and whoever frees it waits for the device.
    unsafe { cuda.launch(&kernel, launch.with_shared(shared), &[KernelArg::new(&args)], stream) }?;

    let (ids, weights) = (Place::of_mut(topk_ids), Place::of_mut(topk_weights));
    let mut args = RouterTopKArgs {
        logits: logits.address,
        topk_ids: ids.address,
        topk_weights: weights.address,
        logits_stride: logits.stride,
        ids_stride: ids.stride,
        weights_stride: weights.stride,
        num_tokens,
        ..rules(config, gate)
    };
    if config.router.norm_eps.is_some() {
        (args.x, args.x_stride) = (x.address, x.stride);
        args.x_is_f16 = u32::from(T::DTYPE == DType::F16);
    }
    if let (Selection::HashTable { vocab_size }, Some(table)) =
        (config.router.selection, &gate.hash_table)
    {
        args.table = table.address();
        args.table_stride = config.top_k as u64;
        args.table_rows = vocab_size as u32;
        args.token_ids = token_ids.map_or(0, CudaBuffer::address);
    }
    choose(cuda, &args, tokens, stream)?;

    let capacity = config.router.capacity;
    if capacity == Capacity::Unlimited {
        return Ok(());
    }
    // A capacity by batch knows no sequences.
    let offsets = match capacity {
        Capacity::Sequence { .. } => sequence_offsets,
        _ => None,
    };
    let num_sequences = offsets.map_or(1, |offsets| offsets.len() - 1);
    let capacity = RouterCapacityArgs {
        topk_ids: ids.address,
        sequence_offsets: offsets.map_or(0, CudaBuffer::address),
        ids_stride: ids.stride,
        num_tokens,
        num_sequences: u32::try_from(num_sequences).map_err(|_| {
            Error::value("sequence_offsets", num_sequences, "less than 2^32 sequences")
        })?,
        num_experts,
        top_k: config.top_k as u32,
        capacity: u32::try_from(capacity.tokens(tokens)).unwrap_or(u32::MAX),
    };
    let pairs = num_sequences.saturating_mul(num_experts as usize);
    let blocks = resident(cuda, pairs.div_ceil(WARPS), ROUTER_THREADS);
    let launch = LaunchConfig::linear(blocks, ROUTER_THREADS);
    // SAFETY: as above, with RouterCapacityArgs: tokens of all sequences are below num_tokens.
    unsafe { cuda.launch("router_capacity", launch, &[KernelArg::new(&capacity)], stream) }?;

    // The ids that are left get their weights; the logits are what they are to be.
    (args.x, args.bias) = (0, 0);
    (args.selection_bias, args.num_groups) = (0, 0);
    args.prepared = u32::from(args.softcap != 0.0);
    (args.table, args.table_stride, args.token_ids) = (ids.address, ids.stride, 0);
    args.table_rows = u32::MAX;
    choose(cuda, &args, tokens, stream)
}

/// Tokens, or pairs of a sequence and an expert, that a block of the router's takes at a time.
const WARPS: usize = ROUTER_THREADS as usize / 32;

/// The rules, without what is of a token.
fn rules<D: Driver, T: Float>(config: &MoeConfig, gate: &CudaGate<D, T>) -> RouterTopKArgs {
    let address = |part: &Option<CudaBuffer<D, f32>>| part.as_ref().map_or(0, CudaBuffer::address);
    let rules = &config.router;
    let (scoring, jitter) = match rules.scoring {
        Scoring::Softmax => (SCORING_SOFTMAX, 0.0),
        Scoring::Sigmoid => (SCORING_SIGMOID, 0.0),
        Scoring::SqrtSoftplus => (SCORING_SQRT_SOFTPLUS, 0.0),
        Scoring::SparseMixer { jitter } => (SCORING_SPARSEMIXER, jitter),
    };
    let (renormalize, renormalize_by) = match rules.renormalize {
        Renormalize::None => (RENORMALIZE_NONE, 0.0),
        Renormalize::Sum { epsilon } => (RENORMALIZE_SUM, epsilon),
        Renormalize::ClampMin { least } => (RENORMALIZE_CLAMP_MIN, least),
        Renormalize::PNorm { p } => (RENORMALIZE_P_NORM, p),
    };
    let (num_groups, kept_groups) =
        rules.groups.map_or((0, 0), |groups| (groups.count as u32, groups.kept as u32));
    let group_score = match rules.groups.map(|groups| groups.score) {
        Some(GroupScore::Top2Sum) => GROUP_TOP2_SUM,
        Some(GroupScore::Max) | None => GROUP_MAX,
    };
    let group_fill = match rules.groups.map(|groups| groups.fill) {
        Some(GroupFill::NegativeInfinity) => f32::NEG_INFINITY,
        Some(GroupFill::Zero) | None => 0.0,
    };
    let prepared = rules.norm_eps.is_some()
        || rules.bias
        || rules.softcap.is_some()
        || rules.selection_bias
        || rules.groups.is_some();
    RouterTopKArgs {
        logits: 0,
        topk_ids: 0,
        topk_weights: 0,
        x: 0,
        bias: address(&gate.bias),
        selection_bias: address(&gate.selection_bias),
        expert_scale: address(&gate.expert_scale),
        table: 0,
        token_ids: 0,
        logits_stride: 0,
        ids_stride: 0,
        weights_stride: 0,
        x_stride: 0,
        table_stride: 0,
        num_tokens: token_count::<D>(0, None),
        num_experts: config.router_experts() as u32,
        top_k: config.top_k as u32,
        hidden_size: config.hidden_size as u32,
        table_rows: 0,
        x_is_f16: 0,
        prepared: u32::from(prepared),
        scoring,
        num_groups,
        kept_groups,
        group_score,
        renormalize,
        group_fill,
        norm_eps: rules.norm_eps.unwrap_or(0.0),
        softcap: rules.softcap.unwrap_or(0.0),
        jitter,
        renormalize_by,
        scale: rules.scale,
        reserved: 0,
    }
}

fn choose<D: Driver + 'static>(
    cuda: &Cuda<D>,
    args: &RouterTopKArgs,
    tokens: usize,
    stream: &CudaStream<D>,
) -> Result<()> {
    let class = args.num_experts.next_power_of_two().max(64);
    let blocks = resident(cuda, tokens.div_ceil(WARPS), ROUTER_THREADS);
    let shared = if args.prepared == 0 { 0 } else { class * ROUTER_VALUE_BYTES };
    let launch = LaunchConfig::linear(blocks, ROUTER_THREADS).with_shared(shared);
    // SAFETY: the kernel takes RouterTopKArgs; the contract has checked that every row lies in its
    // buffer and the gate's parts are as long as the rules say; ids of tokens are compared with the
    // table's rows. The buffers are borrowed, and whoever frees them waits for the device.
    unsafe { cuda.launch(&format!("router_topk_{class}"), launch, &[KernelArg::new(args)], stream) }
}
