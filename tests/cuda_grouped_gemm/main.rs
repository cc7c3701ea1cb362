//! The grouped GEMM's CUDA kernels on the emulator, each tile by itself, against the oracle.
#![cfg(feature = "driver")]

#[path = "../common/mod.rs"]
mod common;

mod bench;
mod hopper;
mod portable;
mod quantised;
mod rules;
