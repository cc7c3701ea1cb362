//! Whole layers of any rules: drawn by lot, computed token by token in f64, run on any backend.

use moe_kernels::MoeLayer;
use moe_kernels::backend::Backend;
use moe_kernels::config::{
    ActivationFn, GateUpLayout, MoeConfig, SharedCombine, SharedExpert, WeightOn,
};
use moe_kernels::element::DType;
use moe_kernels::memory::{Matrix, MatrixMut};
use moe_kernels::ops::{ExpertShape, LayerInput, Output};
use moe_kernels::weights::{
    DenseExperts, ExpertBiases, LayerWeights, RouterMatrix, SharedFormat, SharedWeights,
};

use super::reference::{self, Store, activation, exact};
use super::{
    Device, GATED, Placed, Rng, RouterCase, Storage, UNGATED, assert_close, assert_exact,
    random_rules, rel_l2, round, wide,
};

/// Experts' matrices as the oracle takes them.
struct Mlp<T> {
    shape: ExpertShape,
    gate: Vec<T>,
    up: Vec<T>,
    down: Vec<T>,
    biases: Option<ExpertBiases>,
}

impl<T: Storage> Mlp<T> {
    fn random(shape: ExpertShape, biases: bool, rng: &mut Rng) -> Self {
        let ExpertShape { num_experts: e, hidden_size: h, intermediate_size: i, gated } = shape;
        let into = 1.5 / (h as f64).sqrt();
        Self {
            shape,
            gate: rng.full(if gated { e * i * h } else { 0 }, into),
            up: rng.full(e * i * h, into),
            down: rng.full(e * h * i, 1.0 / (i as f64).sqrt()),
            biases: biases.then(|| ExpertBiases {
                gate_up: rng.full(e * shape.gate_up_columns(), 0.3),
                down: rng.full(e * h, 0.3),
            }),
        }
    }

    fn dense(&self) -> DenseExperts<T> {
        let ExpertShape { hidden_size: h, intermediate_size: i, gated, .. } = self.shape;
        let gate_up = match gated {
            false => self.up.clone(),
            true => {
                let halves = self.gate.chunks(i * h).zip(self.up.chunks(i * h));
                halves.flat_map(|(gate, up)| [gate, up].concat()).collect()
            }
        };
        let (layout, down) = (GateUpLayout::GateFirst, self.down.clone());
        let experts = DenseExperts::stacked(self.shape, layout, gate_up, down).unwrap();
        match &self.biases {
            None => experts,
            Some(biases) => experts.with_biases(biases.clone()).unwrap(),
        }
    }

    /// `factor * x · matrix_e^T + bias`.
    fn product(x: &[f64], matrix: &[T], expert: usize, columns: usize, bias: &[f32]) -> Vec<f64> {
        let depth = x.len();
        let matrix = &matrix[expert * columns * depth..][..columns * depth];
        let mut out = Vec::new();
        for (column, row) in matrix.chunks(depth).enumerate() {
            let sum: f64 = x.iter().zip(row).map(|(x, w)| x * w.wide()).sum();
            out.push(sum + bias.get(column).map_or(0.0, |&bias| f64::from(bias)));
        }
        out
    }

    /// One expert's output for one token.
    fn expert(
        &self,
        x: &[f64],
        expert: usize,
        function: ActivationFn,
        store: Store<'_>,
    ) -> Vec<f64> {
        let ExpertShape { hidden_size: h, intermediate_size: i, gated, .. } = self.shape;
        let columns = self.shape.gate_up_columns();
        let biases = self.biases.as_ref();
        let of_first = biases.map_or(&[][..], |b| &b.gate_up[expert * columns..][..columns]);
        let of_down = biases.map_or(&[][..], |b| &b.down[expert * h..][..h]);
        let (of_gate, of_up) = of_first.split_at(if gated && !of_first.is_empty() { i } else { 0 });
        let up = Self::product(x, &self.up, expert, i, of_up);
        let activated = match gated {
            true => {
                let gate = Self::product(x, &self.gate, expert, i, of_gate);
                activation(function, &gate, &up, store)
            }
            false => activation(function, &up, &[], store),
        };
        let rows = Self::product(&activated, &self.down, expert, h, of_down);
        rows.into_iter().map(store).collect()
    }
}

/// A layer with all that it needs.
pub(crate) struct AnyLayer<T: Storage> {
    router: RouterCase<T>,
    experts: Mlp<T>,
    shared: Option<(SharedExpert, Mlp<T>, Option<Vec<T>>)>,
    latent: Option<Mlp<T>>,
    output_bias: Option<Vec<f32>>,
}

/// Rules drawn by lot, among those that go together.
fn random_config(rng: &mut Rng) -> (usize, MoeConfig) {
    let of_both = |rng: &mut Rng| {
        let all = [&GATED[..], &UNGATED[..]].concat();
        all[rng.below(all.len())]
    };
    loop {
        let (tokens, mut config) = random_rules(rng);
        // Their matrices are multiplied naively, in f64.
        if config.num_experts > 64 || config.num_experts == 0 {
            continue;
        }
        config.intermediate_size = 8 * (1 + rng.below(12));
        // Negative factors would make sums cancel, and relative errors meaningless.
        config.router.scale = config.router.scale.abs();
        config.router.expert_scale = false;
        let rules = &mut config.experts;
        rules.activation = of_both(rng);
        rules.bias = rng.below(3) == 0;
        rules.output_bias = rng.below(4) == 0;
        rules.scale = [1.0, 1.0, 2.0, 0.8][rng.below(4)];
        if config.router.zero_experts == 0 {
            rules.weight_on = [WeightOn::Output, WeightOn::Output, WeightOn::Input][rng.below(3)];
            rules.latent_size = (rng.below(4) == 0).then(|| 8 * (1 + rng.below(5)));
        }
        let combine = [SharedCombine::Sum, SharedCombine::SigmoidGate, SharedCombine::Average];
        // Half of them alike to the routed experts.
        let alike = rng.below(2) == 0;
        let (own, other) = (config.intermediate_size * (1 + rng.below(3)), 8 * (1 + rng.below(12)));
        rules.shared = (rng.below(2) == 0).then(|| SharedExpert {
            intermediate_size: if alike { own } else { other },
            activation: if alike { rules.activation } else { of_both(rng) },
            combine: combine[rng.below(3)],
            merged: false,
        });
        let merged = config.can_merge_shared() && rng.below(4) > 0;
        config.experts.shared = config.experts.shared.map(|s| SharedExpert { merged, ..s });
        if config.validate().is_ok() {
            return (tokens, config);
        }
    }
}

impl<T: Storage> AnyLayer<T> {
    pub(crate) fn random(rng: &mut Rng) -> Self {
        let (tokens, config) = random_config(rng);
        let (h, rules) = (config.hidden_size, config.experts.clone());
        let shared = rules.shared.map(|rule| {
            let gated = rule.activation.is_gated();
            let shape = ExpertShape::gated(1, h, rule.intermediate_size);
            let mlp = Mlp::random(ExpertShape { gated, ..shape }, false, rng);
            let gate = (rule.combine == SharedCombine::SigmoidGate)
                .then(|| rng.full(h, 1.0 / (h as f64).sqrt()));
            (rule, mlp, gate)
        });
        let latent = rules
            .latent_size
            .map(|width| Mlp::random(ExpertShape::ungated(1, h, width), false, rng));
        Self {
            experts: Mlp::random(ExpertShape::from(&config), rules.bias, rng),
            shared,
            latent,
            output_bias: rules.output_bias.then(|| rng.full(h, 0.5)),
            router: RouterCase::new("a random layer", config, tokens, rng),
        }
    }

    fn weights(&self) -> LayerWeights<DenseExperts<T>> {
        let mut weights = LayerWeights::new(self.router.weights.clone(), self.experts.dense());
        weights.shared = self.shared.as_ref().map(|(_, mlp, gate)| SharedWeights {
            experts: SharedFormat::Same(mlp.dense()),
            gate: gate.clone().map(RouterMatrix::Model),
        });
        weights.latent = self.latent.as_ref().map(Mlp::dense);
        weights.output_bias = self.output_bias.clone();
        weights
    }

    /// The formulae of `RouterConfig` and `ExpertsConfig`, one token at a time.
    fn output(&self, routing: &reference::Routing, store: Store<'_>) -> Vec<f64> {
        let config = &self.router.config;
        let (h, k, e) = (config.hidden_size, config.top_k, config.num_experts as i32);
        let rules = &config.experts;
        let no_bias = &[];
        let mut out = Vec::new();
        for (token, x) in wide(&self.router.x).chunks(h).enumerate() {
            let inner = match &self.latent {
                None => x.to_vec(),
                Some(latent) => {
                    let width = latent.shape.intermediate_size;
                    let rows = Mlp::product(x, &latent.up, 0, width, no_bias);
                    rows.into_iter().map(store).collect()
                }
            };
            let mut sum = vec![0.0; inner.len()];
            for assignment in token * k..(token + 1) * k {
                let (id, weight) = (routing.ids[assignment], routing.weights[assignment]);
                let (before, after) = match rules.weight_on {
                    WeightOn::Input => (weight, 1.0),
                    WeightOn::Output => (1.0, weight),
                };
                let value = match id {
                    _ if id < 0 => continue,
                    _ if id >= e => inner.clone(),
                    id => {
                        let x: Vec<f64> = inner.iter().map(|x| before * x).collect();
                        self.experts.expert(&x, id as usize, rules.activation, store)
                    }
                };
                for (sum, value) in sum.iter_mut().zip(value) {
                    *sum += f64::from(rules.scale) * after * value;
                }
            }
            if let Some(latent) = &self.latent {
                let stored: Vec<f64> = sum.into_iter().map(store).collect();
                let rows = Mlp::product(&stored, &latent.down, 0, h, no_bias);
                sum = rows.into_iter().map(store).collect();
            }
            if let Some((rule, mlp, gate)) = &self.shared {
                let value = mlp.expert(x, 0, rule.activation, store);
                let sigmoid = |gate: &Vec<T>| {
                    let logit: f64 = x.iter().zip(gate).map(|(x, w)| x * w.wide()).sum();
                    1.0 / (1.0 + (-logit).exp())
                };
                let factor = gate.as_ref().map_or(1.0, sigmoid);
                let half = if rule.combine == SharedCombine::Average { 0.5 } else { 1.0 };
                for (sum, value) in sum.iter_mut().zip(value) {
                    *sum = half * (*sum + factor * value);
                }
            }
            for (h, sum) in sum.into_iter().enumerate() {
                let bias = self.output_bias.as_ref().map_or(0.0, |bias| f64::from(bias[h]));
                out.push(store(sum + bias));
            }
        }
        out
    }

    /// Routing exactly, and the output within the bounds; the output.
    pub(crate) fn check<B: Backend>(&self, on: &str, device: &Device<B>) -> Vec<f64> {
        let RouterCase { config, x, pad, token_ids, sequence_offsets, .. } = &self.router;
        let (h, k) = (config.hidden_size, config.top_k);
        let tokens = x.len() / h;
        let what = format!("{} {config:?} on {on}", T::NAME);
        let layer =
            MoeLayer::new(device.backend.clone(), config.clone(), self.weights(), &device.stream)
                .unwrap();
        let mut workspace = layer.workspace(tokens + 3).unwrap();
        let placed = Placed::new(x, tokens, h, *pad);
        let x_buffer = placed.put(device);
        let mut input = LayerInput::new(Matrix::new("x", &x_buffer, placed.layout).unwrap());
        let ids = token_ids.as_ref().map(|ids| device.put(ids));
        input.token_ids = ids.as_ref();
        let offsets = sequence_offsets.as_ref().map(|offsets| device.put(offsets));
        input.sequence_offsets = offsets.as_ref();
        let out = Placed::poison(tokens, h, *pad);
        let mut buffer = out.put(device);
        let matrix = MatrixMut::new("output", &mut buffer, out.layout).unwrap();
        layer.forward(&input, Output::overwrite(matrix), &mut workspace, &device.stream).unwrap();
        let given = wide(&out.take("output", device, &buffer));

        let truth = self.router.truth();
        let mut ids = device.get(workspace.routing().unwrap().topk_ids.buffer());
        ids.truncate(truth.ids.len());
        assert_exact(&format!("{what}: topk_ids"), &ids, &truth.ids, k);
        let expected = self.output(&truth, &exact);
        if T::DTYPE == DType::F32 {
            // Weights are within 5e-6.
            assert_close(&what, &given, &expected, h, 1e-5);
        } else {
            let plain = self.output(&truth, &round::<T>);
            assert_like_plain(&what, &given, &expected, &plain, h);
        }
        given
    }
}

/// The bounds of a 16-bit type, or twice the error of a plain implementation of that type where that is
/// more: with a latent width values are rounded five times, and few elements have no statistics.
#[track_caller]
fn assert_like_plain(what: &str, given: &[f64], truth: &[f64], plain: &[f64], cols: usize) {
    let error = rel_l2(given, truth, cols).unwrap();
    let of_plain = rel_l2(plain, truth, cols).unwrap();
    let bound =
        if given.len() < 256 { f64::max(1e-2, 2.0 * of_plain) } else { 2.0 * of_plain + 1e-6 };
    assert!(
        error <= bound,
        "{what}: relative L2 {error:.3e}, of a plain implementation {of_plain:.3e}"
    );
    let rms = (truth.iter().map(|v| v * v).sum::<f64>() / truth.len().max(1) as f64).sqrt();
    let rows = given.chunks(cols).zip(truth.chunks(cols)).zip(plain.chunks(cols));
    for (row, ((given, truth), plain)) in rows.enumerate() {
        let errors = plain.iter().zip(truth).map(|(a, b)| (a - b).abs());
        let worst = errors.fold(0.0, f64::max);
        for (col, (a, b)) in given.iter().zip(truth).enumerate() {
            let allowed = f64::max(2.0 * worst, 1e-2 * (b.abs() + 4.0 * rms));
            assert!(
                (a - b).abs() <= allowed,
                "{what}: [{row}, {col}] = {a:e}, expected {b:e} within {allowed:.3e}"
            );
        }
    }
}
