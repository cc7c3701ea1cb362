//! Plan: one counting sort over the ids.

use crate::ops::{NOT_ROUTED, Plan, RowWeights};

use super::{Cpu, row, token_count};

pub(super) fn run(op: Plan<'_, Cpu>) {
    let op = op.begin();
    let Plan { topk_ids, rows, routed_k, always_on, expert_map, plan, num_tokens, row_weights } =
        op;
    let top_k = routed_k + always_on;
    let tokens = token_count(rows, num_tokens);
    let num_experts = plan.num_experts;
    let chosen_from = num_experts - always_on;
    let local_expert = |id: i32| -> Option<usize> {
        let id = match expert_map {
            Some(map) => *row(map, 0).get(usize::try_from(id).ok()?)?,
            None => id,
        };
        usize::try_from(id).ok().filter(|&expert| expert < chosen_from)
    };
    let assignments = || {
        (0..tokens).flat_map(|token| {
            let ids = topk_ids.map_or(&[][..], |ids| row(ids, token));
            let chosen = ids.iter().map(move |&id| (token, local_expert(id)));
            chosen.chain((chosen_from..num_experts).map(move |expert| (token, Some(expert))))
        })
    };

    plan.tokens_per_expert.fill(0);
    for (_, expert) in assignments() {
        if let Some(expert) = expert {
            plan.tokens_per_expert[expert] += 1;
        }
    }

    plan.expert_offsets[0] = 0;
    for expert in 0..num_experts {
        plan.expert_offsets[expert + 1] =
            plan.expert_offsets[expert] + plan.tokens_per_expert[expert];
    }

    plan.row_of_assignment[tokens * top_k..rows * top_k].fill(NOT_ROUTED);

    let mut next_row = plan.expert_offsets[..num_experts].to_vec();
    for (assignment, (token, expert)) in assignments().enumerate() {
        plan.row_of_assignment[assignment] = match expert {
            None => NOT_ROUTED,
            Some(expert) => {
                let row = next_row[expert];
                next_row[expert] += 1;
                plan.token_of_row[row as usize] = token as u32;
                row
            }
        };
    }

    if let Some(RowWeights { topk_weights, out }) = row_weights {
        let weights = (0..tokens).flat_map(|token| {
            row(topk_weights, token).iter().copied().chain(std::iter::repeat_n(1.0, always_on))
        });
        for (&row, weight) in plan.row_of_assignment.iter().zip(weights) {
            if row != NOT_ROUTED {
                out[row as usize] = weight;
            }
        }
    }
}
