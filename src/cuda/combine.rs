//! Combine: from a checked contract to a launch.

use crate::element::Float;
use crate::error::Result;
use crate::ops::{Combine, Output, Write};

use super::abi::CombineArgs;
use super::context::float16;
use super::driver::{Driver, KernelArg};
use super::operands::{Place, columns, row_wise, token_count};
use super::{Cuda, CudaStream};

/// Names of the stage's kernels.
pub(super) const KERNELS: &[&str] = &["combine_bf16", "combine_f16"];

pub(super) fn run<D: Driver + 'static, T: Float>(
    cuda: &Cuda<D>,
    op: Combine<'_, Cuda<D>, T>,
    stream: &CudaStream<D>,
) -> Result<()> {
    let dtype = float16::<T>("combine")?;
    let Combine {
        rows,
        topk_weights,
        plan,
        output: Output { matrix, write },
        num_tokens,
        scale,
        zero_experts,
        shared,
        bias,
    } = op;
    let plain = scale == 1.0 && zero_experts.is_none() && shared.is_none() && bias.is_none();
    let (Some(topk_weights), true) = (topk_weights, plain) else {
        return Err(super::not_yet("combine with further terms"));
    };
    let (tokens, hidden_size) = (matrix.layout().rows, columns("output", matrix.layout().cols)?);
    if tokens == 0 || hidden_size == 0 {
        return Ok(());
    }
    let (rows, weights) = (Place::of(rows), Place::of(topk_weights));
    let out = Place::of_mut(matrix);
    let args = CombineArgs {
        rows: rows.address,
        topk_weights: weights.address,
        row_of_assignment: plan.row_of_assignment.address(),
        out: out.address,
        rows_stride: rows.stride,
        weights_stride: weights.stride,
        out_stride: out.stride,
        num_tokens: token_count(tokens, num_tokens),
        hidden_size,
        top_k: plan.top_k as u32,
        accumulate: u32::from(write == Write::Accumulate),
        reserved: 0,
    };
    let config = row_wise(cuda, tokens, 1, hidden_size);
    // SAFETY: the kernel takes CombineArgs; the contract has checked that every row lies in its buffer,
    // which is borrowed, and whoever frees it waits for the device.
    unsafe { cuda.launch(&format!("combine_{dtype}"), config, &[KernelArg::new(&args)], stream) }
}
