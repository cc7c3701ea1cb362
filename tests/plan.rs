//! Plan: counts, offsets and both maps, exactly.

#![cfg(feature = "cpu")]

mod common;

use common::*;
use moe_kernels::config::{MAX_EXPERTS, MAX_TOP_K};
use moe_kernels::ops::{NOT_ROUTED, RoutingPlan};

#[track_caller]
fn check(what: &str, ids: &[i32], top_k: usize, experts: usize, map: Option<&[i32]>, pad: Pad) {
    let device = cpu();
    // More room than is needed, and the traces of another plan in it.
    let mut plan = RoutingPlan::new(&device.backend, experts, ids.len() + 5 * top_k).unwrap();
    let other: Vec<i32> = Rng::new(1).ids(ids.len() / top_k + 5, experts, 1).repeat(top_k);
    run_plan(&device, &other, top_k, None, TIGHT, &mut plan);
    let given = run_plan(&device, ids, top_k, map, pad, &mut plan);
    let truth = reference::plan(ids, top_k, experts, map);
    check_plan(what, &given, &truth, top_k);
}

#[test]
fn every_case_equals_the_oracle() {
    for case in cases() {
        let (e, k) = (case.config.num_experts, case.config.top_k);
        let data = Data::<f32>::new(&case);
        let ids = data.routing(&case.config).ids;
        check(&case.name, &ids, k, e, None, case.pad);
        check(&case.name, &ids, k, e, None, ODD);
        let random = case.rng().ids(case.tokens, e, k);
        check(&case.name, &random, k, e, None, TIGHT);
    }
}

/// A plan small enough to be read, as documented on `RoutingPlan`.
#[test]
fn a_plan_by_hand() {
    let device = cpu();
    let ids = [0, 1, 0, 3, 1, 3, 3, 0];
    let mut plan = RoutingPlan::new(&device.backend, 4, 8).unwrap();
    let given = run_plan(&device, &ids, 2, None, TIGHT, &mut plan);
    assert_eq!(given.tokens_per_expert, [3, 2, 0, 3]);
    assert_eq!(given.expert_offsets, [0, 3, 5, 5, 8]);
    assert_eq!(given.token_of_row, [0, 1, 3, 0, 2, 1, 2, 3]);
    assert_eq!(given.row_of_assignment, [0, 3, 1, 5, 4, 6, 7, 2]);
}

#[test]
fn ids_that_are_not_routed_here() {
    let mut rng = Rng::new(2);
    for (tokens, e, k) in [(1, 1, 1), (33, 5, 3), (130, 40, 8), (31, 72, 32)] {
        let mut ids = rng.ids(tokens, e, k);
        for id in ids.iter_mut() {
            if rng.below(3) == 0 {
                *id = [-1, -7, i32::MIN, i32::MAX, e as i32][rng.below(5)];
            }
        }
        check("some", &ids, k, e, None, ODD);
        check("none", &vec![-1; tokens * k], k, e, None, TIGHT);
        let given = {
            let device = cpu();
            let mut plan = RoutingPlan::new(&device.backend, e, ids.len()).unwrap();
            run_plan(&device, &vec![-1; tokens * k], k, None, TIGHT, &mut plan)
        };
        assert!(given.row_of_assignment.iter().all(|&row| row == NOT_ROUTED));
        assert!(given.expert_offsets.iter().all(|&offset| offset == 0));
    }
}

/// Ids that the caller brings may name an expert twice for one token.
#[test]
fn an_expert_twice_for_one_token() {
    check("twice", &[2, 2, 0, 2, 1, 1, 2, 2, 2], 3, 4, None, TIGHT);
}

#[test]
fn all_on_one_expert() {
    for expert in [0, 3, 7] {
        check("all on one", &[expert; 130], 1, 8, None, TIGHT);
    }
}

#[test]
fn an_expert_map_gives_local_ids() {
    let mut rng = Rng::new(3);
    for (global, local) in [(1, 1), (8, 4), (72, 9), (256, 1), (1024, 128)] {
        let mut map = vec![-1; global];
        for expert in 0..local {
            map[expert * (global / local)] = (local - 1 - expert) as i32;
        }
        let k = global.min(6);
        let mut ids = rng.ids(67, global, k);
        check("map", &ids, k, local, Some(&map), TIGHT);
        // Ids outside the map, and entries outside the local experts.
        ids[0] = global as i32;
        ids[1 % k] = -1;
        ids[2 % k] = i32::MAX;
        map[global - 1] = local as i32;
        check("map and odd ids", &ids, k, local, Some(&map), ODD);
    }
    check("empty map", &[0, 1, -1], 1, 3, Some(&[]), TIGHT);
}

/// Around what a 16-bit count, a block of 8192 or a 17-bit sort would hold.
#[test]
fn long_inputs() {
    let mut rng = Rng::new(4);
    for (tokens, e, k) in [(8191, 5, 2), (8192, 8, 1), (8193, 40, 3), (131_072, 5, 2)] {
        let ids = rng.ids(tokens, e, k);
        check("long", &ids, k, e, None, TIGHT);
        check("long, all on one", &vec![e as i32 - 1; tokens * k], k, e, None, TIGHT);
    }
}

#[test]
fn most_experts_and_greatest_top_k() {
    let ids = Rng::new(5).ids(129, MAX_EXPERTS, MAX_TOP_K);
    check("most", &ids, MAX_TOP_K, MAX_EXPERTS, None, TIGHT);
    check("most", &ids, MAX_TOP_K, MAX_EXPERTS, None, ODD);
}

#[test]
fn no_token() {
    check("no token", &[], 3, 7, None, TIGHT);
    check("no token", &[], 3, 7, Some(&[0, 1]), ODD);
}

#[test]
fn rows_past_the_last_offset_stay_as_they_are() {
    let device = cpu();
    let mut plan = RoutingPlan::new(&device.backend, 4, 12).unwrap();
    // Every token but the first has the same expert: rows 1 to 5 get 1, 1, 2, 2 and then some.
    run_plan(&device, &[0, 3, 3, 3, 3, 3], 2, None, TIGHT, &mut plan);
    assert_eq!(device.get(plan.token_of_row())[..6], [0, 0, 1, 1, 2, 2]);
    run_plan(&device, &[0, -1, -1, 3, -1, 2], 2, None, TIGHT, &mut plan);
    let tokens = device.get(plan.token_of_row());
    assert_eq!(tokens[..3], [0, 2, 1]);
    assert_eq!(tokens[3..], [1, 2, 2, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn the_same_bits_every_time() {
    let ids = Rng::new(6).ids(8193, 40, 3);
    same_on_every_pool("plan", || {
        let device = cpu();
        device.read_plan(&device.plan(&ids, 3, 40))
    });
}

#[test]
fn row_weights_are_in_the_order_of_rows() {
    check_row_weights(&cpu());
}

#[test]
fn a_plan_without_ids_sends_all_to_expert_0() {
    check_dense_plan(&cpu());
}
