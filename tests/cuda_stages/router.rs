//! Router: logits, choice and weights.

use half::bf16;
use moe_emulator::{Options, Profile};
use moe_kernels::Error;
use moe_kernels::backend::Backend;
use moe_kernels::config::{MoeConfig, Renormalize, Scoring};
use moe_kernels::cuda::Path;
use moe_kernels::cuda::driver::{Driver, KernelArg, LaunchConfig};
use moe_kernels::weights::RouterWeights;

use super::common::*;
use super::{
    for_each_float16, no_bank_conflicts, on_device, on_every_device, same_bits_everywhere,
};

/// Each case under two schedules: two for each type.
fn every_case<T: Storage>() {
    for (index, case) in cases().into_iter().enumerate() {
        let data = Data::<T>::new(&case);
        let truth = data.routing(&case.config);
        let what = format!("{} {}", case.name, T::NAME);
        for turn in [index, index + 1] {
            on_device(turn + 2 * usize::from(T::NAME == "f16"), |device| {
                let gate = (&data.router[..], Gate::Model);
                let given = run_router(device, &case.config, &data.x, gate, case.pad);
                check_router(&what, &case.config, &given, &truth);
            });
        }
    }
}

#[test]
fn every_case_equals_the_oracle() {
    for_each_float16!(T => every_case::<T>());
}

fn f32_gate<T: Storage>() {
    let (h, e) = (200, 40);
    let config = MoeConfig::new(h, 8, e, 3);
    let mut rng = Rng::new(12);
    let x = rng.full::<T>(35 * h, 1.0);
    let gate = rng.full::<f32>(e * h, 0.3);
    let truth = reference::logits(&wide(&x), &wide(&gate), h, e);
    // What a router would give that rounded the gate to T.
    let rounded: Vec<f64> = gate.iter().map(|&value| round::<T>(value.into())).collect();
    let rounded = reference::logits(&wide(&x), &rounded, h, e);
    let apart = rel_l2(&rounded, &truth, e).unwrap();
    assert!(apart > 1e-4, "the test cannot tell: {apart:e}");
    let poison = vec![T::POISON; e * h];
    on_every_device(|device| {
        for pad in [TIGHT, LOOSE] {
            let gate = (&poison[..], Gate::F32(gate.clone()));
            let given = run_router(device, &config, &x, gate, pad);
            assert_close(T::NAME, &wide(&given.logits), &truth, e, 1e-6);
            check_choice(T::NAME, &config, &given);
        }
    });
}

#[test]
fn an_f32_gate_is_never_rounded() {
    for_each_float16!(T => f32_gate::<T>());
}

/// A sum of 7168 products keeps to the bound of short ones.
#[test]
fn wide_tokens() {
    let (h, e) = (7168, 5);
    let config = MoeConfig::new(h, 8, e, 2);
    let mut rng = Rng::new(21);
    let x = rng.full::<bf16>(3 * h, 1.0);
    let gate = rng.full::<f32>(e * h, 0.02);
    let truth = reference::logits(&wide(&x), &wide(&gate), h, e);
    on_every_device(|device| {
        let given = run_router(device, &config, &x, (&[], Gate::F32(gate.clone())), TIGHT);
        assert_close("wide", &wide(&given.logits), &truth, e, 1e-6);
    });
}

/// A token's logits have the same bits whatever other tokens and experts there are, and whichever
/// kernel runs.
#[test]
fn a_tokens_logits_do_not_depend_on_the_batch() {
    let (h, e, tokens) = (1160, 37, 70);
    let mut rng = Rng::new(22);
    let x = rng.full::<bf16>(tokens * h, 1.0);
    let gate = rng.full::<f32>(e * h, 0.1);
    let mut all = None;
    for sms in [1, 1000] {
        let profile = Profile::sm_90().with_sm_count(sms);
        let Some(device) = emulated(profile, Path::Auto, Options::plain(5)) else { return };
        let logits = |x: &[bf16], experts: usize| {
            let config = MoeConfig::new(h, 8, experts, 1);
            let gate = Gate::F32(gate[..experts * h].to_vec());
            bits(&run_router(&device, &config, x, (&[], gate), TIGHT).logits)
        };
        let given = logits(&x, e);
        let all = all.get_or_insert_with(|| given.clone());
        assert_exact("the other kernel's", &given, all, e);
        for token in [0, 33, 69] {
            let alone = logits(&x[token * h..][..h], e);
            assert_exact("alone", &alone, &all[token * e..][..e], e);
        }
        let fewer = logits(&x[8 * h..], 3);
        for (token, logits) in fewer.chunks(3).enumerate() {
            assert_exact("fewer", logits, &all[(token + 8) * e..][..3], 3);
        }
    }
}

/// The sizes at which others fail, with random logits of all bits, and with ties.
#[test]
fn every_number_of_experts() {
    let h = 8;
    let rules = [
        (Scoring::Softmax, Renormalize::SUM),
        (Scoring::Softmax, Renormalize::None),
        (Scoring::Sigmoid, Renormalize::SUM),
        (Scoring::Sigmoid, Renormalize::None),
    ];
    for experts in [1, 2, 5, 32, 33, 40, 60, 64, 65, 72, 128, 144, 160, 257, 384, 512, 896, 1024] {
        let mut rng = Rng::new(experts as u64);
        let x = rng.full::<bf16>(3 * h, 1.0);
        let random = rng.full::<bf16>(experts * h, 1.0);
        let coarse = rng.grid::<bf16>(experts * h, 1, 0.5);
        for (turn, (scoring, renormalize)) in rules.into_iter().enumerate() {
            on_device(turn, |device| {
                for top_k in [1, 2, 8, 17, 32, experts] {
                    if top_k > experts.min(32) || experts > 257 && [2, 17].contains(&top_k) {
                        continue;
                    }
                    let mut config = MoeConfig::new(h, 8, experts, top_k);
                    (config.router.scoring, config.router.renormalize) = (scoring, renormalize);
                    let what = format!("E {experts}, K {top_k}, {scoring:?} {renormalize:?}");
                    let gate = if top_k % 2 == 0 { &random } else { &coarse };
                    let given = run_router(device, &config, &x, (gate, Gate::Model), LOOSE);
                    check_choice(&what, &config, &given);
                }
            });
        }
    }
}

#[test]
fn ties_go_to_the_lowest_id() {
    let (h, e, tokens) = (8, 40, 9);
    let x = Rng::new(13).grid::<bf16>(tokens * h, 2, 0.5);
    // Logits of 0 and of -0, which are equal.
    let zeros: Vec<bf16> = (0..e * h)
        .map(|place| bf16::from_f32(if place / h % 2 == 0 { -0.0 } else { 0.0 }))
        .collect();
    on_every_device(|device| {
        for k in [1, 3, 32] {
            let config = MoeConfig::new(h, 8, e, k);
            let given = run_router(device, &config, &x, (&zeros, Gate::Model), TIGHT);
            let lowest: Vec<i32> = (0..k as i32).collect();
            assert_exact("ids", &given.ids, &lowest.repeat(tokens), k);
            let weights = vec![1.0 / k as f64; tokens * k];
            assert_close("weights", &wide(&given.weights), &weights, k, 1e-6);
        }
    });
}

/// Logits that are NaN, +Inf and -Inf for single experts of single tokens, in every size class.
fn faulty_logits<T: Storage>(e: usize) {
    let (h, tokens) = (8, 9);
    let mut rng = Rng::new(15);
    let mut x = rng.grid::<T>(tokens * h, 4, 0.25);
    let mut gate = rng.grid::<T>(e * h, 4, 0.125);
    // Expert 1's logit is Inf times column 0: +Inf, -Inf, or NaN where that is 0. Expert 3's is
    // -Inf times column 1, and the last one's NaN.
    for (expert, column, value) in
        [(1, 0, f64::INFINITY), (3, 1, f64::NEG_INFINITY), (e - 1, 2, f64::NAN)]
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
    let mut turn = e;
    for k in [1, 2, e.min(32)] {
        for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
            for renormalize in [Renormalize::None, Renormalize::SUM] {
                let mut config = MoeConfig::new(h, 8, e, k);
                (config.router.scoring, config.router.renormalize) = (scoring, renormalize);
                let what = format!("{} E {e} K {k} {scoring:?} {renormalize:?}", T::NAME);
                let truth = reference::route(&config, logits.clone());
                turn += 1;
                on_device(turn, |device| {
                    let given = run_router(device, &config, &x, (&gate, Gate::Model), LOOSE);
                    check_router(&what, &config, &given, &truth);
                    if scoring == Scoring::Softmax {
                        assert!(given.weights.iter().all(|weight| weight.is_nan()), "{what}");
                    }
                });
            }
        }
    }
}

#[test]
fn nan_and_infinite_logits_are_ranked_as_documented() {
    for_each_float16!(T => faulty_logits::<T>(6));
    faulty_logits::<bf16>(100);
    faulty_logits::<bf16>(1000);
}

#[test]
fn nothing_but_nan_chooses_the_lowest_ids() {
    let (h, e, k) = (8, 70, 5);
    let config = MoeConfig::new(h, 8, e, k);
    let x = vec![bf16::NAN; 6 * h];
    let gate = Rng::new(3).full::<bf16>(e * h, 1.0);
    on_every_device(|device| {
        let given = run_router(device, &config, &x, (&gate, Gate::Model), TIGHT);
        assert_exact("ids", &given.ids, &[0, 1, 2, 3, 4].repeat(6), k);
        assert!(given.weights.iter().all(|weight| weight.is_nan()));
    });
}

/// One token's NaN or Inf leaves every bit of the others, its neighbours in a tile among them.
#[test]
fn one_tokens_fault_touches_no_other() {
    let (h, e, k, tokens) = (72, 40, 5, 35);
    let config = MoeConfig::new(h, 8, e, k);
    let mut rng = Rng::new(18);
    let x = rng.full::<bf16>(tokens * h, 1.0);
    let gate = rng.full::<bf16>(e * h, 0.4);
    on_every_device(|device| {
        let of = |x: &[bf16]| run_router(device, &config, x, (&gate, Gate::Model), TIGHT);
        let clean = of(&x);
        for (faulty, fault) in [(0, f64::NAN), (33, f64::INFINITY), (34, f64::NEG_INFINITY)] {
            let mut x = x.clone();
            x[faulty * h + 7] = bf16::from_f64(fault);
            let given = of(&x);
            for token in (0..tokens).filter(|&token| token != faulty) {
                let own = |routed: &Routed| {
                    let (logits, chosen) = (token * e..(token + 1) * e, token * k..(token + 1) * k);
                    [
                        bits(&routed.logits[logits]),
                        bits(&routed.ids[chosen.clone()]),
                        bits(&routed.weights[chosen]),
                    ]
                };
                assert_eq!(own(&given), own(&clean), "token {token}, {fault} in {faulty}");
            }
        }
    });
}

/// Logits from -30000 to 30000, and of about -90, whose sigmoids are subnormal.
#[test]
fn great_logits() {
    let (h, e, k) = (8, 16, 4);
    let mut rng = Rng::new(19);
    let (x, gate) = (rng.grid::<bf16>(9 * h, 3, 16.0), rng.grid::<bf16>(e * h, 3, 64.0));
    let mut ones = rng.full::<bf16>(9 * h, 1.0);
    ones.chunks_mut(h).for_each(|x| x[0] = bf16::ONE);
    let mut negative = rng.full::<bf16>(e * h, 0.2);
    negative.chunks_mut(h).for_each(|gate| gate[0] = bf16::from_f32(-90.0));
    on_every_device(|device| {
        for renormalize in [Renormalize::None, Renormalize::SUM] {
            let mut config = MoeConfig::new(h, 8, e, k);
            config.router.renormalize = renormalize;
            let given = run_router(device, &config, &x, (&gate, Gate::Model), TIGHT);
            let truth = reference::route(&config, reference::logits(&wide(&x), &wide(&gate), h, e));
            check_router("great", &config, &given, &truth);
        }
        let mut config = MoeConfig::new(h, 8, e, k);
        config.router.scoring = Scoring::Sigmoid;
        let given = run_router(device, &config, &ones, (&negative, Gate::Model), TIGHT);
        let own = reference::route(&config, wide(&given.logits));
        assert_exact("ids", &given.ids, &own.ids, k);
        assert_close("weights", &wide(&given.weights), &own.weights, k, 1e-4);
    });
}

#[test]
fn a_number_of_tokens_on_the_device() {
    let (h, e, k, tokens) = (40, 40, 3, 37);
    let config = MoeConfig::new(h, 8, e, k);
    let mut rng = Rng::new(23);
    let x = rng.full::<bf16>(tokens * h, 1.0);
    let gate = rng.full::<bf16>(e * h, 0.4);
    on_every_device(|device| {
        let all = run_router(device, &config, &x, (&gate, Gate::Model), TIGHT);
        for count in [0, 1, 33, 37, 38, u32::MAX] {
            let live = tokens.min(count as usize);
            let mut x = x.clone();
            x[live * h..].fill(Bits::POISON);
            let gate = (&gate[..], Gate::Model);
            let given = run_router_for(device, &config, &x, gate, LOOSE, Some(count));
            let what = format!("{count} tokens");
            assert_exact(
                &what,
                &bits(&given.logits[..live * e]),
                &bits(&all.logits[..live * e]),
                e,
            );
            assert_exact(&what, &given.ids[..live * k], &all.ids[..live * k], k);
            assert!(
                given.logits[live * e..].iter().all(|v| v.bits() == f32::POISON.bits()),
                "{what}"
            );
            assert!(given.ids[live * k..].iter().all(|&id| id == i32::POISON), "{what}");
        }
    });
}

#[test]
fn no_token() {
    let config = MoeConfig::new(8, 8, 4, 2);
    on_every_device(|device| {
        let given = run_router(device, &config, &[], (&[bf16::ONE; 32], Gate::Model), LOOSE);
        assert!(given.ids.is_empty());
    });
}

#[test]
fn the_same_bits_every_time() {
    let case = cases().into_iter().find(|case| case.name.starts_with("ragged [T 130")).unwrap();
    let data = Data::<bf16>::new(&case);
    same_bits_everywhere("router", |device| {
        run_router(device, &case.config, &data.x, (&data.router, Gate::Model), TIGHT).bits()
    });
}

#[test]
fn shared_memory_has_no_bank_conflict() {
    let (h, e) = (1032, 34);
    let config = MoeConfig::new(h, 8, e, 2);
    let mut rng = Rng::new(24);
    let x = rng.full::<bf16>(33 * h, 1.0);
    let gate = rng.full::<f32>(e * h, 0.1);
    let narrow: Vec<bf16> = gate.iter().map(|&value| bf16::from_f32(value)).collect();
    for sms in [1, 1000] {
        no_bank_conflicts(Profile::sm_90().with_sm_count(sms), |device| {
            run_router(device, &config, &x, (&[], Gate::F32(gate.clone())), TIGHT);
            run_router(device, &config, &x, (&narrow, Gate::Model), TIGHT);
        });
    }
}

/// `RouterTopKArgs` of kernels/abi.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct TopKArgs {
    logits: u64,
    topk_ids: u64,
    topk_weights: u64,
    parts: [u64; 6],
    strides: [u64; 3],
    other_strides: [u64; 2],
    num_tokens_on_device: u64,
    num_tokens: u32,
    reserved: u32,
    num_experts: u32,
    top_k: u32,
    rules: [u32; 9],
    numbers: [f32; 5],
    scale: f32,
    last: u32,
}
const _: () = assert!(size_of::<TopKArgs>() == 200);

/// The second kernel alone, on logits that the first never makes: -0, which equals 0, NaNs of any sign
/// and payload, subnormals.
#[test]
fn logits_of_any_bits_are_ranked_as_documented() {
    let (tokens, e, k) = (6, 70, 32);
    let odd = [0x8000_0000, 0, 0x7f80_0001, 0xffff_ffff, 1, 0x8000_0001, 0x7f7f_ffff, 0xff80_0000];
    let mut rng = Rng::new(25);
    let logits: Vec<f32> = (0..tokens * e).map(|_| f32::from_bits(odd[rng.below(8)])).collect();
    let config = MoeConfig::new(8, 8, e, k);
    let own = reference::route(&config, wide(&logits));
    on_every_device(|device| {
        let driver = device.backend.driver();
        let (logits, ids) = (device.put(&logits), device.put(&vec![0i32; tokens * k]));
        let weights = device.put(&vec![0f32; tokens * k]);
        let args = TopKArgs {
            logits: logits.address(),
            topk_ids: ids.address(),
            topk_weights: weights.address(),
            strides: [e as u64, k as u64, k as u64],
            num_tokens_on_device: 0,
            num_tokens: tokens as u32,
            reserved: 0,
            num_experts: e as u32,
            top_k: k as u32,
            parts: [0; 6],
            other_strides: [0; 2],
            rules: [0; 9],
            numbers: [0.0; 5],
            scale: 1.0,
            last: 0,
        };
        let module = driver.load_module(&[]).unwrap();
        let kernel = driver.function(module, "router_topk_128").unwrap();
        let launch = LaunchConfig::linear(1, 128);
        // SAFETY: the kernel takes these arguments, which name buffers of the sizes that they say.
        #[expect(unsafe_code, reason = "a kernel launched by hand")]
        unsafe { driver.launch(kernel, &launch, &[KernelArg::new(&args)], device.stream.raw()) }
            .unwrap();
        assert_exact("ids", &device.get(&ids), &own.ids, k);
        let weights = wide(&device.get(&weights));
        assert_close("weights", &weights, &own.weights, k, 1e-6);
    });
}

#[test]
fn f32_tokens_are_refused() {
    let Some(device) = emulated(Profile::sm_90(), Path::Auto, Options::checked(0)) else { return };
    let weights = RouterWeights::<f32>::model(vec![0.0; 32]);
    let refused = device.backend.prepare_gate::<f32>([4, 8], weights, &device.stream);
    refused!(refused, Error::Unsupported { .. }, "router in f32", "bf16, f16");
}

/// Each rule under two schedules: two for each type.
fn every_rule<T: Storage>() {
    for (index, (what, tokens, config)) in ruled().into_iter().enumerate() {
        let case = RouterCase::<T>::new(what, config, tokens, &mut Rng::new(index as u64));
        let truth = case.truth();
        for turn in [index, index + 1] {
            on_device(turn + 2 * usize::from(T::NAME == "f16"), |device| {
                case.check(device, &truth);
            });
        }
    }
}

#[test]
fn every_rule_equals_the_oracle() {
    for_each_float16!(T => every_rule::<T>());
}

fn random<T: Storage>(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let mut rng = Rng::new(seed);
        let (tokens, config) = random_rules(&mut rng);
        let case = RouterCase::<T>::new(&format!("seed {seed}"), config, tokens, &mut rng);
        let truth = case.truth();
        on_device(seed as usize, |device| case.check(device, &truth));
        #[cfg(feature = "cpu")]
        case.check(&cpu(), &truth);
    }
}

#[test]
fn random_rules_equal_the_oracle_and_the_cpu() {
    random::<bf16>(0..120);
    random::<half::f16>(120..240);
}

#[test]
fn rules_rank_nan_and_infinity_as_documented() {
    for_each_float16!(T => for (turn, case) in faulty::<T>().into_iter().enumerate() {
        let truth = case.truth();
        on_device(turn, |device| case.check(device, &truth));
    });
}

#[test]
fn ties_of_scores_and_groups_go_to_the_lowest_id() {
    on_every_device(check_ties::<_, bf16>);
}

#[test]
fn rules_of_a_number_of_tokens() {
    for_each_float16!(T => on_every_device(check_live_tokens::<_, T>));
}

#[test]
fn rules_give_the_same_bits_every_time() {
    for (what, tokens, config) in ruled() {
        if ["all at once", "capacity by batch (NLLB)"].contains(&what) {
            let case = RouterCase::<bf16>::new(what, config, tokens, &mut Rng::new(5));
            same_bits_everywhere(what, |device| case.run(device, None).bits());
        }
    }
}

#[test]
fn groups_have_no_bank_conflict() {
    let names = ["groups by two, -inf (DeepSeek-V3)", "1024 experts in 32 groups, K = 32"];
    for (what, tokens, config) in ruled().into_iter().filter(|(what, ..)| names.contains(what)) {
        let case = RouterCase::<bf16>::new(what, config, tokens, &mut Rng::new(5));
        no_bank_conflicts(Profile::sm_90(), |device| {
            case.run(device, None);
        });
    }
}
