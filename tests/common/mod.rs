//! What the stages' tests share: an oracle, a comparer, named cases, and buffers on a backend.
//!
//! A test file takes what it needs: `mod common; use common::*;`.

#![allow(dead_code, unused_imports, unused_macros, reason = "each test binary uses a part")]

pub(crate) mod activations;
pub(crate) mod cases;
pub(crate) mod checks;
pub(crate) mod compare;
pub(crate) mod emulated;
pub(crate) mod expert_rules;
pub(crate) mod forward;
#[cfg(feature = "checkpoint")]
pub(crate) mod golden;
pub(crate) mod layers;
pub(crate) mod quantised;
pub(crate) mod reference;
pub(crate) mod rules;
pub(crate) mod stages;
pub(crate) mod terms;

pub(crate) use activations::*;
pub(crate) use cases::*;
pub(crate) use checks::*;
pub(crate) use compare::*;
pub(crate) use emulated::*;
pub(crate) use expert_rules::*;
pub(crate) use forward::*;
#[cfg(feature = "checkpoint")]
pub(crate) use golden::*;
pub(crate) use layers::*;
pub(crate) use quantised::*;
pub(crate) use rules::*;
pub(crate) use stages::*;
pub(crate) use terms::*;

use half::{bf16, f16};
use moe_kernels::backend::Backend;
use moe_kernels::element::{DType, Element, Float};
use moe_kernels::memory::{Layout, Matrix, MatrixMut, Memory};
use moe_kernels::ops::{ExpertShape, Experts, RouterOutput, RoutingPlan};
use moe_kernels::weights::DenseExperts;

/// An element whose bits can be compared, NaN included.
pub(crate) trait Bits: Element {
    /// Fills what must be neither read nor written. Of floats, a signalling NaN: it spreads through
    /// arithmetic, and comes out of it quiet, so that no result has its bits.
    const POISON: Self;

    fn bits(self) -> u32;
}

/// A storage type, converted by `half` itself and not by the crate.
pub(crate) trait Storage: Float + Bits {
    const NAME: &'static str;

    /// The bound on the relative L2 error of a stage or a layer.
    const BOUND: f64;

    fn wide(self) -> f64;

    /// Rounds once, ties to even.
    fn nearest(value: f64) -> Self;
}

impl Bits for f32 {
    const POISON: Self = f32::from_bits(0x7f80_dead);

    fn bits(self) -> u32 {
        self.to_bits()
    }
}

impl Bits for bf16 {
    const POISON: Self = bf16::from_bits(0x7f8d);

    fn bits(self) -> u32 {
        self.to_bits().into()
    }
}

impl Bits for f16 {
    const POISON: Self = f16::from_bits(0x7ced);

    fn bits(self) -> u32 {
        self.to_bits().into()
    }
}

impl Bits for i32 {
    const POISON: Self = 0x7ead_beef;

    fn bits(self) -> u32 {
        self.cast_unsigned()
    }
}

impl Bits for u32 {
    const POISON: Self = 0xdead_beef;

    fn bits(self) -> u32 {
        self
    }
}

impl Storage for f32 {
    const NAME: &'static str = "f32";
    // docs/numerics.md promises 1e-5. Sums of at most a few hundred products keep to a tenth of it.
    const BOUND: f64 = 1e-6;

    fn wide(self) -> f64 {
        self.into()
    }

    fn nearest(value: f64) -> Self {
        value as f32
    }
}

impl Storage for bf16 {
    const NAME: &'static str = "bf16";
    const BOUND: f64 = 1e-2;

    fn wide(self) -> f64 {
        self.into()
    }

    fn nearest(value: f64) -> Self {
        bf16::from_f64(value)
    }
}

impl Storage for f16 {
    const NAME: &'static str = "f16";
    const BOUND: f64 = 1e-2;

    fn wide(self) -> f64 {
        self.into()
    }

    fn nearest(value: f64) -> Self {
        f16::from_f64(value)
    }
}

pub(crate) fn wide<T: Storage>(values: &[T]) -> Vec<f64> {
    values.iter().map(|&value| value.wide()).collect()
}

pub(crate) fn bits<T: Bits>(values: &[T]) -> Vec<u32> {
    values.iter().map(|&value| value.bits()).collect()
}

/// Rounds to what `T` stores.
pub(crate) fn round<T: Storage>(value: f64) -> f64 {
    T::nearest(value).wide()
}

/// The bounds of targets.md for a matrix stored as `T`: on the error against the truth, and on
/// that error relative to `plain`'s, a plain implementation of the same precision.
#[track_caller]
pub(crate) fn assert_within<T: Storage>(
    what: &str,
    given: &[f64],
    truth: &[f64],
    plain: &[f64],
    cols: usize,
) {
    let what = format!("{what} {}", T::NAME);
    let error = assert_close(&what, given, truth, cols, T::BOUND);
    let plain = rel_l2(plain, truth, cols).unwrap();
    assert!(
        T::DTYPE == DType::F32 || error <= 2.0 * plain + 1e-6,
        "{what}: relative L2 {error:.3e}, of a plain implementation {plain:.3e}"
    );
}

/// A backend and a stream on it.
pub(crate) struct Device<B: Backend> {
    pub(crate) backend: B,
    pub(crate) stream: B::Stream,
}

#[cfg(feature = "cpu")]
pub(crate) fn cpu() -> Device<moe_kernels::Cpu> {
    Device { backend: moe_kernels::Cpu, stream: () }
}

impl<B: Backend> Device<B> {
    pub(crate) fn put<T: Element>(&self, values: &[T]) -> B::Buffer<T> {
        self.backend.buffer_from("test data", values, &self.stream).unwrap()
    }

    pub(crate) fn get<T: Element>(&self, buffer: &B::Buffer<T>) -> Vec<T> {
        let mut values = vec![T::default(); moe_kernels::memory::Buffer::len(buffer)];
        self.backend.download(buffer, &mut values, &self.stream).unwrap();
        values
    }

    /// A plan made from ids.
    pub(crate) fn plan(&self, ids: &[i32], top_k: usize, num_experts: usize) -> RoutingPlan<B> {
        let mut plan = RoutingPlan::new(&self.backend, num_experts, ids.len()).unwrap();
        let buffer = self.put(ids);
        let ids = Matrix::contiguous("topk_ids", &buffer, ids.len() / top_k, top_k).unwrap();
        let op = moe_kernels::ops::Plan::new(ids, None, &mut plan).unwrap();
        self.backend.plan(op, &self.stream).unwrap();
        plan
    }

    /// The plan's meaningful contents.
    pub(crate) fn read_plan(&self, plan: &RoutingPlan<B>) -> reference::Plan {
        let expert_offsets = self.get(plan.expert_offsets());
        let rows = *expert_offsets.last().unwrap() as usize;
        let mut token_of_row = self.get(plan.token_of_row());
        token_of_row.truncate(rows);
        let mut row_of_assignment = self.get(plan.row_of_assignment());
        row_of_assignment.truncate(plan.num_assignments());
        reference::Plan {
            tokens_per_expert: self.get(plan.tokens_per_expert()),
            expert_offsets,
            token_of_row,
            row_of_assignment,
        }
    }
}

/// How far apart a matrix's rows lie, and how far in: in multiples of 8 elements, which is 16
/// bytes of every storage type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pad {
    pub(crate) offset: usize,
    pub(crate) gap: usize,
    pub(crate) tail: usize,
}

pub(crate) const TIGHT: Pad = Pad { offset: 0, gap: 0, tail: 0 };
pub(crate) const LOOSE: Pad = Pad { offset: 16, gap: 8, tail: 24 };

/// A matrix in host memory amid poison.
#[derive(Clone, Debug)]
pub(crate) struct Placed<T> {
    pub(crate) memory: Vec<T>,
    pub(crate) layout: Layout,
}

impl<T: Bits> Placed<T> {
    pub(crate) fn new(values: &[T], rows: usize, cols: usize, pad: Pad) -> Self {
        assert_eq!(values.len(), rows * cols);
        let layout = Layout { rows, cols, row_stride: cols + pad.gap, offset: pad.offset };
        // No gap after the last row: a view may end with the buffer.
        let len = (rows * layout.row_stride).saturating_sub(pad.gap) + pad.offset + pad.tail;
        let mut memory = vec![T::POISON; len];
        for row in 0..rows {
            memory[layout.row(row)].copy_from_slice(&values[row * cols..][..cols]);
        }
        Self { memory, layout }
    }

    /// All poison, rows included.
    pub(crate) fn poison(rows: usize, cols: usize, pad: Pad) -> Self {
        Self::new(&vec![T::POISON; rows * cols], rows, cols, pad)
    }

    pub(crate) fn put<B: Backend>(&self, device: &Device<B>) -> B::Buffer<T> {
        device.put(&self.memory)
    }

    /// The rows of `buffer`, after checking that all around them is as it was.
    pub(crate) fn take<B: Backend>(
        &self,
        what: &str,
        device: &Device<B>,
        buffer: &B::Buffer<T>,
    ) -> Vec<T> {
        let after = device.get(buffer);
        let mut is_row = vec![false; after.len()];
        let mut values = Vec::with_capacity(self.layout.rows * self.layout.cols);
        for row in 0..self.layout.rows {
            is_row[self.layout.row(row)].fill(true);
            values.extend_from_slice(&after[self.layout.row(row)]);
        }
        for (place, (before, after)) in self.memory.iter().zip(&after).enumerate() {
            assert!(
                is_row[place] || before.bits() == after.bits(),
                "{what}: element {place} lies outside every row of {:?} and was written: {after:?}",
                self.layout
            );
        }
        values
    }
}

/// `$body` once for each storage type, as `$type`.
macro_rules! for_each_storage {
    ($type:ident => $body:expr) => {{
        {
            type $type = f32;
            $body
        }
        {
            type $type = half::bf16;
            $body
        }
        {
            type $type = half::f16;
            $body
        }
    }};
}
pub(crate) use for_each_storage;

/// The message of an error that must come, after checking its variant and that the message holds
/// every one of `parts`.
#[track_caller]
pub(crate) fn check_message(error: &moe_kernels::Error, parts: &[&str]) {
    let message = error.to_string();
    for part in parts {
        assert!(message.contains(part), "\"{part}\" is not named in: {message}");
    }
}

/// `$result` is an error of variant `$pattern`, and its message holds every part.
macro_rules! refused {
    ($result:expr, $pattern:pat, $($part:expr),+ $(,)?) => {
        match $result {
            Ok(_) => panic!("accepted: {}", stringify!($result)),
            Err(error) => {
                assert!(
                    matches!(&error, $pattern),
                    "expected {}, given {error:?}",
                    stringify!($pattern)
                );
                $crate::common::check_message(&error, &[$(&$part.to_string()),+]);
            }
        }
    };
}
pub(crate) use refused;

/// Runs `work` on pools of several sizes, and checks that it gives the same each time.
#[cfg(feature = "cpu")]
#[track_caller]
pub(crate) fn same_on_every_pool<R: PartialEq + std::fmt::Debug + Send>(
    what: &str,
    work: impl Fn() -> R + Sync,
) {
    let expected = work();
    assert!(work() == expected, "{what}: a second run gives other bits");
    for threads in [1, 2, 3, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let given = pool.install(&work);
        assert!(given == expected, "{what}: {threads} threads give other bits");
    }
}
