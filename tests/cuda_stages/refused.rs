//! What router, plan and combine refuse, by the error that says so; and that gates made of buffers are
//! those that weights make.

use half::bf16;
use moe_emulator::{EmulatedDriver, Options, Profile};
use moe_kernels::Error;
use moe_kernels::backend::Backend;
use moe_kernels::config::{Capacity, MoeConfig, Selection};
use moe_kernels::cuda::{CudaBuffer, CudaGate, Path};
use moe_kernels::memory::{Matrix, MatrixMut};
use moe_kernels::ops::{
    Combine, Gate as _, GateParts, Output, Plan, Router, RouterOutput, RoutingPlan, SharedRows,
};
use moe_kernels::weights::RouterWeights;

use super::common::*;

type Gate = CudaGate<EmulatedDriver, bf16>;
type Numbers = Option<CudaBuffer<EmulatedDriver, u32>>;

const TOKENS: usize = 3;

fn device() -> Option<Emulated> {
    emulated(Profile::sm_90(), Path::Auto, Options::checked(1))
}

fn config() -> MoeConfig {
    MoeConfig::new(8, 8, 4, 2)
}

fn gate(device: &Emulated) -> Gate {
    let matrix = Rng::new(1).full::<f32>(4 * 8, 1.0);
    CudaGate::f32([4, 8], device.put(&matrix)).unwrap()
}

/// A router of `gate`, with token ids, offsets of sequences and a number of tokens.
fn route(
    device: &Emulated,
    config: &MoeConfig,
    gate: &Gate,
    [token_ids, offsets, count]: [&Numbers; 3],
) -> Result<Routed, Error> {
    let x = device.put(&Rng::new(2).full::<bf16>(TOKENS * 8, 1.0));
    let (e, k) = (config.router_experts(), config.top_k);
    let mut logits = device.put(&vec![0f32; TOKENS * e]);
    let (mut ids, mut weights) =
        (device.put(&vec![0i32; TOKENS * k]), device.put(&vec![0f32; TOKENS * k]));
    let output = RouterOutput {
        router_logits: MatrixMut::contiguous("logits", &mut logits, TOKENS, e).unwrap(),
        topk_ids: MatrixMut::contiguous("ids", &mut ids, TOKENS, k).unwrap(),
        topk_weights: MatrixMut::contiguous("weights", &mut weights, TOKENS, k).unwrap(),
    };
    let x = Matrix::contiguous("x", &x, TOKENS, 8).unwrap();
    let mut op = Router::new(config, x, gate, output)?;
    if let Some(ids) = token_ids {
        op = op.with_token_ids(ids)?;
    }
    if let Some(offsets) = offsets {
        op = op.with_sequence_offsets(offsets)?;
    }
    if let Some(count) = count {
        op = op.with_num_tokens(count)?;
    }
    device.backend.router(op, &device.stream)?;
    Ok(Routed { logits: device.get(&logits), ids: device.get(&ids), weights: device.get(&weights) })
}

#[test]
fn parts_that_are_missing_or_too_many() {
    let Some(device) = device() else { return };
    let plain = config();
    let part = || device.put(&[0.5f32; 4]);
    type With<'a> = Box<dyn Fn(Gate) -> Gate + 'a>;
    type Part<'a> = (&'static str, fn(&mut MoeConfig), With<'a>);
    let of: [Part<'_>; 4] = [
        ("bias", |c| c.router.bias = true, Box::new(|gate| gate.with_bias(part()).unwrap())),
        (
            "selection_bias",
            |c| c.router.selection_bias = true,
            Box::new(|gate| gate.with_selection_bias(part()).unwrap()),
        ),
        (
            "expert_scale",
            |c| c.router.expert_scale = true,
            Box::new(|gate| gate.with_expert_scale(part()).unwrap()),
        ),
        (
            "input_scale",
            |c| c.router.norm_eps = Some(1e-6),
            Box::new(Gate::with_input_scale_folded),
        ),
    ];
    for (name, rule, with) in &of {
        let mut ruled = config();
        rule(&mut ruled);
        let (bare, complete) = (gate(&device), with(gate(&device)));
        refused!(
            route(&device, &ruled, &bare, [&None; 3]),
            Error::Value { .. },
            format!("router {name}"),
            "none",
            "given, by the configuration"
        );
        refused!(
            route(&device, &plain, &complete, [&None; 3]),
            Error::Value { .. },
            format!("router {name}"),
            "given",
            "none, by the configuration"
        );
        route(&device, &ruled, &complete, [&None; 3]).unwrap();
    }
    let short = || device.put(&[0f32; 3]);
    refused!(gate(&device).with_bias(short()), Error::Shape { .. }, "router bias", "[4]", "[3]");
    refused!(gate(&device).with_selection_bias(short()), Error::Shape { .. }, "selection_bias");
    refused!(gate(&device).with_expert_scale(short()), Error::Shape { .. }, "expert_scale");
}

#[test]
fn hash_tables_without_their_operands() {
    let Some(device) = device() else { return };
    let mut hashed = config();
    hashed.router.selection = Selection::HashTable { vocab_size: 3 };
    let table = |len: usize| gate(&device).with_hash_table(device.put(&vec![1i32; len]));
    let ids = |ids: &[u32]| Some(device.put(ids));
    let given = ids(&[2, 0, 3]);
    refused!(
        route(&device, &hashed, &table(6), [&None; 3]),
        Error::Value { .. },
        "token_ids",
        "none",
        "for a hash table"
    );
    refused!(
        route(&device, &hashed, &table(6), [&ids(&[0; 4]), &None, &None]),
        Error::Shape { .. },
        "token_ids",
        "[3]",
        "[4]"
    );
    for (gate, given_len) in [(gate(&device), "[0]"), (table(5), "[5]")] {
        let routed = route(&device, &hashed, &gate, [&given, &None, &None]);
        refused!(routed, Error::Shape { .. }, "hash_table", "[6]", given_len);
    }
    let surplus = route(&device, &config(), &table(6), [&given, &None, &None]);
    refused!(surplus, Error::Shape { .. }, "hash_table", "[0]", "[6]");
    let routed = route(&device, &hashed, &table(6), [&given, &None, &None]).unwrap();
    assert_exact("ids", &routed.ids, &[1, 1, 1, 1, -1, -1], 2);
}

#[test]
fn capacities_that_only_the_host_could_compute() {
    let Some(device) = device() else { return };
    let mut limited = config();
    limited.router.capacity = Capacity::Batch { fraction: 0.5 };
    let count = Some(device.put(&[2u32]));
    refused!(
        route(&device, &limited, &gate(&device), [&None, &None, &count]),
        Error::Unsupported { .. },
        "num_tokens",
        "capacity by batch"
    );
    limited.router.capacity = Capacity::Sequence { tokens: 1 };
    let offsets = Some(device.put(&[0u32]));
    refused!(
        route(&device, &limited, &gate(&device), [&None, &offsets, &None]),
        Error::View { .. },
        "sequence_offsets"
    );
    route(&device, &limited, &gate(&device), [&None, &None, &count]).unwrap();
}

#[test]
fn a_routers_buffers_of_another_device() {
    let (Some(device), Some(other)) = (device(), device()) else { return };
    let part = || other.put(&[0.5f32; 4]);
    let foreign = "of another backend";
    let refuse = |rule: fn(&mut MoeConfig), gate: Gate, numbers: [&Numbers; 3], name: &str| {
        let mut ruled = config();
        rule(&mut ruled);
        let routed = route(&device, &ruled, &gate, numbers);
        refused!(routed, Error::Value { .. }, name, foreign);
    };
    let none = [&None; 3];
    let own = || gate(&device);
    refuse(|_| {}, gate(&other), none, "gate");
    refuse(|c| c.router.bias = true, own().with_bias(part()).unwrap(), none, "router bias");
    refuse(
        |c| c.router.selection_bias = true,
        own().with_selection_bias(part()).unwrap(),
        none,
        "router selection_bias",
    );
    refuse(
        |c| c.router.expert_scale = true,
        own().with_expert_scale(part()).unwrap(),
        none,
        "router expert_scale",
    );
    let hash = |c: &mut MoeConfig| c.router.selection = Selection::HashTable { vocab_size: 2 };
    let (ids, foreign_ids) = (Some(device.put(&[0u32; 3])), Some(other.put(&[0u32; 3])));
    let table = own().with_hash_table(other.put(&[0i32; 4]));
    refuse(hash, table, [&ids, &None, &None], "hash_table");
    let table = own().with_hash_table(device.put(&[0i32; 4]));
    refuse(hash, table, [&foreign_ids, &None, &None], "token_ids");
    let limit = |c: &mut MoeConfig| c.router.capacity = Capacity::Sequence { tokens: 1 };
    refuse(limit, own(), [&None, &foreign_ids, &None], "sequence_offsets");
    refuse(limit, own(), [&None, &None, &foreign_ids], "num_tokens");
    route(&device, &config(), &own(), none).unwrap();
}

#[test]
fn a_plans_and_a_combines_buffers_of_another_device() {
    let (Some(device), Some(other)) = (device(), device()) else { return };
    let foreign = "of another backend";
    let ids = device.put(&[0i32, 1]);
    for (weights_of, out_of, name) in
        [(&other, &device, "topk_weights"), (&device, &other, "row weights")]
    {
        let mut plan = RoutingPlan::new(&device.backend, 2, 2).unwrap();
        let weights = weights_of.put(&[0f32; 2]);
        let mut out = out_of.put(&[0f32; 2]);
        let op = Plan::new(Matrix::contiguous("ids", &ids, 2, 1).unwrap(), None, &mut plan)
            .unwrap()
            .with_row_weights(Matrix::contiguous("weights", &weights, 2, 1).unwrap(), &mut out)
            .unwrap();
        refused!(device.backend.plan(op, &device.stream), Error::Value { .. }, name, foreign);
    }

    let plan = device.plan(&[0, 1], 1, 2);
    let rows = [device.put(&[bf16::ONE; 16]), other.put(&[bf16::ONE; 16])];
    let floats = [device.put(&[1f32; 8]), other.put(&[1f32; 8])];
    let all_ids = [ids, other.put(&[0i32, 1])];
    let names =
        ["topk_weights", "zero experts' input", "topk_ids", "shared rows", "shared weights"];
    for (wrong, name) in names.into_iter().chain(["output bias", ""]).enumerate() {
        let from = |place: usize| usize::from(wrong == place);
        let tokens = |place| Matrix::contiguous("rows", &rows[from(place)], 2, 8).unwrap();
        let column = |place| Matrix::contiguous("weights", &floats[from(place)], 2, 1).unwrap();
        let mut out = device.put(&[bf16::ZERO; 16]);
        let matrix = MatrixMut::contiguous("out", &mut out, 2, 8).unwrap();
        let rows = tokens(usize::MAX);
        let zero_ids = Matrix::contiguous("ids", &all_ids[from(2)], 2, 1).unwrap();
        let shared = SharedRows { rows: tokens(3), weights: Some(column(4)), scale: 1.0 };
        let op = Combine::new(rows, column(0), &plan, Output::overwrite(matrix))
            .and_then(|op| op.with_zero_experts(tokens(1), zero_ids, 2..3))
            .and_then(|op| op.with_shared(shared))
            .and_then(|op| op.with_bias(&floats[from(5)]))
            .unwrap();
        let combined = device.backend.combine(op, &device.stream);
        if name.is_empty() {
            combined.unwrap();
            assert_exact("afterwards", &wide(&device.get(&out)), &[3.0; 16], 8);
        } else {
            refused!(combined, Error::Value { .. }, name, foreign);
        }
    }
}

/// What an engine's own buffers give, and what the same weights give when they are uploaded.
#[test]
fn gates_made_of_buffers() {
    let Some(device) = device() else { return };
    let mut rng = Rng::new(9);
    let matrix = rng.full::<f32>(4 * 8, 1.0);
    let parts: [Vec<f32>; 4] = std::array::from_fn(|_| rng.full::<f32>(4, 0.5));
    let [bias, selection_bias, expert_scale, _] = &parts;
    let input_scale = rng.full::<f32>(8, 1.0);
    let mut config = config();
    config.router.bias = true;
    (config.router.selection_bias, config.router.expert_scale) = (true, true);
    config.router.norm_eps = Some(1e-6);

    let mut weights = RouterWeights::<bf16>::f32(matrix.clone());
    weights.bias = Some(bias.clone());
    weights.selection_bias = Some(selection_bias.clone());
    weights.expert_scale = Some(expert_scale.clone());
    weights.input_scale = Some(input_scale.clone());
    let uploaded = device.backend.prepare_gate([4, 8], weights, &device.stream).unwrap();

    let folded: Vec<f32> =
        matrix.iter().enumerate().map(|(at, weight)| weight * input_scale[at % 8]).collect();
    let made: Gate = CudaGate::f32([4, 8], device.put(&folded))
        .and_then(|gate| gate.with_bias(device.put(bias)))
        .and_then(|gate| gate.with_selection_bias(device.put(selection_bias)))
        .and_then(|gate| gate.with_expert_scale(device.put(expert_scale)))
        .unwrap()
        .with_input_scale_folded();
    assert_eq!(made.parts(), uploaded.parts());
    assert_ne!(made.parts(), GateParts::default());
    assert_eq!((made.bytes(), uploaded.bytes()), (4 * (32 + 12), 4 * (32 + 12)));
    let given = route(&device, &config, &made, [&None; 3]).unwrap();
    let expected = route(&device, &config, &uploaded, [&None; 3]).unwrap();
    assert_eq!(given.bits(), expected.bits());
}
