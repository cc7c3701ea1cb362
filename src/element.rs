//! Element types of tensors: storage only. Every float is computed with in f32.

use std::fmt;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

mod sealed {
    pub trait Sealed {}
}

/// The element types that buffers hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DType {
    /// IEEE binary32.
    F32,
    /// bfloat16: binary32 without its low 16 bits.
    Bf16,
    /// IEEE binary16.
    F16,
    /// Signed 32-bit integer: expert ids.
    I32,
    /// Unsigned 32-bit integer: rows, counts and offsets.
    U32,
    /// Unsigned byte: masks.
    U8,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::U8 => 1,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::U8 => "u8",
        })
    }
}

/// A type that buffers can hold.
pub trait Element:
    sealed::Sealed + Copy + Default + PartialEq + fmt::Debug + Send + Sync + 'static
{
    /// The run-time name of the type.
    const DTYPE: DType;
}

/// A storage type of activations and weights.
pub trait Float: Element {
    /// The value in f32: exact for every storage type.
    fn to_f32(self) -> f32;

    /// The nearest value, ties to even; NaN stays NaN.
    fn from_f32(value: f32) -> Self;

    /// [`Float::to_f32`] of a slice.
    ///
    /// # Panics
    /// If the lengths differ.
    fn widen(from: &[Self], to: &mut [f32]) {
        assert_eq!(from.len(), to.len());
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.to_f32();
        }
    }

    /// [`Float::from_f32`] of a slice.
    ///
    /// # Panics
    /// If the lengths differ.
    fn narrow(from: &[f32], to: &mut [Self]) {
        assert_eq!(from.len(), to.len());
        for (to, from) in to.iter_mut().zip(from) {
            *to = Self::from_f32(*from);
        }
    }
}

macro_rules! elements {
    ($($type:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $type {}
        impl Element for $type {
            const DTYPE: DType = DType::$dtype;
        }
    )*};
}

elements!(f32 => F32, bf16 => Bf16, f16 => F16, i32 => I32, u32 => U32, u8 => U8);

impl Float for f32 {
    fn to_f32(self) -> f32 {
        self
    }

    fn from_f32(value: f32) -> Self {
        value
    }
}

// half's conversions branch on NaN, which keeps loops over them from being vectorised.
impl Float for bf16 {
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        let nearest_even = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet_nan = (bits >> 16) | 0x40;
        Self::from_bits(if value.is_nan() { quiet_nan } else { nearest_even } as u16)
    }
}

impl Float for f16 {
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    fn from_f32(value: f32) -> Self {
        f16::from_f32(value)
    }

    // Whole slices let half use the conversion instructions of the CPU.
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }

    fn narrow(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_conversions_equal_halfs() {
        for high in 0..=u16::MAX {
            let widened = Float::to_f32(bf16::from_bits(high));
            let expected = bf16::from_bits(high).to_f32();
            assert!(
                widened == expected || widened.is_nan() && expected.is_nan(),
                "{high:#06x}: {widened} {expected}"
            );
            for low in [0u32, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(high) << 16 | low);
                let ours = <bf16 as Float>::from_f32(value);
                let theirs = bf16::from_f32(value);
                assert!(
                    ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(),
                    "{value:e}: {ours} {theirs}"
                );
            }
        }
    }
}
