//! The whole layer, against the oracle.

#![cfg(feature = "cpu")]

mod common;

use common::*;
use half::bf16;
use moe_kernels::config::{GateUpLayout, MoeConfig, Scoring};
use moe_kernels::memory::Matrix;
use moe_kernels::ops::{NOT_ROUTED, RoutingPlan, Workspace};
use moe_kernels::weights::{DenseExperts, LayerWeights, RouterWeights};
use moe_kernels::{Cpu, MoeLayer};

fn read<T: Bits>(device: &Device<Cpu>, matrix: Matrix<'_, Cpu, T>) -> Vec<T> {
    let layout = matrix.layout();
    let memory = device.get(matrix.buffer());
    (0..layout.rows).flat_map(|row| memory[layout.row(row)].to_vec()).collect()
}

fn check_case<T: Storage>(case: &Case) {
    let what = format!("{} {}", case.name, T::NAME);
    let MoeConfig { hidden_size: h, num_experts: e, top_k: k, .. } = case.config;
    let device = cpu();
    let data = Data::<T>::new(case);
    let layer = layer(&device, case, &data);
    let mut workspace = layer.workspace(case.tokens).unwrap();
    let truth = data.routing(&case.config);

    let call = Call { pad: case.pad, ..Call::new(&data.x) };
    let given = forward(&device, &layer, &call, &mut workspace);
    let [exact, plain] = expected(case, &data, (&truth.ids, &truth.weights), None);
    assert_within::<T>(&what, &wide(&given), &exact, &plain, h);

    let logits = read(&device, workspace.router_logits().unwrap());
    assert_close(&format!("{what}: logits"), &wide(&logits), &truth.logits, e, 1e-6);
    let routing = workspace.routing().unwrap();
    assert_exact(&format!("{what}: ids"), &read(&device, routing.topk_ids), &truth.ids, k);
    let weights = wide(&read(&device, routing.topk_weights));
    assert_close(&format!("{what}: weights"), &weights, &truth.weights, k, 5e-6);
    let plan = reference::plan(&truth.ids, k, e, None);
    assert_eq!(device.read_plan(workspace.plan()), plan, "{what}");

    let before: Vec<T> = case.rng().full(case.tokens * h, 1.0);
    let call = Call { before: Some(&before), ..call };
    let given = forward(&device, &layer, &call, &mut workspace);
    let [exact, plain] = expected(case, &data, (&truth.ids, &truth.weights), Some(&before));
    assert_within::<T>(&format!("{what}: accumulate"), &wide(&given), &exact, &plain, h);
}

#[test]
fn every_case_equals_the_oracle_f32() {
    cases().iter().for_each(check_case::<f32>);
}

#[test]
fn every_case_equals_the_oracle_bf16() {
    cases().iter().for_each(check_case::<bf16>);
}

#[test]
fn every_case_equals_the_oracle_f16() {
    cases().iter().for_each(check_case::<half::f16>);
}

/// Routing from the caller, some of it not for this layer; the layer's own router does not run.
fn given_routing<T: Storage>() {
    for case in cases() {
        let MoeConfig { hidden_size: h, num_experts: e, top_k: k, .. } = case.config;
        let device = cpu();
        let data = Data::<T>::new(&case);
        let layer = layer(&device, &case, &data);
        let mut workspace = layer.workspace(case.tokens).unwrap();
        let mut rng = case.rng();
        let mut ids = rng.ids(case.tokens, e, k);
        ids.iter_mut().filter(|_| rng.below(3) == 0).for_each(|id| *id = -1);
        if let Some(first) = ids.get_mut(..k) {
            first.fill(-1);
        }
        let mut weights: Vec<f32> = rng.full(ids.len(), 0.7);
        let truth = expected(&case, &data, (&ids, &wide(&weights)), None);
        // Weights of what is not routed here are never read.
        for (weight, _) in weights.iter_mut().zip(&ids).filter(|&(_, &id)| id < 0) {
            *weight = f32::POISON;
        }
        let call = Call { routing: Some((&ids, &weights)), pad: LOOSE, ..Call::new(&data.x) };
        let given = forward(&device, &layer, &call, &mut workspace);
        let what = format!("{}: given routing", case.name);
        assert_within::<T>(&what, &wide(&given), &truth[0], &truth[1], h);

        let before = vec![T::POISON; given.len()];
        let call = Call { before: Some(&before), ..call };
        let given = forward(&device, &layer, &call, &mut workspace);
        for (token, ids) in ids.chunks(k).enumerate().filter(|(_, ids)| ids.iter().all(|&i| i < 0))
        {
            let kept = bits(&given[token * h..][..h]);
            assert!(kept.iter().all(|&b| b == T::POISON.bits()), "token {token} of {ids:?}");
        }
    }
}

#[test]
fn routing_of_the_caller() {
    for_each_storage!(T => given_routing::<T>());
}

/// Ids that mean another numbering, some of whose experts are elsewhere.
#[test]
fn an_expert_map() {
    let case = named("regular [");
    let MoeConfig { num_experts: e, top_k: k, .. } = case.config;
    let device = cpu();
    let data = Data::<f32>::new(&case);
    let layer = layer(&device, &case, &data);
    let mut workspace = layer.workspace(case.tokens).unwrap();
    let mut rng = case.rng();
    // Every local expert twice, among as many that are not here.
    let map: Vec<i32> =
        (0..4 * e as i32).map(|id| if id % 2 == 0 { -1 } else { id / 2 % e as i32 }).collect();
    let global = rng.ids(case.tokens, map.len(), k);
    let local: Vec<i32> = global.iter().map(|&id| map[id as usize]).collect();
    let weights: Vec<f32> = rng.full(global.len(), 1.0);
    let call =
        Call { routing: Some((&global, &weights)), expert_map: Some(&map), ..Call::new(&data.x) };
    let given = forward(&device, &layer, &call, &mut workspace);
    let [exact, plain] = expected(&case, &data, (&local, &wide(&weights)), None);
    assert_within::<f32>("mapped", &wide(&given), &exact, &plain, case.config.hidden_size);
}

/// A number of tokens that only the backend's memory knows.
#[test]
fn fewer_tokens_than_rows() {
    for case in cases().iter().filter(|case| case.tokens > 0) {
        let MoeConfig { hidden_size: h, top_k: k, .. } = case.config;
        let device = cpu();
        let data = Data::<bf16>::new(case);
        let layer = layer(&device, case, &data);
        let mut workspace = layer.workspace(case.tokens).unwrap();
        let all = forward(&device, &layer, &Call::new(&data.x), &mut workspace);
        for count in [0, 1, case.tokens / 2, case.tokens, case.tokens + 1] {
            let live = count.min(case.tokens);
            // What is past them must not matter.
            let mut x = data.x.clone();
            x[live * h..].fill(Bits::POISON);
            let call = Call { num_tokens: Some(count as u32), ..Call::new(&x) };
            let given = forward(&device, &layer, &call, &mut workspace);
            let what = format!("{}: {count} of {}", case.name, case.tokens);
            assert_exact(&what, &bits(&given[..live * h]), &bits(&all[..live * h]), h);
            assert!(given[live * h..].iter().all(|v| v.bits() == bf16::POISON.bits()), "{what}");
            let plan = device.read_plan(workspace.plan());
            assert_eq!(plan.token_of_row.len(), live * k, "{what}");
            let past = &plan.row_of_assignment[live * k..];
            assert!(past.iter().all(|&row| row == NOT_ROUTED), "{what}");
        }
    }
}

/// An expert named twice counts twice; ids past the experts are not routed here.
#[test]
fn odd_ids_of_the_caller() {
    let case = named("regular [");
    let device = cpu();
    let data = Data::<f32>::new(&case);
    let layer = layer(&device, &case, &data);
    let mut workspace = layer.workspace(64).unwrap();
    let ids: Vec<i32> =
        (0..64).flat_map(|token| [[3, 3], [8, 2], [i32::MIN, i32::MAX]][token % 3]).collect();
    let weights: Vec<f32> = case.rng().full(128, 1.0);
    let call = Call { routing: Some((&ids, &weights)), ..Call::new(&data.x) };
    let given = forward(&device, &layer, &call, &mut workspace);
    let [exact, plain] = expected(&case, &data, (&ids, &wide(&weights)), None);
    assert_within::<f32>("odd ids", &wide(&given), &exact, &plain, case.config.hidden_size);
    assert!(bits(&given[2 * 64..3 * 64]).iter().all(|&bits| bits == 0));
}

/// The router sees its own input, the experts the other.
fn router_input<T: Storage>() {
    for name in ["regular [", "ragged [T 33", "sixty"] {
        let case = named(name);
        let device = cpu();
        let data = Data::<T>::new(&case);
        let seen = Data::<T>::seeded(&case, &mut Rng::new(99)).x;
        // The seeds differ, the router's weight is data's: no margin is promised, so the choice
        // is taken from the logits that the layer computed.
        let layer = layer(&device, &case, &data);
        let mut workspace = layer.workspace(case.tokens).unwrap();
        let call = Call { router_input: Some(&seen), pad: LOOSE, ..Call::new(&data.x) };
        let given = forward(&device, &layer, &call, &mut workspace);
        let e = case.config.num_experts;
        let logits = wide(&read(&device, workspace.router_logits().unwrap()));
        let truth = data.routing_of(&seen, &case.config);
        assert_close("logits", &logits, &truth.logits, e, 1e-6);
        let own = reference::route(&case.config, logits);
        let [exact, plain] = expected(&case, &data, (&own.ids, &own.weights), None);
        let what = format!("{name}: router input");
        assert_within::<T>(&what, &wide(&given), &exact, &plain, case.config.hidden_size);
    }
}

#[test]
fn a_router_input_of_its_own() {
    for_each_storage!(T => router_input::<T>());
}

/// A gate that bf16 would round, in a bf16 layer.
#[test]
fn an_f32_router_in_a_bf16_layer() {
    let case = named("ragged [T 130");
    let device = cpu();
    let data = Data::<bf16>::new(&case);
    let (h, e) = (case.config.hidden_size, case.config.num_experts);
    let gate: Vec<f32> = Rng::new(5).full(e * h, 0.2);
    let layer = MoeLayer::new(
        Cpu,
        case.config.clone(),
        LayerWeights::new(
            RouterWeights::f32(gate.clone()),
            data.dense(case.shape(), GateUpLayout::GateFirst),
        ),
        &(),
    )
    .unwrap();
    let mut workspace = layer.workspace(case.tokens).unwrap();
    let given = forward(&device, &layer, &Call::new(&data.x), &mut workspace);
    let logits = wide(&read(&device, workspace.router_logits().unwrap()));
    let truth = reference::logits(&wide(&data.x), &wide(&gate), h, e);
    assert_close("logits", &logits, &truth, e, 1e-6);
    let own = reference::route(&case.config, logits);
    let [exact, plain] = expected(&case, &data, (&own.ids, &own.weights), None);
    assert_within::<bf16>("f32 router", &wide(&given), &exact, &plain, h);
}

/// Lengths at which 16-bit counts, 8192-token blocks and 17-bit indices end.
#[test]
fn long_inputs() {
    for (tokens, e, k) in [(8191, 5, 2), (8192, 1, 1), (8193, 40, 3), (131_072, 5, 2)] {
        let mut case = named("regular [");
        case.config = MoeConfig::new(8, 8, e, k);
        case.config.router.scoring = Scoring::Sigmoid;
        case.values = Values::Grid;
        case.tokens = tokens;
        case.name = format!("long [T {tokens}]");
        check_case::<f32>(&case);
        case.load = Load::OneHot;
        check_case::<bf16>(&case);
    }
}

/// A workspace with room to spare, with the traces of other work, or with NaN in it, gives the
/// same bits.
fn workspaces<T: Storage>() {
    for name in ["regular [", "ragged [T 130", "one taken by all", "no token", "all experts ["] {
        let case = named(name);
        let device = cpu();
        let data = Data::<T>::new(&case);
        let layer = layer(&device, &case, &data);
        let call = Call { pad: case.pad, ..Call::new(&data.x) };
        let fit =
            bits(&forward(&device, &layer, &call, &mut layer.workspace(case.tokens).unwrap()));

        let mut wide = layer.workspace(case.tokens + 200).unwrap();
        let h = case.config.hidden_size;
        let poison = vec![T::POISON; (case.tokens + 200) * h];
        forward(&device, &layer, &Call::new(&poison), &mut wide);
        assert!(bits(&forward(&device, &layer, &call, &mut wide)) == fit, "{name}: used workspace");

        // Another layer of the same configuration takes its turn.
        let other_data = Data::<T>::seeded(&case, &mut Rng::new(77));
        let other = common::layer(&device, &case, &other_data);
        forward(&device, &other, &Call::new(&other_data.x), &mut wide);
        assert!(
            bits(&forward(&device, &layer, &call, &mut wide)) == fit,
            "{name}: shared workspace"
        );
    }
}

#[test]
fn the_same_bits_in_any_workspace() {
    for_each_storage!(T => workspaces::<T>());
}

fn repeats<T: Storage>() {
    for name in ["one token [", "ragged [T 130", "long expert", "one taken by all", "160 experts"] {
        let case = named(name);
        let data = Data::<T>::new(&case);
        let layer = layer(&cpu(), &case, &data);
        let before: Vec<T> = case.rng().full(data.x.len(), 1.0);
        same_on_every_pool(&format!("{name} {}", T::NAME), || {
            let mut workspace = layer.workspace(case.tokens).unwrap();
            let call = Call { pad: case.pad, ..Call::new(&data.x) };
            let overwritten = forward(&cpu(), &layer, &call, &mut workspace);
            let call = Call { before: Some(&before), ..call };
            [bits(&overwritten), bits(&forward(&cpu(), &layer, &call, &mut workspace))]
        });
    }
}

#[test]
fn the_same_bits_every_time() {
    for_each_storage!(T => repeats::<T>());
}

#[test]
fn many_threads_share_a_layer() {
    let case = named("ragged [T 130");
    let data = Data::<bf16>::new(&case);
    let layer = layer(&cpu(), &case, &data);
    let go = || {
        let mut workspace = layer.workspace(case.tokens).unwrap();
        bits(&forward(&cpu(), &layer, &Call::new(&data.x), &mut workspace))
    };
    let alone = go();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(go)).collect();
        for thread in threads {
            assert!(thread.join().unwrap() == alone, "beside others");
        }
    });
}

fn one_faulty_token<T: Storage>() {
    let case = named("ragged [T 130");
    let device = cpu();
    let data = Data::<T>::new(&case);
    let layer = layer(&device, &case, &data);
    let mut workspace = layer.workspace(case.tokens).unwrap();
    let h = case.config.hidden_size;
    let clean = forward(&device, &layer, &Call::new(&data.x), &mut workspace);
    for fault in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut x = data.x.clone();
        x[64 * h..65 * h].fill(T::nearest(fault));
        let given = forward(&device, &layer, &Call::new(&x), &mut workspace);
        for token in 0..case.tokens {
            let own = token * h..(token + 1) * h;
            if token == 64 {
                assert!(
                    given[own].iter().all(|value| value.wide().is_nan()),
                    "the fault is hidden"
                );
            } else {
                assert_eq!(bits(&given[own.clone()]), bits(&clean[own]), "token {token}");
            }
        }
    }
}

#[test]
fn one_tokens_fault_touches_no_other() {
    for_each_storage!(T => one_faulty_token::<T>());
}

/// NaN in the weights of an expert that no token has is never seen.
#[test]
fn an_expert_without_tokens_is_never_read() {
    let case = named("every other expert empty");
    let device = cpu();
    let mut data = Data::<f32>::new(&case);
    let truth = data.routing(&case.config);
    let [exact, plain] = expected(&case, &data, (&truth.ids, &truth.weights), None);
    assert!(truth.ids.iter().all(|id| id % 2 == 1));
    let len = case.config.hidden_size * case.config.intermediate_size;
    for expert in (0..16).step_by(2) {
        for weights in [&mut data.gate, &mut data.up, &mut data.down] {
            weights[expert * len..][..len].fill(f32::NAN);
        }
    }
    let layer = layer(&device, &case, &data);
    let mut workspace = layer.workspace(case.tokens).unwrap();
    let given = forward(&device, &layer, &Call::new(&data.x), &mut workspace);
    assert_within::<f32>("empty experts", &wide(&given), &exact, &plain, case.config.hidden_size);
}

/// As documented on `Workspace::router_logits` and `Workspace::routing`: what the last forward
/// that ran the layer's own router left, whatever forwards with given routing came after.
#[test]
fn a_workspace_keeps_what_its_router_computed() {
    let case = named("regular [");
    let device = cpu();
    let data = Data::<f32>::new(&case);
    let layer = layer(&device, &case, &data);
    let mut workspace = layer.workspace(64).unwrap();
    let h = case.config.hidden_size;
    forward(&device, &layer, &Call::new(&data.x[..5 * h]), &mut workspace);
    let logits = read(&device, workspace.router_logits().unwrap());
    let ids = read(&device, workspace.routing().unwrap().topk_ids);
    assert_eq!((logits.len(), ids.len()), (5 * 8, 5 * 2));

    let own = (vec![1; 9 * 2], vec![0.5; 9 * 2]);
    let call = Call { routing: Some((&own.0, &own.1)), ..Call::new(&data.x[..9 * h]) };
    forward(&device, &layer, &call, &mut workspace);
    assert_eq!(workspace.plan().num_tokens(), 9);
    assert_exact("logits", &read(&device, workspace.router_logits().unwrap()), &logits, 8);
    assert_exact("ids", &read(&device, workspace.routing().unwrap().topk_ids), &ids, 2);
}

#[test]
fn sizes_in_bytes() {
    let case = named("ragged [T 130");
    let MoeConfig { hidden_size: h, intermediate_size: i, num_experts: e, top_k: k, .. } =
        case.config;
    let layer = layer(&cpu(), &case, &Data::<bf16>::new(&case));
    assert_eq!(layer.config(), &case.config);
    let parameters = case.config.parameters() as usize;
    assert_eq!(parameters, e * (3 * h * i + h));
    assert_eq!(case.config.active_parameters() as usize, k * 3 * h * i + e * h);
    // A backend may pad what it packs, but not by more than a panel of rows for each matrix.
    let bytes = layer.weight_bytes();
    let padded = 2 * (e * h + e * (2 * i.next_multiple_of(64) * h + h.next_multiple_of(64) * i));
    assert!((2 * parameters..=padded).contains(&bytes), "{bytes} for {parameters} parameters");

    let rows = 130 * k;
    let expected = 130 * e * 4 + rows * 8 + 4 * (2 * e + 1 + 2 * rows) + rows * (h + i) * 2;
    assert_eq!(Workspace::<Cpu, bf16>::bytes(&case.config, 130).unwrap(), expected);
    assert_eq!(layer.workspace(130).unwrap().max_tokens(), 130);
}

/// The pieces of the public interface that engines put into threads.
#[test]
fn layers_and_workspaces_are_send_and_sync() {
    fn check<T: Send + Sync>() {}
    check::<MoeLayer<Cpu, DenseExperts<bf16>>>();
    check::<Workspace<Cpu, f32>>();
    check::<RoutingPlan<Cpu>>();
    check::<moe_kernels::Error>();
}
