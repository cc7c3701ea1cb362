//! Grouped GEMM: blocks of an expert's rows times ranges of its columns, shared out as tasks.

use std::ops::Range;

use rayon::prelude::*;

use crate::config::ActivationFn;
use crate::element::Float;
use crate::error::Result;
use crate::memory::Matrix;
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
            Ok(PackedMatrix::pack(n, k, |row| &elements[row * k..][..k]))
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

/// Columns that a task finishes at a time: their f32 sums stay in the cache, and the rows are read
/// again for the next ones.
const COLUMNS: usize = 512;

/// Tasks for each thread, so that an expert with many tokens does not keep the others waiting.
const TASKS_PER_THREAD: usize = 8;

/// What becomes of a column range of the output.
#[derive(Clone, Copy)]
enum Product {
    /// The products with one matrix.
    Plain(ExpertMatrix),
    /// `act(gate) * up`.
    Activated(ActivationFn),
}

/// Some of one expert's rows times a range of columns, and the pieces of `out` that take them.
struct Task<'a, T> {
    expert: usize,
    rows: Range<usize>,
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
    let tasks = share_out(plan, products, width, rows_mut(out));
    tasks.into_par_iter().for_each_init(Scratch::default, |scratch, task| {
        scratch.load_rows(x, gather, plan, task.rows.clone());
        scratch.multiply(&experts.experts[task.expert], task);
    });
}

/// Cuts each expert's rows into blocks, and these into column ranges where blocks are few.
fn share_out<'a, T>(
    plan: &RoutingPlan<Cpu>,
    products: &[Product],
    width: usize,
    out: Vec<&'a mut [T]>,
) -> Vec<Task<'a, T>> {
    let blocks: Vec<(usize, Range<usize>)> = (0..plan.num_experts)
        .flat_map(|expert| {
            let offsets = &plan.expert_offsets[expert..];
            let (start, end) = (offsets[0] as usize, offsets[1] as usize);
            // Equal blocks: 300 rows are better cut in 150 and 150 than in 240 and 60.
            let rows = (end - start).div_ceil((end - start).div_ceil(ROWS).max(1)).max(1);
            (start..end).step_by(rows).map(move |row| (expert, row..end.min(row + rows)))
        })
        .collect();
    let wanted = TASKS_PER_THREAD * rayon::current_num_threads();
    let ranges = wanted.div_ceil(blocks.len().max(1) * products.len());
    let step = width.div_ceil(ranges).next_multiple_of(PANEL);

    let mut tasks = Vec::new();
    let mut out = out.into_iter();
    for (expert, rows) in blocks {
        let first = tasks.len();
        for &product in products {
            tasks.extend((0..width).step_by(step).map(|start| Task {
                expert,
                rows: rows.clone(),
                product,
                columns: start..width.min(start + step),
                out: Vec::with_capacity(rows.len()),
            }));
        }
        for row in out.by_ref().take(rows.len()) {
            let pieces = row.chunks_mut(width).flat_map(|part| part.chunks_mut(step));
            for (task, piece) in tasks[first..].iter_mut().zip(pieces) {
                task.out.push(piece);
            }
        }
    }
    tasks
}

/// One thread's memory.
#[derive(Default)]
struct Scratch {
    x: PackedRows,
    sums: Vec<f32>,
    up_sums: Vec<f32>,
}

impl Scratch {
    fn load_rows<T: Float>(
        &mut self,
        x: Matrix<'_, Cpu, T>,
        gather: Gather,
        plan: &RoutingPlan<Cpu>,
        rows: Range<usize>,
    ) {
        let source = |index: usize| match gather {
            Gather::Packed => index,
            Gather::TokenOfRow => plan.token_of_row[index] as usize,
        };
        self.x.pack(x.layout().cols, rows.map(|index| row(x, source(index))));
    }

    fn multiply<T: Float>(&mut self, expert: &PackedExpert<T>, task: Task<'_, T>) {
        let Task { rows, product, columns: all, mut out, .. } = task;
        for start in all.clone().step_by(COLUMNS) {
            let columns = start..all.end.min(start + COLUMNS);
            let width = columns.len();
            self.sums.resize(rows.len() * width, 0.0);
            let matrix = match product {
                Product::Plain(ExpertMatrix::Gate) | Product::Activated(_) => &expert.gate,
                Product::Plain(ExpertMatrix::Up) => &expert.up,
                Product::Plain(ExpertMatrix::Down) => &expert.down,
            };
            multiply(&self.x, matrix, columns.clone(), &mut self.sums);
            if let Product::Activated(function) = product {
                self.up_sums.resize(rows.len() * width, 0.0);
                multiply(&self.x, &expert.up, columns, &mut self.up_sums);
                activate(function, &mut self.sums, &self.up_sums);
            }
            let done = start - all.start;
            for (out, sums) in out.iter_mut().zip(self.sums.chunks_exact(width)) {
                T::narrow(sums, &mut out[done..done + width]);
            }
        }
    }
}
