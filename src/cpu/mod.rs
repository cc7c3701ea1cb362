//! The portable backend: every stage in Rust, on any machine.
//!
//! f32, bf16 and f16 are storage; every sum is in f32. Work is shared out over rayon's pool, and
//! a result's bits do not depend on how: each sum is made by one task, in a fixed order.

mod activation;
mod combine;

#[expect(unsafe_code, reason = "SIMD micro-kernels and the slices that they read")]
mod gemm;
mod grouped_gemm;
mod permute;
mod plan;
mod quantised;
mod router;

pub use grouped_gemm::PackedExperts;
pub use router::PackedGate;

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::backend::{Backend, sealed};
use crate::element::{DType, Element, Float};
use crate::error::{Error, Result, checked_product, vec_with_room};
use crate::memory::{Buffer, Layout, Matrix, MatrixMut, Memory};
use crate::ops::{Activation, Combine, ExpertShape, GateParts, GroupedGemm, Permute, Plan, Router};
use crate::weights::{
    ExpertBiases, ExpertMatrix, ExpertWeights, Format, QuantFormat, RouterWeights,
};

use gemm::PackedMatrix;
use quantised::PackedCodes;

/// The CPU, through rayon's global pool. Its stream is `()`: work is done when a call returns.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

/// An array in the host's memory; a slice to its users.
#[derive(Clone, Default)]
pub struct CpuBuffer<T>(Vec<T>);

impl<T: Element> fmt::Debug for CpuBuffer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuBuffer<{}>[{}]", T::DTYPE, self.0.len())
    }
}

impl<T> From<Vec<T>> for CpuBuffer<T> {
    fn from(elements: Vec<T>) -> Self {
        Self(elements)
    }
}

impl<T> Deref for CpuBuffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T> DerefMut for CpuBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T: Element> Buffer<T> for CpuBuffer<T> {
    fn len(&self) -> usize {
        self.0.len()
    }
}

impl Memory for Cpu {
    type Buffer<T: Element> = CpuBuffer<T>;
    type Stream = ();

    fn allocate<T: Element>(&self, what: &str, len: usize) -> Result<CpuBuffer<T>> {
        checked_product(what, &[len, size_of::<T>()])?;
        // Asked for first, because `vec!` aborts on failure; made by `vec!`, because its zeros are
        // the system's untouched pages, which cost nothing until they are used (the 16-bit types'
        // are written).
        drop(vec_with_room::<T>(what, len)?);
        Ok(CpuBuffer(vec![T::default(); len]))
    }

    fn upload<T: Element>(&self, from: &[T], to: &mut CpuBuffer<T>, (): &()) -> Result<()> {
        let given = to.len();
        let to = to
            .get_mut(..from.len())
            .ok_or_else(|| Error::shape("upload destination", [from.len()], [given]))?;
        to.copy_from_slice(from);
        Ok(())
    }

    fn download<T: Element>(&self, from: &CpuBuffer<T>, to: &mut [T], (): &()) -> Result<()> {
        let from = from
            .get(..to.len())
            .ok_or_else(|| Error::shape("download source", [to.len()], [from.len()]))?;
        to.copy_from_slice(from);
        Ok(())
    }
}

impl sealed::Sealed for Cpu {}

impl Backend for Cpu {
    const NAME: &'static str = "cpu";

    type Gate<T: Float> = PackedGate<T>;
    type Experts<W: ExpertWeights> = PackedExperts<W::Element>;

    fn prepare_gate<T: Float>(
        &self,
        shape: [usize; 2],
        weights: RouterWeights<T>,
        (): &(),
    ) -> Result<PackedGate<T>> {
        PackedGate::pack(shape, weights)
    }

    fn prepare<W: ExpertWeights>(&self, weights: W, (): &()) -> Result<PackedExperts<W::Element>> {
        match weights.into_format() {
            Format::Dense(experts) => PackedExperts::pack(&experts),
            Format::Quantised(experts) => PackedExperts::pack_codes(&experts),
        }
    }

    fn gate_bytes<T: Float>(shape: [usize; 2], router: DType, parts: GateParts) -> Option<usize> {
        let matrix = match router == T::DTYPE && !parts.input_scale {
            true => PackedMatrix::<T>::bytes_of(shape),
            false => PackedMatrix::<f32>::bytes_of(shape),
        };
        matrix?.checked_add(parts.bytes(shape[0])?)
    }

    fn expert_bytes<T: Float>(
        shape: ExpertShape,
        format: Option<QuantFormat>,
        biases: bool,
    ) -> Option<usize> {
        let matrix = |matrix: ExpertMatrix| match format {
            None => PackedMatrix::<T>::bytes_of(matrix.dims(shape)),
            Some(format) => PackedCodes::bytes_of(format, matrix.dims(shape)),
        };
        ExpertBiases::with_matrices(shape, biases, matrix)
    }

    fn router<T: Float>(&self, op: Router<'_, Self, T, PackedGate<T>>, (): &()) -> Result<()> {
        router::run(op)
    }

    fn plan(&self, op: Plan<'_, Self>, (): &()) -> Result<()> {
        plan::run(op);
        Ok(())
    }

    fn permute<T: Float>(&self, op: Permute<'_, Self, T>, (): &()) -> Result<()> {
        permute::run(op);
        Ok(())
    }

    fn grouped_gemm<W: ExpertWeights>(
        &self,
        op: GroupedGemm<'_, Self, W::Element, PackedExperts<W::Element>>,
        (): &(),
    ) -> Result<()> {
        grouped_gemm::run(op);
        Ok(())
    }

    fn activation<T: Float>(&self, op: Activation<'_, Self, T>, (): &()) -> Result<()> {
        activation::run(op);
        Ok(())
    }

    fn combine<T: Float>(&self, op: Combine<'_, Self, T>, (): &()) -> Result<()> {
        combine::run(op);
        Ok(())
    }
}

/// How many of `rows` tokens are there.
fn token_count(rows: usize, num_tokens: Option<&CpuBuffer<u32>>) -> usize {
    num_tokens.map_or(rows, |count| rows.min(count[0] as usize))
}

/// Row `row` of a matrix that is read.
fn row<'a, T: Element>(matrix: Matrix<'a, Cpu, T>, row: usize) -> &'a [T] {
    &matrix.buffer()[matrix.layout().row(row)]
}

/// The rows of a matrix that is written, to be shared out among tasks.
fn rows_mut<'a, T: Element>(matrix: MatrixMut<'a, Cpu, T>) -> Vec<&'a mut [T]> {
    let (buffer, Layout { rows, cols, row_stride, offset }) = matrix.into_parts();
    // A single row's stride says nothing, and may be less than the row.
    let stride = row_stride.max(cols).max(1);
    let rest = buffer.get_mut(offset..).unwrap_or_default();
    rest.chunks_mut(stride).take(rows).map(|row| &mut row[..cols]).collect()
}
