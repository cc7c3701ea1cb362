//! stub
use crate::element::Float;
use std::ops::Range;
pub(crate) const PANEL: usize = 32;
#[derive(Debug)]
pub(crate) struct PackedMatrix<T> {
    n: usize,
    k: usize,
    w: Vec<T>,
}
impl<T: Float> PackedMatrix<T> {
    pub(crate) fn pack<'a>(n: usize, k: usize, row: impl Fn(usize) -> &'a [T]) -> Self {
        Self { n, k, w: (0..n).flat_map(|j| row(j).iter().copied()).collect() }
    }
    pub(crate) fn n(&self) -> usize {
        self.n
    }
    pub(crate) fn bytes(&self) -> usize {
        self.w.len() * size_of::<T>()
    }
}
pub(crate) fn multiply<T: Float>(
    x: &[T],
    m: usize,
    w: &PackedMatrix<T>,
    columns: Range<usize>,
    out: &mut [f32],
) {
    let k = w.k;
    for i in 0..m {
        for (c, j) in columns.clone().enumerate() {
            out[i * columns.len() + c] = x[i * k..][..k]
                .iter()
                .zip(&w.w[j * k..][..k])
                .map(|(a, b)| a.to_f32() * b.to_f32())
                .sum();
        }
    }
}
