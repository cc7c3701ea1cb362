//! What crosses the boundary to the kernels: `kernels/abi.h`, in Rust.

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CombineArgs {
    pub rows: u64,
    pub topk_weights: u64,
    pub row_of_assignment: u64,
    pub out: u64,
    pub rows_stride: u64,
    pub weights_stride: u64,
    pub out_stride: u64,
    pub num_tokens: TokenCount,
    pub hidden_size: u32,
    pub top_k: u32,
    pub accumulate: u32,
    pub reserved: u32,
}
const _: () = assert!(size_of::<CombineArgs>() == 88);

pub const SCORING_SOFTMAX: u32 = 0;
pub const SCORING_SIGMOID: u32 = 1;
pub const RENORMALIZE_NONE: u32 = 0;
pub const RENORMALIZE_SUM: u32 = 1;
