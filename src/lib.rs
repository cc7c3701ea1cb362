//! Kernels for sparse Mixture-of-Experts layers.
