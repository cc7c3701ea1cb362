// Every struct that crosses the boundary between the host and the kernels: C11, fixed widths, no padding.
//
// src/cuda/abi.rs is generated from this file.  A device address is a uint64_t, 0 where there is none.  Strides
// and offsets count elements.  T num_tokens, H hidden_size, I intermediate_size, E num_experts, K top_k,
// R = T * K rows.  "float16" is bf16 or f16, by the kernel's name.
#pragma once
#include <stdint.h>

#if defined(__cplusplus)
#define ABI_ASSERT(condition) static_assert(condition, #condition)
#else
#define ABI_ASSERT(condition) _Static_assert(condition, #condition)
#endif

// In row_of_assignment: the assignment has no row here.
#define NOT_ROUTED 0xffffffffu

// What launches share with the kernels.  Row-wise kernels (permute, activation, combine): grid.y blocks of
// ROW_THREADS * 8 columns, and any number of blocks along x, which stride over the rows or tokens.
enum { ROW_THREADS = 128, PERMUTE_ROWS = 4, ACTIVATION_ROWS = 2 };
// Router: a block computes a tile of logits, in grid.x tiles of experts and any number along y, or routes a token in
// each warp.  Few tokens have tiles of their own.
enum { ROUTER_THREADS = 128, ROUTER_VALUE_BYTES = 16 };  // of shared memory for each expert, where prepared
enum { LOGITS_TOKENS = 32, LOGITS_EXPERTS = 32, LOGITS_SHARED = 33792 };
enum { LOGITS_FEW_TOKENS = 8, LOGITS_FEW_EXPERTS = 2, LOGITS_FEW_SHARED = 41120 };
// Plan: a block takes PLAN_TILE assignments at a time, and chunks are multiples of that.
enum { PLAN_THREADS = 512, PLAN_TILE = 2048, PLAN_SHARED = 41024 };

// T: at most `host`; the number at `device` (uint32_t), where that is not 0.
typedef struct TokenCount {
  uint64_t device;
  uint32_t host;
  uint32_t reserved;
} TokenCount;
ABI_ASSERT(sizeof(TokenCount) == 16);

// router_logits[t, e] = sum_h x[t, h] * gate[e, h]
typedef struct RouterLogitsArgs {
  uint64_t x;         // float16 [T, H]
  uint64_t gate;      // float or float16 [E, H], by the kernel's name
  uint64_t logits;    // float [T, E]
  uint64_t x_stride;
  uint64_t logits_stride;
  TokenCount num_tokens;
  uint32_t hidden_size;
  uint32_t num_experts;
} RouterLogitsArgs;
ABI_ASSERT(sizeof(RouterLogitsArgs) == 64);

enum { SCORING_SOFTMAX = 0, SCORING_SIGMOID = 1, SCORING_SQRT_SOFTPLUS = 2, SCORING_SPARSEMIXER = 3 };
enum { RENORMALIZE_NONE = 0, RENORMALIZE_SUM = 1, RENORMALIZE_CLAMP_MIN = 2, RENORMALIZE_P_NORM = 3 };
enum { GROUP_MAX = 0, GROUP_TOP2_SUM = 1 };

// The K best experts of each token, or those of a table, and their weights.
typedef struct RouterTopKArgs {
  uint64_t logits;          // float [T, E]; with x or a bias also written: normalised, biased
  uint64_t topk_ids;        // int32_t [T, K]
  uint64_t topk_weights;    // float [T, K]
  uint64_t x;               // float16 [T, H], whose RMS the logits are divided by; 0: none
  uint64_t bias;            // float [E], on the logits; 0: none
  uint64_t selection_bias;  // float [E], on the scores, for the choice alone; 0: none
  uint64_t expert_scale;    // float [E], on the weights; 0: none
  uint64_t table;           // int32_t [table_rows, K]: who is chosen; 0: the best are
  uint64_t token_ids;       // uint32_t [T]: each token's row of the table; 0: row t
  uint64_t logits_stride;
  uint64_t ids_stride;
  uint64_t weights_stride;
  uint64_t x_stride;
  uint64_t table_stride;
  TokenCount num_tokens;
  uint32_t num_experts;
  uint32_t top_k;
  uint32_t hidden_size;
  uint32_t table_rows;
  uint32_t x_is_f16;        // 0: bf16
  uint32_t prepared;        // 1: there is any of x, bias, selection_bias, softcap, num_groups; needs shared memory
  uint32_t scoring;
  uint32_t num_groups;      // 0: no groups
  uint32_t kept_groups;
  uint32_t group_score;
  uint32_t renormalize;
  float group_fill;
  float norm_eps;
  float softcap;            // 0: none
  float jitter;             // of sparsemixer
  float renormalize_by;     // epsilon, least or p
  float scale;
  uint32_t reserved;
} RouterTopKArgs;
ABI_ASSERT(sizeof(RouterTopKArgs) == 200);

// Of each sequence, the first `capacity` assignments of an expert stay; the others' ids become -1.
typedef struct RouterCapacityArgs {
  uint64_t topk_ids;          // int32_t [T, K]
  uint64_t sequence_offsets;  // uint32_t [num_sequences + 1]; 0: all tokens are one
  uint64_t ids_stride;
  TokenCount num_tokens;
  uint32_t num_sequences;
  uint32_t num_experts;
  uint32_t top_k;
  uint32_t capacity;
} RouterCapacityArgs;
ABI_ASSERT(sizeof(RouterCapacityArgs) == 56);

// From ids to rows.  Each kernel of the stage takes the same arguments.
typedef struct PlanArgs {
  uint64_t topk_ids;           // int32_t [T, routed_k]
  uint64_t ids_stride;
  uint64_t expert_map;         // int32_t [expert_map_len]: global id -> local id or -1
  uint64_t topk_weights;       // float [T, routed_k]: read with row_weights alone
  uint64_t weights_stride;
  uint64_t tokens_per_expert;  // uint32_t [E]
  uint64_t expert_offsets;     // uint32_t [E + 1]
  uint64_t token_of_row;       // uint32_t [R]
  uint64_t row_of_assignment;  // uint32_t [R]
  uint64_t row_weights;        // float [R]: each row's topk_weights, or 1 from routed_k on; 0: not asked for
  uint64_t scratch;            // uint32_t [chunks, E]; what it holds before does not matter
  TokenCount num_tokens;
  uint32_t expert_map_len;
  uint32_t num_experts;
  uint32_t top_k;
  uint32_t assignments_per_chunk;
  uint32_t routed_k;  // choices that ids make; the others, up to top_k, are the last experts, for every token
  uint32_t reserved;
} PlanArgs;
ABI_ASSERT(sizeof(PlanArgs) == 128);

// rows[r] = x[token_of_row[r]]
typedef struct PermuteArgs {
  uint64_t x;             // float16 [T, H]
  uint64_t rows;          // float16 [R, H]
  uint64_t token_of_row;  // uint32_t [R]
  uint64_t num_rows;      // uint32_t: expert_offsets[E]
  uint64_t x_stride;
  uint64_t rows_stride;
  uint32_t hidden_size;
  uint32_t max_rows;
} PermuteArgs;
ABI_ASSERT(sizeof(PermuteArgs) == 56);

// act(g, u) = g' / (1 + 2^(g' p(g'^2))) (u' + up_bias), where g' = clamp(g, gate_min, gate_max), u' = clamp(u, up_min,
// up_max), and p is the polynomial of these coefficients, the constant first.  Every ActivationFn is one of these:
// src/cuda/activation.rs says how.  Of experts without a gate it is act(u, u).
typedef struct ActivationParams {
  float gate_min;
  float gate_max;
  float up_min;
  float up_max;
  float up_bias;
  float coefficients[7];
} ActivationParams;
ABI_ASSERT(sizeof(ActivationParams) == 48);

// One matrix [rows, depth] of each expert, where it lies: row j of expert e starts at element
// offset + j * row_stride of the expert's memory, which starts at base + e * expert_stride elements,
// or at table[e].
typedef struct ExpertMatrices {
  uint64_t base;           // float16, or 0 with a table
  uint64_t table;          // uint64_t [E], or 0
  uint64_t expert_stride;
  uint64_t row_stride;
  uint64_t gate_offset;    // of the gate's rows; of the only matrix
  uint64_t up_offset;      // of the other half's: the up projection's, or half a tile's rows on
} ExpertMatrices;
ABI_ASSERT(sizeof(ExpertMatrices) == 48);

// out[r] = epilogue(row_weights[r] * x[r or token_of_row[r]] W_e^T + bias_e) for the rows r of each expert e.
//
// Of gate and up both halves of a tile are of the same columns: `columns` is I, and what is stored has I columns where
// it is activated, else 2I, the gate's first.  Of one matrix (up alone, or down) they are neighbouring columns.
typedef struct GroupedGemmArgs {
  uint64_t x;               // float16 [T, depth], or [R, depth] where packed
  uint64_t out;             // float16 [R, columns], or [R, 2 columns]
  uint64_t token_of_row;    // uint32_t [R]; 0: x is packed
  uint64_t expert_offsets;  // uint32_t [E + 1]
  uint64_t bias;            // float [E, columns], or [E, 2 columns]; 0: none
  uint64_t row_weights;     // float [R]; 0: none
  uint64_t x_stride;
  uint64_t out_stride;
  ExpertMatrices weights;
  uint64_t weight_maps;     // TensorMap [E]: of each expert's matrix; 0: one map of all, an argument of the kernel
  ActivationParams activation;
  uint32_t num_experts;
  uint32_t columns;         // of gate and up: of each
  uint32_t depth;           // H for gate and up, I for down
  uint32_t gated;           // 1: gate and up; 0: one matrix
  uint32_t activated;       // 1: the sums are activated before they are stored
  uint32_t up_first;        // 1: the up projection's half lies first in the tensor map
} GroupedGemmArgs;
ABI_ASSERT(sizeof(GroupedGemmArgs) == 192);

// Quantised matrices of each expert, repacked (src/cuda/quantised.rs) by blocks of 16 rows and 64 of depth: codes
// [E, depth / 64, row_blocks] and scales [E, depth / (64 << scale_shift), row_blocks], both depths rounded up.  Two
// blocks are 16 columns of gate and of up, or 32 of one matrix.
typedef struct QuantisedMatrices {
  uint64_t codes;          // bytes
  uint64_t scales;         // bytes: float, e8m0 or bf16
  uint64_t codes_stride;   // bytes of an expert
  uint64_t scales_stride;
  uint32_t row_blocks;     // even
  uint32_t scale_bytes;    // of a block
  uint32_t scale_shift;
  uint32_t reserved;
} QuantisedMatrices;
ABI_ASSERT(sizeof(QuantisedMatrices) == 48);

// out[r, i] = act(gate_up[r, i], gate_up[r, I + i]), or act(gate_up[r, i]) without a gate.
typedef struct ActivationArgs {
  uint64_t gate_up;   // float16 [R, 2I], or [R, I] without a gate
  uint64_t out;       // float16 [R, I]
  uint64_t num_rows;  // uint32_t: expert_offsets[E]
  uint64_t gate_up_stride;
  uint64_t out_stride;
  ActivationParams activation;
  uint32_t columns;
  uint32_t max_rows;
  uint32_t gated;
  uint32_t reserved;
} ActivationArgs;
ABI_ASSERT(sizeof(ActivationArgs) == 104);

// out[t] (+)= sum_k scale * topk_weights[t, k] * (rows[row_of_assignment[t * K + k]], or x[t] where
// zero_first <= topk_ids[t, k] < zero_end) + shared_scale * shared_weights[t] * shared[t] + bias
typedef struct CombineArgs {
  uint64_t rows;               // float16 [R, H]
  uint64_t topk_weights;       // float [T, routed_k]; 0: all 1
  uint64_t row_of_assignment;  // uint32_t [R]
  uint64_t out;                // float16 [T, H]
  uint64_t x;                  // float16 [T, H]: the output of experts without weights; 0: there are none
  uint64_t topk_ids;           // int32_t [T, routed_k]: read with x alone
  uint64_t shared;             // float16 [T, H]; 0: none
  uint64_t shared_weights;     // float [T, 1]; 0: all 1
  uint64_t always_weights;     // float [T, 1]: of choices from routed_k on; 0: all 1
  uint64_t bias;               // float [H]; 0: none
  uint64_t rows_stride;
  uint64_t weights_stride;
  uint64_t out_stride;
  uint64_t x_stride;
  uint64_t ids_stride;
  uint64_t shared_stride;
  uint64_t shared_weights_stride;
  uint64_t always_stride;
  TokenCount num_tokens;
  uint32_t hidden_size;
  uint32_t top_k;
  uint32_t accumulate;
  float scale;
  float shared_scale;
  uint32_t zero_first;
  uint32_t zero_end;
  uint32_t routed_k;  // choices with topk_weights and scale; the others have always_weights and always_scale
  float always_scale;
  uint32_t reserved;
} CombineArgs;
ABI_ASSERT(sizeof(CombineArgs) == 200);
