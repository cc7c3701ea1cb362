//! What was computed, held against what the file stores.

use std::path::Path;

use anyhow::{Context, Result};
use moe_kernels::element::{DType, Float};
use moe_kernels::memory::Buffer;
use moe_kernels::ops::Workspace;
use moe_kernels::{Backend, MoeConfig};
use safetensors::tensor::{Dtype, TensorView};

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
        let num_tokens = workspace.plan().num_tokens();
        let routing = workspace.routing()?;

        let mut stored = vec![T::from_f32(0.0); out.len()];
        backend.download(out, &mut stored, stream)?;
        let mut router_logits = vec![0.0; num_tokens * num_experts];
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
            let place = assignment / top_k * num_experts + id as usize;
            selected[place] = 1;
            combine_weights[place] = weight;
        }
        let output = stored.into_iter().map(T::to_f32).collect();
        Ok(Self { output, router_logits, selected, combine_weights, tokens_per_expert })
    }

    /// Writes the results to a new file, which replaces `path` once it is whole.
    pub fn save(&self, path: &Path, shape: &[usize]) -> Result<()> {
        let num_experts = self.tokens_per_expert.len();
        let by_expert = vec![self.selected.len() / num_experts, num_experts];
        let bytes = |values: &[f32]| -> Vec<u8> {
            values.iter().flat_map(|value| value.to_le_bytes()).collect()
        };
        let (output, logits, weights) =
            (bytes(&self.output), bytes(&self.router_logits), bytes(&self.combine_weights));
        let tensors = [
            ("output", TensorView::new(Dtype::F32, shape.to_vec(), &output)?),
            ("router_logits", TensorView::new(Dtype::F32, by_expert.clone(), &logits)?),
            ("selected", TensorView::new(Dtype::U8, by_expert.clone(), &self.selected)?),
            ("combine_weights", TensorView::new(Dtype::F32, by_expert, &weights)?),
        ];
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        safetensors::serialize_to_file(tensors, None, Path::new(&partial))
            .map_err(anyhow::Error::from)
            .and_then(|()| Ok(std::fs::rename(&partial, path)?))
            .with_context(|| format!("--save {}", path.display()))
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
        config: &MoeConfig,
    ) -> Result<Self> {
        let compare = |name: &str, values: &[f32]| -> Result<Option<f64>> {
            let values: Vec<f64> = values.iter().map(|&value| value.into()).collect();
            Ok(source.expected(name)?.map(|expected| relative_l2(&values, &expected)))
        };
        let output = match compare("f64.output", &computed.output)? {
            None => compare("output", &computed.output)?,
            error => error,
        };
        let selection_exact = source.expected("selected")?.map(|expected| {
            expected.len() == computed.selected.len()
                && expected.iter().zip(&computed.selected).all(|(a, &b)| *a == f64::from(b))
        });
        debug_assert_eq!(computed.selected.len() % config.num_experts, 0);
        Ok(Self {
            selection_exact,
            output,
            logits: compare("router_logits", &computed.router_logits)?,
            weights: compare("combine_weights", &computed.combine_weights)?,
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

/// `||a - b|| / ||b||`: NaN if there is a NaN or Inf in either, infinite if the lengths differ.
fn relative_l2(a: &[f64], b: &[f64]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
    if difference == 0.0 { 0.0 } else { difference / norm(&mut b.iter().copied()) }
}
