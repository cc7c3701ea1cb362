//! A matrix somewhere in a tensor: a slice of a stack, or its transpose.

use crate::element::Float;
use crate::error::Result;

use super::StoredTensor;

/// Element `(row, column)` is the tensor's element `offset + row * row_stride + column * column_stride`.
#[derive(Clone, Debug)]
pub(super) struct MatrixView {
    tensor: StoredTensor,
    offset: usize,
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl MatrixView {
    /// Row by row from `offset` on.
    pub(super) fn rows(tensor: &StoredTensor, offset: usize, dims: [usize; 2]) -> Self {
        Self::strided(tensor, offset, dims, [dims[1], 1])
    }

    /// With strides of rows and of columns.
    pub(super) fn strided(
        tensor: &StoredTensor,
        offset: usize,
        [rows, columns]: [usize; 2],
        [row_stride, column_stride]: [usize; 2],
    ) -> Self {
        let tensor = tensor.clone();
        Self { tensor, offset, rows, columns, row_stride, column_stride }
    }

    /// The elements, row by row.
    pub(super) fn read<T: Float>(&self) -> Result<Vec<T>> {
        let Self { tensor, offset, rows, columns, row_stride, column_stride } = self;
        if [*row_stride, *column_stride] == [*columns, 1] {
            return tensor.read_at(rows * columns, |index| offset + index);
        }
        tensor.read_at(rows * columns, |index| {
            offset + index / columns * row_stride + index % columns * column_stride
        })
    }
}
