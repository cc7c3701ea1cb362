//! Random layers of ragged shapes, against the oracle.

#![cfg(feature = "cpu")]

mod common;

use common::*;
use moe_kernels::MoeConfig;
use moe_kernels::config::{Renormalize, Scoring};
use moe_kernels::element::DType;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

/// Everything that a layer depends on, numbers by their seed.
fn any_case() -> impl Strategy<Value = (Case, u64, usize)> {
    let shape = (0usize..=300, 1usize..=9, 1usize..=9, 1usize..=40, 1usize..=8);
    let load = prop_oneof![
        4 => Just(Load::Even),
        1 => Just(Load::OneHot),
        1 => Just(Load::OddOnly),
    ];
    let values = prop_oneof![3 => Just(Values::Full), 1 => Just(Values::Grid)];
    let rules = (any::<bool>(), any::<bool>());
    // One in `missing` assignments is not routed here; 0: the layer's own router runs.
    (shape, load, values, rules, any::<bool>(), any::<u64>(), 0usize..=3).prop_map(
        |((tokens, h8, i8, e, k), load, values, (sigmoid, sum), loose, seed, missing)| {
            let mut config = MoeConfig::new(8 * h8, 8 * i8, e, k.min(e));
            config.router.scoring = if sigmoid { Scoring::Sigmoid } else { Scoring::Softmax };
            config.router.renormalize = if sum { Renormalize::SUM } else { Renormalize::None };
            // Experts are kept idle by logits of -32. Where one is chosen all the same, its sigmoid
            // is 1e-14: more than f16 can hold.
            let load = if sigmoid && load == Load::OddOnly { Load::Even } else { load };
            let pad = if loose { LOOSE } else { TIGHT };
            let name = "random".to_owned();
            (Case { name, tokens, config, load, values, pad }, seed, missing)
        },
    )
}

fn check<T: Storage>(case: &Case, seed: u64, missing: usize) {
    let MoeConfig { hidden_size: h, num_experts: e, top_k: k, .. } = case.config;
    let mut rng = Rng::new(seed);
    let data = Data::<T>::seeded(case, &mut rng);
    let device = cpu();
    let layer = layer(&device, case, &data);
    let mut workspace = layer.workspace(case.tokens + rng.below(9)).unwrap();
    let truth = data.routing(&case.config);
    let mut ids = truth.ids.clone();
    let mut weights = truth.weights.clone();
    let mut call = Call { pad: case.pad, ..Call::new(&data.x) };
    let given_weights: Vec<f32>;
    if missing > 0 {
        ids.iter_mut().filter(|_| rng.below(missing + 1) == 0).for_each(|id| *id = -1);
        given_weights = weights.iter().map(|&weight| weight as f32).collect();
        weights = wide(&given_weights);
        call.routing = Some((&ids, &given_weights));
    }
    let given = forward(&device, &layer, &call, &mut workspace);
    let [exact, plain] = expected(case, &data, (&ids, &weights), None);
    if missing == 0 {
        let routing = workspace.routing().unwrap();
        let chosen = device.get(routing.topk_ids.buffer());
        assert_exact("topk_ids", &chosen[..ids.len()], &ids, k);
    }
    let plan = reference::plan(&ids, k, e, None);
    assert_eq!(device.read_plan(workspace.plan()), plan);
    // Few elements have no statistics: their roundings can happen to be twice the plain ones'.
    if T::DTYPE == DType::F32 {
        // The bound that docs/numerics.md promises. Named cases keep to a tenth of it, but a
        // sigmoid's relative error is its logit's absolute one, which random logits can make 1e-6.
        assert_close("output f32", &wide(&given), &exact, h, 1e-5);
    } else if given.len() < 256 {
        assert_close(T::NAME, &wide(&given), &exact, h, T::BOUND);
    } else {
        assert_within::<T>("output", &wide(&given), &exact, &plain, h);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// Any rules that go together.
    #[test]
    fn layers_of_random_rules(seed in any::<u64>()) {
        AnyLayer::<f32>::random(&mut Rng::new(seed)).check("the CPU", &cpu());
        AnyLayer::<half::bf16>::random(&mut Rng::new(seed)).check("the CPU", &cpu());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn f32_layers((case, seed, missing) in any_case()) {
        check::<f32>(&case, seed, missing);
    }

    #[test]
    fn bf16_layers((case, seed, missing) in any_case()) {
        check::<half::bf16>(&case, seed, missing);
    }

    #[test]
    fn f16_layers((case, seed, missing) in any_case()) {
        check::<half::f16>(&case, seed, missing);
    }
}
