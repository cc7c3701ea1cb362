//! Activation: from a checked contract to a launch.

use crate::element::Float;
use crate::error::Result;
use crate::ops::Activation;

use super::abi::{ACTIVATION_ROWS, ActivationArgs};
use super::context::float16;
use super::driver::{Driver, KernelArg};
use super::grouped_gemm::activation_params;
use super::operands::{Place, columns, row_wise};
use super::{Cuda, CudaStream};

/// Names of the stage's kernels.
pub(super) const KERNELS: &[&str] = &["activation_bf16", "activation_f16"];

pub(super) fn run<D: Driver + 'static, T: Float>(
    cuda: &Cuda<D>,
    op: Activation<'_, Cuda<D>, T>,
    stream: &CudaStream<D>,
) -> Result<()> {
    let dtype = float16::<T>("activation")?;
    let Activation { function, gate_up, plan, out } = op;
    let max_rows = plan.num_assignments();
    let columns = columns("activation output", out.layout().cols)?;
    if max_rows == 0 || columns == 0 {
        return Ok(());
    }
    let (gate_up, out) = (Place::of(gate_up), Place::of_mut(out));
    let args = ActivationArgs {
        gate_up: gate_up.address,
        out: out.address,
        num_rows: plan.expert_offsets.at(plan.num_experts),
        gate_up_stride: gate_up.stride,
        out_stride: out.stride,
        activation: activation_params(function)?,
        columns,
        max_rows: max_rows as u32,
    };
    let config = row_wise(cuda, max_rows, ACTIVATION_ROWS, columns);
    // SAFETY: the kernel takes ActivationArgs; the contract has checked that every row lies in its
    // buffer, which is borrowed, and whoever frees it waits for the device.
    unsafe { cuda.launch(&format!("activation_{dtype}"), config, &[KernelArg::new(&args)], stream) }
}
