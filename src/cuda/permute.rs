//! Permute: from a checked contract to a launch.

use crate::element::Float;
use crate::error::Result;
use crate::ops::Permute;

use super::abi::{PERMUTE_ROWS, PermuteArgs};
use super::context::float16;
use super::driver::{Driver, KernelArg};
use super::operands::{Place, columns, row_wise};
use super::{Cuda, CudaStream};

/// Names of the stage's kernels.
pub(super) const KERNELS: &[&str] = &["permute"];

pub(super) fn run<D: Driver + 'static, T: Float>(
    cuda: &Cuda<D>,
    op: Permute<'_, Cuda<D>, T>,
    stream: &CudaStream<D>,
) -> Result<()> {
    float16::<T>("permute")?;
    let Permute { hidden_states, plan, rows } = op;
    let max_rows = plan.num_assignments();
    let hidden_size = columns("hidden_states", hidden_states.layout().cols)?;
    if max_rows == 0 || hidden_size == 0 {
        return Ok(());
    }
    let (x, rows) = (Place::of(hidden_states), Place::of_mut(rows));
    let args = PermuteArgs {
        x: x.address,
        rows: rows.address,
        token_of_row: plan.token_of_row.address(),
        num_rows: plan.expert_offsets.at(plan.num_experts),
        x_stride: x.stride,
        rows_stride: rows.stride,
        hidden_size,
        max_rows: max_rows as u32,
    };
    let config = row_wise(cuda, max_rows, PERMUTE_ROWS, hidden_size);
    // SAFETY: the kernel takes PermuteArgs; the contract has checked that every row lies in its buffer,
    // which is borrowed, and whoever frees it waits for the device.
    unsafe { cuda.launch("permute", config, &[KernelArg::new(&args)], stream) }
}
