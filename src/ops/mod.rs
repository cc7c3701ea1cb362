//! The stages' contracts: operands, shapes and formulae. Nothing is executed here.
//!
//! ```text
//! hidden_states [T,H] -> router -> plan -> grouped GEMM 1 + activation -> grouped GEMM 2 -> combine
//! ```
//!
//! A contract is made by its `new`, which checks every shape; a backend that is given one checks
//! nothing again. T tokens, H hidden_size, I intermediate_size, E num_experts, K top_k,
//! R = T * K rows. An *assignment* is one (token, k) pair, numbered `token * K + k`; a *row* is an
//! assignment's place in expert order.

mod activation;
mod combine;
mod grouped_gemm;
mod layer;
mod permute;
mod plan;
mod router;

pub use activation::Activation;
pub use combine::{Combine, Output, Write};
#[cfg(any(feature = "cpu", feature = "driver"))]
pub(crate) use grouped_gemm::Projection;
pub use grouped_gemm::{Epilogue, ExpertShape, Experts, Gather, GroupedGemm};
pub use layer::{Layer, LayerInput, Workspace};
pub use permute::Permute;
pub use plan::{NOT_ROUTED, Plan, RoutingPlan};
pub use router::{Gate, Router, RouterOutput, Routing};
