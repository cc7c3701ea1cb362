//! Kernels for sparse Mixture-of-Experts layers.

#![cfg_attr(docsrs, feature(doc_cfg))]

pub mod backend;
#[cfg(feature = "checkpoint")]
pub mod checkpoint;
pub mod config;
#[cfg(feature = "cpu")]
pub mod cpu;
pub mod element;
pub mod error;
pub mod layer;
pub mod memory;
pub mod ops;
pub mod weights;

pub use backend::Backend;
#[cfg(feature = "checkpoint")]
pub use checkpoint::Checkpoint;
pub use config::MoeConfig;
#[cfg(feature = "cpu")]
pub use cpu::Cpu;
pub use error::{Error, Result};
pub use layer::MoeLayer;
