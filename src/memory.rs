//! Where tensors live: a backend's buffers, and strided views of them.

use std::fmt;
use std::ops::Range;

use crate::element::Element;
use crate::error::{Error, Result, checked_product};

/// Rows in memory start on multiples of this many bytes, on every backend: what TMA and 16-byte
/// vector accesses ask for.
pub const ROW_ALIGNMENT: usize = 16;

/// A flat array of elements in a backend's memory.
pub trait Buffer<T: Element>: fmt::Debug + Send + Sync {
    /// Number of elements.
    fn len(&self) -> usize;

    /// Whether there is no element.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A place that holds buffers, and the order in which work on them happens.
pub trait Memory: Clone + Send + Sync + 'static {
    /// A flat array in this memory.
    type Buffer<T: Element>: Buffer<T>;

    /// An in-order queue of work. Copies and stages on one stream see each other's results.
    type Stream: Send + Sync;

    /// Elements of u32 that [`RoutingPlan`](crate::ops::RoutingPlan) keeps for the stage that makes it.
    #[doc(hidden)]
    fn plan_scratch_len(_num_experts: usize, _max_assignments: usize) -> usize {
        0
    }

    /// A buffer of `len` zeros. `what` names it in errors.
    ///
    /// # Errors
    /// [`Error::Overflow`] and [`Error::OutOfMemory`].
    fn allocate<T: Element>(&self, what: &str, len: usize) -> Result<Self::Buffer<T>>;

    /// Copies `from` to the start of `to`, which is at least as long.
    ///
    /// # Errors
    /// [`Error::Shape`] if `to` is shorter.
    fn upload<T: Element>(
        &self,
        from: &[T],
        to: &mut Self::Buffer<T>,
        stream: &Self::Stream,
    ) -> Result<()>;

    /// Copies the start of `from` to `to`, and returns when it is there.
    ///
    /// # Errors
    /// [`Error::Shape`] if `from` is shorter.
    fn download<T: Element>(
        &self,
        from: &Self::Buffer<T>,
        to: &mut [T],
        stream: &Self::Stream,
    ) -> Result<()>;

    /// A new buffer with the elements of `from`.
    ///
    /// # Errors
    /// As [`Memory::allocate`].
    fn buffer_from<T: Element>(
        &self,
        what: &str,
        from: &[T],
        stream: &Self::Stream,
    ) -> Result<Self::Buffer<T>> {
        let mut buffer = self.allocate(what, from.len())?;
        self.upload(from, &mut buffer, stream)?;
        Ok(buffer)
    }
}

/// Where the buffers of a plan and of a workspace come from: the memory itself, or a piece of it
/// that the caller set aside.
pub(crate) trait Allocator<M: Memory> {
    fn allocate<T: Element>(&mut self, what: &str, len: usize) -> Result<M::Buffer<T>>;
}

impl<M: Memory> Allocator<M> for &M {
    fn allocate<T: Element>(&mut self, what: &str, len: usize) -> Result<M::Buffer<T>> {
        M::allocate(self, what, len)
    }
}

/// Where a matrix lies in its buffer: row `i` is elements `offset + i * row_stride ..+ cols`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Number of rows.
    pub rows: usize,
    /// Elements in a row.
    pub cols: usize,
    /// Elements from one row's start to the next.
    pub row_stride: usize,
    /// Elements before the first row.
    pub offset: usize,
}

impl Layout {
    /// Rows one after the other, from the buffer's start.
    pub const fn contiguous(rows: usize, cols: usize) -> Self {
        Self { rows, cols, row_stride: cols, offset: 0 }
    }

    /// The elements of row `row`.
    pub fn row(&self, row: usize) -> Range<usize> {
        let start = self.offset + row * self.row_stride;
        start..start + self.cols
    }

    /// Elements from the buffer's start to the last row's end.
    fn needed(&self, operand: &str) -> Result<usize> {
        let Some(gaps) = self.rows.checked_sub(1) else { return Ok(0) };
        checked_product(operand, &[gaps, self.row_stride])?
            .checked_add(self.cols)
            .and_then(|len| len.checked_add(self.offset))
            .ok_or_else(|| Error::Overflow { what: operand.to_owned() })
    }

    fn check(&self, operand: &'static str, len: usize) -> Result<()> {
        if self.rows > 1 && self.row_stride < self.cols {
            return Err(Error::value(
                format!("{operand}: row stride"),
                self.row_stride,
                format!("at least the row's {} elements", self.cols),
            ));
        }
        let needed = self.needed(operand)?;
        if needed > len {
            return Err(Error::View { operand: operand.to_owned(), needed, len });
        }
        Ok(())
    }

    /// Checks that every row starts on a multiple of [`ROW_ALIGNMENT`] bytes and fills one.
    pub(crate) fn check_alignment<T: Element>(&self, operand: &str) -> Result<()> {
        let parts = [("row", self.cols), ("row stride", self.row_stride), ("offset", self.offset)];
        for (what, elements) in parts {
            if !elements.is_multiple_of(ROW_ALIGNMENT / T::DTYPE.size()) {
                let operand = operand.to_owned();
                return Err(Error::Alignment { operand, what, elements, dtype: T::DTYPE });
            }
        }
        Ok(())
    }

    pub(crate) fn expect(&self, operand: &str, rows: usize, cols: usize) -> Result<()> {
        if (self.rows, self.cols) == (rows, cols) {
            return Ok(());
        }
        Err(Error::shape(operand, [rows, cols], [self.rows, self.cols]))
    }
}

/// A matrix that is read: a buffer and a checked layout.
pub struct Matrix<'a, M: Memory, T: Element> {
    buffer: &'a M::Buffer<T>,
    layout: Layout,
}

impl<M: Memory, T: Element> Clone for Matrix<'_, M, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: Memory, T: Element> Copy for Matrix<'_, M, T> {}

impl<M: Memory, T: Element> fmt::Debug for Matrix<'_, M, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", T::DTYPE, self.layout)
    }
}

impl<'a, M: Memory, T: Element> Matrix<'a, M, T> {
    /// A strided view of `buffer`.
    ///
    /// # Errors
    /// [`Error::View`] if the layout reaches past the buffer's end, [`Error::Value`] if rows
    /// overlap.
    pub fn new(operand: &'static str, buffer: &'a M::Buffer<T>, layout: Layout) -> Result<Self> {
        layout.check(operand, buffer.len())?;
        Ok(Self { buffer, layout })
    }

    /// The first `rows * cols` elements of `buffer`.
    ///
    /// # Errors
    /// As [`Matrix::new`].
    pub fn contiguous(
        operand: &'static str,
        buffer: &'a M::Buffer<T>,
        rows: usize,
        cols: usize,
    ) -> Result<Self> {
        Self::new(operand, buffer, Layout::contiguous(rows, cols))
    }

    /// The buffer that holds the matrix.
    pub fn buffer(&self) -> &'a M::Buffer<T> {
        self.buffer
    }

    /// Where the matrix lies in its buffer.
    pub fn layout(&self) -> Layout {
        self.layout
    }
}

/// A matrix that is written.
pub struct MatrixMut<'a, M: Memory, T: Element> {
    buffer: &'a mut M::Buffer<T>,
    layout: Layout,
}

impl<M: Memory, T: Element> fmt::Debug for MatrixMut<'_, M, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", T::DTYPE, self.layout)
    }
}

impl<'a, M: Memory, T: Element> MatrixMut<'a, M, T> {
    /// A strided view of `buffer`.
    ///
    /// # Errors
    /// As [`Matrix::new`].
    pub fn new(
        operand: &'static str,
        buffer: &'a mut M::Buffer<T>,
        layout: Layout,
    ) -> Result<Self> {
        layout.check(operand, buffer.len())?;
        Ok(Self { buffer, layout })
    }

    /// The first `rows * cols` elements of `buffer`.
    ///
    /// # Errors
    /// As [`Matrix::new`].
    pub fn contiguous(
        operand: &'static str,
        buffer: &'a mut M::Buffer<T>,
        rows: usize,
        cols: usize,
    ) -> Result<Self> {
        Self::new(operand, buffer, Layout::contiguous(rows, cols))
    }

    /// Where the matrix lies in its buffer.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The buffer that holds the matrix.
    #[cfg_attr(not(feature = "driver"), expect(dead_code, reason = "for CUDA's checks"))]
    pub(crate) fn buffer(&self) -> &M::Buffer<T> {
        self.buffer
    }

    /// The buffer that holds the matrix, and where it lies there.
    pub fn into_parts(self) -> (&'a mut M::Buffer<T>, Layout) {
        (self.buffer, self.layout)
    }
}
