//! Quantised experts with their values in f64, by formulae of their own.

use half::bf16;
use moe_kernels::Result;
use moe_kernels::backend::Backend;
use moe_kernels::config::ActivationFn;
use moe_kernels::element::Float;
use moe_kernels::memory::{Matrix, MatrixMut};
use moe_kernels::ops::{Epilogue, ExpertShape, Gather, GroupedGemm};
use moe_kernels::weights::{
    ExpertBiases, ExpertMatrix, QuantFormat, QuantSource, QuantisedExperts, QuantisedMatrix, Scales,
};

use super::{
    Bits as _, Device, Pad, Placed, Rng, Storage, assert_exact, assert_within, bits, reference,
    round, wide,
};

/// What scales are drawn from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Draw {
    /// Codes and scales whose products and sums with small multiples of 1/2 are exact in f32.
    Exact,
    /// Any number that the format has, within what sums can hold.
    Any,
}

/// One expert's matrix.
#[derive(Clone, Debug)]
pub(crate) struct QuantMatrix {
    pub(crate) dims: [usize; 2],
    pub(crate) codes: Vec<u8>,
    /// As bits: of f32, e8m0 or bf16.
    pub(crate) scales: Vec<u32>,
}

/// All matrices of all experts: gate, up, down.
#[derive(Clone, Debug)]
pub(crate) struct QuantData {
    pub(crate) format: QuantFormat,
    pub(crate) shape: ExpertShape,
    pub(crate) experts: Vec<[QuantMatrix; 3]>,
}

impl QuantData {
    pub(crate) fn new(format: QuantFormat, shape: ExpertShape, draw: Draw, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let mut matrix = |which: ExpertMatrix| {
            let dims = which.dims(shape);
            let [rows, columns] = format.scale_dims(dims);
            let mut code = || match (format, draw) {
                // Exponents 6 to 8: from 1/2 to below 4, in eighths of them.
                (QuantFormat::Fp8Block, Draw::Exact) => {
                    (rng.below(2) << 7 | (6 + rng.below(3)) << 3 | rng.below(8)) as u8
                }
                // No NaN.
                (QuantFormat::Fp8Block, Draw::Any) => (rng.below(2) << 7 | rng.below(127)) as u8,
                _ => rng.below(256) as u8,
            };
            let codes = (0..format.code_bytes(dims)).map(|_| code()).collect();
            let mut scale = || match (format, draw) {
                (QuantFormat::Fp8Block, Draw::Exact) => [0.5f32, 1.0, 2.0][rng.below(3)].to_bits(),
                (QuantFormat::Fp8Block, Draw::Any) => {
                    (1e-4 + rng.below(1000) as f32 * 1e-6).to_bits()
                }
                (QuantFormat::Mxfp4, Draw::Exact) => 125 + rng.below(4) as u32,
                (QuantFormat::Mxfp4, Draw::Any) => 116 + rng.below(6) as u32,
                (_, Draw::Exact) => bf16::from_f32([0.25, 0.5, 1.0][rng.below(3)]).to_bits().into(),
                (_, Draw::Any) => {
                    bf16::from_f32(1e-3 + rng.below(1000) as f32 * 1e-5).to_bits().into()
                }
            };
            let scales = (0..rows * columns).map(|_| scale()).collect();
            QuantMatrix { dims, codes, scales }
        };
        let experts = (0..shape.num_experts)
            .map(|_| [ExpertMatrix::Gate, ExpertMatrix::Up, ExpertMatrix::Down].map(&mut matrix))
            .collect();
        Self { format, shape, experts }
    }

    pub(crate) fn experts<T: Float>(&self) -> QuantisedExperts<T> {
        QuantisedExperts::from_source(self.format, self.shape, self.clone()).unwrap()
    }

    /// `[E, rows, depth]` of gate (0), up (1) or down (2).
    pub(crate) fn values(&self, which: usize) -> Vec<f64> {
        self.experts.iter().flat_map(|matrices| matrices[which].values(self.format)).collect()
    }
}

impl QuantMatrix {
    fn values(&self, format: QuantFormat) -> Vec<f64> {
        let [_, depth] = self.dims;
        let value = |index: usize| {
            let (row, column) = (index / depth, index % depth);
            let nibble = || i32::from(self.codes[index / 2] >> (4 * (index % 2)) & 15);
            match format {
                QuantFormat::Fp8Block => {
                    let scale = self.scales[row / 128 * depth.div_ceil(128) + column / 128];
                    e4m3(self.codes[index]) * f64::from(f32::from_bits(scale))
                }
                QuantFormat::Mxfp4 => {
                    let code = nibble();
                    let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][(code % 8) as usize];
                    let signed = if code < 8 { magnitude } else { -magnitude };
                    match self.scales[row * (depth / 32) + column / 32] {
                        255 => f64::NAN,
                        exponent => signed * 2f64.powi(exponent as i32 - 127),
                    }
                }
                QuantFormat::Int4 { group } => {
                    let scale = self.scales[row * (depth / group) + column / group];
                    f64::from(nibble() - 8) * bf16::from_bits(scale as u16).to_f64()
                }
                other => panic!("the oracle does not know {other:?}"),
            }
        };
        (0..self.dims[0] * depth).map(value).collect()
    }
}

fn e4m3(code: u8) -> f64 {
    let (sign, exponent, mantissa) = (code >> 7, i32::from(code >> 3 & 15), code & 7);
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f64::NAN,
        (0, _) => f64::from(mantissa) * 2f64.powi(-9),
        _ => f64::from(8 + mantissa) * 2f64.powi(exponent - 10),
    };
    if sign == 0 { magnitude } else { -magnitude }
}

impl QuantSource for QuantData {
    fn read(&self, expert: usize, matrix: ExpertMatrix) -> Result<QuantisedMatrix<'_>> {
        let which = match matrix {
            ExpertMatrix::Gate => 0,
            ExpertMatrix::Up => 1,
            ExpertMatrix::Down => 2,
        };
        let QuantMatrix { codes, scales, .. } = &self.experts[expert][which];
        let scales = match self.format {
            QuantFormat::Fp8Block => {
                Scales::F32(scales.iter().map(|&bits| f32::from_bits(bits)).collect())
            }
            QuantFormat::Mxfp4 => Scales::E8m0(scales.iter().map(|&bits| bits as u8).collect()),
            _ => Scales::Bf16(scales.iter().map(|&bits| bf16::from_bits(bits as u16)).collect()),
        };
        Ok(QuantisedMatrix { codes: codes.into(), scales })
    }
}

/// Quantised experts, tokens and their routing.
pub(crate) struct QuantInputs<T> {
    pub(crate) data: QuantData,
    pub(crate) function: ActivationFn,
    /// One assignment for each token; some are not routed here.
    ids: Vec<i32>,
    plan: reference::Plan,
    x: Vec<T>,
    /// `[R, I]` in expert order, for the down projection.
    activated: Vec<T>,
    biases: ExpertBiases,
    row_weights: Vec<f32>,
}

/// What the grouped GEMMs store for the rows that the plan has.
#[derive(Clone, Debug)]
pub(crate) struct QuantOutputs<T> {
    /// gate and up side by side, or up.
    pub(crate) pair: Vec<T>,
    pub(crate) activated: Vec<T>,
    pub(crate) down: Vec<T>,
}

impl<T: Storage> QuantOutputs<T> {
    pub(crate) fn bits(&self) -> [Vec<u32>; 3] {
        [bits(&self.pair), bits(&self.activated), bits(&self.down)]
    }
}

impl<T: Storage> QuantInputs<T> {
    pub(crate) fn new(format: QuantFormat, shape: ExpertShape, rows: &[usize], draw: Draw) -> Self {
        let ExpertShape { hidden_size: h, intermediate_size: i, gated, .. } = shape;
        let mut rng = Rng::new((h * 1000 + i + rows.len()) as u64);
        let mut ids = vec![-1; 3];
        for (expert, &rows) in rows.iter().enumerate() {
            ids.extend(vec![expert as i32; rows]);
        }
        for place in (1..ids.len()).rev() {
            ids.swap(place, rng.below(place + 1));
        }
        let plan = reference::plan(&ids, 1, rows.len(), None);
        let mut tensor = |len| match draw {
            Draw::Exact => rng.grid::<T>(len, 2, 0.5),
            Draw::Any => rng.full::<T>(len, 1.0),
        };
        let mut x = tensor(ids.len() * h);
        let activated = tensor(plan.token_of_row.len() * i);
        for (token, _) in ids.iter().enumerate().filter(|&(_, &id)| id < 0) {
            x[token * h..][..h].fill(T::POISON);
        }
        let mut floats = |len| rng.grid::<f32>(len, 4, 0.25);
        let biases = ExpertBiases {
            gate_up: floats(rows.len() * shape.gate_up_columns()),
            down: floats(rows.len() * h),
        };
        // Products with them stay exact.
        let row_weights = (0..ids.len()).map(|_| [0.5, 1.0, -2.0][rng.below(3)]).collect();
        let data = QuantData::new(format, shape, draw, rng.next());
        let function = if gated { ActivationFn::SwiGlu } else { ActivationFn::Silu };
        Self { data, function, ids, plan, x, activated, biases, row_weights }
    }

    /// The outputs, and that nothing else is written. `adjusted`: with biases, and rows weighted.
    pub(crate) fn run<B: Backend>(
        &self,
        device: &Device<B>,
        adjusted: bool,
        gather: Gather,
        pad: Pad,
    ) -> QuantOutputs<T> {
        let shape = self.data.shape;
        let ExpertShape { num_experts, hidden_size: h, intermediate_size: i, .. } = shape;
        let experts = match adjusted {
            true => self.data.experts::<T>().with_biases(self.biases.clone()).unwrap(),
            false => self.data.experts::<T>(),
        };
        let experts = device.backend.prepare(experts, &device.stream).unwrap();
        let plan = device.plan(&self.ids, 1, num_experts);
        let row_weights = device.put(&self.row_weights);
        let run = |x: &[T], cols: usize, how: Option<(Gather, Epilogue)>, columns: usize| {
            let mut x = x.to_vec();
            x.resize(self.ids.len() * cols, T::POISON);
            let x = Placed::new(&x, self.ids.len(), cols, pad);
            let x_buffer = x.put(device);
            let out = Placed::poison(self.ids.len(), columns, pad);
            let mut out_buffer = out.put(device);
            let x_matrix = Matrix::new("x", &x_buffer, x.layout).unwrap();
            let out_matrix = MatrixMut::new("out", &mut out_buffer, out.layout).unwrap();
            let op = match how {
                Some((gather, epilogue)) => {
                    GroupedGemm::gate_up(x_matrix, gather, &plan, &experts, epilogue, out_matrix)
                }
                None => GroupedGemm::down(x_matrix, &plan, &experts, out_matrix),
            };
            let op = match adjusted {
                true => op.unwrap().with_row_weights(&row_weights).unwrap(),
                false => op.unwrap(),
            };
            device.backend.grouped_gemm::<QuantisedExperts<T>>(op, &device.stream).unwrap();
            let rows = out.take("out", device, &out_buffer);
            let (routed, rest) = rows.split_at(self.plan.token_of_row.len() * columns);
            let poisoned = |value: &T| value.bits() == T::POISON.bits();
            assert!(rest.iter().all(poisoned), "rows past the last offset were written");
            routed.to_vec()
        };
        let packed = reference::permute(&self.x, &self.plan, h);
        let gate_up = |epilogue, columns| match gather {
            Gather::Packed => run(&packed, h, Some((gather, epilogue)), columns),
            Gather::TokenOfRow => run(&self.x, h, Some((gather, epilogue)), columns),
        };
        QuantOutputs {
            pair: gate_up(Epilogue::Store, shape.gate_up_columns()),
            activated: gate_up(Epilogue::Activation(self.function), i),
            down: run(&self.activated, i, None, h),
        }
    }

    /// The same in f64.
    pub(crate) fn exact(&self, adjusted: bool) -> QuantOutputs<f64> {
        self.computed(adjusted, |_, value| value)
    }

    /// In f64 but for the weights, which are stored as `store` says.
    fn computed(
        &self,
        adjusted: bool,
        store: impl Fn(QuantFormat, f64) -> f64,
    ) -> QuantOutputs<f64> {
        let ExpertShape { hidden_size: h, intermediate_size: i, gated, .. } = self.data.shape;
        let rows = wide(&reference::permute(&self.x, &self.plan, h));
        // One of `halves` of an expert's biases, of `columns` each.
        let product = |x: &[f64], which, depth, columns, bias: &[f32], half, halves: usize| {
            let mut values = self.data.values(which);
            values.iter_mut().for_each(|value| *value = store(self.data.format, *value));
            let mut sums =
                reference::grouped_gemm(x, &self.plan, &values, depth, columns, &reference::exact);
            if adjusted {
                for expert in 0..self.data.shape.num_experts {
                    let offsets = &self.plan.expert_offsets[expert..];
                    for row in offsets[0] as usize..offsets[1] as usize {
                        let weight = f64::from(self.row_weights[row]);
                        let bias = &bias[(expert * halves + half) * columns..][..columns];
                        for (sum, &bias) in sums[row * columns..].iter_mut().zip(bias) {
                            *sum = *sum * weight + f64::from(bias);
                        }
                    }
                }
            }
            sums
        };
        let halves = 1 + usize::from(gated);
        let first = &self.biases.gate_up;
        let up = product(&rows, 1, h, i, first, halves - 1, halves);
        let (pair, activated) = if gated {
            let gate = product(&rows, 0, h, i, first, 0, 2);
            let beside = gate.chunks(i).zip(up.chunks(i)).flat_map(|(g, u)| [g, u].concat());
            (beside.collect(), reference::activation(self.function, &gate, &up, &reference::exact))
        } else {
            let activated = reference::activation(self.function, &up, &[], &reference::exact);
            (up, activated)
        };
        let down = product(&wide(&self.activated), 2, i, h, &self.biases.down, 0, 1);
        QuantOutputs { pair, activated, down }
    }

    /// Sums that are exact to the bit, others and the activation closely: as a plain implementation whose
    /// weights are stored as `store` says.
    pub(crate) fn check(
        &self,
        what: &str,
        given: &QuantOutputs<T>,
        adjusted: bool,
        draw: Draw,
        store: impl Fn(QuantFormat, f64) -> f64,
    ) {
        let shape = self.data.shape;
        let (exact, plain) = (self.exact(adjusted), self.computed(adjusted, store));
        for (output, given, exact, plain, columns) in [
            ("gate_up", &given.pair, &exact.pair, &plain.pair, shape.gate_up_columns()),
            (
                "activated",
                &given.activated,
                &exact.activated,
                &plain.activated,
                shape.intermediate_size,
            ),
            ("down", &given.down, &exact.down, &plain.down, shape.hidden_size),
        ] {
            let what = format!("{what} {output}");
            let plain: Vec<T> = plain.iter().map(|&value| T::nearest(value)).collect();
            if draw == Draw::Exact && output != "activated" {
                assert_exact(&what, &bits(given), &bits(&plain), columns);
            } else {
                assert_within::<T>(&what, &wide(given), exact, &wide(&plain), columns);
            }
        }
    }

    /// Codes and scales at the ends of their ranges: what a row of weights holds reaches its own column
    /// of the output, and no other.
    pub(crate) fn make_extreme(&mut self) {
        for matrices in &mut self.data.experts {
            matrices.iter_mut().for_each(|matrix| extremes(self.data.format, matrix));
        }
    }

    /// Sums to the bit, but for what a NaN is made of and the sign of 0.
    pub(crate) fn check_extreme(&self, what: &str, given: &QuantOutputs<T>) {
        let (shape, exact) = (self.data.shape, self.exact(false));
        for (output, given, exact, columns) in [
            ("gate_up", &given.pair, &exact.pair, shape.gate_up_columns()),
            ("down", &given.down, &exact.down, shape.hidden_size),
        ] {
            let plain = |value: f64| if value.is_nan() { f64::NAN } else { value + 0.0 };
            let given: Vec<u64> = given.iter().map(|v| plain(v.wide()).to_bits()).collect();
            let exact: Vec<u64> = exact.iter().map(|&v| plain(round::<T>(v)).to_bits()).collect();
            assert_exact(&format!("{what} {output}"), &given, &exact, columns);
        }
    }
}

/// The first rows of a matrix: one with an extreme each.
fn extremes(format: QuantFormat, matrix: &mut QuantMatrix) {
    let [_, depth] = matrix.dims;
    let bytes = format.code_bytes([1, depth]);
    // A row with this code in its second place, and 0 elsewhere.
    let mut single = |row: usize, zero: u8, code: u8| {
        let codes = &mut matrix.codes[row * bytes..][..bytes];
        codes.fill(zero);
        match format {
            QuantFormat::Fp8Block => codes[1] = code,
            _ => codes[0] = zero & 15 | code << 4,
        }
    };
    match format {
        QuantFormat::Fp8Block => {
            // The least subnormal, the greatest, the least normal, both NaN, -0, the greatest's negative.
            for (row, code) in [1, 7, 8, 0x7f, 0xff, 0x80, 0x7e, 0xfe].into_iter().enumerate() {
                single(row, 0, code);
            }
            // A block of scale 0, where there is a second one.
            if matrix.dims[0] > 128 {
                *matrix.scales.last_mut().unwrap() = 0;
            }
        }
        QuantFormat::Mxfp4 => {
            let groups = depth / 32;
            for (row, (code, scale)) in
                [(1, 254), (9, 254), (7, 0), (1, 1), (15, 129), (0, 255), (2, 255), (7, 252)]
                    .into_iter()
                    .enumerate()
            {
                single(row, 0, code);
                matrix.scales[row * groups] = scale;
            }
        }
        _ => {
            let groups = matrix.scales.len() / matrix.dims[0];
            for (row, (code, scale)) in
                [(0, 1e30), (15, 1e-30), (15, -1.0), (9, 0.0), (8, 1e38), (1, f32::NAN)]
                    .into_iter()
                    .enumerate()
            {
                single(row, 0x88, code);
                matrix.scales[row * groups] = bf16::from_f32(scale).to_bits().into();
            }
        }
    }
}
