//! Kernels for sparse Mixture-of-Experts layers.
//!
//! A Mixture-of-Experts layer sends each token to K of E feed-forward networks and sums what they
//! return. This crate runs it in seven stages:
//!
//! ```text
//! hidden_states [T,H] -> router -> plan -> grouped GEMM 1 + activation -> grouped GEMM 2 -> combine
//! ```
//!
//! Backends: the CPU, and CUDA by hand-written kernels (feature `cuda`; over any driver, the emulator's
//! included, feature `driver`).
//!
//! - [`MoeLayer`] is the whole: a [`MoeConfig`], weights, and the [`Backend`] that runs them.
//! - [`ops`] has each stage's contract, to be run by itself with a method of [`Backend`].
//! - `checkpoint` reads layers from safetensors; [`config`] knows the families.
//!
//! The README shows a complete program.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod backend;
#[cfg(feature = "checkpoint")]
pub mod checkpoint;
pub mod config;
#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "driver")]
pub mod cuda;
pub mod element;
pub mod error;
pub mod layer;
pub mod memory;
#[cfg_attr(
    not(any(feature = "cpu", feature = "driver")),
    expect(dead_code, reason = "only backends read contracts")
)]
pub mod ops;
pub mod weights;

pub use backend::Backend;
#[cfg(feature = "checkpoint")]
pub use checkpoint::Checkpoint;
pub use config::MoeConfig;
#[cfg(feature = "cpu")]
pub use cpu::Cpu;
#[cfg(feature = "driver")]
pub use cuda::Cuda;
pub use error::{Error, Result};
pub use layer::MoeLayer;

#[cfg(all(doctest, feature = "cpu", feature = "checkpoint"))]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
