//! Experts of every rule, prepared from the host, on any backend.

use moe_kernels::backend::Backend;
use moe_kernels::config::{ActivationFn, GateUpLayout};
use moe_kernels::memory::{Matrix, MatrixMut};
use moe_kernels::ops::{Epilogue, ExpertShape, Experts, Gather, GroupedGemm};
use moe_kernels::weights::{DenseExperts, ExpertBiases};

use super::{
    Bits, Data, Device, LOOSE, Placed, Rng, Storage, assert_within, reference, round, wide,
};

/// What experts compute besides products.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpertRules {
    pub(crate) function: ActivationFn,
    pub(crate) biases: bool,
    pub(crate) row_weights: bool,
}

/// Both products of `tokens` tokens that each have two experts, or none, of `shape`.
pub(crate) fn check_expert_rules<B: Backend, T: Storage>(
    device: &Device<B>,
    rules: ExpertRules,
    shape: ExpertShape,
    tokens: usize,
) {
    let ExpertRules { function, biases, row_weights } = rules;
    let shape = ExpertShape { gated: function.is_gated(), ..shape };
    let ExpertShape { num_experts: e, hidden_size: h, intermediate_size: i, .. } = shape;
    let (columns, mut rng) = (shape.gate_up_columns(), Rng::new((h + i) as u64));
    let mut ids = rng.ids(tokens, e, 2);
    ids.iter_mut().for_each(|id| *id = if rng.below(4) == 0 { -1 } else { *id });
    let plan = reference::plan(&ids, 2, e, None);
    let routed = plan.token_of_row.len();
    let data = Data::<T> {
        x: rng.full(tokens * h, 1.0),
        router: vec![],
        gate: rng.full(e * i * h, 1.0 / (h as f64).sqrt()),
        up: rng.full(e * i * h, 1.0 / (h as f64).sqrt()),
        down: rng.full(e * i * h, 1.0 / (i as f64).sqrt()),
    };
    let (gate_up_bias, down_bias) =
        (rng.full::<f32>(e * columns, 0.5), rng.full::<f32>(e * h, 0.5));
    let mut weights = rng.full::<f32>(routed, 1.0);
    weights.resize(ids.len(), f32::POISON);

    let layout = GateUpLayout::Interleaved;
    let gate_up = if shape.gated { data.gate_up(shape, layout) } else { data.up.clone() };
    let mut experts = DenseExperts::stacked(shape, layout, gate_up, data.down.clone()).unwrap();
    if biases {
        let (gate_up, down) = (gate_up_bias.clone(), down_bias.clone());
        experts = experts.with_biases(ExpertBiases { gate_up, down }).unwrap();
    }
    let experts = device.backend.prepare(experts, &device.stream).unwrap();
    assert_eq!((experts.shape(), experts.has_biases()), (shape, biases));
    let plan_of_device = device.plan(&ids, 2, e);
    let weights_buffer = device.put(&weights);
    let run = |x: &[T], depth: usize, epilogue: Option<Epilogue>, columns: usize| {
        let x = Placed::new(x, x.len() / depth, depth, LOOSE);
        let out = Placed::poison(ids.len(), columns, LOOSE);
        let (x_buffer, mut out_buffer) = (x.put(device), out.put(device));
        let x = Matrix::new("x", &x_buffer, x.layout).unwrap();
        let matrix = MatrixMut::new("out", &mut out_buffer, out.layout).unwrap();
        let (plan, gather) = (&plan_of_device, Gather::TokenOfRow);
        let mut op = match epilogue {
            Some(how) => GroupedGemm::gate_up(x, gather, plan, &experts, how, matrix).unwrap(),
            None => GroupedGemm::down(x, plan, &experts, matrix).unwrap(),
        };
        if row_weights {
            op = op.with_row_weights(&weights_buffer).unwrap();
        }
        device.backend.grouped_gemm::<DenseExperts<T>>(op, &device.stream).unwrap();
        let mut rows = out.take("out", device, &out_buffer);
        let rest = rows.split_off(routed * columns);
        assert!(rest.iter().all(|value| value.bits() == T::POISON.bits()), "{rules:?}");
        wide(&rows)
    };

    let row_weights = row_weights.then(|| wide(&weights));
    let product = |x: &[f64], matrix: &[T], bias: Vec<f64>, depth, columns| {
        let matrix = wide(matrix);
        let sums = reference::grouped_gemm(x, &plan, &matrix, depth, columns, &reference::exact);
        let bias = biases.then_some(bias);
        reference::adjust(&sums, &plan, columns, row_weights.as_deref(), bias.as_deref())
    };
    // Of the gate where there is one, then of the up projection.
    let biases_of = |half: usize| {
        let of_each = gate_up_bias.chunks(columns).flat_map(|bias| &bias[half * i..][..i]);
        of_each.map(|&bias| bias.into()).collect::<Vec<f64>>()
    };
    let rows = wide(&reference::permute(&data.x, &plan, h));
    let up = product(&rows, &data.up, biases_of(usize::from(shape.gated)), h, i);
    let check = |what: &str,
                 given: &[f64],
                 expected: &dyn Fn(reference::Store<'_>) -> Vec<f64>,
                 columns| {
        let (truth, plain) = (expected(&reference::exact), expected(&round::<T>));
        let what = format!("{what} {shape:?} {rules:?}");
        assert_within::<T>(&what, given, &truth, &plain, columns);
    };
    let rounded = |values: &[f64], store: reference::Store<'_>| {
        values.iter().map(|&value| store(value)).collect::<Vec<_>>()
    };
    let given = run(&data.x, h, Some(Epilogue::Store), columns);
    let activated = run(&data.x, h, Some(Epilogue::Activation(function)), i);
    if shape.gated {
        let gate = product(&rows, &data.gate, biases_of(0), h, i);
        let beside: Vec<f64> =
            gate.chunks(i).zip(up.chunks(i)).flat_map(|(g, u)| [g, u].concat()).collect();
        check("gate_up", &given, &|store| rounded(&beside, store), columns);
        let truth =
            |store: reference::Store<'_>| reference::activation(function, &gate, &up, store);
        check("activated", &activated, &truth, i);
    } else {
        check("up", &given, &|store| rounded(&up, store), columns);
        let truth = |store: reference::Store<'_>| reference::activation(function, &up, &[], store);
        check("activated", &activated, &truth, i);
    }
    let x: Vec<T> = rng.full(routed * i, 1.0);
    let down = product(&wide(&x), &data.down, wide(&down_bias), i, h);
    let mut packed = x;
    packed.resize(ids.len() * i, T::POISON);
    check("down", &run(&packed, i, None, h), &|store| rounded(&down, store), h);
}
