//! The tests' own tools: that the oracle is right by hand, and that the comparers can fail.

mod common;

use common::*;
use moe_kernels::MoeConfig;
use moe_kernels::config::{
    ActivationFn, Capacity, ExpertGroups, GroupFill, GroupScore, Renormalize, Scoring,
};

fn fails<R>(work: impl FnOnce() -> R + std::panic::UnwindSafe) -> String {
    let error = std::panic::catch_unwind(work).err().expect("the comparer found nothing");
    error.downcast_ref::<String>().expect("a message").clone()
}

#[test]
fn relative_l2_by_hand() {
    assert_eq!(rel_l2(&[], &[], 3), Ok(0.0));
    assert_eq!(rel_l2(&[3.0, 4.0], &[3.0, 4.0], 2), Ok(0.0));
    assert_eq!(rel_l2(&[0.0, 4.0], &[3.0, 4.0], 2), Ok(0.6));
    assert_eq!(rel_l2(&[0.0; 2], &[0.0; 2], 2), Ok(0.0));
    assert_eq!(rel_l2(&[1e-30, 0.0], &[0.0; 2], 2), Ok(f64::INFINITY));
    // Masks are compared, then left out.
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    assert_eq!(rel_l2(&[nan, inf, -inf, 0.0, 4.0], &[nan, inf, -inf, 3.0, 4.0], 5), Ok(0.6));
    assert!(rel_l2(&[1.0], &[1.0, 2.0], 1).is_err());
    for (a, b) in
        [(nan, 1.0), (1.0, nan), (inf, 1.0), (1.0, -inf), (inf, -inf), (nan, inf), (inf, nan)]
    {
        let reason = rel_l2(&[1.0, 2.0, 3.0, a], &[1.0, 2.0, 3.0, b], 2).unwrap_err();
        assert!(reason.contains("[1, 1]"), "{reason}");
    }
}

#[test]
fn the_float_comparer_can_fail() {
    let truth = Rng::new(1).full::<f32>(400, 1.0);
    let truth = wide(&truth);
    assert_close("same", &truth, &truth, 20, 0.0);

    let mut one_wrong = truth.clone();
    one_wrong[7 * 20 + 3] += 0.1;
    let message = fails(|| assert_close("one", &one_wrong, &truth, 20, 1e-3));
    assert!(message.contains("one") && message.contains("[7, 3]"), "{message}");

    // One wrong element among so many that relative L2 cannot see it.
    let many = vec![1.0; 1_000_000];
    let mut one_of_many = many.clone();
    one_of_many[123_456] = 1.9;
    assert!(rel_l2(&one_of_many, &many, 1000).unwrap() < 1e-2);
    let message = fails(|| assert_close("many", &one_of_many, &many, 1000, 1e-2));
    assert!(message.contains("[123, 456]"), "{message}");

    for fault in [f64::NAN, f64::INFINITY] {
        let mut faulty = truth.clone();
        faulty[0] = fault;
        fails(|| assert_close("given", &faulty, &truth, 20, 1e9));
        fails(|| assert_close("expected", &truth, &faulty, 20, 1e9));
    }
    fails(|| assert_close("length", &truth[1..], &truth, 20, 1e9));
}

#[test]
fn the_bound_on_plain_error_can_fail() {
    let truth = wide(&Rng::new(2).full::<f32>(400, 1.0));
    let plain: Vec<f64> = truth.iter().map(|&value| round::<half::bf16>(value)).collect();
    assert_within::<half::bf16>("as plain", &plain, &truth, &plain, 20);
    // Within 1e-2, but three times as far off as rounding.
    let worse: Vec<f64> = truth.iter().zip(&plain).map(|(t, p)| t + 3.0 * (p - t)).collect();
    assert!(rel_l2(&worse, &truth, 20).unwrap() < 1e-2);
    let message = fails(|| assert_within::<half::bf16>("worse", &worse, &truth, &plain, 20));
    assert!(message.contains("plain implementation"), "{message}");
}

#[test]
fn the_exact_comparer_can_fail() {
    assert_exact("same", &[1, 2, 3, 4], &[1, 2, 3, 4], 2);
    let message = fails(|| assert_exact("one", &[1, 2, 3, 5], &[1, 2, 3, 4], 2));
    assert!(message.contains("[1, 1] = 5, expected 4"), "{message}");
    fails(|| assert_exact("length", &[1], &[1, 2], 2));
}

#[cfg(feature = "cpu")]
#[test]
fn writes_between_rows_are_found() {
    let device = cpu();
    for (place, inside) in
        [(15, false), (16, true), (23, true), (24, false), (31, false), (32, true)]
    {
        let placed = Placed::new(&[1.0f32; 16], 2, 8, LOOSE);
        let mut buffer = placed.put(&device);
        buffer[place] = 9.0;
        let found = std::panic::catch_unwind(|| placed.take("x", &device, &buffer)).is_err();
        assert_eq!(found, !inside, "element {place}");
    }
}

#[test]
fn routing_by_hand() {
    use Renormalize::None as Raw;
    let (nan, inf) = (f64::NAN, f64::INFINITY);
    assert_eq!(reference::select(&[1.0, 3.0, 2.0, 3.0], 3), [1, 3, 2]);
    assert_eq!(reference::select(&[0.0; 5], 3), [0, 1, 2]);
    assert_eq!(reference::select(&[nan, -inf, nan, 1.0, inf], 5), [4, 3, 1, 0, 2]);
    assert_eq!(reference::select(&[nan; 3], 2), [0, 1]);
    assert_eq!(reference::select(&[0.0, -0.0], 2), [0, 1]);

    assert_eq!(reference::logits(&[1.0, 2.0], &[3.0, 4.0, 5.0, 6.0], 2, 2), [11.0, 17.0]);

    let mut config = MoeConfig::new(8, 8, 3, 2);
    let logits = [0.0, 2f64.ln(), 5f64.ln()];
    let mut given = |scoring, renormalize| {
        (config.router.scoring, config.router.renormalize) = (scoring, renormalize);
        reference::weights(&config, &logits, &[2, 1])
    };
    let near = |given: Vec<f64>, expected: [f64; 2]| {
        assert!(rel_l2(&given, &expected, 2).unwrap() < 1e-15, "{given:?} {expected:?}");
    };
    near(given(Scoring::Softmax, Raw), [5.0 / 8.0, 2.0 / 8.0]);
    near(given(Scoring::Softmax, Renormalize::SUM), [5.0 / 7.0, 2.0 / 7.0]);
    near(given(Scoring::Sigmoid, Raw), [5.0 / 6.0, 2.0 / 3.0]);
    near(given(Scoring::Sigmoid, Renormalize::SUM), [5.0 / 9.0, 4.0 / 9.0]);
}

#[test]
fn rules_by_hand() {
    let near = |given: &[f64], expected: &[f64]| {
        let off = rel_l2(given, expected, expected.len()).unwrap();
        assert!(off < 1e-7, "{given:?} {expected:?}");
    };
    let logit = |score: f64| (score / (1.0 - score)).ln();
    let mut config = MoeConfig::new(2, 8, 4, 2);
    let none = reference::Parts::default();

    config.router.norm_eps = Some(1.0);
    let parts =
        reference::Parts { input_scale: Some(vec![1.0, 2.0]), bias: Some(vec![0.5; 4]), ..none };
    let matrix = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0];
    // The mean square is 24: five is the norm.
    let x = [48f64.sqrt(), 0.0];
    let first = 48f64.sqrt() / 5.0 + 0.5;
    near(&reference::router_logits(&config, &parts, &x, &matrix), &[first, 0.5, first, 0.5]);
    config.router.norm_eps = None;

    let none = reference::Parts::default();
    let route = |config: &MoeConfig, parts: &reference::Parts, logits: &[f64]| {
        let routing = reference::route_with(config, parts, logits.to_vec());
        (routing.ids, routing.weights)
    };
    config.router.scoring = Scoring::Sigmoid;
    config.router.renormalize = Renormalize::PNorm { p: 2.0 };
    let logits = [0.6, 0.1, 0.8, 0.5].map(logit);
    let (ids, weights) = route(&config, &none, &logits);
    assert_eq!(ids, [2, 0]);
    near(&weights, &[0.8, 0.6]);
    config.router.renormalize = Renormalize::ClampMin { least: 2.8 };
    near(&route(&config, &none, &logits).1, &[2.0 / 7.0, 1.5 / 7.0]);
    config.router.renormalize = Renormalize::Sum { epsilon: 1.4 };
    near(&route(&config, &none, &logits).1, &[2.0 / 7.0, 1.5 / 7.0]);
    config.router.softcap = Some(2.0);
    let capped = reference::scores(&config, &[2.0 * 0.5f64.atanh()]);
    near(&capped, &[1.0 / (1.0 + (-1f64).exp())]);
    config.router.softcap = None;

    config.router.renormalize = Renormalize::None;
    let biased = reference::Parts {
        selection_bias: Some(vec![0.0, 9.0, 0.0, 0.0]),
        expert_scale: Some(vec![1.0, 10.0, 3.0, 1.0]),
        ..reference::Parts::default()
    };
    let (ids, weights) = route(&config, &biased, &logits);
    assert_eq!(ids, [1, 2]);
    near(&weights, &[1.0, 2.4]);

    let logits = [0.9, 0.1, 0.6, 0.5].map(logit);
    for (score, chosen) in [(GroupScore::Max, [0, 1]), (GroupScore::Top2Sum, [2, 3])] {
        for fill in [GroupFill::Zero, GroupFill::NegativeInfinity] {
            config.router.groups = Some(ExpertGroups { count: 2, kept: 1, score, fill });
            assert_eq!(route(&config, &none, &logits).0, chosen);
        }
    }
    config.router.groups = None;

    config.router.scoring = Scoring::SqrtSoftplus;
    let e = std::f64::consts::E;
    near(&reference::scores(&config, &[(e - 1.0).ln(), (e.powi(4) - 1.0).ln()]), &[1.0, 2.0]);

    config.router.scoring = Scoring::SparseMixer { jitter: 0.1 };
    let (ids, weights) = route(&config, &none, &[1.0, 3.9, 4.0, 0.0]);
    assert_eq!(ids, [2, 1]);
    near(&weights, &[1.0 / (1.0 + (-0.1f64).exp()), 1.0]);

    config.router.scoring = Scoring::Softmax;
    let hashed = reference::Parts {
        hash_table: Some(vec![0, 1, 3, 4]),
        token_ids: Some(vec![1, 2, 0]),
        ..reference::Parts::default()
    };
    let (ids, weights) = route(&config, &hashed, &[0.0; 12]);
    assert_eq!(ids, [3, -1, -1, -1, 0, 1]);
    near(&weights, &[0.25, 0.0, 0.0, 0.0, 0.25, 0.25]);

    // First choices before second ones.
    config.num_experts = 2;
    config.router.capacity = Capacity::Batch { fraction: 0.5 };
    config.router.renormalize = Renormalize::SUM;
    let (ids, weights) = route(&config, &none, &[1.0, 0.0, 0.0, 1.0]);
    assert_eq!(ids, [0, -1, 1, -1]);
    near(&weights, &[1.0, 0.0, 1.0, 0.0]);
    config.top_k = 1;
    config.router.capacity = Capacity::Sequence { tokens: 1 };
    let sequences = reference::Parts { sequence_offsets: Some(vec![0, 3, 4]), ..none };
    assert_eq!(route(&config, &sequences, &[0.0, 1.0].repeat(4)).0, [1, -1, -1, 1]);
}

#[test]
fn plans_by_hand() {
    let plan = reference::plan(&[0, 1, 0, 3, 1, 3, 3, 0], 2, 4, None);
    assert_eq!(plan.tokens_per_expert, [3, 2, 0, 3]);
    assert_eq!(plan.expert_offsets, [0, 3, 5, 5, 8]);
    assert_eq!(plan.token_of_row, [0, 1, 3, 0, 2, 1, 2, 3]);
    assert_eq!(plan.row_of_assignment, [0, 3, 1, 5, 4, 6, 7, 2]);
    assert_eq!(
        reference::permute(&['a', 'b', 'c', 'd'], &plan, 1).iter().collect::<String>(),
        "abdacbcd"
    );

    let plan = reference::plan(&[5, -1, 4, 9], 1, 2, Some(&[-1, -1, -1, -1, 1, 0]));
    assert_eq!(plan.expert_offsets, [0, 1, 2]);
    assert_eq!(plan.token_of_row, [0, 2]);
    assert_eq!(plan.row_of_assignment, [0, u32::MAX, 1, u32::MAX]);
}

/// Two tokens, two experts, H = 2, I = 1.
#[test]
fn a_layer_by_hand() {
    let mut config = MoeConfig::new(8, 8, 2, 1);
    (config.hidden_size, config.intermediate_size) = (2, 1);
    let experts = reference::Experts {
        gate: vec![1.0, 0.0, 0.0, 1.0],
        up: vec![0.0, 1.0, 2.0, 0.0],
        down: vec![1.0, 2.0, 3.0, 4.0],
    };
    let silu = |g: f64| g / (1.0 + (-g).exp());
    assert_eq!(
        reference::activation(ActivationFn::SwiGlu, &[0.0, 2.0], &[5.0, 3.0], &reference::exact),
        [0.0, 3.0 * silu(2.0)]
    );
    // Token 0, expert 1: gate 4, up 2 * 3; token 1 has no expert.
    let x = [3.0, 4.0, 7.0, 8.0];
    let a = silu(4.0) * 6.0;
    let routing: (&[i32], &[f64]) = (&[1, -1], &[0.5, f64::NAN]);
    let given = reference::layer(&config, &x, routing, &experts, None, &reference::exact);
    assert_eq!(given, [0.5 * 3.0 * a, 0.5 * 4.0 * a, 0.0, 0.0]);
    let before = [1.0, 1.0, 2.0, 2.0];
    let given = reference::layer(&config, &x, routing, &experts, Some(&before), &reference::exact);
    assert_eq!(given, [1.0 + 0.5 * 3.0 * a, 1.0 + 0.5 * 4.0 * a, 2.0, 2.0]);
    // Rounded where a plain implementation stores: after the activation, down, and the sum.
    let store: reference::Store<'_> = &round::<half::bf16>;
    let stored = reference::layer(&config, &x, routing, &experts, None, store);
    assert_eq!(stored[0], store(0.5 * store(3.0 * store(a))));
}

/// The cases hold what the crate must get right.
#[test]
fn the_cases_cover_the_limits() {
    let cases = cases();
    let some = |what: &str, found: &dyn Fn(&Case) -> bool| {
        assert!(cases.iter().any(found), "no case with {what}");
    };
    for tokens in [0, 1, 2, 31, 33, 130] {
        some("tokens", &|case| case.tokens == tokens);
    }
    for experts in [1, 5, 16, 40, 60, 72, 128, 160, 1024] {
        some("experts", &|case| case.config.num_experts == experts);
    }
    for width in [8, 24, 40, 72, 200] {
        some("H", &|case| case.config.hidden_size == width);
        some("I", &|case| case.config.intermediate_size == width);
    }
    some("K = 32", &|case| case.config.top_k == 32);
    some("K = E", &|case| case.config.top_k == case.config.num_experts && case.config.top_k > 1);
    let mut names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), cases.len(), "names repeat");

    for case in &cases {
        let ids = Data::<f32>::new(case).routing(&case.config).ids;
        case.config.validate().unwrap();
        match case.load {
            Load::Even => {}
            Load::OneHot => {
                let last = case.config.num_experts as i32 - 1;
                assert!(ids.iter().step_by(case.config.top_k).all(|&id| id == last));
            }
            Load::OddOnly => assert!(ids.iter().all(|id| id % 2 == 1)),
        }
        if case.values == Values::Grid {
            let logits = Data::<f32>::new(case).routing(&case.config).logits;
            let tied = logits.chunks(case.config.num_experts).filter(|logits| {
                let best = reference::select(logits, case.config.top_k + 1);
                best.windows(2).any(|pair| logits[pair[0] as usize] == logits[pair[1] as usize])
            });
            assert!(tied.count() > case.tokens / 2, "{}: few ties", case.name);
        }
    }
}
