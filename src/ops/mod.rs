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

use crate::error::{Error, Result};
use crate::memory::{Buffer, Memory};

mod activation;
mod combine;
mod grouped_gemm;
mod layer;
mod permute;
mod plan;
mod router;

pub use activation::Activation;
#[cfg_attr(not(feature = "driver"), expect(unused_imports, reason = "for CUDA's operands"))]
pub(crate) use combine::ZeroExperts;
pub use combine::{Combine, Output, SharedRows, Write};
#[cfg(any(feature = "cpu", feature = "driver"))]
pub(crate) use grouped_gemm::Projection;
pub(crate) use grouped_gemm::check_row_weights;
pub use grouped_gemm::{Epilogue, ExpertShape, Experts, Gather, GroupedGemm};
pub(crate) use layer::DenseWorkspace;
pub use layer::{Layer, LayerInput, LayerParts, SharedExperts, SharedPart, Workspace};
pub use permute::Permute;
#[cfg(any(feature = "cpu", feature = "driver"))]
pub(crate) use plan::RowWeights;
pub use plan::{NOT_ROUTED, Plan, RoutingPlan};
pub use router::{Gate, GateParts, Router, RouterOutput, Routing};
pub(crate) use router::{check_gate, check_inputs, check_sequence_offsets, check_token_ids};

/// A number of tokens in the backend's memory: one u32, at most the rows of the operands.
///
/// Work is bounded by the operands' rows and reads this number when it runs, so that a captured
/// graph serves batches of any size up to them. Rows of tokens from it on are neither read nor
/// written.
type NumTokens<'a, M> = Option<&'a <M as Memory>::Buffer<u32>>;

fn check_num_tokens<M: Memory>(num_tokens: &M::Buffer<u32>) -> Result<()> {
    if num_tokens.is_empty() {
        return Err(Error::View { operand: "num_tokens".to_owned(), needed: 1, len: 0 });
    }
    Ok(())
}
