//! Grouped GEMM: both projections, gathered and packed, fused and unfused, against the oracle.

#![cfg(feature = "cpu")]

mod common;

use common::*;
use moe_kernels::backend::Backend;
use moe_kernels::config::{ActivationFn, GateUpLayout};
use moe_kernels::memory::{Matrix, MatrixMut};
use moe_kernels::ops::{Activation, Epilogue, ExpertShape, Experts, Gather, GroupedGemm};
use moe_kernels::weights::DenseExperts;

const SWIGLU: Epilogue = Epilogue::Activation(ActivationFn::SwiGlu);

/// A case's experts on a backend, and the routing of its tokens.
struct Bench<B: Backend, T: Storage> {
    device: Device<B>,
    shape: ExpertShape,
    experts: B::Experts<DenseExperts<T>>,
    ids: Vec<i32>,
    top_k: usize,
    pad: Pad,
    plan: reference::Plan,
}

impl<B: Backend, T: Storage> Bench<B, T> {
    fn new(device: Device<B>, case: &Case, data: &Data<T>, ids: Vec<i32>) -> Self {
        let shape = case.shape();
        let experts = device
            .backend
            .prepare(data.dense(shape, GateUpLayout::GateFirst), &device.stream)
            .unwrap();
        assert_eq!(experts.shape(), shape);
        let top_k = case.config.top_k;
        let plan = reference::plan(&ids, top_k, shape.num_experts, None);
        Self { device, shape, experts, ids, top_k, pad: case.pad, plan }
    }

    fn routed(&self) -> usize {
        self.plan.token_of_row.len()
    }

    /// The rows that the plan uses; the others must be as they were.
    fn routed_rows(&self, what: &str, rows: Vec<T>, cols: usize) -> Vec<T> {
        let (routed, rest) = rows.split_at(self.routed() * cols);
        assert!(
            rest.iter().all(|value| value.bits() == T::POISON.bits()),
            "{what}: rows past the last offset were written"
        );
        routed.to_vec()
    }

    /// The gate and up projections of `x`, token by token or packed.
    fn gate_up(&self, x: &[T], gather: Gather, epilogue: Epilogue) -> Vec<T> {
        let ExpertShape { num_experts: e, hidden_size: h, intermediate_size: i, .. } = self.shape;
        let plan = self.device.plan(&self.ids, self.top_k, e);
        let x = Placed::new(x, x.len() / h, h, self.pad);
        let x_buffer = x.put(&self.device);
        let columns = if epilogue == Epilogue::Store { 2 * i } else { i };
        let out = Placed::poison(self.ids.len(), columns, self.pad);
        let mut out_buffer = out.put(&self.device);
        let op = GroupedGemm::gate_up(
            Matrix::new("x", &x_buffer, x.layout).unwrap(),
            gather,
            &plan,
            &self.experts,
            epilogue,
            MatrixMut::new("out", &mut out_buffer, out.layout).unwrap(),
        )
        .unwrap();
        self.device.backend.grouped_gemm::<DenseExperts<T>>(op, &self.device.stream).unwrap();
        self.routed_rows("gate_up", out.take("gate_up", &self.device, &out_buffer), columns)
    }

    fn down(&self, x: &[T]) -> Vec<T> {
        let ExpertShape { num_experts: e, hidden_size: h, intermediate_size: i, .. } = self.shape;
        let plan = self.device.plan(&self.ids, self.top_k, e);
        let x = Placed::new(x, self.ids.len(), i, self.pad);
        let x_buffer = x.put(&self.device);
        let out = Placed::poison(self.ids.len(), h, self.pad);
        let mut out_buffer = out.put(&self.device);
        let op = GroupedGemm::down(
            Matrix::new("x", &x_buffer, x.layout).unwrap(),
            &plan,
            &self.experts,
            MatrixMut::new("out", &mut out_buffer, out.layout).unwrap(),
        )
        .unwrap();
        self.device.backend.grouped_gemm::<DenseExperts<T>>(op, &self.device.stream).unwrap();
        self.routed_rows("down", out.take("down", &self.device, &out_buffer), h)
    }

    /// `values`, with poison in the rows past the last offset.
    fn packed(&self, values: &[T], cols: usize) -> Vec<T> {
        let mut packed = values.to_vec();
        assert_eq!(packed.len(), self.routed() * cols);
        packed.resize(self.ids.len() * cols, T::POISON);
        packed
    }
}

/// `[rows, 2I]` from the two products.
fn beside(gate: &[f64], up: &[f64], columns: usize) -> Vec<f64> {
    gate.chunks(columns).zip(up.chunks(columns)).flat_map(|(g, u)| [g, u].concat()).collect()
}

fn check_case<T: Storage>(case: &Case, ids: Vec<i32>) {
    let data = Data::<T>::new(case);
    let bench = Bench::new(cpu(), case, &data, ids);
    let ExpertShape { hidden_size: h, intermediate_size: i, .. } = bench.shape;
    let experts = data.experts();
    let store: reference::Store<'_> = &round::<T>;

    let rows = reference::permute(&data.x, &bench.plan, h);
    let product = |weights: &[f64], store| {
        reference::grouped_gemm(&wide(&rows), &bench.plan, weights, h, i, store)
    };
    let (gate, up) =
        (product(&experts.gate, &reference::exact), product(&experts.up, &reference::exact));
    let truth = beside(&gate, &up, i);
    let plain = beside(&product(&experts.gate, store), &product(&experts.up, store), i);
    let gathered = bench.gate_up(&data.x, Gather::TokenOfRow, Epilogue::Store);
    let what = format!("{}: gate_up", case.name);
    assert_within::<T>(&what, &wide(&gathered), &truth, &plain, 2 * i);
    let packed = bench.gate_up(&bench.packed(&rows, h), Gather::Packed, Epilogue::Store);
    assert_exact(&format!("{what} packed"), &bits(&packed), &bits(&gathered), 2 * i);

    let what = format!("{}: activated gate_up", case.name);
    let truth = reference::activation(ActivationFn::SwiGlu, &gate, &up, &reference::exact);
    let plain = reference::activation(ActivationFn::SwiGlu, &gate, &up, store);
    let fused = bench.gate_up(&data.x, Gather::TokenOfRow, SWIGLU);
    assert_within::<T>(&what, &wide(&fused), &truth, &plain, i);
    let packed = bench.gate_up(&bench.packed(&rows, h), Gather::Packed, SWIGLU);
    assert_exact(&format!("{what} packed"), &bits(&packed), &bits(&fused), i);

    // The same by two stages, which round once more in between.
    let unfused = unfused(&bench, &gathered);
    assert_close(&format!("{what}, by stages"), &wide(&unfused), &wide(&fused), i, 2.0 * T::BOUND);

    let what = format!("{}: down", case.name);
    let x: Vec<T> = case.rng().full(bench.routed() * i, 1.0);
    let product =
        |store| reference::grouped_gemm(&wide(&x), &bench.plan, &experts.down, i, h, store);
    let given = bench.down(&bench.packed(&x, i));
    assert_within::<T>(&what, &wide(&given), &product(&reference::exact), &product(store), h);
}

fn unfused<T: Storage>(bench: &Bench<moe_kernels::Cpu, T>, gate_up: &[T]) -> Vec<T> {
    let ExpertShape { num_experts: e, intermediate_size: i, .. } = bench.shape;
    let device = &bench.device;
    let plan = device.plan(&bench.ids, bench.top_k, e);
    let gate_up = device.put(&bench.packed(gate_up, 2 * i));
    let rows = bench.ids.len();
    let mut out = device.put(&vec![T::POISON; rows * i]);
    let op = Activation::new(
        ActivationFn::SwiGlu,
        Matrix::contiguous("gate_up", &gate_up, rows, 2 * i).unwrap(),
        &plan,
        MatrixMut::contiguous("out", &mut out, rows, i).unwrap(),
    )
    .unwrap();
    device.backend.activation(op, &device.stream).unwrap();
    bench.routed_rows("activation", device.get(&out), i)
}

fn every_case<T: Storage>() {
    for case in cases() {
        let ids = Data::<T>::new(&case).routing(&case.config).ids;
        check_case::<T>(&case, ids);
    }
}

#[test]
fn every_case_equals_the_oracle_f32() {
    every_case::<f32>();
}

#[test]
fn every_case_equals_the_oracle_bf16() {
    every_case::<half::bf16>();
}

#[test]
fn every_case_equals_the_oracle_f16() {
    every_case::<half::f16>();
}

/// Some assignments without a row, and all: rows past the last offset hold poison, which the
/// input's must not be read and the output's not be written.
#[test]
fn rows_past_the_last_offset_are_neither_read_nor_written() {
    for case in cases().iter().filter(|case| case.tokens > 0 && case.tokens <= 130) {
        let mut rng = case.rng();
        let mut ids = rng.ids(case.tokens, case.config.num_experts, case.config.top_k);
        ids.iter_mut().filter(|_| rng.below(3) == 0).for_each(|id| *id = -1);
        check_case::<half::bf16>(case, ids);
        check_case::<f32>(case, vec![-1; case.tokens * case.config.top_k]);
    }
}

fn layouts<T: Storage>() {
    for case in [named("regular"), named("long expert"), named("ragged [T 130")] {
        let data = Data::<T>::new(&case);
        let ids = data.routing(&case.config).ids;
        let of = |layout| {
            let mut bench = Bench::new(cpu(), &case, &data, ids.clone());
            bench.experts = bench
                .device
                .backend
                .prepare(data.dense(bench.shape, layout), &bench.device.stream)
                .unwrap();
            bits(&bench.gate_up(&data.x, Gather::TokenOfRow, SWIGLU))
        };
        let gate_first = of(GateUpLayout::GateFirst);
        assert!(of(GateUpLayout::UpFirst) == gate_first, "{}", case.name);
        assert!(of(GateUpLayout::Interleaved) == gate_first, "{}", case.name);
    }
}

#[test]
fn every_gate_up_layout_gives_the_same_bits() {
    for_each_storage!(T => layouts::<T>());
}

/// NaN and Inf in one row stay in it, and in one expert's weights with its own rows.
fn faults_stay_where_they_are<T: Storage>(fault: f64) {
    let case = named("ragged [T 130");
    let clean_data = Data::<T>::new(&case);
    let ids = clean_data.routing(&case.config).ids;
    let bench = Bench::new(cpu(), &case, &clean_data, ids.clone());
    let ExpertShape { hidden_size: h, intermediate_size: i, .. } = bench.shape;
    let clean = bench.gate_up(&clean_data.x, Gather::TokenOfRow, SWIGLU);

    let mut x = clean_data.x.clone();
    x[77 * h..][..h].fill(T::nearest(fault));
    let given = bench.gate_up(&x, Gather::TokenOfRow, SWIGLU);
    for (row, &token) in bench.plan.token_of_row.iter().enumerate() {
        let same = bits(&given[row * i..][..i]) == bits(&clean[row * i..][..i]);
        assert_eq!(same, token != 77, "row {row} of token {token}");
    }

    let expert = ids[0] as usize;
    let mut data = clean_data.clone();
    data.up[expert * i * h..][..i * h].fill(T::nearest(fault));
    let bench = Bench::new(cpu(), &case, &data, ids);
    let given = bench.gate_up(&data.x, Gather::TokenOfRow, SWIGLU);
    let own =
        bench.plan.expert_offsets[expert] as usize..bench.plan.expert_offsets[expert + 1] as usize;
    for row in 0..bench.routed() {
        let same = bits(&given[row * i..][..i]) == bits(&clean[row * i..][..i]);
        assert_eq!(same, !own.contains(&row), "row {row}");
    }
}

#[test]
fn faults_in_a_row_or_an_expert_stay_there() {
    for fault in [f64::NAN, f64::INFINITY] {
        for_each_storage!(T => faults_stay_where_they_are::<T>(fault));
    }
}

/// f32 products keep f32's precision: inputs are not cut to tf32 or bf16.
#[test]
fn f32_is_not_computed_in_less() {
    let case = named("long expert");
    let data = Data::<f32>::new(&case);
    let bench = Bench::new(cpu(), &case, &data, data.routing(&case.config).ids);
    let ExpertShape { hidden_size: h, intermediate_size: i, .. } = bench.shape;
    let given = bench.gate_up(&data.x, Gather::TokenOfRow, SWIGLU);
    let with = |round: fn(f64) -> f64| {
        let experts = data.experts();
        let rows = wide(&reference::permute(&data.x, &bench.plan, h));
        let rows: Vec<f64> = rows.into_iter().map(round).collect();
        let product = |weights: &[f64]| {
            reference::grouped_gemm(&rows, &bench.plan, weights, h, i, &reference::exact)
        };
        let (gate, up) = (product(&experts.gate), product(&experts.up));
        reference::activation(ActivationFn::SwiGlu, &gate, &up, &reference::exact)
    };
    let error = rel_l2(&wide(&given), &with(reference::exact), i).unwrap();
    // f16 has the 10 bits of tf32.
    let tf32 = rel_l2(&with(round::<half::f16>), &with(reference::exact), i).unwrap();
    assert!(error < 1e-6 && tf32 > 1e-4, "{error:e}, and {tf32:e} for tf32");
}

/// Sums are f32: a bf16 sum of 2000 ones would stop at 256, an f16 sum at 2048.
fn sums<T: Storage>() {
    let depth = 4096;
    let shape = ExpertShape::gated(1, depth, 8);
    let one = T::nearest(1.0);
    let ones = vec![one; 8 * depth];
    let data = Data {
        x: vec![one; depth],
        router: vec![],
        gate: ones.clone(),
        up: ones.clone(),
        down: ones,
    };
    let mut case = named("one token");
    case.config = moe_kernels::MoeConfig::new(depth, 8, 1, 1);
    let bench = Bench::new(cpu(), &case, &data, vec![0]);
    assert_eq!(bench.shape, shape);
    let given = bench.gate_up(&data.x, Gather::TokenOfRow, Epilogue::Store);
    assert_exact("sums", &wide(&given), &[4096.0; 16], 16);
}

#[test]
fn sums_are_made_in_f32() {
    for_each_storage!(T => sums::<T>());
}

fn repeats<T: Storage>() {
    for case in cases() {
        let data = Data::<T>::new(&case);
        let ids = data.routing(&case.config).ids;
        let bench = Bench::new(cpu(), &case, &data, ids);
        let x: Vec<T> = case.rng().full(bench.routed() * bench.shape.intermediate_size, 1.0);
        let packed = bench.packed(&x, bench.shape.intermediate_size);
        same_on_every_pool(&format!("{} {}", case.name, T::NAME), || {
            let stored = bench.gate_up(&data.x, Gather::TokenOfRow, Epilogue::Store);
            let fused = bench.gate_up(&data.x, Gather::TokenOfRow, SWIGLU);
            [bits(&stored), bits(&fused), bits(&bench.down(&packed))]
        });
    }
}

#[test]
fn the_same_bits_every_time() {
    for_each_storage!(T => repeats::<T>());
}

/// Every activation, with and without biases and weights of rows.
#[test]
fn every_rule_of_experts_equals_the_oracle() {
    for function in activations() {
        for (biases, row_weights) in [(false, false), (true, false), (false, true), (true, true)] {
            let rules = ExpertRules { function, biases, row_weights };
            for_each_storage!(T => {
                check_expert_rules::<_, T>(&cpu(), rules, ExpertShape::gated(5, 72, 40), 33);
            });
        }
    }
    // Past a block of rows and the 512 columns whose sums are made at a time.
    let function = ActivationFn::SwiGluOai { alpha: 1.702, limit: 7.0 };
    let rules = ExpertRules { function, biases: true, row_weights: true };
    check_expert_rules::<_, half::bf16>(&cpu(), rules, ExpertShape::gated(2, 24, 1048), 300);
}
