//! Combine: from a checked contract to a launch.

use crate::element::Float;
use crate::error::Result;
use crate::ops::{Combine, Output, SharedRows, Write, ZeroExperts};

use super::abi::CombineArgs;
use super::context::float16;
use super::driver::{Driver, KernelArg};
use super::operands::{Place, columns, row_wise, token_count};
use super::{Cuda, CudaBuffer, CudaStream};

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
    let (tokens, hidden_size) = (matrix.layout().rows, columns("output", matrix.layout().cols)?);
    if tokens == 0 || hidden_size == 0 {
        return Ok(());
    }
    let (rows, out) = (Place::of(rows), Place::of_mut(matrix));
    let weights = topk_weights.map_or(Place::NONE, Place::of);
    let (x, ids, zero) = match zero_experts {
        Some(ZeroExperts { x, topk_ids, ids }) => (Place::of(x), Place::of(topk_ids), ids),
        None => (Place::NONE, Place::NONE, 0..0),
    };
    let (shared, shared_weights, shared_scale) = match shared {
        Some(SharedRows { rows, weights, scale }) => {
            (Place::of(rows), weights.map_or(Place::NONE, Place::of), scale)
        }
        None => (Place::NONE, Place::NONE, 0.0),
    };
    // Ids are below 2^31.
    let id = |id: usize| id.min(1 << 31) as u32;
    let args = CombineArgs {
        rows: rows.address,
        topk_weights: weights.address,
        row_of_assignment: plan.row_of_assignment.address(),
        out: out.address,
        x: x.address,
        topk_ids: ids.address,
        shared: shared.address,
        shared_weights: shared_weights.address,
        bias: bias.map_or(0, CudaBuffer::address),
        rows_stride: rows.stride,
        weights_stride: weights.stride,
        out_stride: out.stride,
        x_stride: x.stride,
        ids_stride: ids.stride,
        shared_stride: shared.stride,
        shared_weights_stride: shared_weights.stride,
        num_tokens: token_count(tokens, num_tokens),
        hidden_size,
        top_k: plan.top_k as u32,
        accumulate: u32::from(write == Write::Accumulate),
        scale,
        shared_scale,
        zero_first: id(zero.start),
        zero_end: id(zero.end.max(zero.start)),
        reserved: 0,
    };
    let config = row_wise(cuda, tokens, 1, hidden_size);
    // SAFETY: the kernel takes CombineArgs; the contract has checked that every row lies in its buffer,
    // which is borrowed, and whoever frees it waits for the device.
    unsafe { cuda.launch(&format!("combine_{dtype}"), config, &[KernelArg::new(&args)], stream) }
}
