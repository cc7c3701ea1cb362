//! Router: logits, the choice of experts, and their weights, against the oracle.

#![cfg(feature = "cpu")]

mod common;

use common::*;
use moe_kernels::backend::Backend;
use moe_kernels::config::{MAX_EXPERTS, MAX_TOP_K, MoeConfig, Renormalize, Scoring};

fn every_case<B: Backend, T: Storage>(device: &Device<B>) {
    for case in cases() {
        let what = format!("{} {}", case.name, T::NAME);
        let data = Data::<T>::new(&case);
        let given =
            run_router(device, &case.config, &data.x, (&data.router, Gate::Model), case.pad);
        check_router(&what, &case.config, &given, &data.routing(&case.config));
    }
}

#[test]
fn every_case_equals_the_oracle() {
    for_each_storage!(T => every_case::<_, T>(&cpu()));
}

/// With random numbers of all bits and no regard to margins, the choice is that of the computed
/// logits.
#[test]
fn the_choice_follows_the_computed_logits() {
    let device = cpu();
    let mut rng = Rng::new(11);
    for experts in [1, 2, 7, 33, 257, MAX_EXPERTS] {
        for top_k in [1, 2, 3, 8, 31, MAX_TOP_K] {
            if top_k > experts {
                continue;
            }
            for renormalize in [Renormalize::None, Renormalize::SUM] {
                let mut config = MoeConfig::new(16, 8, experts, top_k);
                config.router.renormalize = renormalize;
                let x = rng.full::<f32>(37 * 16, 1.0);
                let gate = rng.full::<f32>(experts * 16, 1.0);
                let given = run_router(&device, &config, &x, (&gate, Gate::Model), TIGHT);
                check_choice(&format!("E {experts}, K {top_k}"), &config, &given);
            }
        }
    }
}

fn f32_gate<T: Storage>() {
    let (h, e) = (40, 12);
    let config = MoeConfig::new(h, 8, e, 3);
    let mut rng = Rng::new(12);
    let x = rng.full::<T>(50 * h, 1.0);
    let gate = rng.full::<f32>(e * h, 0.3);
    let truth = reference::logits(&wide(&x), &wide(&gate), h, e);
    // What a router would give that rounded the gate to T.
    let poison = vec![T::POISON; e * h];
    let rounded: Vec<f64> = gate.iter().map(|&value| round::<T>(value.into())).collect();
    let rounded = reference::logits(&wide(&x), &rounded, h, e);
    let apart = rel_l2(&rounded, &truth, e).unwrap();
    assert!(T::NAME == "f32" || apart > 1e-4, "the test cannot tell: {apart:e}");
    for pad in [TIGHT, LOOSE] {
        let given = run_router(&cpu(), &config, &x, (&poison, Gate::F32(gate.clone())), pad);
        assert_close("logits", &wide(&given.logits), &truth, e, 1e-6);
        check_choice(T::NAME, &config, &given);
    }
}

#[test]
fn an_f32_gate_is_never_rounded() {
    for_each_storage!(T => f32_gate::<T>());
}

#[test]
fn ties_go_to_the_lowest_id() {
    let (h, e) = (8, 40);
    for k in [1, 3, 8, 32] {
        let config = MoeConfig::new(h, 8, e, k);
        let x = Rng::new(13).grid::<f32>(65 * h, 2, 0.5);
        let given = run_router(&cpu(), &config, &x, (&vec![0.0; e * h], Gate::Model), TIGHT);
        let lowest: Vec<i32> = (0..k as i32).collect();
        assert_exact("ids", &given.ids, &lowest.repeat(65), k);
        let weights = vec![1.0 / k as f64; 65 * k];
        assert_close("weights", &wide(&given.weights), &weights, k, 1e-6);

        // Pairs of equal experts: both of a pair, in order of id, or the lower one at the end.
        let mut gate = Rng::new(14).grid::<f32>(e * h, 2, 0.25);
        for pair in gate.chunks_mut(2 * h) {
            pair.copy_within(..h, h);
        }
        let given = run_router(&cpu(), &config, &x, (&gate, Gate::Model), TIGHT);
        let truth = reference::route(&config, reference::logits(&wide(&x), &wide(&gate), h, e));
        assert_exact("ids of pairs", &given.ids, &truth.ids, k);
    }
}

/// Logits that are NaN, +Inf and -Inf for single experts of single tokens.
fn faulty_logits<T: Storage>() {
    let (h, e, tokens) = (8, 6, 40);
    let mut rng = Rng::new(15);
    let mut x = rng.grid::<T>(tokens * h, 4, 0.25);
    let mut gate = rng.grid::<T>(e * h, 4, 0.125);
    // Expert 1's logit is Inf times column 0: +Inf, -Inf, or NaN where that is 0. Expert 3's is
    // -Inf times column 1, and expert 4's NaN.
    for (expert, column, value) in
        [(1, 0, f64::INFINITY), (3, 1, f64::NEG_INFINITY), (4, 2, f64::NAN)]
    {
        gate[expert * h..][..h].fill(T::nearest(0.0));
        gate[expert * h + column] = T::nearest(value);
    }
    for (token, x) in x.chunks_mut(h).enumerate() {
        x[0] = T::nearest([1.0, -1.0, 0.0][token % 3]);
        x[1] = T::nearest([1.0, -1.0, 0.0][token / 3 % 3]);
    }
    let logits = reference::logits(&wide(&x), &wide(&gate), h, e);
    assert!(logits.contains(&f64::INFINITY) && logits.contains(&f64::NEG_INFINITY));
    for k in 1..=e {
        for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
            for renormalize in [Renormalize::None, Renormalize::SUM] {
                let mut config = MoeConfig::new(h, 8, e, k);
                (config.router.scoring, config.router.renormalize) = (scoring, renormalize);
                let given = run_router(&cpu(), &config, &x, (&gate, Gate::Model), LOOSE);
                let what = format!("{} K {k} {scoring:?} {renormalize:?}", T::NAME);
                check_router(&what, &config, &given, &reference::route(&config, logits.clone()));
                for (token, ids) in given.ids.chunks(k).enumerate() {
                    let mut sorted = ids.to_vec();
                    sorted.sort_unstable();
                    sorted.dedup();
                    assert_eq!(sorted.len(), k, "{what}: token {token} chose {ids:?}");
                }
                if scoring == Scoring::Softmax {
                    // As documented: expert 4 is NaN for every token.
                    assert!(given.weights.iter().all(|weight| weight.is_nan()), "{what}");
                }
            }
        }
    }
}

#[test]
fn nan_and_infinite_logits_are_ranked_as_documented() {
    for_each_storage!(T => faulty_logits::<T>());
}

/// -Inf alone is no fault: the expert has weight 0.
#[test]
fn a_logit_of_minus_infinity_has_weight_zero() {
    let (h, e, k) = (8, 4, 4);
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        let mut config = MoeConfig::new(h, 8, e, k);
        config.router.scoring = scoring;
        let mut gate = Rng::new(16).full::<f32>(e * h, 0.5);
        gate[2 * h..3 * h].fill(0.0);
        gate[2 * h] = f32::NEG_INFINITY;
        let mut x = Rng::new(17).full::<f32>(9 * h, 1.0);
        x.chunks_mut(h).for_each(|x| x[0] = 1.0);
        let given = run_router(&cpu(), &config, &x, (&gate, Gate::Model), TIGHT);
        for (ids, weights) in given.ids.chunks(k).zip(given.weights.chunks(k)) {
            assert_eq!((ids[3], weights[3]), (2, 0.0));
            assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        }
    }
}

fn one_faulty_token<T: Storage>(fault: f64) {
    let (h, e, k) = (24, 40, 5);
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        let mut config = MoeConfig::new(h, 8, e, k);
        config.router.scoring = scoring;
        let mut rng = Rng::new(18);
        let x = rng.full::<T>(70 * h, 1.0);
        let gate = rng.full::<T>(e * h, 0.4);
        let clean = run_router(&cpu(), &config, &x, (&gate, Gate::Model), TIGHT);
        for faulty in [0, 37, 69] {
            for columns in [0..h, 7..8] {
                let mut x = x.clone();
                x[faulty * h..][columns].fill(T::nearest(fault));
                let given = run_router(&cpu(), &config, &x, (&gate, Gate::Model), TIGHT);
                for token in (0..70).filter(|&token| token != faulty) {
                    let of = |routed: &Routed| {
                        [
                            bits(&routed.logits[token * e..][..e]),
                            bits(&routed.ids[token * k..][..k]),
                            bits(&routed.weights[token * k..][..k]),
                        ]
                    };
                    assert_eq!(of(&given), of(&clean), "token {token}, {fault} in {faulty}");
                }
                let truth =
                    reference::route(&config, reference::logits(&wide(&x), &wide(&gate), h, e));
                let own = faulty * k..(faulty + 1) * k;
                assert_eq!(given.ids[own.clone()], truth.ids[own.clone()]);
                assert_close(
                    "the faulty token's weights",
                    &wide(&given.weights[own.clone()]),
                    &truth.weights[own],
                    k,
                    1e-6,
                );
            }
        }
    }
}

#[test]
fn one_tokens_fault_touches_no_other() {
    for_each_storage!(T => for fault in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        one_faulty_token::<T>(fault);
    });
}

/// Logits from -30000 to 30000: softmax must not overflow.
#[test]
fn softmax_of_great_logits() {
    let (h, e) = (8, 16);
    for renormalize in [Renormalize::None, Renormalize::SUM] {
        let mut config = MoeConfig::new(h, 8, e, 4);
        config.router.renormalize = renormalize;
        let mut rng = Rng::new(19);
        let (x, gate) = (rng.grid::<f32>(33 * h, 3, 16.0), rng.grid::<f32>(e * h, 3, 64.0));
        let given = run_router(&cpu(), &config, &x, (&gate, Gate::Model), TIGHT);
        let truth = reference::route(&config, reference::logits(&wide(&x), &wide(&gate), h, e));
        check_router("great logits", &config, &given, &truth);
        assert!(given.weights.iter().all(|weight| weight.is_finite()));
    }
}

/// Logits of about -90: their sigmoids are subnormal in f32, not 0, and 0 / 0 is no weight.
#[test]
fn sigmoid_of_very_negative_logits() {
    let (h, e, k) = (8, 8, 3);
    let mut rng = Rng::new(20);
    let mut x = rng.full::<f32>(33 * h, 1.0);
    x.chunks_mut(h).for_each(|x| x[0] = 1.0);
    let mut gate = rng.full::<f32>(e * h, 0.2);
    gate.chunks_mut(h).for_each(|gate| gate[0] = -90.0);
    let mut config = MoeConfig::new(h, 8, e, k);
    config.router.scoring = Scoring::Sigmoid;
    let given = run_router(&cpu(), &config, &x, (&gate, Gate::Model), TIGHT);
    let own = reference::route(&config, wide(&given.logits));
    assert_exact("ids", &given.ids, &own.ids, k);
    assert_close("weights", &wide(&given.weights), &own.weights, k, 1e-4);
}

#[test]
fn the_same_bits_every_time() {
    for case in cases() {
        let data = Data::<f32>::new(&case);
        same_on_every_pool(&case.name, || {
            run_router(&cpu(), &case.config, &data.x, (&data.router, Gate::Model), TIGHT).bits()
        });
    }
}

fn every_rule<T: Storage>() {
    for (seed, (what, tokens, config)) in ruled().into_iter().enumerate() {
        let case = RouterCase::<T>::new(what, config, tokens, &mut Rng::new(seed as u64));
        case.check(&cpu(), &case.truth());
    }
}

#[test]
fn every_rule_equals_the_oracle() {
    for_each_storage!(T => every_rule::<T>());
}

#[test]
fn random_rules_equal_the_oracle() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let (tokens, config) = random_rules(&mut rng);
        let what = format!("seed {seed}");
        let case = RouterCase::<f32>::new(&what, config, tokens, &mut rng);
        case.check(&cpu(), &case.truth());
    }
}

#[test]
fn rules_rank_nan_and_infinity_as_documented() {
    for_each_storage!(T => for case in faulty::<T>() {
        case.check(&cpu(), &case.truth());
    });
}

#[test]
fn ties_of_scores_and_groups_go_to_the_lowest_id() {
    for_each_storage!(T => check_ties::<_, T>(&cpu()));
}

#[test]
fn rules_of_a_number_of_tokens() {
    for_each_storage!(T => check_live_tokens::<_, T>(&cpu()));
}
