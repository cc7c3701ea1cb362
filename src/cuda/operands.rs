//! Operands as kernels take them, and the grids that the stages share.

use crate::element::Element;
use crate::error::{Error, Result};
use crate::memory::{Layout, Matrix, MatrixMut};

use super::abi::{ROW_THREADS, TokenCount};
use super::driver::{Dim3, Driver, LaunchConfig};
use super::{Cuda, CudaBuffer};

/// Columns of a row-wise kernel's thread: 16 bytes.
const THREAD_COLUMNS: u32 = 8;

/// A matrix in device memory: its first element's address, and elements from row to row.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) address: u64,
    pub(super) stride: u64,
}

impl Place {
    /// Of a matrix that is not there.
    pub(super) const NONE: Self = Self { address: 0, stride: 0 };

    fn new<D: Driver, T: Element>(buffer: &CudaBuffer<D, T>, layout: Layout) -> Self {
        // A matrix without rows may start anywhere, and is not read.
        let address = if layout.rows == 0 { 0 } else { buffer.at(layout.offset) };
        Self { address, stride: layout.row_stride as u64 }
    }

    pub(super) fn of<D: Driver + 'static, T: Element>(matrix: Matrix<'_, Cuda<D>, T>) -> Self {
        Self::new(matrix.buffer(), matrix.layout())
    }

    pub(super) fn of_mut<D: Driver + 'static, T: Element>(
        matrix: MatrixMut<'_, Cuda<D>, T>,
    ) -> Self {
        let (buffer, layout) = matrix.into_parts();
        Self::new(buffer, layout)
    }
}

/// At most `rows` tokens: fewer if the number in device memory says so.
pub(super) fn token_count<D: Driver>(
    rows: usize,
    num_tokens: Option<&CudaBuffer<D, u32>>,
) -> TokenCount {
    TokenCount { device: num_tokens.map_or(0, CudaBuffer::address), host: rows as u32, reserved: 0 }
}

/// A number of columns as kernels take it.
pub(super) fn columns(what: &str, columns: usize) -> Result<u32> {
    match u32::try_from(columns) {
        Ok(columns) if columns <= 1 << 24 => Ok(columns),
        _ => Err(Error::value(format!("{what}: columns"), columns, "at most 2^24")),
    }
}

/// As many blocks of `threads` as there is work for, but no more than the device holds at once:
/// blocks stride over the rest.
pub(super) fn resident<D: Driver>(cuda: &Cuda<D>, work: usize, threads: u32) -> u32 {
    let most = cuda.properties().sm_count * (2048 / threads);
    work.clamp(1, most as usize) as u32
}

/// The launch of a row-wise kernel that takes `rows_at_once` of `rows` at a time.
pub(super) fn row_wise<D: Driver>(
    cuda: &Cuda<D>,
    rows: usize,
    rows_at_once: u32,
    columns: u32,
) -> LaunchConfig {
    let across = columns.div_ceil(ROW_THREADS * THREAD_COLUMNS);
    let along = resident(cuda, rows.div_ceil(rows_at_once as usize), ROW_THREADS);
    let along = along.min(resident(cuda, usize::MAX, ROW_THREADS).div_ceil(across));
    LaunchConfig {
        grid: Dim3 { x: along, y: across, z: 1 },
        ..LaunchConfig::linear(along, ROW_THREADS)
    }
}
