//! Grouped GEMM: blocks of an expert's rows times ranges of its columns, shared out as tasks.

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use crate::config::ActivationFn;
use crate::element::Float;
use crate::error::Result;
use crate::ops::{Epilogue, ExpertShape, Experts, Gather, GroupedGemm, Projection, RoutingPlan};
use crate::weights::{DenseExperts, ExpertMatrix};

use super::activation::activate;
use super::gemm::{PANEL, PackedMatrix, PackedRows, ROWS, multiply};
use super::{Cpu, row, rows_mut};

/// Experts' weights, each matrix repacked once for the micro-kernel.
#[derive(Debug)]
pub struct PackedExperts<T> {
    shape: ExpertShape,
    experts: Vec<PackedExpert<T>>,
}

#[derive(Debug)]
struct PackedExpert<T> {
    gate: PackedMatrix<T>,
    up: PackedMatrix<T>,
    down: PackedMatrix<T>,
}

impl<T: Float> PackedExperts<T> {
    pub(super) fn pack(weights: &DenseExperts<T>) -> Result<Self> {
        let shape = crate::weights::ExpertWeights::shape(weights);
        let pack = |expert, matrix: ExpertMatrix| -> Result<PackedMatrix<T>> {
            let elements = weights.read(expert, matrix)?;
            let [n, k] = matrix.dims(shape);
            PackedMatrix::pack(n, k, |row| &elements[row * k..][..k])
        };
        let experts = (0..shape.num_experts)
            .map(|expert| {
                Ok(PackedExpert {
                    gate: pack(expert, ExpertMatrix::Gate)?,
                    up: pack(expert, ExpertMatrix::Up)?,
                    down: pack(expert, ExpertMatrix::Down)?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { shape, experts })
    }
}

impl<T: Float> Experts for PackedExperts<T> {
    fn shape(&self) -> ExpertShape {
        self.shape
    }

    fn bytes(&self) -> usize {
        self.experts.iter().map(|e| e.gate.bytes() + e.up.bytes() + e.down.bytes()).sum()
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
    /// `act(gate) * up`.
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
    let GroupedGemm { x, gather, plan, experts, projection, epilogue, out } = op;
    let ExpertShape { hidden_size, intermediate_size, .. } = experts.shape;
    let (products, width): (&[Product], usize) = match (projection, epilogue) {
        (Projection::GateUp, Epilogue::Activation(function)) => {
            (&[Product::Activated(function)], intermediate_size)
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
        packed.pack(x.layout().cols, block.rows.map(|index| row(x, source(index))));
        let expert = &experts.experts[block.expert];
        tasks_of(block.out, products, width, step).into_par_iter().for_each(|task| {
            let mut sums = SUMS.take();
            sums.run(&packed, expert, task);
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

/// One thread's f32 sums.
#[derive(Default)]
struct Sums {
    sums: Vec<f32>,
    up_sums: Vec<f32>,
}

impl Sums {
    fn run<T: Float>(&mut self, x: &PackedRows, expert: &PackedExpert<T>, task: Task<'_, T>) {
        let Task { product, columns: all, mut out } = task;
        for start in all.clone().step_by(COLUMNS) {
            let columns = start..all.end.min(start + COLUMNS);
            let width = columns.len();
            self.sums.resize(out.len() * width, 0.0);
            let matrix = match product {
                Product::Plain(ExpertMatrix::Gate) | Product::Activated(_) => &expert.gate,
                Product::Plain(ExpertMatrix::Up) => &expert.up,
                Product::Plain(ExpertMatrix::Down) => &expert.down,
            };
            multiply(x, matrix, columns.clone(), &mut self.sums);
            if let Product::Activated(function) = product {
                self.up_sums.resize(out.len() * width, 0.0);
                multiply(x, &expert.up, columns, &mut self.up_sums);
                activate(function, &mut self.sums, &self.up_sums);
            }
            let done = start - all.start;
            for (out, sums) in out.iter_mut().zip(self.sums.chunks_exact(width)) {
                T::narrow(sums, &mut out[done..done + width]);
            }
        }
    }
}
