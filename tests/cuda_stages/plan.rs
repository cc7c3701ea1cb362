//! Plan: counts, offsets and both maps, exactly.

use moe_emulator::{Options, Profile};
use moe_kernels::config::{MAX_EXPERTS, MAX_TOP_K};
use moe_kernels::cuda::Path;
use moe_kernels::ops::{NOT_ROUTED, RoutingPlan};

use super::common::*;
use super::{on_every_device, same_bits_everywhere};

/// On one device, in a plan with more room than is needed that holds the traces of another.
#[track_caller]
fn check_on(
    device: &Emulated,
    what: &str,
    (ids, top_k, experts): (&[i32], usize, usize),
    map: Option<&[i32]>,
    pad: Pad,
) {
    let mut plan = RoutingPlan::new(&device.backend, experts, ids.len() + 5 * top_k).unwrap();
    let other: Vec<i32> = Rng::new(1).ids(5, experts, 1).repeat(top_k);
    run_plan(device, &other, top_k, None, TIGHT, &mut plan);
    let given = run_plan(device, ids, top_k, map, pad, &mut plan);
    check_plan(what, &given, &reference::plan(ids, top_k, experts, map), top_k);
}

#[track_caller]
fn check(what: &str, ids: (&[i32], usize, usize), map: Option<&[i32]>, pad: Pad) {
    on_every_device(|device| check_on(device, what, ids, map, pad));
}

#[test]
fn every_case_equals_the_oracle() {
    for case in cases() {
        let (e, k) = (case.config.num_experts, case.config.top_k);
        let ids = Data::<half::bf16>::new(&case).routing(&case.config).ids;
        check(&case.name, (&ids, k, e), None, ODD);
    }
}

#[test]
fn every_number_of_experts() {
    for e in [1, 5, 40, 60, 72, 144, 160, 384, 512, 513, 896, MAX_EXPERTS] {
        let k = e.min(4);
        let ids = Rng::new(e as u64).ids(33, e, k);
        check(&format!("E {e}"), (&ids, k, e), None, TIGHT);
    }
    for k in [1, 31, MAX_TOP_K] {
        let ids = Rng::new(5).ids(70, MAX_EXPERTS, k);
        check(&format!("K {k}"), (&ids, k, MAX_EXPERTS), None, ODD);
    }
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
        check("some", (&ids, k, e), None, ODD);
        check("none", (&vec![-1; tokens * k], k, e), None, TIGHT);
    }
    check("an expert twice for one token", (&[2, 2, 0, 2, 1, 1, 2, 2, 2], 3, 4), None, TIGHT);
    for expert in [0, 3, 7] {
        check("all on one", (&[expert; 130], 1, 8), None, TIGHT);
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
        check("map", (&ids, k, local), Some(&map), TIGHT);
        // Ids outside the map, and entries outside the local experts.
        ids[0] = global as i32;
        ids[1 % k] = -1;
        ids[2 % k] = i32::MAX;
        map[global - 1] = local as i32;
        check("map and odd ids", (&ids, k, local), Some(&map), ODD);
    }
    check("empty map", (&[0, 1, -1], 1, 3), Some(&[]), TIGHT);
}

/// Around the sizes of a tile (2048 assignments) and of what one block does (8192): several chunks, and
/// tiles of one chunk.
#[test]
fn long_inputs() {
    let mut rng = Rng::new(4);
    for (tokens, e, k) in [(2047, 5, 1), (683, 72, 3), (8192, 8, 1), (8193, 1000, 1), (8191, 40, 2)]
    {
        let mut ids = rng.ids(tokens, e, k);
        check("long", (&ids, k, e), None, TIGHT);
        ids.iter_mut().filter(|_| rng.below(4) == 0).for_each(|id| *id = -1);
        check("long, some not here", (&ids, k, e), None, ODD);
    }
    check("long, all on one", (&vec![4; 8193], 1, 5), None, TIGHT);
}

/// More assignments than chunks have tiles for: several tiles in a chunk, several chunks in a block.
#[test]
fn longest_input() {
    let profile = Profile::sm_90().with_sm_count(1);
    let Some(device) = emulated(profile, Path::Auto, Options::plain(6)) else { return };
    let (tokens, e, k) = (131_072 + 1, 6, 5);
    let ids = Rng::new(7).ids(tokens, e, k);
    assert!(ids.len() > 256 * 2048);
    check_on(&device, "longest", (&ids, k, e), None, TIGHT);
}

#[test]
fn no_token() {
    check("no token", (&[], 3, 7), None, TIGHT);
    check("no token", (&[], 3, 7), Some(&[0, 1]), ODD);
}

#[test]
fn a_number_of_tokens_on_the_device() {
    let mut rng = Rng::new(8);
    for (tokens, e, k) in [(37, 5, 3), (4100, 40, 3)] {
        let ids = rng.ids(tokens, e, k);
        on_every_device(|device| {
            for count in [0, 1, tokens / 2, tokens, tokens + 1] {
                let live = count.min(tokens) * k;
                // Ids past the tokens are not read.
                let mut ids = ids.clone();
                ids[live..].fill(0);
                let mut plan = RoutingPlan::new(&device.backend, e, ids.len()).unwrap();
                let count = Some(count as u32);
                let given = run_plan_for(device, &ids, k, None, ODD, &mut plan, count);
                let mut truth = reference::plan(&ids[..live], k, e, None);
                truth.row_of_assignment.resize(ids.len(), NOT_ROUTED);
                check_plan(&format!("{count:?} of {tokens}"), &given, &truth, k);
            }
        });
    }
}

#[test]
fn rows_past_the_last_offset_stay_as_they_are() {
    on_every_device(|device| {
        let mut plan = RoutingPlan::new(&device.backend, 4, 12).unwrap();
        run_plan(device, &[0, 3, 3, 3, 3, 3], 2, None, TIGHT, &mut plan);
        assert_eq!(device.get(plan.token_of_row())[..6], [0, 0, 1, 1, 2, 2]);
        run_plan(device, &[0, -1, -1, 3, -1, 2], 2, None, TIGHT, &mut plan);
        let tokens = device.get(plan.token_of_row());
        assert_eq!(tokens, [0, 2, 1, 1, 2, 2, 0, 0, 0, 0, 0, 0]);
    });
}

#[test]
fn the_same_bits_every_time() {
    let ids = Rng::new(6).ids(4097, 40, 3);
    same_bits_everywhere("plan", |device| device.read_plan(&device.plan(&ids, 3, 40)));
}

#[test]
fn row_weights_are_in_the_order_of_rows() {
    on_every_device(check_row_weights);
}

#[test]
fn a_plan_without_ids_sends_all_to_expert_0() {
    on_every_device(check_dense_plan);
}
