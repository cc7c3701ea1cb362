//! The crate's one error type: every message names the thing, what was given and what is expected.

use std::fmt;
use std::path::PathBuf;

use crate::element::DType;

/// `Result` with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A tensor's dimensions, printed as `[33, 64]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape(pub Vec<usize>);

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Self(dims.to_vec())
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Self(dims.to_vec())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// What can go wrong, from bad input to a missing driver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand's shape disagrees with the others' or with the configuration.
    #[error("{operand}: expected shape {expected}, given {given}")]
    Shape {
        /// The operand, or the tensor's name in the checkpoint.
        operand: String,
        /// The shape that the other operands or the configuration call for.
        expected: Shape,
        /// The shape that was given.
        given: Shape,
    },

    /// A value is outside what is meaningful.
    #[error("{name} = {given}: expected {expected}")]
    Value {
        /// The value's name.
        name: String,
        /// The value.
        given: String,
        /// The values that are accepted.
        expected: String,
    },

    /// The request is meaningful, but this backend or this version does not do it.
    #[error("{what} is not supported; supported: {supported}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// What can be had instead.
        supported: String,
    },

    /// A tensor is stored in another element type than its place calls for.
    #[error("{tensor}: expected dtype {expected}, given {given}")]
    DType {
        /// The tensor's name.
        tensor: String,
        /// The accepted element types.
        expected: String,
        /// The stored element type.
        given: String,
    },

    /// A buffer view reaches past its buffer's end.
    #[error("{operand}: the view needs {needed} elements, the buffer has {len}")]
    View {
        /// The operand.
        operand: String,
        /// Elements from the buffer's start to the view's end.
        needed: usize,
        /// Elements in the buffer.
        len: usize,
    },

    /// A row in memory does not start on a multiple of 16 bytes.
    #[error("{operand}: {what} of {elements} {dtype} elements is not a multiple of 16 bytes")]
    Alignment {
        /// The operand.
        operand: String,
        /// `row stride`, `offset` or `row`.
        what: &'static str,
        /// The number of elements given.
        elements: usize,
        /// The element type.
        dtype: DType,
    },

    /// The workspace was made for fewer tokens.
    #[error("workspace holds {max_tokens} tokens, the input has {num_tokens}")]
    Workspace {
        /// The tokens that the workspace was made for.
        max_tokens: usize,
        /// The tokens of the input.
        num_tokens: usize,
    },

    /// The size of an allocation does not fit the address space.
    #[error("{what}: the size overflows")]
    Overflow {
        /// What was to be allocated or counted.
        what: String,
    },

    /// Memory for a buffer could not be had.
    #[error("{what}: {bytes} bytes could not be allocated")]
    OutOfMemory {
        /// What was to be allocated.
        what: String,
        /// Its size.
        bytes: usize,
    },

    /// The backend's device or driver failed, or there is none. Downcast to the backend's own error
    /// (`cuda::driver::DriverError`) to match on it.
    #[error("device: {0}")]
    Device(Box<dyn std::error::Error + Send + Sync>),

    /// A config.json is not valid JSON, lacks a key, or has one of another type.
    #[error("config: {0}")]
    Config(String),

    /// A key of a config.json concerns the MoE layer and the family's row does not list it.
    #[error(
        "config key {key:?} = {value} concerns the MoE layer and is not understood for family \
         {family}; if it does not change the layer's result, ignore it by name \
         (MoeConfig::from_hf_config_ignoring, run_layer --ignore-key)"
    )]
    UnknownConfigKey {
        /// The key.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// The model family.
        family: &'static str,
    },

    /// A file or folder could not be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error. Not a `source`: the message has it already.
        error: std::io::Error,
    },

    /// A file is not what its name says.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A checkpoint lacks a tensor.
    #[error("{}: tensor \"{tensor}\" is missing ({expected})", path.display())]
    MissingTensor {
        /// The file or folder.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// What it would have held.
        expected: String,
    },
}

impl Error {
    pub(crate) fn shape(
        operand: impl Into<String>,
        expected: impl Into<Shape>,
        given: impl Into<Shape>,
    ) -> Self {
        Self::Shape { operand: operand.into(), expected: expected.into(), given: given.into() }
    }

    pub(crate) fn value(
        name: impl Into<String>,
        given: impl fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Value { name: name.into(), given: given.to_string(), expected: expected.into() }
    }
}

/// `a * b * ...` in `usize`, or [`Error::Overflow`] naming `what`.
pub(crate) fn checked_product(what: &str, factors: &[usize]) -> Result<usize> {
    factors
        .iter()
        .try_fold(1usize, |product, &factor| product.checked_mul(factor))
        .ok_or_else(|| Error::Overflow { what: what.to_owned() })
}

/// An empty vector with room for `len` elements, or [`Error::OutOfMemory`] naming `what`.
#[cfg(any(feature = "cpu", feature = "checkpoint", feature = "driver"))]
pub(crate) fn vec_with_room<T>(what: &str, len: usize) -> Result<Vec<T>> {
    let mut elements = Vec::new();
    elements.try_reserve_exact(len).map_err(|_| Error::OutOfMemory {
        what: what.to_owned(),
        bytes: len.saturating_mul(size_of::<T>()),
    })?;
    Ok(elements)
}
