//! What the kernels of all families are put through.

use std::ops::Range;
use std::slice;

use half::{bf16, f16};
use moe_emulator::{EmulatedDriver, Options, Profile};
use moe_kernels::Cuda;
use moe_kernels::backend::Backend;
use moe_kernels::config::{ActivationFn, GateUpLayout};
use moe_kernels::cuda::tiles::{Family, TILES, Tile};
use moe_kernels::cuda::{CudaBuffer, CudaExperts, Path};
use moe_kernels::memory::{Matrix, MatrixMut};
use moe_kernels::ops::{Epilogue, ExpertShape, Gather, GroupedGemm, RoutingPlan};
use moe_kernels::weights::DenseExperts;

use crate::common::*;

/// What a check's experts compute besides products.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    gated: ActivationFn,
    ungated: ActivationFn,
    biases: bool,
    row_weights: bool,
}

impl Rules {
    /// Every tile's checks are numbered from 0: within four of them each combination of biases and
    /// weights comes up, and every activation within all tiles.
    pub(crate) fn of(tile: &'static Tile, check: usize) -> Self {
        let which = check + TILES.iter().position(|t| t == tile).unwrap();
        Self {
            gated: GATED[which % GATED.len()],
            ungated: UNGATED[which % UNGATED.len()],
            biases: check % 4 > 1 && tile.adjusts(),
            row_weights: check % 2 == 1 && tile.adjusts(),
        }
    }
}

/// The row of the table with this kernel.
pub(crate) fn tile(family: Family, rows: u32, columns: u32) -> &'static Tile {
    let is_it = |t: &&Tile| (t.family, t.rows, t.columns) == (family, rows, columns);
    TILES.iter().find(is_it).expect("a row of the table")
}

/// Rows of each expert, H and I.
pub(crate) struct Shape {
    pub(crate) rows: &'static [usize],
    /// An expert whose tokens and weights are NaN, which its neighbours' rows must not show.
    pub(crate) poisoned: Option<usize>,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
}

/// Inputs whose products and sums are exact in f32, so that a stored sum has one right value.
struct Inputs<T> {
    /// With a gate; the experts without one have the up and the down projections of these.
    shape: ExpertShape,
    rules: Rules,
    poisoned: Option<usize>,
    /// One assignment for each token; some are not routed here.
    ids: Vec<i32>,
    plan: reference::Plan,
    data: Data<T>,
    /// Of the gate, the up and the down projection: `[E, columns]`.
    biases: [Vec<f32>; 3],
    row_weights: Vec<f32>,
}

impl<T: Storage> Inputs<T> {
    fn new(shape: &Shape, rules: Rules) -> Self {
        let &Shape { rows, poisoned, hidden_size: h, intermediate_size: i } = shape;
        let e = rows.len();
        let mut rng = Rng::new((h * 1000 + i) as u64);
        let mut ids = vec![-1; 5];
        for (expert, &rows) in rows.iter().enumerate() {
            ids.extend(vec![expert as i32; rows]);
        }
        for place in (1..ids.len()).rev() {
            ids.swap(place, rng.below(place + 1));
        }
        let mut x = rng.grid::<T>(ids.len() * h, 2, 0.5);
        for (token, &id) in ids.iter().enumerate() {
            if id < 0 || poisoned == Some(id as usize) {
                x[token * h..][..h].fill(T::POISON);
            }
        }
        let mut weights = |len| rng.grid::<T>(len, 2, 0.25);
        let mut weights = || {
            let mut weights = weights(e * i * h);
            if let Some(expert) = poisoned {
                weights[expert * i * h..][..i * h].fill(T::POISON);
            }
            weights
        };
        let (gate, up, down) = (weights(), weights(), weights());
        let plan = reference::plan(&ids, 1, e, None);
        let mut biases = |columns| {
            let mut biases = rng.grid::<f32>(e * columns, 8, 0.125);
            if let Some(expert) = poisoned {
                biases[expert * columns..][..columns].fill(f32::POISON);
            }
            biases
        };
        let biases = [biases(i), biases(i), biases(h)];
        let mut row_weights: Vec<f32> =
            (0..ids.len()).map(|_| [1.0, 0.5, -2.0, 0.0, 0.25][rng.below(5)]).collect();
        row_weights[plan.token_of_row.len()..].fill(f32::POISON);
        let shape = ExpertShape::gated(e, h, i);
        let data = Data { x, router: vec![], gate, up, down };
        Self { shape, rules, poisoned, ids, plan, data, biases, row_weights }
    }

    /// Of the first product of all experts, in the layout of biases.
    fn gate_up_biases(&self, gated: bool) -> Vec<f32> {
        let [gate, up, _] = &self.biases;
        let i = self.shape.intermediate_size;
        if !gated {
            return up.clone();
        }
        gate.chunks(i).zip(up.chunks(i)).flat_map(|(g, u)| [g, u].concat()).collect()
    }

    /// Rows of I in expert order.
    fn activated(&self) -> Vec<T> {
        let cols = self.shape.intermediate_size;
        let len = self.plan.token_of_row.len() * cols;
        let mut rows = Rng::new(len as u64).grid(len, 2, 0.5);
        let poisoned = self.poisoned_rows();
        rows[poisoned.start * cols..poisoned.end * cols].fill(T::POISON);
        rows
    }

    fn poisoned_rows(&self) -> Range<usize> {
        let offset = |expert| self.plan.expert_offsets[expert] as usize;
        self.poisoned.map_or(0..0, |expert| offset(expert)..offset(expert + 1))
    }

    /// The rows of experts that are not poisoned.
    fn clean<V: Copy>(&self, values: &[V], cols: usize) -> Vec<V> {
        let poisoned = self.poisoned_rows();
        [&values[..poisoned.start * cols], &values[poisoned.end * cols..]].concat()
    }
}

/// What a tile's kernels are to store, of experts with a gate and without.
#[derive(Clone, PartialEq)]
struct Outputs<T> {
    pair: Vec<T>,
    single: Vec<T>,
    down: Vec<T>,
    activated: [Vec<T>; 2],
}

impl<T: Storage> Outputs<T> {
    /// And what is activated, before it is rounded.
    fn expected(inputs: &Inputs<T>) -> (Self, [Vec<f64>; 2]) {
        let Inputs { shape, rules, plan, data, biases, .. } = inputs;
        let ExpertShape { hidden_size: h, intermediate_size: i, .. } = *shape;
        let rows = wide(&reference::permute(&data.x, plan, h));
        let row_weights = rules.row_weights.then(|| wide(&inputs.row_weights));
        let product = |x: &[f64], weights: &[T], biases: &[f32], depth, columns| {
            let weights = wide(weights);
            let sums =
                reference::grouped_gemm(x, plan, &weights, depth, columns, &reference::exact);
            let biases = rules.biases.then(|| wide(biases));
            reference::adjust(&sums, plan, columns, row_weights.as_deref(), biases.as_deref())
        };
        let gate = product(&rows, &data.gate, &biases[0], h, i);
        let up = product(&rows, &data.up, &biases[1], h, i);
        let down = product(&wide(&inputs.activated()), &data.down, &biases[2], i, h);
        let nearest = |values: &[f64]| values.iter().map(|&v| T::nearest(v)).collect::<Vec<_>>();
        let beside: Vec<f64> =
            gate.chunks(i).zip(up.chunks(i)).flat_map(|(g, u)| [g, u].concat()).collect();
        let activated = [
            reference::activation(rules.gated, &gate, &up, &reference::exact),
            reference::activation(rules.ungated, &up, &[], &reference::exact),
        ];
        let activated = activated.map(|values| inputs.clean(&values, i));
        let outputs = Self {
            pair: nearest(&inputs.clean(&beside, 2 * i)),
            single: nearest(&inputs.clean(&up, i)),
            down: nearest(&inputs.clean(&down, h)),
            activated: activated.each_ref().map(|values| nearest(values)),
        };
        (outputs, activated)
    }
}

/// How a run is varied: none of this may change a bit of the outputs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variant {
    pub(crate) seed: u64,
    pub(crate) layout: GateUpLayout,
    /// Each expert in a buffer of its own.
    pub(crate) table: bool,
    /// Multiprocessors, and with them blocks.
    pub(crate) sm_count: u32,
    pub(crate) pad: Pad,
    pub(crate) gather: Gather,
}

impl Variant {
    /// Every choice comes up within six seeds.
    pub(crate) fn of(seed: u64) -> Self {
        use GateUpLayout::{GateFirst, Interleaved, UpFirst};
        let which = seed as usize;
        Self {
            seed,
            layout: [GateFirst, UpFirst, Interleaved][which % 3],
            table: which / 3 % 2 == 1,
            sm_count: [4, 1, 3, 2][which % 4],
            pad: if which.is_multiple_of(2) { TIGHT } else { LOOSE },
            gather: if which % 4 == 2 { Gather::Packed } else { Gather::TokenOfRow },
        }
    }

    /// For kernels that run on each.
    pub(crate) fn profile(&self) -> Profile {
        match self.seed % 4 {
            0 => Profile::sm_80(),
            1 => Profile::sm_86(),
            2 => Profile::sm_90(),
            _ => Profile::sm_120(),
        }
    }
}

type Experts<T> = CudaExperts<EmulatedDriver, T>;

/// One device with one tile.
struct Bench<'a, T: Storage> {
    device: Device<Cuda<EmulatedDriver>>,
    inputs: &'a Inputs<T>,
    gated: Experts<T>,
    ungated: Experts<T>,
    row_weights: CudaBuffer<EmulatedDriver, f32>,
    plan: RoutingPlan<Cuda<EmulatedDriver>>,
    pad: Pad,
    gather: Gather,
}

impl<'a, T: Storage> Bench<'a, T> {
    fn new(
        tile: &'static Tile,
        inputs: &'a Inputs<T>,
        variant: Variant,
        options: Options,
    ) -> Option<Self> {
        let (path, profile) = match tile.family.is_hopper() {
            true => (Path::Hopper, Profile::sm_90()),
            false => (Path::Portable, variant.profile()),
        };
        let profile = profile.with_sm_count(variant.sm_count);
        let device = emulated_with(profile, path, options, slice::from_ref(tile))?;
        // Other addresses under each seed.
        device.put(&vec![0u32; 64 * variant.seed as usize]);
        let shape = inputs.shape;
        let gate_up = inputs.data.gate_up(shape, variant.layout);
        let gated = experts(&device, shape, &gate_up, inputs, variant);
        let shape = ExpertShape { gated: false, ..shape };
        let ungated = experts(&device, shape, &inputs.data.up, inputs, variant);
        let plan = device.plan(&inputs.ids, 1, shape.num_experts);
        let row_weights = device.put(&inputs.row_weights);
        let (pad, gather) = (variant.pad, variant.gather);
        Some(Self { device, inputs, gated, ungated, row_weights, plan, pad, gather })
    }

    /// `x` of `rows` rows times one projection.
    fn run(
        &self,
        experts: &Experts<T>,
        x: &[T],
        cols: usize,
        how: Option<(Gather, Epilogue)>,
        columns: usize,
    ) -> Vec<T> {
        let x = Placed::new(x, x.len() / cols, cols, self.pad);
        let x_buffer = x.put(&self.device);
        let out = Placed::poison(self.inputs.ids.len(), columns, self.pad);
        let mut out_buffer = out.put(&self.device);
        let x_matrix = Matrix::new("x", &x_buffer, x.layout).unwrap();
        let out_matrix = MatrixMut::new("out", &mut out_buffer, out.layout).unwrap();
        let plan = &self.plan;
        let op = match how {
            Some((gather, epilogue)) => {
                GroupedGemm::gate_up(x_matrix, gather, plan, experts, epilogue, out_matrix)
            }
            None => GroupedGemm::down(x_matrix, plan, experts, out_matrix),
        };
        let mut op = op.unwrap();
        if self.inputs.rules.row_weights {
            op = op.with_row_weights(&self.row_weights).unwrap();
        }
        let (backend, stream) = (&self.device.backend, &self.device.stream);
        backend.grouped_gemm::<DenseExperts<T>>(op, stream).unwrap();
        let rows = out.take("out", &self.device, &out_buffer);
        let routed = self.inputs.plan.token_of_row.len() * columns;
        let (routed, rest) = rows.split_at(routed);
        let poisoned = |value: &T| value.bits() == T::POISON.bits();
        assert!(rest.iter().all(poisoned), "rows past the last offset were written");
        self.inputs.clean(routed, columns)
    }

    fn outputs(&self) -> Outputs<T> {
        let Inputs { shape, rules, ids, plan, data, .. } = self.inputs;
        let ExpertShape { hidden_size: h, intermediate_size: i, .. } = *shape;
        let packed = |mut rows: Vec<T>, cols: usize| {
            rows.resize(ids.len() * cols, T::POISON);
            rows
        };
        let rows = packed(reference::permute(&data.x, plan, h), h);
        let first = |experts, epilogue, columns| match self.gather {
            Gather::Packed => {
                self.run(experts, &rows, h, Some((Gather::Packed, epilogue)), columns)
            }
            gather => self.run(experts, &data.x, h, Some((gather, epilogue)), columns),
        };
        Outputs {
            pair: first(&self.gated, Epilogue::Store, 2 * i),
            single: first(&self.ungated, Epilogue::Store, i),
            activated: [
                first(&self.gated, Epilogue::Activation(rules.gated), i),
                first(&self.ungated, Epilogue::Activation(rules.ungated), i),
            ],
            down: self.run(&self.gated, &packed(self.inputs.activated(), i), i, None, h),
        }
    }
}

/// Experts on a device: stacked, or each in memory of its own.
fn experts<T: Storage>(
    device: &Device<Cuda<EmulatedDriver>>,
    shape: ExpertShape,
    gate_up: &[T],
    inputs: &Inputs<T>,
    variant: Variant,
) -> Experts<T> {
    let Device { backend, stream } = device;
    let down = &inputs.data.down;
    let experts = if variant.table {
        let matrix = shape.hidden_size * shape.intermediate_size;
        let of_each = gate_up
            .chunks(shape.gate_up_columns() * shape.hidden_size)
            .zip(down.chunks(matrix))
            .map(|(gate_up, down)| (device.put(gate_up), device.put(down)))
            .collect();
        CudaExperts::table(backend, shape, variant.layout, of_each, stream)
    } else {
        let (gate_up, down) = (device.put(gate_up), device.put(down));
        CudaExperts::stacked(backend, shape, variant.layout, gate_up, down)
    };
    if !inputs.rules.biases {
        return experts.unwrap();
    }
    let gate_up = device.put(&inputs.gate_up_biases(shape.gated));
    let down = device.put(&inputs.biases[2]);
    experts.unwrap().with_biases(backend, gate_up, down).unwrap()
}

/// Every variant's outputs, under all checks: sums exactly, activations closely and with the same bits
/// each time.
pub(crate) fn check<T: Storage>(
    tile: &'static Tile,
    shape: &Shape,
    rules: Rules,
    seeds: Range<u64>,
) {
    let inputs = Inputs::<T>::new(shape, rules);
    let ExpertShape { hidden_size: h, intermediate_size: i, .. } = inputs.shape;
    let (expected, exact) = Outputs::expected(&inputs);
    let mut first: Option<Outputs<T>> = None;
    for seed in seeds {
        let variant = Variant::of(seed);
        let options = Options::checked(seed);
        let Some(bench) = Bench::new(tile, &inputs, variant, options) else { return };
        let given = bench.outputs();
        let what = |output| {
            let name = T::NAME;
            format!(
                "{}x{} H {h} I {i} {output} {name} {variant:?} {rules:?}",
                tile.rows, tile.columns
            )
        };
        assert_exact(&what("pair"), &bits(&given.pair), &bits(&expected.pair), 2 * i);
        assert_exact(&what("single"), &bits(&given.single), &bits(&expected.single), i);
        assert_exact(&what("down"), &bits(&given.down), &bits(&expected.down), h);
        for (which, given) in given.activated.iter().enumerate() {
            let what = what(["activation with a gate", "activation"][which]);
            let plain = wide(&expected.activated[which]);
            assert_within::<T>(&what, &wide(given), &exact[which], &plain, i);
            if let Some(first) = &first {
                let what = format!("{what}, as before");
                assert_exact(&what, &bits(given), &bits(&first.activated[which]), i);
            }
        }
        first.get_or_insert(given);
    }
}

/// Every shape in both types.
pub(crate) fn proves(tile: &'static Tile, shapes: &[Shape]) {
    for (at, shape) in shapes.iter().enumerate() {
        check::<bf16>(tile, shape, Rules::of(tile, 2 * at + 3), 0..4);
        check::<f16>(tile, shape, Rules::of(tile, 2 * at), 4..6);
    }
}

/// No shared-memory access of the tile's kernels needs more passes than its bytes do, and no store of the
/// portable ones more sectors, where the output's rows are whole sectors.
pub(crate) fn has_no_bank_conflict(tile: &'static Tile, shape: &Shape) {
    let inputs = Inputs::<bf16>::new(shape, Rules::of(tile, 3));
    let options = Options { lint: true, ..Options::checked(1) };
    let Some(bench) = Bench::new(tile, &inputs, Variant::of(0), options) else { return };
    bench.outputs();
    let report = bench.device.backend.driver().lint_report();
    let ours = |line: &&str| line.starts_with("shared ") && line.contains("grouped_gemm");
    let shared: Vec<&str> = report.lines().filter(ours).collect();
    for line in &shared {
        assert!(line.contains(" 1.00 times the passes"), "{line}");
    }
    let portable = |line: &&str| line.starts_with("global store ") && line.contains("portable_");
    for line in report.lines().filter(portable) {
        assert!(line.contains(" 1.00 times the sectors"), "{line}");
    }
    // The lint must have seen the prefill kernels' staged output and the portable ones' ldmatrix.
    assert_eq!(shared.is_empty(), tile.family == Family::HopperDecode, "{report}");
}
