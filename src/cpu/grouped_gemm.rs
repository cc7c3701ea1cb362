//! Grouped GEMM: blocks of an expert's rows times ranges of its columns, shared out as tasks.

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use crate::config::ActivationFn;
use crate::element::Float;
use crate::error::Result;
use crate::ops::{Epilogue, ExpertShape, Experts, Gather, GroupedGemm, Projection, RoutingPlan};
use crate::weights::{
    DenseExperts, ExpertBiases, ExpertMatrix, ExpertWeights as _, QuantisedExperts,
};

use super::activation::activate;
use super::gemm::{PANEL, PackedMatrix, PackedRows, ROWS, multiply};
use super::quantised::PackedCodes;
use super::{Cpu, row, rows_mut};

/// Experts' weights, each matrix repacked once for the micro-kernel.
#[derive(Debug)]
pub struct PackedExperts<T> {
    shape: ExpertShape,
    biases: Option<ExpertBiases>,
    experts: Vec<PackedExpert<T>>,
}

#[derive(Debug)]
struct PackedExpert<T> {
    /// None without a gate.
    gate: Option<PackedWeights<T>>,
    up: PackedWeights<T>,
    down: PackedWeights<T>,
}

#[derive(Debug)]
enum PackedWeights<T> {
    Dense(PackedMatrix<T>),
    Quantised(PackedCodes),
}

impl<T: Float> PackedWeights<T> {
    fn bytes(&self) -> usize {
        match self {
            Self::Dense(matrix) => matrix.bytes(),
            Self::Quantised(codes) => codes.bytes(),
        }
    }
}

impl<T: Float> PackedExperts<T> {
    pub(super) fn pack(weights: &DenseExperts<T>) -> Result<Self> {
        let shape = weights.shape();
        Self::of(shape, weights.biases(), |expert, matrix| {
            let elements = weights.read(expert, matrix)?;
            let [n, k] = matrix.dims(shape);
            PackedMatrix::pack(n, k, |row| &elements[row * k..][..k]).map(PackedWeights::Dense)
        })
    }

    pub(super) fn pack_codes(weights: &QuantisedExperts<T>) -> Result<Self> {
        let shape = weights.shape();
        Self::of(shape, weights.biases(), |expert, matrix| {
            let read = weights.read(expert, matrix)?;
            let dims = matrix.dims(shape);
            PackedCodes::pack(weights.format(), dims, &read).map(PackedWeights::Quantised)
        })
    }

    fn of(
        shape: ExpertShape,
        biases: Option<&ExpertBiases>,
        pack: impl Fn(usize, ExpertMatrix) -> Result<PackedWeights<T>>,
    ) -> Result<Self> {
        let experts = (0..shape.num_experts)
            .map(|expert| {
                Ok(PackedExpert {
                    gate: match shape.gated {
                        true => Some(pack(expert, ExpertMatrix::Gate)?),
                        false => None,
                    },
                    up: pack(expert, ExpertMatrix::Up)?,
                    down: pack(expert, ExpertMatrix::Down)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { shape, biases: biases.cloned(), experts })
    }
}

impl<T: Float> Experts for PackedExperts<T> {
    fn shape(&self) -> ExpertShape {
        self.shape
    }

    fn has_biases(&self) -> bool {
        self.biases.is_some()
    }

    fn bytes(&self) -> usize {
        let biases = self.biases.as_ref().map_or(0, |b| 4 * (b.gate_up.len() + b.down.len()));
        let matrices = self.experts.iter().flat_map(|expert| {
            expert.gate.iter().chain([&expert.up, &expert.down]).map(PackedWeights::bytes)
        });
        matrices.sum::<usize>() + biases
    }
}

/// Columns whose f32 sums are made at a time, so that they stay in the cache.
const COLUMNS: usize = 512;

/// Tasks for each thread, so that an expert with many tokens does not keep the others waiting.
const TASKS_PER_THREAD: usize = 16;

/// What becomes of a part of the output's columns.
#[derive(Clone, Copy)]
enum Product {
    /// The products with one matrix.
    Plain(ExpertMatrix),
    /// `act(gate, up)`, or `act(up)`.
    Activated(ActivationFn),
}

/// Some of one expert's rows, and where their results go.
struct Block<'a, T> {
    expert: usize,
    rows: Range<usize>,
    out: Vec<&'a mut [T]>,
}

/// A block's product with a range of columns, and the pieces of its rows that take it.
struct Task<'a, T> {
    product: Product,
    columns: Range<usize>,
    out: Vec<&'a mut [T]>,
}

pub(super) fn run<T: Float>(op: GroupedGemm<'_, Cpu, T, PackedExperts<T>>) {
    let GroupedGemm { x, gather, plan, experts, projection, epilogue, out, row_weights } = op;
    let ExpertShape { hidden_size, intermediate_size, gated, .. } = experts.shape;
    let (products, width): (&[Product], usize) = match (projection, epilogue) {
        (Projection::GateUp, Epilogue::Activation(function)) => {
            (&[Product::Activated(function)], intermediate_size)
        }
        (Projection::GateUp, Epilogue::Store) if !gated => {
            (&[Product::Plain(ExpertMatrix::Up)], intermediate_size)
        }
        (Projection::GateUp, Epilogue::Store) => (
            &[Product::Plain(ExpertMatrix::Gate), Product::Plain(ExpertMatrix::Up)],
            intermediate_size,
        ),
        (Projection::Down, _) => (&[Product::Plain(ExpertMatrix::Down)], hidden_size),
    };
    let source = |row: usize| match gather {
        Gather::Packed => row,
        Gather::TokenOfRow => plan.token_of_row[row] as usize,
    };

    let blocks = blocks(plan, rows_mut(out));
    let tasks = TASKS_PER_THREAD * rayon::current_num_threads();
    let step = width
        .div_ceil(tasks.div_ceil(blocks.len().max(1) * products.len()))
        .next_multiple_of(PANEL);
    // A block's rows are packed once, and shared by whichever threads take its tasks.
    blocks.into_par_iter().for_each(|block| {
        let mut packed = ROWS_OF_BLOCK.take();
        packed.pack(x.layout().cols, block.rows.clone().map(|index| row(x, source(index))));
        let weights = row_weights.map(|weights| &weights[block.rows.clone()]);
        let expert = Expert::new(experts, block.expert, weights);
        tasks_of(block.out, products, width, step).into_par_iter().for_each(|task| {
            let mut sums = SUMS.take();
            sums.run(&packed, &expert, task);
            SUMS.set(sums);
        });
        ROWS_OF_BLOCK.set(packed);
    });
}

// Each thread's memory, kept from call to call. It is taken while it is used, because a thread
// that waits for its block's tasks may begin another block.
thread_local! {
    static ROWS_OF_BLOCK: Cell<PackedRows> = Cell::default();
    static SUMS: Cell<Sums> = Cell::default();
}

/// Each expert's rows in equal blocks: 300 are better cut in 150 and 150 than in 240 and 60.
fn blocks<'a, T>(plan: &RoutingPlan<Cpu>, out: Vec<&'a mut [T]>) -> Vec<Block<'a, T>> {
    let mut out = out.into_iter();
    let offsets = &plan.expert_offsets[..=plan.num_experts];
    let experts = offsets.windows(2).enumerate();
    experts
        .flat_map(|(expert, bounds)| {
            let (start, end) = (bounds[0] as usize, bounds[1] as usize);
            let count = (end - start).div_ceil(ROWS).max(1);
            let rows = (end - start).div_ceil(count).max(1);
            (start..end).step_by(rows).map(move |row| (expert, row..end.min(row + rows)))
        })
        .map(|(expert, rows)| {
            let out = out.by_ref().take(rows.len()).collect();
            Block { expert, rows, out }
        })
        .collect()
}

/// Cuts rows of `products.len() * width` columns into ranges of `step`.
fn tasks_of<'a, T>(
    rows: Vec<&'a mut [T]>,
    products: &[Product],
    width: usize,
    step: usize,
) -> Vec<Task<'a, T>> {
    let mut tasks: Vec<Task<'a, T>> = products
        .iter()
        .flat_map(|&product| (0..width).step_by(step).map(move |start| (product, start)))
        .map(|(product, start)| Task {
            product,
            columns: start..width.min(start + step),
            out: Vec::with_capacity(rows.len()),
        })
        .collect();
    for row in rows {
        let pieces = row.chunks_mut(width).flat_map(|part| part.chunks_mut(step));
        for (task, piece) in tasks.iter_mut().zip(pieces) {
            task.out.push(piece);
        }
    }
    tasks
}

/// What a task multiplies its rows by, adds to the products, and multiplies those by.
struct Expert<'a, T> {
    matrices: &'a PackedExpert<T>,
    /// Of the gate, the up and the down projection; empty where there is none.
    biases: [&'a [f32]; 3],
    /// One for each row of the block.
    row_weights: Option<&'a [f32]>,
}

impl<'a, T> Expert<'a, T> {
    fn new(experts: &'a PackedExperts<T>, expert: usize, row_weights: Option<&'a [f32]>) -> Self {
        let ExpertShape { hidden_size, intermediate_size, gated, .. } = experts.shape;
        let biases = experts.biases.as_ref().map_or([&[][..]; 3], |biases| {
            let columns = experts.shape.gate_up_columns();
            let gate_up = &biases.gate_up[expert * columns..][..columns];
            let (gate, up) = gate_up.split_at(if gated { intermediate_size } else { 0 });
            [gate, up, &biases.down[expert * hidden_size..][..hidden_size]]
        });
        Self { matrices: &experts.experts[expert], biases, row_weights }
    }
}

/// One thread's f32 sums.
#[derive(Default)]
struct Sums {
    sums: Vec<f32>,
    up_sums: Vec<f32>,
}

impl Sums {
    fn run<T: Float>(&mut self, x: &PackedRows, expert: &Expert<'_, T>, task: Task<'_, T>) {
        let Task { product, columns: all, mut out } = task;
        for start in all.clone().step_by(COLUMNS) {
            let columns = start..all.end.min(start + COLUMNS);
            let width = columns.len();
            let len = out.len() * width;
            match product {
                Product::Plain(matrix) => {
                    multiply_by(expert, matrix, x, columns, len, &mut self.sums);
                }
                Product::Activated(function) => {
                    let first = match function.is_gated() {
                        true => ExpertMatrix::Gate,
                        false => ExpertMatrix::Up,
                    };
                    multiply_by(expert, first, x, columns.clone(), len, &mut self.sums);
                    if function.is_gated() {
                        let up = ExpertMatrix::Up;
                        multiply_by(expert, up, x, columns, len, &mut self.up_sums);
                    }
                    activate(function, &mut self.sums, &self.up_sums);
                }
            }
            let done = start - all.start;
            for (out, sums) in out.iter_mut().zip(self.sums.chunks_exact(width)) {
                T::narrow(sums, &mut out[done..done + width]);
            }
        }
    }
}

/// `sums = row_weights * x · matrix[columns]^T + bias`.
fn multiply_by<T: Float>(
    expert: &Expert<'_, T>,
    matrix: ExpertMatrix,
    x: &PackedRows,
    columns: Range<usize>,
    len: usize,
    sums: &mut Vec<f32>,
) {
    let [gate, up, down] = expert.biases;
    let (matrix, bias) = match matrix {
        ExpertMatrix::Gate => (expert.matrices.gate.as_ref(), gate),
        ExpertMatrix::Up => (Some(&expert.matrices.up), up),
        ExpertMatrix::Down => (Some(&expert.matrices.down), down),
    };
    let Some(matrix) = matrix else { unreachable!("the contract knows whether there is a gate") };
    sums.resize(len, 0.0);
    let width = columns.len();
    match matrix {
        PackedWeights::Dense(matrix) => multiply(x, matrix, columns.clone(), sums),
        PackedWeights::Quantised(codes) => multiply(x, codes, columns.clone(), sums),
    }
    if let Some(weights) = expert.row_weights {
        for (sums, weight) in sums.chunks_exact_mut(width).zip(weights) {
            sums.iter_mut().for_each(|sum| *sum *= weight);
        }
    }
    if let Some(bias) = bias.get(columns) {
        for sums in sums.chunks_exact_mut(width) {
            sums.iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
        }
    }
}
