//! The whole layer by the CUDA kernels, on the emulator, against the oracle and the CPU backend.

#![cfg(all(feature = "cpu", feature = "checkpoint"))]

mod common;

use common::*;
use half::{bf16, f16};
use moe_emulator::{Options, Profile};
use moe_kernels::MoeConfig;
use moe_kernels::backend::Backend;
use moe_kernels::config::GateUpLayout;
use moe_kernels::cuda::{CudaExperts, Path};
use moe_kernels::memory::{Matrix, MatrixMut};

use moe_kernels::ops::{LayerInput, LayerParts, Output};
use moe_kernels::weights::ExpertMatrix;
use proptest::prelude::{ProptestConfig, Strategy, any, proptest};

// Values are compared without the emulator's checks of each access, which take most of the time; the stages' own tests
// run every kernel under them, and so do the tests here that are named for what they check.

/// The devices and paths that run each case: Hopper's kernels, the portable ones beside them, and
/// the portable ones where there are no others, with little shared memory.
fn devices(options: Options) -> Option<[Emulated; 3]> {
    let device = |profile, path| emulated(profile, path, options.clone());
    Some([
        device(Profile::sm_90(), Path::Hopper)?,
        device(Profile::sm_90(), Path::Portable)?,
        device(Profile::sm_86(), Path::Auto)?,
    ])
}

fn describe(device: &Emulated) -> String {
    format!("{} {}", device.backend.properties().name, device.backend.path())
}

#[test]
fn every_case_equals_the_oracle_bf16() {
    let Some(devices) = devices(Options::plain(1)) else { return };
    for case in cases() {
        devices.iter().for_each(|device| check_case::<_, bf16>(&describe(device), device, &case));
    }
}

#[test]
fn some_cases_equal_the_oracle_f16() {
    let Some(devices) = devices(Options::plain(2)) else { return };
    for case in cases().iter().step_by(3) {
        devices.iter().for_each(|device| check_case::<_, f16>(&describe(device), device, case));
    }
}

/// The families' golden files: what their reference implementations computed.
#[test]
fn families_agree_with_their_reference() {
    let Some(devices) = devices(Options::checked(3)) else { return };
    for name in golden_names() {
        for device in &devices {
            check_golden::<_, bf16>(&describe(device), device, &name, 1e-2);
        }
    }
}

/// Routing from the caller, some of it not for this layer.
#[test]
fn routing_of_the_caller() {
    let Some(devices) = devices(Options::checked(4)) else { return };
    for case in cases().iter().step_by(4) {
        let MoeConfig { hidden_size: h, num_experts: e, top_k: k, .. } = case.config;
        let data = Data::<bf16>::new(case);
        let mut rng = case.rng();
        let mut ids = rng.ids(case.tokens, e, k);
        ids.iter_mut().filter(|_| rng.below(3) == 0).for_each(|id| *id = -1);
        if let Some(first) = ids.get_mut(..k) {
            first.fill(-1);
        }
        let mut weights: Vec<f32> = rng.full(ids.len(), 0.7);
        let truth = expected(case, &data, (&ids, &wide(&weights)), None);
        // Weights of what is not routed here are never read.
        for (weight, _) in weights.iter_mut().zip(&ids).filter(|&(_, &id)| id < 0) {
            *weight = Bits::POISON;
        }
        for device in &devices {
            let layer = layer(device, case, &data);
            let mut workspace = layer.workspace(case.tokens).unwrap();
            let call = Call { routing: Some((&ids, &weights)), pad: LOOSE, ..Call::new(&data.x) };
            let given = forward(device, &layer, &call, &mut workspace);
            let what = format!("{}: given routing on {}", case.name, describe(device));
            assert_within::<bf16>(&what, &wide(&given), &truth[0], &truth[1], h);
            let before = vec![bf16::POISON; given.len()];
            let call = Call { before: Some(&before), ..call };
            let given = forward(device, &layer, &call, &mut workspace);
            for (token, _) in
                ids.chunks(k).enumerate().filter(|(_, ids)| ids.iter().all(|&i| i < 0))
            {
                let kept = bits(&given[token * h..][..h]);
                assert!(kept.iter().all(|&b| b == bf16::POISON.bits()), "{what}: token {token}");
            }
        }
    }
}

/// Ids of another numbering, some of whose experts are elsewhere.
#[test]
fn an_expert_map() {
    let Some(devices) = devices(Options::checked(5)) else { return };
    let case = named("regular [");
    let MoeConfig { num_experts: e, top_k: k, hidden_size: h, .. } = case.config;
    let data = Data::<bf16>::new(&case);
    let mut rng = case.rng();
    let map: Vec<i32> =
        (0..4 * e as i32).map(|id| if id % 2 == 0 { -1 } else { id / 2 % e as i32 }).collect();
    let global = rng.ids(case.tokens, map.len(), k);
    let local: Vec<i32> = global.iter().map(|&id| map[id as usize]).collect();
    let weights: Vec<f32> = rng.full(global.len(), 1.0);
    let [exact, plain] = expected(&case, &data, (&local, &wide(&weights)), None);
    for device in &devices {
        let layer = layer(device, &case, &data);
        let mut workspace = layer.workspace(case.tokens).unwrap();
        let call = Call {
            routing: Some((&global, &weights)),
            expert_map: Some(&map),
            ..Call::new(&data.x)
        };
        let given = forward(device, &layer, &call, &mut workspace);
        assert_within::<bf16>(&describe(device), &wide(&given), &exact, &plain, h);
    }
}

/// The number of tokens lies on the device.
#[test]
fn fewer_tokens_than_rows() {
    let Some(devices) = devices(Options::plain(6)) else { return };
    for case in cases().iter().filter(|case| case.tokens > 0).step_by(7) {
        let MoeConfig { hidden_size: h, top_k: k, .. } = case.config;
        let data = Data::<bf16>::new(case);
        for device in &devices {
            let layer = layer(device, case, &data);
            let mut workspace = layer.workspace(case.tokens).unwrap();
            let all = forward(device, &layer, &Call::new(&data.x), &mut workspace);
            for count in [0, 1, case.tokens / 2, case.tokens + 1] {
                let live = count.min(case.tokens);
                let mut x = data.x.clone();
                x[live * h..].fill(Bits::POISON);
                let call = Call { num_tokens: Some(count as u32), ..Call::new(&x) };
                let given = forward(device, &layer, &call, &mut workspace);
                let what = format!("{}: {count} on {}", case.name, describe(device));
                assert_exact(&what, &bits(&given[..live * h]), &bits(&all[..live * h]), h);
                let rest = &given[live * h..];
                assert!(rest.iter().all(|v| v.bits() == bf16::POISON.bits()), "{what}");
                assert_eq!(device.read_plan(workspace.plan()).token_of_row.len(), live * k);
            }
        }
    }
}

/// Weights of the caller's, where they lie: every order of gate and up, stacked and one buffer for
/// each expert. The same bits every time.
#[test]
fn weights_in_place() {
    let Some(devices) = devices(Options::checked(7)) else { return };
    for case in [named("ragged [T 31"), named("one expert")] {
        let data = Data::<bf16>::new(&case);
        let shape = case.shape();
        for device in &devices {
            let what = format!("{} on {}", case.name, describe(device));
            let expected =
                forward(device, &layer(device, &case, &data), &Call::new(&data.x), &mut {
                    layer(device, &case, &data).workspace(case.tokens).unwrap()
                });
            for layout in
                [GateUpLayout::GateFirst, GateUpLayout::UpFirst, GateUpLayout::Interleaved]
            {
                let experts = data.dense(shape, GateUpLayout::GateFirst);
                let stack = |expert: usize| {
                    let read = |which| experts.read(expert, which).unwrap();
                    let (gate, up) = (read(ExpertMatrix::Gate), read(ExpertMatrix::Up));
                    let gate_up = match layout {
                        GateUpLayout::GateFirst => [&gate[..], &up[..]].concat(),
                        GateUpLayout::UpFirst => [&up[..], &gate[..]].concat(),
                        GateUpLayout::Interleaved => gate
                            .chunks(shape.hidden_size)
                            .zip(up.chunks(shape.hidden_size))
                            .flat_map(|(g, u)| [g, u].concat())
                            .collect(),
                    };
                    (gate_up, read(ExpertMatrix::Down).into_owned())
                };
                let each: Vec<_> = (0..shape.num_experts).map(stack).collect();
                let (gate_up, down): (Vec<_>, Vec<_>) = each.iter().cloned().unzip();
                let stacked = CudaExperts::stacked(
                    &device.backend,
                    shape,
                    layout,
                    device.put(&gate_up.concat()),
                    device.put(&down.concat()),
                )
                .unwrap();
                let each = each.iter().map(|(a, b)| (device.put(a), device.put(b))).collect();
                let table =
                    CudaExperts::table(&device.backend, shape, layout, each, &device.stream)
                        .unwrap();
                for (kind, experts) in [("stacked", stacked), ("table", table)] {
                    let gate = device
                        .backend
                        .prepare_gate(
                            [case.config.num_experts, case.config.hidden_size],
                            data.router_weights(),
                            &device.stream,
                        )
                        .unwrap();
                    let layer = Layer::<_, bf16>::from_prepared(
                        device.backend.clone(),
                        case.config.clone(),
                        LayerParts::new(gate, experts),
                    )
                    .unwrap();
                    let mut workspace = layer.workspace(case.tokens).unwrap();
                    let given = forward(device, &layer, &Call::new(&data.x), &mut workspace);
                    let what = format!("{what}: {kind} {layout:?}");
                    assert_exact(&what, &bits(&given), &bits(&expected), shape.hidden_size);
                }
            }
        }
    }
}

/// Schedules, streams and addresses do not show in the bits.
#[test]
fn the_same_bits_every_run() {
    for case in [named("ragged [T 31"), named("regular ["), named("all on one")] {
        let data = Data::<bf16>::new(&case);
        let mut expected: [Option<Vec<u32>>; 3] = [None, None, None];
        for seed in [0, 11, 12, 13] {
            let Some(devices) = devices(Options::checked(seed)) else { return };
            for (mut device, expected) in devices.into_iter().zip(&mut expected) {
                // Other addresses, and another stream.
                let _elsewhere = device.put(&vec![0u8; 1000 * seed as usize + 1]);
                device.stream = device.backend.create_stream().unwrap();
                let layer = layer(&device, &case, &data);
                let mut workspace = layer.workspace(case.tokens + seed as usize).unwrap();
                for _ in 0..2 {
                    let given =
                        bits(&forward(&device, &layer, &Call::new(&data.x), &mut workspace));
                    let what = format!("{} on {}, seed {seed}", case.name, describe(&device));
                    match expected {
                        None => *expected = Some(given),
                        Some(bits) => {
                            assert_exact(&what, &given, bits, case.config.hidden_size);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_captured_graph_replays() {
    let Some(devices) = devices(Options::checked(8)) else { return };
    devices.iter().for_each(|device| check_graph(&describe(device), device));
}

/// Nothing is allocated, and nothing waits, in a forward.
#[test]
fn a_forward_allocates_nothing() {
    let Some(devices) = devices(Options::checked(9)) else { return };
    let case = named("regular [");
    let data = Data::<bf16>::new(&case);
    for device in &devices {
        let layer = layer(device, &case, &data);
        let mut workspace = layer.workspace(case.tokens).unwrap();
        let x = device.put(&data.x);
        let mut out = device.put(&data.x);
        let MoeConfig { hidden_size: h, .. } = case.config;
        let before = device.backend.driver().bytes_in_use();
        let input = LayerInput::new(Matrix::contiguous("x", &x, case.tokens, h).unwrap());
        let matrix = MatrixMut::contiguous("out", &mut out, case.tokens, h).unwrap();
        layer.forward(&input, Output::overwrite(matrix), &mut workspace, &device.stream).unwrap();
        assert_eq!(device.backend.driver().bytes_in_use(), before, "{}", describe(device));
    }
}

/// Random layers of ragged shapes.
fn any_case() -> impl Strategy<Value = (Case, u64)> {
    let shape = (0usize..=96, 1usize..=40, 1usize..=40, 1usize..=40, 1usize..=8);
    (shape, any::<bool>(), any::<u64>()).prop_map(|((tokens, h8, i8, e, k), loose, seed)| {
        let config = MoeConfig::new(8 * h8, 8 * i8, e, k.min(e));
        let pad = if loose { LOOSE } else { TIGHT };
        let name = "random".to_owned();
        (Case { name, tokens, config, load: Load::Even, values: Values::Full, pad }, seed)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, failure_persistence: None, ..Default::default() })]

    /// Any rules that go together.
    #[test]
    fn layers_of_random_rules(seed in any::<u64>()) {
        if let Some(devices) = devices(Options::plain(seed)) {
            let layer = AnyLayer::<bf16>::random(&mut Rng::new(seed));
            let on_cpu = layer.check("the CPU", &cpu());
            for device in &devices {
                let given = layer.check(&describe(device), device);
                // Few elements have no statistics.
                if given.len() >= 256 {
                    let error = rel_l2(&given, &on_cpu, given.len()).unwrap();
                    assert!(error <= 1e-2, "{} and the CPU: {error:.3e}", describe(device));
                }
            }
        }
    }

    #[test]
    fn random_layers((case, seed) in any_case()) {
        if let Some(devices) = devices(Options::plain(seed)) {
            let MoeConfig { hidden_size: h, top_k: k, .. } = case.config;
            let data = Data::<bf16>::seeded(&case, &mut Rng::new(seed));
            let truth = data.routing(&case.config);
            let [exact, plain] = expected(&case, &data, (&truth.ids, &truth.weights), None);
            let on_cpu = {
                let layer = layer(&cpu(), &case, &data);
                let mut workspace = layer.workspace(case.tokens).unwrap();
                forward(&cpu(), &layer, &Call::new(&data.x), &mut workspace)
            };
            for device in &devices {
                let layer = layer(device, &case, &data);
                let mut workspace = layer.workspace(case.tokens).unwrap();
                let call = Call { pad: case.pad, ..Call::new(&data.x) };
                let given = forward(device, &layer, &call, &mut workspace);
                let mut ids = device.get(workspace.routing().unwrap().topk_ids.buffer());
                ids.truncate(truth.ids.len());
                assert_exact("topk_ids", &ids, &truth.ids, k);
                if given.len() < 256 {
                    // Few elements have no statistics.
                    assert_close(&describe(device), &wide(&given), &exact, h, 1e-2);
                } else {
                    assert_within::<bf16>(&describe(device), &wide(&given), &exact, &plain, h);
                }
                assert_close("as on the CPU", &wide(&given), &wide(&on_cpu), h, 1e-2);
            }
        }
    }
}
