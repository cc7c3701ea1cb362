//! Number formats and exact products, independent of the models.

use super::Rand;
use half::{bf16 as Bf16, f16 as F16};
use moe_kernels::cuda::driver::TensorElement;

#[derive(Clone, Copy, PartialEq)]
pub enum Format {
    Bf16,
    F16,
    E4m3,
}
/// A value of four bits of exponent and three of mantissa.
pub fn e4m3(code: u8) -> f32 {
    let (e, m) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    if code & 0x7f == 0x7f {
        return f32::NAN;
    }
    let v = if e == 0 { m / 8.0 * 2f32.powi(-6) } else { (1.0 + m / 8.0) * 2f32.powi(e - 7) };
    if code & 0x80 == 0 { v } else { -v }
}
pub fn e5m2(code: u8) -> f32 {
    F16::from_bits(u16::from(code) << 8).to_f32()
}
/// The nearest finite code, ties to an even one.
pub fn nearest_fp8(x: f32, decode: fn(u8) -> f32, largest: u8) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let best = (0..=largest).min_by(|&a, &b| {
        let (da, db) = (
            (f64::from(decode(a)) - f64::from(x.abs())).abs(),
            (f64::from(decode(b)) - f64::from(x.abs())).abs(),
        );
        da.total_cmp(&db).then((a & 1).cmp(&(b & 1)))
    });
    sign | best.unwrap()
}
impl Format {
    pub fn bytes(self) -> usize {
        if self == Self::E4m3 { 1 } else { 2 }
    }
    pub fn element(self) -> TensorElement {
        match self {
            Self::Bf16 => TensorElement::Bf16,
            Self::F16 => TensorElement::F16,
            Self::E4m3 => TensorElement::U8,
        }
    }
    pub fn encode(self, v: f32) -> Vec<u8> {
        match self {
            Self::Bf16 => Bf16::from_f32(v).to_bits().to_ne_bytes().to_vec(),
            Self::F16 => F16::from_f32(v).to_bits().to_ne_bytes().to_vec(),
            Self::E4m3 => vec![nearest_fp8(v, e4m3, 0x7e)],
        }
    }
}
/// Integers in [-4, 4]: exact in every format, and so are their sums.
pub fn integers(seed: u64, n: usize) -> Vec<f32> {
    let mut r = Rand(seed);
    (0..n).map(|_| (r.next() % 9) as f32 - 4.0).collect()
}
/// a [m, k] times b [n, k] transposed.
pub fn product(a: &[f32], b: &[f32], m: usize, n: usize, k: usize) -> Vec<f32> {
    (0..m * n).map(|i| (0..k).map(|x| a[i / n * k + x] * b[i % n * k + x]).sum()).collect()
}
