//! What the kernels of all families are put through.

use std::ops::Range;
use std::slice;

use half::{bf16, f16};
use moe_emulator::{EmulatedDriver, Options, Profile};
use moe_kernels::Cuda;
use moe_kernels::backend::Backend;
use moe_kernels::config::{ActivationFn, GateUpLayout};
use moe_kernels::cuda::tiles::{Family, TILES, Tile};
use moe_kernels::cuda::{CudaExperts, Path};
use moe_kernels::memory::{Matrix, MatrixMut};
use moe_kernels::ops::{Epilogue, ExpertShape, Gather, GroupedGemm, RoutingPlan};
use moe_kernels::weights::DenseExperts;

use crate::common::*;

const SWIGLU: Epilogue = Epilogue::Activation(ActivationFn::SwiGlu);

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
    shape: ExpertShape,
    poisoned: Option<usize>,
    /// One assignment for each token; some are not routed here.
    ids: Vec<i32>,
    plan: reference::Plan,
    data: Data<T>,
}

impl<T: Storage> Inputs<T> {
    fn new(shape: &Shape) -> Self {
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
        let shape = ExpertShape::gated(e, h, i);
        Self { shape, poisoned, ids, plan, data: Data { x, router: vec![], gate, up, down } }
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

/// What the three kernels of a tile are to store.
#[derive(Clone, PartialEq)]
struct Outputs<T> {
    pair: Vec<T>,
    activated: Vec<T>,
    down: Vec<T>,
}

impl<T: Storage> Outputs<T> {
    fn expected(inputs: &Inputs<T>) -> (Self, Vec<f64>) {
        let Inputs { shape, plan, data, .. } = inputs;
        let ExpertShape { hidden_size: h, intermediate_size: i, .. } = *shape;
        let rows = wide(&reference::permute(&data.x, plan, h));
        let product = |weights: &[T]| {
            reference::grouped_gemm(&rows, plan, &wide(weights), h, i, &reference::exact)
        };
        let (gate, up) = (product(&data.gate), product(&data.up));
        let nearest = |values: &[f64]| values.iter().map(|&v| T::nearest(v)).collect::<Vec<_>>();
        let beside: Vec<f64> =
            gate.chunks(i).zip(up.chunks(i)).flat_map(|(g, u)| [g, u].concat()).collect();
        let activated = reference::activation(ActivationFn::SwiGlu, &gate, &up, &reference::exact);
        let down = reference::grouped_gemm(
            &wide(&inputs.activated()),
            plan,
            &wide(&data.down),
            i,
            h,
            &reference::exact,
        );
        let activated = inputs.clean(&activated, i);
        let outputs = Self {
            pair: nearest(&inputs.clean(&beside, 2 * i)),
            activated: nearest(&activated),
            down: nearest(&inputs.clean(&down, h)),
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
    fn profile(&self) -> Profile {
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
    experts: Experts<T>,
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
        let (path, profile) = match tile.family {
            Family::HopperPrefill | Family::HopperDecode => (Path::Hopper, Profile::sm_90()),
            Family::PortablePrefill | Family::PortableDecode => (Path::Portable, variant.profile()),
        };
        let profile = profile.with_sm_count(variant.sm_count);
        let device = emulated_with(profile, path, options, slice::from_ref(tile))?;
        // Other addresses under each seed.
        device.put(&vec![0u32; 64 * variant.seed as usize]);
        let shape = inputs.shape;
        let gate_up = inputs.data.gate_up(shape, variant.layout);
        let down = &inputs.data.down;
        let experts = if variant.table {
            let matrix = shape.hidden_size * shape.intermediate_size;
            let of_each = gate_up
                .chunks(2 * matrix)
                .zip(down.chunks(matrix))
                .map(|(gate_up, down)| (device.put(gate_up), device.put(down)))
                .collect();
            let (backend, stream) = (&device.backend, &device.stream);
            CudaExperts::table(backend, shape, variant.layout, of_each, stream)
        } else {
            let (gate_up, down) = (device.put(&gate_up), device.put(down));
            CudaExperts::stacked(&device.backend, shape, variant.layout, gate_up, down)
        };
        let plan = device.plan(&inputs.ids, 1, shape.num_experts);
        Some(Self {
            device,
            inputs,
            experts: experts.unwrap(),
            plan,
            pad: variant.pad,
            gather: variant.gather,
        })
    }

    /// `x` of `rows` rows times one projection.
    fn run(&self, x: &[T], cols: usize, how: Option<(Gather, Epilogue)>, columns: usize) -> Vec<T> {
        let x = Placed::new(x, x.len() / cols, cols, self.pad);
        let x_buffer = x.put(&self.device);
        let out = Placed::poison(self.inputs.ids.len(), columns, self.pad);
        let mut out_buffer = out.put(&self.device);
        let x_matrix = Matrix::new("x", &x_buffer, x.layout).unwrap();
        let out_matrix = MatrixMut::new("out", &mut out_buffer, out.layout).unwrap();
        let (plan, experts) = (&self.plan, &self.experts);
        let op = match how {
            Some((gather, epilogue)) => {
                GroupedGemm::gate_up(x_matrix, gather, plan, experts, epilogue, out_matrix)
            }
            None => GroupedGemm::down(x_matrix, plan, experts, out_matrix),
        };
        let (backend, stream) = (&self.device.backend, &self.device.stream);
        backend.grouped_gemm::<DenseExperts<T>>(op.unwrap(), stream).unwrap();
        let rows = out.take("out", &self.device, &out_buffer);
        let routed = self.inputs.plan.token_of_row.len() * columns;
        let (routed, rest) = rows.split_at(routed);
        let poisoned = |value: &T| value.bits() == T::POISON.bits();
        assert!(rest.iter().all(poisoned), "rows past the last offset were written");
        self.inputs.clean(routed, columns)
    }

    fn outputs(&self) -> Outputs<T> {
        let Inputs { shape, ids, plan, data, .. } = self.inputs;
        let ExpertShape { hidden_size: h, intermediate_size: i, .. } = *shape;
        let packed = |mut rows: Vec<T>, cols: usize| {
            rows.resize(ids.len() * cols, T::POISON);
            rows
        };
        let rows = packed(reference::permute(&data.x, plan, h), h);
        let gate_up = |epilogue, columns| match self.gather {
            Gather::Packed => self.run(&rows, h, Some((Gather::Packed, epilogue)), columns),
            gather => self.run(&data.x, h, Some((gather, epilogue)), columns),
        };
        let pair = gate_up(Epilogue::Store, 2 * i);
        let activated = gate_up(SWIGLU, i);
        let down = self.run(&packed(self.inputs.activated(), i), i, None, h);
        Outputs { pair, activated, down }
    }
}

/// Every variant's outputs, under all checks: sums exactly, the activation closely and with the same
/// bits each time.
pub(crate) fn check<T: Storage>(tile: &'static Tile, shape: &Shape, seeds: Range<u64>) {
    let inputs = Inputs::<T>::new(shape);
    let ExpertShape { hidden_size: h, intermediate_size: i, .. } = inputs.shape;
    let (expected, exact) = Outputs::expected(&inputs);
    let mut first: Option<Outputs<T>> = None;
    for seed in seeds {
        let variant = Variant::of(seed);
        let options = Options::checked(seed);
        let Some(bench) = Bench::new(tile, &inputs, variant, options) else { return };
        let given = bench.outputs();
        let what = |output| {
            format!("{}x{} H {h} I {i} {output} {} {variant:?}", tile.rows, tile.columns, T::NAME)
        };
        assert_exact(&what("pair"), &bits(&given.pair), &bits(&expected.pair), 2 * i);
        assert_exact(&what("down"), &bits(&given.down), &bits(&expected.down), h);
        let (activated, plain) = (wide(&given.activated), wide(&expected.activated));
        assert_within::<T>(&what("activation"), &activated, &exact, &plain, i);
        if let Some(first) = &first {
            assert_exact(
                &what("activation, as before"),
                &bits(&given.activated),
                &bits(&first.activated),
                i,
            );
        }
        first.get_or_insert(given);
    }
}

/// Every shape in both types.
pub(crate) fn proves(tile: &'static Tile, shapes: &[Shape]) {
    for shape in shapes {
        check::<bf16>(tile, shape, 0..4);
        check::<f16>(tile, shape, 4..6);
    }
}

/// No shared-memory access of the tile's kernels needs more passes than its bytes do, and no store of the
/// portable ones more sectors, where the output's rows are whole sectors.
pub(crate) fn has_no_bank_conflict(tile: &'static Tile, shape: &Shape) {
    let inputs = Inputs::<bf16>::new(shape);
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
