//! The matrix product of the CPU backend: `out [m, n] = x [m, k] * w [n, k]ᵀ`, summed in f32.
//!
//! The naive version is three loops, `out[i][j] += x[i][k] * w[j][k]`. We depart from it thus:
//!
//! 1. **Packed once.** `w` is stored as *panels* of 32 columns: one [`Step`] holds what a panel
//!    needs for one `k`. Panels are cut into blocks of [`DEPTH`] steps, and blocks lie in the order
//!    in which they are read: `[k / DEPTH][n / 32][DEPTH][32]`.
//! 2. **Widened in cache.** 16-bit blocks become f32 in a buffer that stays in L1 while all rows
//!    use it, so one f32 micro-kernel serves the three types.
//! 3. **Register tiles.** The micro-kernel keeps 12 x 32 sums in registers (AVX2: 6 x 16 at a time).
//! 4. **Prefetched.** With 32 rows to an expert, reading weights takes as long as multiplying them;
//!    the micro-kernel asks for the next block while it works on this one.
//!
//! A sum is taken in the order of `k` within a block and over blocks, whatever the tile: the bits of
//! a row depend neither on `m`, nor on the other rows, nor on how columns are split.
//!
//! Why not `vdpbf16ps`: on Sapphire Rapids it issues every second cycle, so that its peak (170 GFLOP/s
//! on two cores) is half of the f32 one (350). Measured 2026-11-22.

use std::any::TypeId;
use std::ops::Range;
use std::sync::LazyLock;

use half::{bf16, f16, slice::HalfFloatSliceExt};
use rayon::prelude::*;

use crate::element::Float;
use crate::error::{Result, vec_with_room};

/// Columns of a panel; ranges given to [`multiply`] start at multiples of it.
pub(crate) const PANEL: usize = 32;
/// Steps of a block: 256 x 32 f32 are 32 KiB, two thirds of L1.
pub(super) const DEPTH: usize = 256;
/// Rows that a block of weights is multiplied with while it is in L1: 240 x 256 f32 stay in L2.
pub(crate) const ROWS: usize = 240;
/// Rows of a tile.
const TILE: usize = 12;
/// From a packed row of `x` to the next: off the powers of two, else 12 rows share a set of L1.
const STRIDE: usize = DEPTH + 16;

/// What a panel needs for one `k`: the weights of its 32 columns.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Step<T>(pub(super) [T; PANEL]);

/// A weight matrix `[n, k]` that [`multiply`] takes, panel by panel.
pub(super) trait Panels: Sync {
    /// Rows, which are columns of the product.
    fn n(&self) -> usize;

    /// Depth.
    fn k(&self) -> usize;

    /// The steps `first..first + DEPTH` of a panel, fewer at the end of `k`: in place, or made in
    /// `buffer` by `widen`.
    fn block<'a>(
        &'a self,
        first: usize,
        panel: usize,
        widen: Widen<'_>,
        buffer: &'a mut Vec<Step<f32>>,
    ) -> &'a [Step<f32>];

    /// The memory that [`Panels::block`] reads.
    fn memory(&self, first: usize, panel: usize) -> &[u8];
}

/// Conversions by the instructions of this CPU.
#[derive(Clone, Copy)]
pub(super) struct Widen<'a>(&'a Kernels);

/// A weight matrix `[n, k]`, packed for [`multiply`].
#[derive(Debug)]
pub(crate) struct PackedMatrix<T> {
    n: usize,
    k: usize,
    /// `[k / DEPTH][n / PANEL][DEPTH]`, the last block of `k` shorter, the last panel zero-filled.
    steps: Vec<Step<T>>,
}

impl<T: Float> PackedMatrix<T> {
    /// Packs the matrix whose row `j` is `row(j)`, `k` long.
    pub(crate) fn pack<'a>(
        n: usize,
        k: usize,
        row: impl Fn(usize) -> &'a [T] + Sync,
    ) -> Result<Self> {
        let panels = n.div_ceil(PANEL);
        let step = |index: usize| {
            let first = index / (panels * DEPTH) * DEPTH;
            let depth = DEPTH.min(k - first);
            let (panel, k) = ((index - first * panels) / depth, (index - first * panels) % depth);
            Step(std::array::from_fn(|lane| match panel * PANEL + lane {
                j if j < n => row(j)[first + k],
                _ => T::from_f32(0.0),
            }))
        };
        let mut steps = vec_with_room("packed weights", panels * k)?;
        steps.par_extend((0..panels * k).into_par_iter().map(step));
        Ok(Self { n, k, steps })
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.steps)
    }

    /// Bytes of a matrix `[n, k]` as packed.
    pub(super) fn bytes_of([n, k]: [usize; 2]) -> Option<usize> {
        n.div_ceil(PANEL).checked_mul(k)?.checked_mul(size_of::<Step<T>>())
    }

    /// The steps `first..first + DEPTH` of a panel; fewer at the end of `k`.
    fn stored(&self, first: usize, panel: usize) -> &[Step<T>] {
        let depth = DEPTH.min(self.k - first);
        &self.steps[first * self.n.div_ceil(PANEL) + panel * depth..][..depth]
    }
}

impl<T: Float> Panels for PackedMatrix<T> {
    fn n(&self) -> usize {
        self.n
    }

    fn k(&self) -> usize {
        self.k
    }

    fn block<'a>(
        &'a self,
        first: usize,
        panel: usize,
        widen: Widen<'_>,
        buffer: &'a mut Vec<Step<f32>>,
    ) -> &'a [Step<f32>] {
        let stored = self.stored(first, panel);
        match cast(stored) {
            Some(steps) => steps,
            None => {
                buffer.resize(DEPTH, Step([0.0; PANEL]));
                widen.0.widen(flat(stored), flat_mut(buffer));
                &buffer[..stored.len()]
            }
        }
    }

    fn memory(&self, first: usize, panel: usize) -> &[u8] {
        bytes(self.stored(first, panel))
    }
}

/// Rows of `x`, widened to f32 and in the order in which tiles read them.
#[derive(Debug, Default)]
pub(crate) struct PackedRows {
    m: usize,
    k: usize,
    /// `[k / DEPTH][m][STRIDE]`.
    packed: Vec<f32>,
}

impl PackedRows {
    /// Takes `rows`, each `k` long, in place of those it had.
    pub(crate) fn pack<'a, T: Float>(
        &mut self,
        k: usize,
        rows: impl ExactSizeIterator<Item = &'a [T]>,
    ) {
        best().pack(self, k, rows);
    }

    /// The steps `first..first + DEPTH` of rows from `row` on, each [`STRIDE`] after the last.
    fn block(&self, first: usize, row: usize) -> &[f32] {
        let start = (first / DEPTH * self.m + row) * STRIDE;
        &self.packed[start..(first / DEPTH + 1) * self.m * STRIDE]
    }
}

/// `out [m, columns] = x [m, k] * w[columns]ᵀ`, on the calling thread.
///
/// `columns` starts at a multiple of [`PANEL`] and ends at one or at `n`.
pub(super) fn multiply(x: &PackedRows, w: &impl Panels, columns: Range<usize>, out: &mut [f32]) {
    best().multiply(x, w, columns, out);
}

/// The fastest kernels that this CPU can run.
fn best() -> &'static Kernels {
    static BEST: LazyLock<Kernels> = LazyLock::new(|| {
        let best = Kernels::available().remove(0);
        tracing::info!(instructions = best.name, "CPU matrix products");
        best
    });
    &BEST
}

/// The routines of one instruction set. [`Kernels::available`] is the only way to them, and hands
/// out those that this CPU has the instructions for.
struct Kernels {
    name: &'static str,
    /// `out [rows, 32] += x [rows, depth] * w [depth, 32]`; rows of `out` are `pitch` apart.
    tile: unsafe fn(Args),
    bf16: unsafe fn(&[bf16], &mut [f32]),
    f16: unsafe fn(&[f16], &mut [f32]),
}

/// What a tile reads and writes.
struct Args<'a> {
    rows: usize,
    x: &'a [f32],
    w: &'a [Step<f32>],
    out: &'a mut [f32],
    pitch: usize,
    /// Memory to prefetch: so many bytes further with each step.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "has no safe prefetch"))]
    next: (*const u8, usize),
}

impl Kernels {
    /// Those this CPU can run, the fastest first.
    fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let all = [
            #[cfg(target_arch = "x86_64")]
            (avx2 && is_x86_feature_detected!("avx512f"), avx512::KERNELS),
            #[cfg(target_arch = "x86_64")]
            (avx2, avx2::KERNELS),
            (true, portable::KERNELS),
        ];
        all.into_iter().filter_map(|(present, kernels)| present.then_some(kernels)).collect()
    }

    fn pack<'a, T: Float>(
        &self,
        to: &mut PackedRows,
        k: usize,
        rows: impl ExactSizeIterator<Item = &'a [T]>,
    ) {
        (to.m, to.k) = (rows.len(), k);
        to.packed.resize(k.div_ceil(DEPTH) * to.m * STRIDE, 0.0);
        for (i, row) in rows.enumerate() {
            assert_eq!(row.len(), k);
            for (block, part) in row.chunks(DEPTH).enumerate() {
                self.widen(part, &mut to.packed[(block * to.m + i) * STRIDE..]);
            }
        }
    }

    fn multiply(&self, x: &PackedRows, w: &impl Panels, columns: Range<usize>, out: &mut [f32]) {
        let width = columns.len();
        assert!(columns.start.is_multiple_of(PANEL) && columns.end <= w.n());
        assert!(columns.end.is_multiple_of(PANEL) || columns.end == w.n());
        assert!(x.k == w.k() && out.len() == x.m * width);
        out.fill(0.0);
        if out.is_empty() {
            return;
        }
        let panels = columns.start / PANEL..columns.end.div_ceil(PANEL);
        let blocks =
            || (0..w.k()).step_by(DEPTH).flat_map(|first| panels.clone().map(move |p| (first, p)));
        let mut widened = Vec::new();
        for (chunk, out) in out.chunks_mut(ROWS * width).enumerate() {
            for ((first, panel), next) in blocks().zip(blocks().skip(1).chain([(0, panels.start)]))
            {
                let steps = w.block(first, panel, Widen(self), &mut widened);
                let next = w.memory(next.0, next.1);
                let left = panel * PANEL - columns.start;
                self.panel(x.block(first, chunk * ROWS), steps, next, left, width, out);
            }
        }
    }

    /// `out[.., left..][.., ..PANEL] += x * w` for all rows of `out [rows, width]`.
    fn panel(
        &self,
        x: &[f32],
        w: &[Step<f32>],
        next: &[u8],
        left: usize,
        width: usize,
        out: &mut [f32],
    ) {
        let right = width.min(left + PANEL);
        // Only the last panel of the matrix is not whole: its tiles take a detour.
        let whole = right - left == PANEL;
        let mut ragged = [0.0; TILE * PANEL];
        let rows = out.len() / width;
        let share = next.len().div_ceil(rows.div_ceil(TILE));
        for (i, row) in (0..rows).step_by(TILE).enumerate() {
            let count = TILE.min(rows - row);
            let out = &mut out[row * width..][..count * width];
            let ahead = next.as_ptr().wrapping_add(i * share);
            let args = Args {
                rows: count,
                x: &x[row * STRIDE..],
                w,
                next: (ahead, share.div_ceil(w.len())),
                pitch: if whole { width } else { PANEL },
                out: if whole { &mut out[left..] } else { &mut ragged },
            };
            // SAFETY: this CPU has the instructions, because `self` comes from `available`.
            unsafe { (self.tile)(args) };
            if !whole {
                for (row, sums) in ragged.chunks_exact_mut(PANEL).take(count).enumerate() {
                    let out = &mut out[row * width + left..row * width + right];
                    out.iter_mut().zip(&*sums).for_each(|(out, sum)| *out += sum);
                    sums.fill(0.0);
                }
            }
        }
    }

    fn widen<T: Float>(&self, from: &[T], to: &mut [f32]) {
        let to = &mut to[..from.len()];
        if let Some(from) = cast(from) {
            to.copy_from_slice(from);
        } else if let Some(from) = cast(from) {
            // SAFETY: this CPU has the instructions, because `self` comes from `available`.
            unsafe { (self.bf16)(from, to) }
        } else if let Some(from) = cast(from) {
            // SAFETY: as above.
            unsafe { (self.f16)(from, to) }
        } else {
            unreachable!("an element type without a kernel");
        }
    }
}

/// The same slice, where `T` is `U`.
fn cast<T: 'static, U: 'static>(slice: &[T]) -> Option<&[U]> {
    // SAFETY: the types are the same type.
    (TypeId::of::<T>() == TypeId::of::<U>())
        .then(|| unsafe { std::slice::from_raw_parts(slice.as_ptr().cast(), slice.len()) })
}

fn bytes<T>(steps: &[Step<T>]) -> &[u8] {
    // SAFETY: steps of numbers have no padding, see `flat`.
    unsafe { std::slice::from_raw_parts(steps.as_ptr().cast(), size_of_val(steps)) }
}

fn flat<T>(steps: &[Step<T>]) -> &[T] {
    const { assert!(size_of::<Step<T>>() == PANEL * size_of::<T>()) };
    // SAFETY: a step is `PANEL` elements without padding, by the assertion.
    unsafe { std::slice::from_raw_parts(steps.as_ptr().cast(), steps.len() * PANEL) }
}

fn flat_mut(steps: &mut [Step<f32>]) -> &mut [f32] {
    // SAFETY: a step is `PANEL` elements without padding, see `flat`.
    unsafe { std::slice::from_raw_parts_mut(steps.as_mut_ptr().cast(), steps.len() * PANEL) }
}

/// Calls `tile::<rows>(..)` with `rows` as a constant, so that the sums live in registers.
macro_rules! by_rows {
    ($rows:expr, $args:tt, $($n:literal)*) => {
        match $rows { $($n => tile::<$n> $args,)* _ => unreachable!("a tile has too many rows") }
    };
}

/// A module of kernels for one x86 instruction set, with tiles of `$rows` x `$vectors` registers.
#[cfg(target_arch = "x86_64")]
macro_rules! x86 {
    ($module:ident, $features:literal, $rows:literal x $vectors:literal of $vector:ty, $zero:ident,
     $set:ident, $fma:ident, $load_half:ident, $widen_half:ident) => {
        mod $module {
            use super::{Args, Kernels, PANEL, STRIDE};
            use std::{arch::x86_64::*, mem::transmute};
            /// f32 in a register.
            const LANES: usize = size_of::<$vector>() / 4;

            pub(super) const KERNELS: Kernels =
                Kernels { name: stringify!($module), tile: tiles, bf16: widen_bf16, f16: widen_f16 };

            #[target_feature(enable = $features)]
            fn tiles(args: Args) {
                for row in (0..args.rows).step_by($rows) {
                    let (x, out) = (&args.x[row * STRIDE..], &mut args.out[row * args.pitch..]);
                    let args = Args { rows: $rows.min(args.rows - row), x, out, ..args };
                    by_rows!(args.rows, (args), 1 2 3 4 5 6 7 8 9 10 11 12);
                }
            }

            #[allow(unused_unsafe, reason = "prefetching is safe in newer compilers")]
            #[target_feature(enable = $features)]
            fn tile<const M: usize>(Args { x, w, out, pitch, next: (next, stride), .. }: Args) {
                assert!(x.len() >= (M - 1) * STRIDE + w.len());
                for left in (0..PANEL).step_by($vectors * LANES) {
                    let mut sums = [[$zero(); $vectors]; M];
                    let (mut x, mut ahead) = (x.as_ptr(), next);
                    for step in w {
                        // SAFETY: a prefetch reads nothing and faults nowhere.
                        unsafe { _mm_prefetch::<_MM_HINT_T1>(ahead.cast()) };
                        ahead = ahead.wrapping_add(stride);
                        let step = step.0[left..][..$vectors * LANES].as_ptr().cast::<$vector>();
                        // SAFETY: within the `$vectors` registers just sliced; a step is aligned to 64.
                        let w: [$vector; $vectors] = std::array::from_fn(|v| unsafe { step.add(v).read() });
                        for (i, sums) in sums.iter_mut().enumerate() {
                            // SAFETY: row `i < M` of `x`, at one of its `w.len()` steps, asserted above.
                            let x = $set(unsafe { x.add(i * STRIDE).read() });
                            for (sum, w) in sums.iter_mut().zip(w) {
                                *sum = $fma(x, w, *sum);
                            }
                        }
                        x = x.wrapping_add(1);
                    }
                    for (i, sums) in sums.into_iter().enumerate() {
                        let out = &mut out[i * pitch + left..][..$vectors * LANES];
                        for (out, sums) in out.chunks_exact_mut(LANES).zip(sums) {
                            // SAFETY: a register is as many f32, in this order.
                            let sums: [f32; LANES] = unsafe { transmute(sums) };
                            out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                        }
                    }
                }
            }

            #[target_feature(enable = $features)]
            fn widen_bf16(from: &[half::bf16], to: &mut [f32]) {
                super::portable::widen_bf16(from, to);
            }

            #[target_feature(enable = $features)]
            fn widen_f16(from: &[half::f16], to: &mut [f32]) {
                let (from, rest) = from.as_chunks::<LANES>();
                let (to, to_rest) = to.as_chunks_mut::<LANES>();
                for (from, to) in from.iter().zip(to) {
                    // SAFETY: a chunk is as long as half a register, and the load is the unaligned one.
                    let wide = $widen_half(unsafe { $load_half(from.as_ptr().cast()) });
                    // SAFETY: a register is as many f32, in this order.
                    *to = unsafe { transmute::<$vector, [f32; LANES]>(wide) };
                }
                super::portable::widen_f16(rest, to_rest);
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
x86!(avx512, "avx512f,avx2,fma,f16c", 12 x 2 of __m512, _mm512_setzero_ps, _mm512_set1_ps,
    _mm512_fmadd_ps, _mm256_loadu_si256, _mm512_cvtph_ps);
#[cfg(target_arch = "x86_64")]
x86!(avx2, "avx2,fma,f16c", 6 x 2 of __m256, _mm256_setzero_ps, _mm256_set1_ps,
    _mm256_fmadd_ps, _mm_loadu_si128, _mm256_cvtph_ps);

/// For every other CPU: what the compiler makes of loops over arrays.
mod portable {
    use super::*;

    /// Columns whose sums are kept in registers.
    const WIDTH: usize = 8;

    pub(super) const KERNELS: Kernels =
        Kernels { name: "portable", tile: tiles, bf16: widen_bf16, f16: widen_f16 };

    fn tiles(args: Args) {
        for row in (0..args.rows).step_by(4) {
            let (x, out) = (&args.x[row * STRIDE..], &mut args.out[row * args.pitch..]);
            let args = Args { rows: 4.min(args.rows - row), x, out, ..args };
            by_rows!(args.rows, (args), 1 2 3 4);
        }
    }

    fn tile<const M: usize>(Args { x, w, out, pitch, .. }: Args) {
        let x: [&[f32]; M] = std::array::from_fn(|i| &x[i * STRIDE..][..w.len()]);
        for left in (0..PANEL).step_by(WIDTH) {
            let mut sums = [[0.0; WIDTH]; M];
            for (k, step) in w.iter().enumerate() {
                for (x, sums) in x.iter().zip(&mut sums) {
                    for (sum, w) in sums.iter_mut().zip(&step.0[left..left + WIDTH]) {
                        *sum = if cfg!(target_arch = "aarch64") {
                            x[k].mul_add(*w, *sum)
                        } else {
                            *sum + x[k] * w
                        };
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                let out = &mut out[i * pitch + left..][..WIDTH];
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
            }
        }
    }

    #[inline(always)]
    pub(super) fn widen_bf16(from: &[bf16], to: &mut [f32]) {
        for (from, to) in from.iter().zip(to) {
            *to = f32::from_bits(u32::from(from.to_bits()) << 16);
        }
    }

    pub(super) fn widen_f16(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

#[cfg(test)]
mod tests;
