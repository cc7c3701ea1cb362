//! The whole layer by the CUDA kernels, on the emulator, against the oracle and the CPU backend.

#![cfg(all(feature = "cpu", feature = "checkpoint"))]

mod common;

use common::*;
use half::{bf16, f16};
use moe_emulator::{Options, Profile};
use moe_kernels::backend::Backend;
use moe_kernels::checkpoint::Checkpoint;
use moe_kernels::config::{GateUpLayout, ModelConfig};
use moe_kernels::cuda::driver::Driver;
use moe_kernels::cuda::{CudaExperts, Path};
use moe_kernels::memory::{Matrix, MatrixMut, Memory};
use moe_kernels::ops::{LayerInput, Output};
use moe_kernels::weights::ExpertMatrix;
use moe_kernels::{MoeConfig, MoeLayer};
use proptest::prelude::{ProptestConfig, Strategy, any, proptest};

/// The devices and paths that run each case: Hopper's kernels, the portable ones beside them, and
/// the portable ones where there are no others, with little shared memory.
fn devices(seed: u64) -> Option<[Emulated; 3]> {
    let device = |profile, path| emulated(profile, path, Options::checked(seed));
    Some([
        device(Profile::sm_90(), Path::Hopper)?,
        device(Profile::sm_90(), Path::Portable)?,
        device(Profile::sm_86(), Path::Auto)?,
    ])
}

fn describe(device: &Emulated) -> String {
    format!("{} {}", device.backend.properties().name, device.backend.path())
}

/// The layer's own routing: exact ids, weights, plan; output within the bounds.
fn check_case<T: Storage>(device: &Emulated, case: &Case) {
    let what = format!("{} {} on {}", case.name, T::NAME, describe(device));
    let MoeConfig { hidden_size: h, num_experts: e, top_k: k, .. } = case.config;
    let data = Data::<T>::new(case);
    let layer = layer(device, case, &data);
    let mut workspace = layer.workspace(case.tokens).unwrap();
    let truth = data.routing(&case.config);

    let call = Call { pad: case.pad, ..Call::new(&data.x) };
    let given = forward(device, &layer, &call, &mut workspace);
    let routing = workspace.routing().unwrap();
    let mut ids = device.get(routing.topk_ids.buffer());
    ids.truncate(truth.ids.len());
    assert_exact(&format!("{what}: ids"), &ids, &truth.ids, k);
    let mut logits = wide(&device.get(workspace.router_logits().unwrap().buffer()));
    logits.truncate(truth.logits.len());
    assert_close(&format!("{what}: logits"), &logits, &truth.logits, e, 1e-6);
    let mut weights = wide(&device.get(routing.topk_weights.buffer()));
    weights.truncate(truth.weights.len());
    assert_close(&format!("{what}: weights"), &weights, &truth.weights, k, 5e-6);
    let plan = reference::plan(&truth.ids, k, e, None);
    assert_eq!(device.read_plan(workspace.plan()), plan, "{what}");
    let [exact, plain] = expected(case, &data, (&truth.ids, &truth.weights), None);
    assert_within::<T>(&what, &wide(&given), &exact, &plain, h);

    let before: Vec<T> = case.rng().full(case.tokens * h, 1.0);
    let call = Call { before: Some(&before), ..call };
    let given = forward(device, &layer, &call, &mut workspace);
    let [exact, plain] = expected(case, &data, (&truth.ids, &truth.weights), Some(&before));
    assert_within::<T>(&format!("{what}: accumulate"), &wide(&given), &exact, &plain, h);
}

#[test]
fn every_case_equals_the_oracle_bf16() {
    let Some(devices) = devices(1) else { return };
    for case in cases() {
        devices.iter().for_each(|device| check_case::<bf16>(device, &case));
    }
}

#[test]
fn some_cases_equal_the_oracle_f16() {
    let Some(devices) = devices(2) else { return };
    for case in cases().iter().step_by(3) {
        devices.iter().for_each(|device| check_case::<f16>(device, case));
    }
}

/// The families' golden files: what their reference implementations computed.
#[test]
fn families_agree_with_their_reference() {
    let Some(devices) = devices(3) else { return };
    for name in ["mixtral", "qwen3_moe", "olmoe", "mixtral_starved", "qwen3_moe_k1", "olmoe_e5k3"] {
        for device in &devices {
            check_fixture(device, name);
        }
    }
}

fn check_fixture(device: &Emulated, name: &str) {
    let what = format!("{name} on {}", describe(device));
    let path = format!("{}/tests/fixtures/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let stored = Checkpoint::open(path).unwrap();
    let header: serde_json::Value =
        serde_json::from_str(stored.metadata("fixture").unwrap()).unwrap();
    let model = ModelConfig::parse(&header["config"].to_string(), &[]).unwrap();
    let number = stored.moe_layers(model.family)[0];
    let source = stored.layer(&model, number).unwrap();
    let config = source.config().clone();
    let MoeConfig { num_experts, top_k, .. } = config;
    let (router, experts) = (source.router_weights().unwrap(), source.experts::<bf16>().unwrap());
    let layer =
        MoeLayer::new(device.backend.clone(), config, router, experts, &device.stream).unwrap();
    let x: Vec<bf16> = stored.tensor("fixture.hidden_states", "").unwrap().read().unwrap();
    let mut workspace = layer.workspace(x.len() / layer.config().hidden_size).unwrap();
    let out = forward(device, &layer, &Call::new(&x), &mut workspace);

    let read = |name: &str| {
        let tensor = stored.tensor(&format!("fixture.{name}"), "a result").unwrap();
        (tensor.read_f64().unwrap(), *tensor.shape().last().unwrap())
    };
    let (selected, _) = read("selected");
    let mut chosen = vec![0.0; selected.len()];
    let routing = workspace.routing().unwrap();
    let ids = device.get(routing.topk_ids.buffer());
    for (assignment, &id) in ids[..selected.len() / num_experts * top_k].iter().enumerate() {
        chosen[assignment / top_k * num_experts + id as usize] = 1.0;
    }
    assert_eq!(chosen, selected, "{what}: selection");
    let (output, cols) = read("f64.output");
    assert_close(&what, &wide(&out), &output, cols, 1e-2);
}

/// Routing from the caller, some of it not for this layer.
#[test]
fn routing_of_the_caller() {
    let Some(devices) = devices(4) else { return };
    for case in cases().iter().step_by(2) {
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
    let Some(devices) = devices(5) else { return };
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
    let Some(devices) = devices(6) else { return };
    for case in cases().iter().filter(|case| case.tokens > 0).step_by(4) {
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
    let Some(devices) = devices(7) else { return };
    for case in [named("ragged [T 31"), named("72 experts"), named("one expert")] {
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
                        gate,
                        experts,
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
    for case in [named("ragged [T 130"), named("regular ["), named("128 experts")] {
        let data = Data::<bf16>::new(&case);
        let mut expected: [Option<Vec<u32>>; 3] = [None, None, None];
        for seed in [0, 11, 12, 13] {
            let Some(devices) = devices(seed) else { return };
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

/// A graph captured once serves other tokens, numbers of tokens and routing.
#[test]
fn a_captured_graph_replays() {
    let Some(devices) = devices(8) else { return };
    let case = named("ragged [T 130");
    let MoeConfig { hidden_size: h, .. } = case.config;
    let mut rng = case.rng();
    let data = Data::<bf16>::new(&case);
    for device in &devices {
        let (backend, stream) = (&device.backend, &device.stream);
        let layer = layer(device, &case, &data);
        let mut workspace = layer.workspace(case.tokens).unwrap();
        let mut x = device.put(&data.x);
        let mut num_tokens = device.put(&[case.tokens as u32]);
        let mut out = backend.allocate::<bf16>("out", case.tokens * h).unwrap();

        backend.driver().begin_capture(stream.raw()).unwrap();
        let mut input = LayerInput::new(Matrix::contiguous("x", &x, case.tokens, h).unwrap());
        input.num_tokens = Some(&num_tokens);
        let matrix = MatrixMut::contiguous("out", &mut out, case.tokens, h).unwrap();
        layer.forward(&input, Output::overwrite(matrix), &mut workspace, stream).unwrap();
        let graph = backend.driver().end_capture(stream.raw()).unwrap();
        drop(input);

        for count in [case.tokens, 1, 77, 0, 2] {
            let tokens: Vec<bf16> = rng.full(count * h, 1.0);
            backend.upload(&tokens, &mut x, stream).unwrap();
            backend.upload(&[count as u32], &mut num_tokens, stream).unwrap();
            // SAFETY: the buffers of the captured forward live until the end of the block.
            #[allow(unsafe_code)]
            unsafe { backend.driver().launch_graph(graph, stream.raw()) }.unwrap();
            let given = device.get(&out);
            let mut own = layer.workspace(case.tokens).unwrap();
            // T decides about the tiles, and with them about the order of sums.
            let mut padded = tokens.clone();
            padded.resize(case.tokens * h, bf16::ZERO);
            let call = Call { num_tokens: Some(count as u32), ..Call::new(&padded) };
            let expected = forward(device, &layer, &call, &mut own);
            let what = format!("{count} tokens on {}", describe(device));
            assert_exact(&what, &bits(&given[..count * h]), &bits(&expected[..count * h]), h);
        }
        backend.driver().destroy_graph(graph).unwrap();
    }
}

/// Nothing is allocated, and nothing waits, in a forward.
#[test]
fn a_forward_allocates_nothing() {
    let Some(devices) = devices(9) else { return };
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
    let shape = (0usize..=200, 1usize..=40, 1usize..=40, 1usize..=40, 1usize..=8);
    (shape, any::<bool>(), any::<u64>()).prop_map(|((tokens, h8, i8, e, k), loose, seed)| {
        let config = MoeConfig::new(8 * h8, 8 * i8, e, k.min(e));
        let pad = if loose { LOOSE } else { TIGHT };
        let name = "random".to_owned();
        (Case { name, tokens, config, load: Load::Even, values: Values::Full, pad }, seed)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_layers((case, seed) in any_case()) {
        if let Some(devices) = devices(seed) {
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
