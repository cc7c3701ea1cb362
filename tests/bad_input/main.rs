//! Bad input: every constructor refuses it with a typed error that names the operand, what was
//! given and what was expected; nothing panics, nothing is written, and what was refused the bad
//! input takes the good one afterwards.

#![cfg(feature = "cpu")]

#[path = "../common/mod.rs"]
mod common;

mod config;
mod layer;
mod memory;
mod stages;
mod weights;

use common::*;
use half::bf16;
use moe_kernels::Cpu;
use moe_kernels::config::{ActivationFn, GateUpLayout};
use moe_kernels::memory::Layout;
use moe_kernels::ops::{Epilogue, ExpertShape, RoutingPlan};
use moe_kernels::weights::DenseExperts;

/// More elements than any view below reaches.
pub(crate) const ROOM: usize = 4096;

pub(crate) fn rows(rows: usize, cols: usize) -> Layout {
    Layout::contiguous(rows, cols)
}

pub(crate) fn strided(rows: usize, cols: usize, row_stride: usize, offset: usize) -> Layout {
    Layout { rows, cols, row_stride, offset }
}

/// A plan of `tokens` tokens with `top_k` experts each, of `experts`.
pub(crate) fn plan_of(tokens: usize, top_k: usize, experts: usize) -> RoutingPlan<Cpu> {
    cpu().plan(&Rng::new(1).ids(tokens, experts, top_k), top_k, experts)
}

/// Layouts whose rows do not start on 16 bytes, of `n` bf16 rows of 8.
pub(crate) fn misaligned(n: usize) -> [(Layout, [&'static str; 2]); 2] {
    [(strided(n, 8, 12, 0), ["row stride", "12"]), (strided(n, 8, 16, 4), ["offset", "4"])]
}

pub(crate) const SHAPE: ExpertShape = ExpertShape::gated(3, 8, 16);

pub(crate) const SWIGLU: Epilogue = Epilogue::Activation(ActivationFn::SwiGlu);

pub(crate) fn ones(shape: ExpertShape) -> DenseExperts<bf16> {
    let len = shape.num_experts * shape.hidden_size * shape.intermediate_size;
    let (gate_up, down) = (vec![bf16::ONE; 2 * len], vec![bf16::ONE; len]);
    DenseExperts::stacked(shape, GateUpLayout::GateFirst, gate_up, down).unwrap()
}
