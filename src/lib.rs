//! Kernels for sparse Mixture-of-Experts layers.

#[cfg(feature = "driver")]
pub mod cuda;
