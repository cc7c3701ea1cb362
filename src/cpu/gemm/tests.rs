//! Every instruction set against naive f64 loops.

use super::*;

const ALL: [&str; 3] = ["avx512", "avx2", "portable"];

/// Runs `check` on every instruction set, and says which ones this CPU lacks.
fn on_every_kernel(check: impl Fn(&Kernels)) {
    let available = Kernels::available();
    for name in ALL {
        match available.iter().find(|kernels| kernels.name == name) {
            Some(kernels) => check(kernels),
            None => eprintln!("SKIPPED: this CPU lacks {name}"),
        }
    }
}

/// Values in [-1, 1), the same for the same seed.
fn random<T: Float>(len: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        T::from_f32((state >> 40) as f32 / (1 << 23) as f32 - 1.0)
    };
    (0..len).map(|_| next()).collect()
}

struct Case<T> {
    m: usize,
    x: Vec<T>,
    rows: Vec<T>,
    w: PackedMatrix<T>,
}

impl<T: Float> Case<T> {
    fn new(m: usize, n: usize, k: usize) -> Self {
        let (x, rows) = (random(m * k, 1), random(n * k, 2));
        let w = PackedMatrix::pack(n, k, |j| &rows[j * k..][..k]).unwrap();
        assert_eq!((w.n, w.k), (n, k));
        assert_eq!(w.bytes(), n.next_multiple_of(PANEL) * k * size_of::<T>());
        Self { m, x, rows, w }
    }

    fn pack(&self, kernels: &Kernels, rows: Range<usize>) -> PackedRows {
        let (k, mut packed) = (self.w.k, PackedRows::default());
        kernels.pack(&mut packed, k, rows.map(|i| &self.x[i * k..][..k]));
        packed
    }

    /// The product, computed in column ranges of `width`.
    fn product(&self, kernels: &Kernels, width: usize) -> Vec<f32> {
        let n = self.w.n;
        let x = self.pack(kernels, 0..self.m);
        let mut whole = vec![f32::NAN; self.m * n];
        for start in (0..n).step_by(width) {
            let columns = start..n.min(start + width);
            let mut part = vec![f32::NAN; self.m * columns.len()];
            kernels.multiply(&x, &self.w, columns.clone(), &mut part);
            for (whole, part) in whole.chunks_exact_mut(n).zip(part.chunks_exact(columns.len())) {
                whole[columns.clone()].copy_from_slice(part);
            }
        }
        whole
    }

    /// The L2 norm of the error, relative to that of the product in f64.
    fn error(&self, product: &[f32]) -> f64 {
        let (n, k) = (self.w.n, self.w.k);
        let (mut error, mut norm) = (0.0, 0.0);
        for (i, &got) in product.iter().enumerate() {
            let (x, w) = (&self.x[i / n * k..][..k], &self.rows[i % n * k..][..k]);
            let want: f64 =
                x.iter().zip(w).map(|(x, w)| f64::from(x.to_f32()) * f64::from(w.to_f32())).sum();
            error += (f64::from(got) - want).powi(2);
            norm += want * want;
        }
        if norm == 0.0 { error } else { (error / norm).sqrt() }
    }
}

/// Ragged in each dimension, then across the blocks of `k` and of rows.
fn shapes() -> Vec<[usize; 3]> {
    let sides = [8, 24, 40, 72, 128, 200];
    let ragged = sides.iter().flat_map(|&n| sides.iter().map(move |&k| (n, k)));
    let mut shapes: Vec<_> =
        ragged.flat_map(|(n, k)| [0, 1, 2, 5, 7, 31, 33, 130].map(|m| [m, n, k])).collect();
    shapes.extend([
        [1, 72, 704],
        [13, 40, 2880],
        [ROWS + 7, 72, DEPTH],
        [2 * ROWS + 1, 40, 2 * DEPTH + 8],
    ]);
    shapes
}

/// A sum of k random terms in blocks of [`DEPTH`] is off by some sqrt(DEPTH) * 2^-25 = 5e-7 of
/// its size at worst, and products of 16-bit values are exact in f32: one bound for all types.
fn is_accurate<T: Float>() {
    on_every_kernel(|kernels| {
        for [m, n, k] in shapes() {
            let case = Case::<T>::new(m, n, k);
            let error = case.error(&case.product(kernels, n));
            assert!(error <= 1e-6, "{} {m} x {n} x {k}: error {error:e}", kernels.name);
        }
    });
}

#[test]
fn products_are_accurate() {
    is_accurate::<f32>();
    is_accurate::<bf16>();
    is_accurate::<f16>();
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn has_the_same_bits<T: Float>() {
    on_every_kernel(|kernels| {
        let (n, k) = (200, DEPTH + 72);
        let case = Case::<T>::new(ROWS + 21, n, k);
        let whole = case.product(kernels, n);
        for width in [PANEL, 3 * PANEL] {
            assert!(
                bits(&case.product(kernels, width)) == bits(&whole),
                "{}: ranges of {width}",
                kernels.name
            );
        }
        for (first, m) in (1..40).enumerate() {
            let mut some = vec![f32::NAN; m * n];
            let x = case.pack(kernels, first..first + m);
            kernels.multiply(&x, &case.w, 0..n, &mut some);
            assert!(
                bits(&some) == bits(&whole[first * n..][..m * n]),
                "{}: {m} rows",
                kernels.name
            );
        }
    });
}

#[test]
fn bits_depend_neither_on_column_ranges_nor_on_rows() {
    has_the_same_bits::<f32>();
    has_the_same_bits::<bf16>();
    has_the_same_bits::<f16>();
}

#[test]
fn nan_and_infinity_stay_in_their_row() {
    on_every_kernel(|kernels| {
        let (m, n, k) = (30, 40, 72);
        let mut case = Case::<f32>::new(m, n, k);
        let clean = case.product(kernels, n);
        (case.x[4 * k + 3], case.x[17 * k + 71]) = (f32::NAN, f32::INFINITY);
        for (i, (dirty, clean)) in
            case.product(kernels, n).chunks(n).zip(clean.chunks(n)).enumerate()
        {
            match i {
                4 => assert!(dirty.iter().all(|value| value.is_nan())),
                17 => assert!(dirty.iter().all(|value| value.is_infinite())),
                _ => assert_eq!(bits(dirty), bits(clean)),
            }
        }
    });
}

#[test]
fn nothing_to_sum_is_zero() {
    on_every_kernel(|kernels| {
        assert_eq!(Case::<f32>::new(3, 8, 0).product(kernels, 8), [0.0; 24]);
        assert!(Case::<bf16>::new(0, 8, 8).product(kernels, 8).is_empty());
    });
}

/// Every bit pattern, at lengths that leave a rest to each register width.
#[test]
fn widening_is_exact() {
    fn check<T: Float>(kernels: &Kernels, from_bits: fn(u16) -> T) {
        let from: Vec<T> = (0..=u16::MAX).map(from_bits).collect();
        for from in [&from[..], &from[5..60_000]] {
            let mut to = vec![0.0; from.len()];
            kernels.widen(from, &mut to);
            for (from, to) in from.iter().zip(to) {
                let want = from.to_f32();
                assert!(to.to_bits() == want.to_bits() || to.is_nan() && want.is_nan());
            }
        }
    }
    on_every_kernel(|kernels| {
        check(kernels, bf16::from_bits);
        check(kernels, f16::from_bits);
    });
}
