//! What was computed, held against what the file stores.

use anyhow::Result;
use moe_kernels::element::{DType, Float};
use moe_kernels::memory::Buffer;
use moe_kernels::ops::Workspace;
use moe_kernels::{Backend, MoeConfig};

use crate::source::Source;

/// The results of a forward, on the host.
pub struct Computed {
    /// `[T, H]`.
    pub output: Vec<f32>,
    /// `[T, E]`.
    pub router_logits: Vec<f32>,
    /// `[T, E]`: 1 where the expert is applied.
    pub selected: Vec<u8>,
    /// `[T, E]`: the weight of each expert, 0 elsewhere.
    pub combine_weights: Vec<f32>,
    pub tokens_per_expert: Vec<u32>,
    num_tokens: usize,
}

impl Computed {
    pub fn download<B: Backend, T: Float>(
        backend: &B,
        workspace: &Workspace<B, T>,
        out: &B::Buffer<T>,
        config: &MoeConfig,
        stream: &B::Stream,
    ) -> Result<Self> {
        let MoeConfig { num_experts, top_k, .. } = *config;
        let choices = config.router_experts();
        let num_tokens = workspace.plan().num_tokens();
        let routing = workspace.routing()?;

        let mut stored = vec![T::from_f32(0.0); out.len()];
        backend.download(out, &mut stored, stream)?;
        let mut router_logits = vec![0.0; num_tokens * choices];
        backend.download(workspace.router_logits()?.buffer(), &mut router_logits, stream)?;
        let mut ids = vec![0; num_tokens * top_k];
        backend.download(routing.topk_ids.buffer(), &mut ids, stream)?;
        let mut weights = vec![0.0; num_tokens * top_k];
        backend.download(routing.topk_weights.buffer(), &mut weights, stream)?;
        let mut tokens_per_expert = vec![0; num_experts];
        backend.download(workspace.plan().tokens_per_expert(), &mut tokens_per_expert, stream)?;

        let mut selected = vec![0; router_logits.len()];
        let mut combine_weights = vec![0.0; router_logits.len()];
        for (assignment, (&id, &weight)) in ids.iter().zip(&weights).enumerate() {
            // Dropped tokens have no expert.
            if let Ok(id) = usize::try_from(id) {
                let place = assignment / top_k * choices + id;
                selected[place] = 1;
                combine_weights[place] = weight;
            }
        }
        let output = stored.into_iter().map(T::to_f32).collect();
        Ok(Self { output, router_logits, selected, combine_weights, tokens_per_expert, num_tokens })
    }

    /// T, and all experts that a token can have, those without weights included.
    pub fn by_expert(&self) -> [usize; 2] {
        [self.num_tokens, self.selected.len() / self.num_tokens.max(1)]
    }
}

/// Errors against the stored results; `None` where the file stores none.
pub struct Check {
    pub selection_exact: Option<bool>,
    pub output: Option<f64>,
    pub logits: Option<f64>,
    pub weights: Option<f64>,
    pub tolerance: f64,
}

impl Check {
    pub fn new(
        source: &Source,
        computed: &Computed,
        dtype: DType,
        token_shape: &[usize],
    ) -> Result<Self> {
        let compare = |name: &str, shape: &[usize], values: &[f32]| -> Result<Option<f64>> {
            let values: Vec<f64> = values.iter().map(|&value| value.into()).collect();
            Ok(source.expected(name, shape)?.map(|expected| relative_l2(&values, &expected)))
        };
        let output = match compare("f64.output", token_shape, &computed.output)? {
            None => compare("output", token_shape, &computed.output)?,
            error => error,
        };
        let by_expert = computed.by_expert();
        let selection_exact = source.expected("selected", &by_expert)?.map(|expected| {
            expected.iter().zip(&computed.selected).all(|(a, &b)| *a == f64::from(b))
        });
        Ok(Self {
            selection_exact,
            output,
            logits: compare("router_logits", &by_expert, &computed.router_logits)?,
            weights: compare("combine_weights", &by_expert, &computed.combine_weights)?,
            tolerance: if dtype == DType::F32 { 1e-5 } else { 1e-2 },
        })
    }

    pub fn passed(&self) -> bool {
        // NaN is not within any tolerance.
        let within = |error: Option<f64>| error.is_none_or(|error| error <= self.tolerance);
        self.selection_exact != Some(false)
            && within(self.output)
            && within(self.logits)
            && within(self.weights)
    }
}

/// `||a - b|| / ||b||`: above every tolerance, or NaN, if there is a NaN or Inf in either.
fn relative_l2(a: &[f64], b: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
    if difference == 0.0 { 0.0 } else { difference / norm(&mut b.iter().copied()) }
}
