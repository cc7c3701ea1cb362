//! What crosses the boundary to the kernels: `kernels/abi.h`, in Rust.

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenCount {
    pub(super) device: u64,
    pub(super) host: u32,
    pub(super) reserved: u32,
}
const _: () = assert!(size_of::<TokenCount>() == 16);

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct RouterLogitsArgs {
    pub(super) x: u64,
    pub(super) gate: u64,
    pub(super) logits: u64,
    pub(super) x_stride: u64,
    pub(super) logits_stride: u64,
    pub(super) num_tokens: TokenCount,
    pub(super) hidden_size: u32,
    pub(super) num_experts: u32,
}
const _: () = assert!(size_of::<RouterLogitsArgs>() == 64);

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct RouterTopKArgs {
    pub(super) logits: u64,
    pub(super) topk_ids: u64,
    pub(super) topk_weights: u64,
    pub(super) logits_stride: u64,
    pub(super) ids_stride: u64,
    pub(super) weights_stride: u64,
    pub(super) num_tokens: TokenCount,
    pub(super) num_experts: u32,
    pub(super) top_k: u32,
    pub(super) scoring: u32,
    pub(super) renormalize: u32,
}
const _: () = assert!(size_of::<RouterTopKArgs>() == 80);

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct PlanArgs {
    pub(super) topk_ids: u64,
    pub(super) ids_stride: u64,
    pub(super) expert_map: u64,
    pub(super) tokens_per_expert: u64,
    pub(super) expert_offsets: u64,
    pub(super) token_of_row: u64,
    pub(super) row_of_assignment: u64,
    pub(super) scratch: u64,
    pub(super) num_tokens: TokenCount,
    pub(super) expert_map_len: u32,
    pub(super) num_experts: u32,
    pub(super) top_k: u32,
    pub(super) assignments_per_chunk: u32,
}
const _: () = assert!(size_of::<PlanArgs>() == 96);

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct PermuteArgs {
    pub(super) x: u64,
    pub(super) rows: u64,
    pub(super) token_of_row: u64,
    pub(super) num_rows: u64,
    pub(super) x_stride: u64,
    pub(super) rows_stride: u64,
    pub(super) hidden_size: u32,
    pub(super) max_rows: u32,
}
const _: () = assert!(size_of::<PermuteArgs>() == 56);

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct ActivationParams {
    pub(super) alpha: f32,
    pub(super) cubic: f32,
    pub(super) up_bias: f32,
    pub(super) gate_max: f32,
    pub(super) up_min: f32,
    pub(super) up_max: f32,
}
const _: () = assert!(size_of::<ActivationParams>() == 24);

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpertMatrices {
    pub(super) base: u64,
    pub(super) table: u64,
    pub(super) expert_stride: u64,
    pub(super) row_stride: u64,
    pub(super) gate_offset: u64,
    pub(super) up_offset: u64,
}
const _: () = assert!(size_of::<ExpertMatrices>() == 48);

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupedGemmArgs {
    pub(super) x: u64,
    pub(super) out: u64,
    pub(super) token_of_row: u64,
    pub(super) expert_offsets: u64,
    pub(super) x_stride: u64,
    pub(super) out_stride: u64,
    pub(super) weights: ExpertMatrices,
    pub(super) weight_maps: u64,
    pub(super) activation: ActivationParams,
    pub(super) num_experts: u32,
    pub(super) columns: u32,
    pub(super) depth: u32,
    pub(super) up_first: u32,
}
const _: () = assert!(size_of::<GroupedGemmArgs>() == 144);

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct ActivationArgs {
    pub(super) gate_up: u64,
    pub(super) out: u64,
    pub(super) num_rows: u64,
    pub(super) gate_up_stride: u64,
    pub(super) out_stride: u64,
    pub(super) activation: ActivationParams,
    pub(super) columns: u32,
    pub(super) max_rows: u32,
}
const _: () = assert!(size_of::<ActivationArgs>() == 72);

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct CombineArgs {
    pub(super) rows: u64,
    pub(super) topk_weights: u64,
    pub(super) row_of_assignment: u64,
    pub(super) out: u64,
    pub(super) rows_stride: u64,
    pub(super) weights_stride: u64,
    pub(super) out_stride: u64,
    pub(super) num_tokens: TokenCount,
    pub(super) hidden_size: u32,
    pub(super) top_k: u32,
    pub(super) accumulate: u32,
    pub(super) reserved: u32,
}
const _: () = assert!(size_of::<CombineArgs>() == 88);

pub(super) const SCORING_SOFTMAX: u32 = 0;
pub(super) const SCORING_SIGMOID: u32 = 1;
pub(super) const RENORMALIZE_NONE: u32 = 0;
pub(super) const RENORMALIZE_SUM: u32 = 1;
