//! What crosses the boundary to the kernels: `kernels/abi.h`, in Rust.
//!
//! Generated: `MOE_WRITE_ABI=1 cargo test -p abi-gen` writes it. Offsets and sizes, as clang sees them,
//! are asserted here; the header asserts the sizes, and has no padding.

use std::mem::offset_of;

pub const NOT_ROUTED: u32 = 4294967295;
pub const ROW_THREADS: u32 = 128;
pub const PERMUTE_ROWS: u32 = 4;
pub const ACTIVATION_ROWS: u32 = 2;

// What launches share with the kernels.  Row-wise kernels (permute, activation, combine): grid.y blocks of
// ROW_THREADS * 8 columns, and any number of blocks along x, which stride over the rows or tokens.
// of shared memory for each expert, where prepared
pub const ROUTER_THREADS: u32 = 128;

// of shared memory for each expert, where prepared
pub const ROUTER_VALUE_BYTES: u32 = 16;

// Router: a block computes a tile of logits, in grid.x tiles of experts and any number along y, or routes a token in
// each warp.  Few tokens have tiles of their own.
pub const LOGITS_TOKENS: u32 = 32;
pub const LOGITS_EXPERTS: u32 = 32;
pub const LOGITS_SHARED: u32 = 33792;
pub const LOGITS_FEW_TOKENS: u32 = 8;
pub const LOGITS_FEW_EXPERTS: u32 = 2;
pub const LOGITS_FEW_SHARED: u32 = 41120;
pub const PLAN_THREADS: u32 = 512;
pub const PLAN_TILE: u32 = 2048;
pub const PLAN_SHARED: u32 = 41024;

// Plan: a block takes PLAN_TILE assignments at a time, and chunks are multiples of that.
// T: at most `host`; the number at `device` (uint32_t), where that is not 0.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct TokenCount {
    pub device: u64,
    pub host: u32,
    pub reserved: u32,
}
const _: () = {
    assert!(size_of::<TokenCount>() == 16);
    assert!(align_of::<TokenCount>() == 8);
    assert!(offset_of!(TokenCount, device) == 0);
    assert!(offset_of!(TokenCount, host) == 8);
    assert!(offset_of!(TokenCount, reserved) == 12);
};

// router_logits[t, e] = sum_h x[t, h] * gate[e, h]
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct RouterLogitsArgs {
    // float16 [T, H]
    pub x: u64,
    // float or float16 [E, H], by the kernel's name
    pub gate: u64,
    // float [T, E]
    pub logits: u64,
    pub x_stride: u64,
    pub logits_stride: u64,
    pub num_tokens: TokenCount,
    pub hidden_size: u32,
    pub num_experts: u32,
}
const _: () = {
    assert!(size_of::<RouterLogitsArgs>() == 64);
    assert!(align_of::<RouterLogitsArgs>() == 8);
    assert!(offset_of!(RouterLogitsArgs, x) == 0);
    assert!(offset_of!(RouterLogitsArgs, gate) == 8);
    assert!(offset_of!(RouterLogitsArgs, logits) == 16);
    assert!(offset_of!(RouterLogitsArgs, x_stride) == 24);
    assert!(offset_of!(RouterLogitsArgs, logits_stride) == 32);
    assert!(offset_of!(RouterLogitsArgs, num_tokens) == 40);
    assert!(offset_of!(RouterLogitsArgs, hidden_size) == 56);
    assert!(offset_of!(RouterLogitsArgs, num_experts) == 60);
};
pub const SCORING_SOFTMAX: u32 = 0;
pub const SCORING_SIGMOID: u32 = 1;
pub const SCORING_SQRT_SOFTPLUS: u32 = 2;
pub const SCORING_SPARSEMIXER: u32 = 3;
pub const RENORMALIZE_NONE: u32 = 0;
pub const RENORMALIZE_SUM: u32 = 1;
pub const RENORMALIZE_CLAMP_MIN: u32 = 2;
pub const RENORMALIZE_P_NORM: u32 = 3;
pub const GROUP_MAX: u32 = 0;
pub const GROUP_TOP2_SUM: u32 = 1;

// The K best experts of each token, or those of a table, and their weights.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct RouterTopKArgs {
    // float [T, E]; with x or a bias also written: normalised, biased
    pub logits: u64,
    // int32_t [T, K]
    pub topk_ids: u64,
    // float [T, K]
    pub topk_weights: u64,
    // float16 [T, H], whose RMS the logits are divided by; 0: none
    pub x: u64,
    // float [E], on the logits; 0: none
    pub bias: u64,
    // float [E], on the scores, for the choice alone; 0: none
    pub selection_bias: u64,
    // float [E], on the weights; 0: none
    pub expert_scale: u64,
    // int32_t [table_rows, K]: who is chosen; 0: the best are
    pub table: u64,
    // uint32_t [T]: each token's row of the table; 0: row t
    pub token_ids: u64,
    pub logits_stride: u64,
    pub ids_stride: u64,
    pub weights_stride: u64,
    pub x_stride: u64,
    pub table_stride: u64,
    pub num_tokens: TokenCount,
    pub num_experts: u32,
    pub top_k: u32,
    pub hidden_size: u32,
    pub table_rows: u32,
    // 0: bf16
    pub x_is_f16: u32,
    // 1: there is any of x, bias, selection_bias, softcap, num_groups; needs shared memory
    pub prepared: u32,
    pub scoring: u32,
    // 0: no groups
    pub num_groups: u32,
    pub kept_groups: u32,
    pub group_score: u32,
    pub renormalize: u32,
    pub group_fill: f32,
    pub norm_eps: f32,
    // 0: none
    pub softcap: f32,
    // of sparsemixer
    pub jitter: f32,
    // epsilon, least or p
    pub renormalize_by: f32,
    pub scale: f32,
    pub reserved: u32,
}
const _: () = {
    assert!(size_of::<RouterTopKArgs>() == 200);
    assert!(align_of::<RouterTopKArgs>() == 8);
    assert!(offset_of!(RouterTopKArgs, logits) == 0);
    assert!(offset_of!(RouterTopKArgs, topk_ids) == 8);
    assert!(offset_of!(RouterTopKArgs, topk_weights) == 16);
    assert!(offset_of!(RouterTopKArgs, x) == 24);
    assert!(offset_of!(RouterTopKArgs, bias) == 32);
    assert!(offset_of!(RouterTopKArgs, selection_bias) == 40);
    assert!(offset_of!(RouterTopKArgs, expert_scale) == 48);
    assert!(offset_of!(RouterTopKArgs, table) == 56);
    assert!(offset_of!(RouterTopKArgs, token_ids) == 64);
    assert!(offset_of!(RouterTopKArgs, logits_stride) == 72);
    assert!(offset_of!(RouterTopKArgs, ids_stride) == 80);
    assert!(offset_of!(RouterTopKArgs, weights_stride) == 88);
    assert!(offset_of!(RouterTopKArgs, x_stride) == 96);
    assert!(offset_of!(RouterTopKArgs, table_stride) == 104);
    assert!(offset_of!(RouterTopKArgs, num_tokens) == 112);
    assert!(offset_of!(RouterTopKArgs, num_experts) == 128);
    assert!(offset_of!(RouterTopKArgs, top_k) == 132);
    assert!(offset_of!(RouterTopKArgs, hidden_size) == 136);
    assert!(offset_of!(RouterTopKArgs, table_rows) == 140);
    assert!(offset_of!(RouterTopKArgs, x_is_f16) == 144);
    assert!(offset_of!(RouterTopKArgs, prepared) == 148);
    assert!(offset_of!(RouterTopKArgs, scoring) == 152);
    assert!(offset_of!(RouterTopKArgs, num_groups) == 156);
    assert!(offset_of!(RouterTopKArgs, kept_groups) == 160);
    assert!(offset_of!(RouterTopKArgs, group_score) == 164);
    assert!(offset_of!(RouterTopKArgs, renormalize) == 168);
    assert!(offset_of!(RouterTopKArgs, group_fill) == 172);
    assert!(offset_of!(RouterTopKArgs, norm_eps) == 176);
    assert!(offset_of!(RouterTopKArgs, softcap) == 180);
    assert!(offset_of!(RouterTopKArgs, jitter) == 184);
    assert!(offset_of!(RouterTopKArgs, renormalize_by) == 188);
    assert!(offset_of!(RouterTopKArgs, scale) == 192);
    assert!(offset_of!(RouterTopKArgs, reserved) == 196);
};

// Of each sequence, the first `capacity` assignments of an expert stay; the others' ids become -1.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct RouterCapacityArgs {
    // int32_t [T, K]
    pub topk_ids: u64,
    // uint32_t [num_sequences + 1]; 0: all tokens are one
    pub sequence_offsets: u64,
    pub ids_stride: u64,
    pub num_tokens: TokenCount,
    pub num_sequences: u32,
    pub num_experts: u32,
    pub top_k: u32,
    pub capacity: u32,
}
const _: () = {
    assert!(size_of::<RouterCapacityArgs>() == 56);
    assert!(align_of::<RouterCapacityArgs>() == 8);
    assert!(offset_of!(RouterCapacityArgs, topk_ids) == 0);
    assert!(offset_of!(RouterCapacityArgs, sequence_offsets) == 8);
    assert!(offset_of!(RouterCapacityArgs, ids_stride) == 16);
    assert!(offset_of!(RouterCapacityArgs, num_tokens) == 24);
    assert!(offset_of!(RouterCapacityArgs, num_sequences) == 40);
    assert!(offset_of!(RouterCapacityArgs, num_experts) == 44);
    assert!(offset_of!(RouterCapacityArgs, top_k) == 48);
    assert!(offset_of!(RouterCapacityArgs, capacity) == 52);
};

// From ids to rows.  Each kernel of the stage takes the same arguments.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct PlanArgs {
    // int32_t [T, routed_k]
    pub topk_ids: u64,
    pub ids_stride: u64,
    // int32_t [expert_map_len]: global id -> local id or -1
    pub expert_map: u64,
    // float [T, routed_k]: read with row_weights alone
    pub topk_weights: u64,
    pub weights_stride: u64,
    // uint32_t [E]
    pub tokens_per_expert: u64,
    // uint32_t [E + 1]
    pub expert_offsets: u64,
    // uint32_t [R]
    pub token_of_row: u64,
    // uint32_t [R]
    pub row_of_assignment: u64,
    // float [R]: each row's topk_weights, or 1 from routed_k on; 0: not asked for
    pub row_weights: u64,
    // uint32_t [chunks, E]; what it holds before does not matter
    pub scratch: u64,
    pub num_tokens: TokenCount,
    pub expert_map_len: u32,
    pub num_experts: u32,
    pub top_k: u32,
    pub assignments_per_chunk: u32,
    // choices that ids make; the others, up to top_k, are the last experts, for every token
    pub routed_k: u32,
    pub reserved: u32,
}
const _: () = {
    assert!(size_of::<PlanArgs>() == 128);
    assert!(align_of::<PlanArgs>() == 8);
    assert!(offset_of!(PlanArgs, topk_ids) == 0);
    assert!(offset_of!(PlanArgs, ids_stride) == 8);
    assert!(offset_of!(PlanArgs, expert_map) == 16);
    assert!(offset_of!(PlanArgs, topk_weights) == 24);
    assert!(offset_of!(PlanArgs, weights_stride) == 32);
    assert!(offset_of!(PlanArgs, tokens_per_expert) == 40);
    assert!(offset_of!(PlanArgs, expert_offsets) == 48);
    assert!(offset_of!(PlanArgs, token_of_row) == 56);
    assert!(offset_of!(PlanArgs, row_of_assignment) == 64);
    assert!(offset_of!(PlanArgs, row_weights) == 72);
    assert!(offset_of!(PlanArgs, scratch) == 80);
    assert!(offset_of!(PlanArgs, num_tokens) == 88);
    assert!(offset_of!(PlanArgs, expert_map_len) == 104);
    assert!(offset_of!(PlanArgs, num_experts) == 108);
    assert!(offset_of!(PlanArgs, top_k) == 112);
    assert!(offset_of!(PlanArgs, assignments_per_chunk) == 116);
    assert!(offset_of!(PlanArgs, routed_k) == 120);
    assert!(offset_of!(PlanArgs, reserved) == 124);
};

// rows[r] = x[token_of_row[r]]
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct PermuteArgs {
    // float16 [T, H]
    pub x: u64,
    // float16 [R, H]
    pub rows: u64,
    // uint32_t [R]
    pub token_of_row: u64,
    // uint32_t: expert_offsets[E]
    pub num_rows: u64,
    pub x_stride: u64,
    pub rows_stride: u64,
    pub hidden_size: u32,
    pub max_rows: u32,
}
const _: () = {
    assert!(size_of::<PermuteArgs>() == 56);
    assert!(align_of::<PermuteArgs>() == 8);
    assert!(offset_of!(PermuteArgs, x) == 0);
    assert!(offset_of!(PermuteArgs, rows) == 8);
    assert!(offset_of!(PermuteArgs, token_of_row) == 16);
    assert!(offset_of!(PermuteArgs, num_rows) == 24);
    assert!(offset_of!(PermuteArgs, x_stride) == 32);
    assert!(offset_of!(PermuteArgs, rows_stride) == 40);
    assert!(offset_of!(PermuteArgs, hidden_size) == 48);
    assert!(offset_of!(PermuteArgs, max_rows) == 52);
};

// act(g, u) = g' / (1 + 2^(g' p(g'^2))) (u' + up_bias), where g' = clamp(g, gate_min, gate_max), u' = clamp(u, up_min,
// up_max), and p is the polynomial of these coefficients, the constant first.  Every ActivationFn is one of these:
// src/cuda/activation.rs says how.  Of experts without a gate it is act(u, u).
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct ActivationParams {
    pub gate_min: f32,
    pub gate_max: f32,
    pub up_min: f32,
    pub up_max: f32,
    pub up_bias: f32,
    pub coefficients: [f32; 7usize],
}
const _: () = {
    assert!(size_of::<ActivationParams>() == 48);
    assert!(align_of::<ActivationParams>() == 4);
    assert!(offset_of!(ActivationParams, gate_min) == 0);
    assert!(offset_of!(ActivationParams, gate_max) == 4);
    assert!(offset_of!(ActivationParams, up_min) == 8);
    assert!(offset_of!(ActivationParams, up_max) == 12);
    assert!(offset_of!(ActivationParams, up_bias) == 16);
    assert!(offset_of!(ActivationParams, coefficients) == 20);
};

// One matrix [rows, depth] of each expert, where it lies: row j of expert e starts at element
// offset + j * row_stride of the expert's memory, which starts at base + e * expert_stride elements,
// or at table[e].
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct ExpertMatrices {
    // float16, or 0 with a table
    pub base: u64,
    // uint64_t [E], or 0
    pub table: u64,
    pub expert_stride: u64,
    pub row_stride: u64,
    // of the gate's rows; of the only matrix
    pub gate_offset: u64,
    // of the other half's: the up projection's, or half a tile's rows on
    pub up_offset: u64,
}
const _: () = {
    assert!(size_of::<ExpertMatrices>() == 48);
    assert!(align_of::<ExpertMatrices>() == 8);
    assert!(offset_of!(ExpertMatrices, base) == 0);
    assert!(offset_of!(ExpertMatrices, table) == 8);
    assert!(offset_of!(ExpertMatrices, expert_stride) == 16);
    assert!(offset_of!(ExpertMatrices, row_stride) == 24);
    assert!(offset_of!(ExpertMatrices, gate_offset) == 32);
    assert!(offset_of!(ExpertMatrices, up_offset) == 40);
};

// out[r] = epilogue(row_weights[r] * x[r or token_of_row[r]] W_e^T + bias_e) for the rows r of each expert e.
//
// Of gate and up both halves of a tile are of the same columns: `columns` is I, and what is stored has I columns where
// it is activated, else 2I, the gate's first.  Of one matrix (up alone, or down) they are neighbouring columns.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct GroupedGemmArgs {
    // float16 [T, depth], or [R, depth] where packed
    pub x: u64,
    // float16 [R, columns], or [R, 2 columns]
    pub out: u64,
    // uint32_t [R]; 0: x is packed
    pub token_of_row: u64,
    // uint32_t [E + 1]
    pub expert_offsets: u64,
    // float [E, columns], or [E, 2 columns]; 0: none
    pub bias: u64,
    // float [R]; 0: none
    pub row_weights: u64,
    pub x_stride: u64,
    pub out_stride: u64,
    pub weights: ExpertMatrices,
    // TensorMap [E]: of each expert's matrix; 0: one map of all, an argument of the kernel
    pub weight_maps: u64,
    pub activation: ActivationParams,
    pub num_experts: u32,
    // of gate and up: of each
    pub columns: u32,
    // H for gate and up, I for down
    pub depth: u32,
    // 1: gate and up; 0: one matrix
    pub gated: u32,
    // 1: the sums are activated before they are stored
    pub activated: u32,
    // 1: the up projection's half lies first in the tensor map
    pub up_first: u32,
}
const _: () = {
    assert!(size_of::<GroupedGemmArgs>() == 192);
    assert!(align_of::<GroupedGemmArgs>() == 8);
    assert!(offset_of!(GroupedGemmArgs, x) == 0);
    assert!(offset_of!(GroupedGemmArgs, out) == 8);
    assert!(offset_of!(GroupedGemmArgs, token_of_row) == 16);
    assert!(offset_of!(GroupedGemmArgs, expert_offsets) == 24);
    assert!(offset_of!(GroupedGemmArgs, bias) == 32);
    assert!(offset_of!(GroupedGemmArgs, row_weights) == 40);
    assert!(offset_of!(GroupedGemmArgs, x_stride) == 48);
    assert!(offset_of!(GroupedGemmArgs, out_stride) == 56);
    assert!(offset_of!(GroupedGemmArgs, weights) == 64);
    assert!(offset_of!(GroupedGemmArgs, weight_maps) == 112);
    assert!(offset_of!(GroupedGemmArgs, activation) == 120);
    assert!(offset_of!(GroupedGemmArgs, num_experts) == 168);
    assert!(offset_of!(GroupedGemmArgs, columns) == 172);
    assert!(offset_of!(GroupedGemmArgs, depth) == 176);
    assert!(offset_of!(GroupedGemmArgs, gated) == 180);
    assert!(offset_of!(GroupedGemmArgs, activated) == 184);
    assert!(offset_of!(GroupedGemmArgs, up_first) == 188);
};

// Quantised matrices of each expert, repacked (src/cuda/quantised.rs) by blocks of 16 rows and 64 of depth: codes
// [E, depth / 64, row_blocks] and scales [E, depth / (64 << scale_shift), row_blocks], both depths rounded up.  Two
// blocks are 16 columns of gate and of up, or 32 of one matrix.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct QuantisedMatrices {
    // bytes
    pub codes: u64,
    // bytes: float, e8m0 or bf16
    pub scales: u64,
    // bytes of an expert
    pub codes_stride: u64,
    pub scales_stride: u64,
    // even
    pub row_blocks: u32,
    // of a block
    pub scale_bytes: u32,
    pub scale_shift: u32,
    pub reserved: u32,
}
const _: () = {
    assert!(size_of::<QuantisedMatrices>() == 48);
    assert!(align_of::<QuantisedMatrices>() == 8);
    assert!(offset_of!(QuantisedMatrices, codes) == 0);
    assert!(offset_of!(QuantisedMatrices, scales) == 8);
    assert!(offset_of!(QuantisedMatrices, codes_stride) == 16);
    assert!(offset_of!(QuantisedMatrices, scales_stride) == 24);
    assert!(offset_of!(QuantisedMatrices, row_blocks) == 32);
    assert!(offset_of!(QuantisedMatrices, scale_bytes) == 36);
    assert!(offset_of!(QuantisedMatrices, scale_shift) == 40);
    assert!(offset_of!(QuantisedMatrices, reserved) == 44);
};

// out[r, i] = act(gate_up[r, i], gate_up[r, I + i]), or act(gate_up[r, i]) without a gate.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct ActivationArgs {
    // float16 [R, 2I], or [R, I] without a gate
    pub gate_up: u64,
    // float16 [R, I]
    pub out: u64,
    // uint32_t: expert_offsets[E]
    pub num_rows: u64,
    pub gate_up_stride: u64,
    pub out_stride: u64,
    pub activation: ActivationParams,
    pub columns: u32,
    pub max_rows: u32,
    pub gated: u32,
    pub reserved: u32,
}
const _: () = {
    assert!(size_of::<ActivationArgs>() == 104);
    assert!(align_of::<ActivationArgs>() == 8);
    assert!(offset_of!(ActivationArgs, gate_up) == 0);
    assert!(offset_of!(ActivationArgs, out) == 8);
    assert!(offset_of!(ActivationArgs, num_rows) == 16);
    assert!(offset_of!(ActivationArgs, gate_up_stride) == 24);
    assert!(offset_of!(ActivationArgs, out_stride) == 32);
    assert!(offset_of!(ActivationArgs, activation) == 40);
    assert!(offset_of!(ActivationArgs, columns) == 88);
    assert!(offset_of!(ActivationArgs, max_rows) == 92);
    assert!(offset_of!(ActivationArgs, gated) == 96);
    assert!(offset_of!(ActivationArgs, reserved) == 100);
};

// out[t] (+)= sum_k scale * topk_weights[t, k] * (rows[row_of_assignment[t * K + k]], or x[t] where
// zero_first <= topk_ids[t, k] < zero_end) + shared_scale * shared_weights[t] * shared[t] + bias
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct CombineArgs {
    // float16 [R, H]
    pub rows: u64,
    // float [T, routed_k]; 0: all 1
    pub topk_weights: u64,
    // uint32_t [R]
    pub row_of_assignment: u64,
    // float16 [T, H]
    pub out: u64,
    // float16 [T, H]: the output of experts without weights; 0: there are none
    pub x: u64,
    // int32_t [T, routed_k]: read with x alone
    pub topk_ids: u64,
    // float16 [T, H]; 0: none
    pub shared: u64,
    // float [T, 1]; 0: all 1
    pub shared_weights: u64,
    // float [T, 1]: of choices from routed_k on; 0: all 1
    pub always_weights: u64,
    // float [H]; 0: none
    pub bias: u64,
    pub rows_stride: u64,
    pub weights_stride: u64,
    pub out_stride: u64,
    pub x_stride: u64,
    pub ids_stride: u64,
    pub shared_stride: u64,
    pub shared_weights_stride: u64,
    pub always_stride: u64,
    pub num_tokens: TokenCount,
    pub hidden_size: u32,
    pub top_k: u32,
    pub accumulate: u32,
    pub scale: f32,
    pub shared_scale: f32,
    pub zero_first: u32,
    pub zero_end: u32,
    // choices with topk_weights and scale; the others have always_weights and always_scale
    pub routed_k: u32,
    pub always_scale: f32,
    pub reserved: u32,
}
const _: () = {
    assert!(size_of::<CombineArgs>() == 200);
    assert!(align_of::<CombineArgs>() == 8);
    assert!(offset_of!(CombineArgs, rows) == 0);
    assert!(offset_of!(CombineArgs, topk_weights) == 8);
    assert!(offset_of!(CombineArgs, row_of_assignment) == 16);
    assert!(offset_of!(CombineArgs, out) == 24);
    assert!(offset_of!(CombineArgs, x) == 32);
    assert!(offset_of!(CombineArgs, topk_ids) == 40);
    assert!(offset_of!(CombineArgs, shared) == 48);
    assert!(offset_of!(CombineArgs, shared_weights) == 56);
    assert!(offset_of!(CombineArgs, always_weights) == 64);
    assert!(offset_of!(CombineArgs, bias) == 72);
    assert!(offset_of!(CombineArgs, rows_stride) == 80);
    assert!(offset_of!(CombineArgs, weights_stride) == 88);
    assert!(offset_of!(CombineArgs, out_stride) == 96);
    assert!(offset_of!(CombineArgs, x_stride) == 104);
    assert!(offset_of!(CombineArgs, ids_stride) == 112);
    assert!(offset_of!(CombineArgs, shared_stride) == 120);
    assert!(offset_of!(CombineArgs, shared_weights_stride) == 128);
    assert!(offset_of!(CombineArgs, always_stride) == 136);
    assert!(offset_of!(CombineArgs, num_tokens) == 144);
    assert!(offset_of!(CombineArgs, hidden_size) == 160);
    assert!(offset_of!(CombineArgs, top_k) == 164);
    assert!(offset_of!(CombineArgs, accumulate) == 168);
    assert!(offset_of!(CombineArgs, scale) == 172);
    assert!(offset_of!(CombineArgs, shared_scale) == 176);
    assert!(offset_of!(CombineArgs, zero_first) == 180);
    assert!(offset_of!(CombineArgs, zero_end) == 184);
    assert!(offset_of!(CombineArgs, routed_k) == 188);
    assert!(offset_of!(CombineArgs, always_scale) == 192);
    assert!(offset_of!(CombineArgs, reserved) == 196);
};
