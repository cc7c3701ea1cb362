//! Router: from a checked contract to launches.

use crate::config::{Renormalize, Scoring};
use crate::element::Float;
use crate::error::Result;
use crate::ops::{Router, RouterOutput};

use super::abi::{
    LOGITS_EXPERTS, LOGITS_FEW_EXPERTS, LOGITS_FEW_SHARED, LOGITS_FEW_TOKENS, LOGITS_SHARED,
    LOGITS_TOKENS, RENORMALIZE_NONE, RENORMALIZE_SUM, ROUTER_THREADS, RouterLogitsArgs,
    RouterTopKArgs, SCORING_SIGMOID, SCORING_SOFTMAX,
};
use super::context::float16;
use super::driver::{Dim3, Driver, KernelArg, LaunchConfig};
use super::operands::{Place, resident, token_count};
use super::weights::GateValues;
use super::{Cuda, CudaGate, CudaStream};

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
];

pub(super) fn run<D: Driver + 'static, T: Float>(
    cuda: &Cuda<D>,
    op: Router<'_, Cuda<D>, T, CudaGate<D, T>>,
    stream: &CudaStream<D>,
) -> Result<()> {
    let dtype = float16::<T>("router")?;
    let Router { config, hidden_states, gate, output, num_tokens, .. } = op.begin()?;
    let rules = &config.router;
    let plain = crate::config::RouterConfig {
        scoring: rules.scoring,
        renormalize: rules.renormalize,
        ..Default::default()
    };
    if *rules != plain {
        return Err(super::not_yet("these router rules"));
    }
    let RouterOutput { router_logits, topk_ids, topk_weights } = output;
    let tokens = hidden_states.layout().rows;
    if tokens == 0 {
        return Ok(());
    }
    let num_tokens = token_count(tokens, num_tokens);
    let num_experts = config.num_experts as u32;
    let (x, logits) = (Place::of(hidden_states), Place::of_mut(router_logits));
    let (gate_dtype, gate) = match &gate.values {
        GateValues::F32(values) => ("f32", values.address()),
        GateValues::Model(values) => ("model", values.address()),
    };
    let args = RouterLogitsArgs {
        x: x.address,
        gate,
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
    let args = RouterTopKArgs {
        logits: logits.address,
        topk_ids: ids.address,
        topk_weights: weights.address,
        logits_stride: logits.stride,
        ids_stride: ids.stride,
        weights_stride: weights.stride,
        num_tokens,
        num_experts,
        top_k: config.top_k as u32,
        scoring: match rules.scoring {
            Scoring::Softmax => SCORING_SOFTMAX,
            Scoring::Sigmoid => SCORING_SIGMOID,
            _ => return Err(super::not_yet("this scoring")),
        },
        renormalize: match rules.renormalize {
            Renormalize::None => RENORMALIZE_NONE,
            Renormalize::SUM => RENORMALIZE_SUM,
            _ => return Err(super::not_yet("this renormalisation")),
        },
    };
    let kernel = format!("router_topk_{}", num_experts.next_power_of_two().max(64));
    let blocks = resident(cuda, tokens.div_ceil(ROUTER_THREADS as usize / 32), ROUTER_THREADS);
    // SAFETY: as above, with RouterTopKArgs.
    unsafe {
        cuda.launch(
            &kernel,
            LaunchConfig::linear(blocks, ROUTER_THREADS),
            &[KernelArg::new(&args)],
            stream,
        )
    }
}
