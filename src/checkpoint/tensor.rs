//! One mapped safetensors file, and the tensors in it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde_json::{Map, Value};

use crate::element::{DType, Float};
use crate::error::{Error, Result, vec_with_room};

use super::{gguf, io_error};

/// A safetensors file in memory, with its header read and checked.
#[derive(Debug)]
pub(super) struct MappedFile {
    path: PathBuf,
    map: Mmap,
    tensors: HashMap<String, Entry>,
    metadata: HashMap<String, String>,
    gguf: Option<Map<String, Value>>,
}

/// A tensor's place in its file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
    /// Its type, where that is none of those that are read.
    foreign: Option<String>,
}

impl Entry {
    pub(super) fn new(dtype: Dtype, shape: Vec<usize>, bytes: Range<usize>) -> Self {
        Self { dtype, shape, bytes, foreign: None }
    }

    /// A tensor of a type that nothing here reads.
    pub(super) fn unreadable(shape: Vec<usize>, dtype: String) -> Self {
        Self { dtype: Dtype::BOOL, shape, bytes: 0..0, foreign: Some(dtype) }
    }
}

impl MappedFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let invalid = |reason: String| Error::File {
            path: path.to_owned(),
            reason: format!("not a safetensors file: {reason}"),
        };
        // Asked before it is opened: to open a named pipe is to wait for its other end.
        let metadata = fs::metadata(path).map_err(|error| io_error(path, error))?;
        if !metadata.is_file() {
            return Err(invalid("not a regular file".to_owned()));
        }
        let file = File::open(path).map_err(|error| io_error(path, error))?;
        // SAFETY: the map is read-only and of a regular file, which `Checkpoint::open` asks its
        // caller not to change while it is mapped.
        #[expect(unsafe_code, reason = "memory-mapping a file")]
        let map = unsafe { Mmap::map(&file) }.map_err(|error| io_error(path, error))?;

        if map.starts_with(gguf::MAGIC) {
            let header = gguf::parse(&map).map_err(|reason| Error::File {
                path: path.to_owned(),
                reason: format!("not a GGUF file that can be read: {reason}"),
            })?;
            let (tensors, gguf) = (header.tensors, Some(header.metadata));
            return Ok(Self {
                path: path.to_owned(),
                map,
                tensors,
                metadata: HashMap::new(),
                gguf,
            });
        }
        // Reading the tensors too, and not the header alone, checks that the file is whole.
        SafeTensors::deserialize(&map).map_err(|error| invalid(error.to_string()))?;
        let (header_len, header) =
            SafeTensors::read_metadata(&map).map_err(|error| invalid(error.to_string()))?;
        let data = size_of::<u64>() + header_len;
        let tensors = header
            .tensors()
            .into_iter()
            .map(|(name, info)| {
                let (start, end) = info.data_offsets;
                let bytes = data + start..data + end;
                (name, Entry::new(info.dtype, info.shape.clone(), bytes))
            })
            .collect();
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(Self { path: path.to_owned(), map, tensors, metadata, gguf: None })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(super) fn gguf(&self) -> Option<&Map<String, Value>> {
        self.gguf.as_ref()
    }

    pub(super) fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }
}

/// A tensor of a checkpoint. Its elements are read when they are asked for.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    file: Arc<MappedFile>,
    name: String,
    entry: Entry,
}

impl StoredTensor {
    pub(super) fn find(file: &Arc<MappedFile>, name: &str) -> Option<Self> {
        let entry = file.tensors.get(name)?.clone();
        Some(Self { file: file.clone(), name: name.to_owned(), entry })
    }

    /// The tensor's name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that holds the tensor.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// The tensor's dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.entry.shape
    }

    pub(super) fn is(&self, dtype: DType) -> bool {
        matches!(
            (self.entry.dtype, dtype),
            (Dtype::F32, DType::F32) | (Dtype::BF16, DType::Bf16) | (Dtype::F16, DType::F16)
        )
    }

    pub(super) fn expect_shape(&self, expected: &[usize]) -> Result<()> {
        if self.shape() == expected {
            return Ok(());
        }
        Err(Error::shape(&self.name, expected, self.shape()))
    }

    pub(super) fn expect_dtype(&self, expected: &[Dtype]) -> Result<()> {
        if expected.contains(&self.entry.dtype) {
            return Ok(());
        }
        let names: Vec<_> = expected.iter().map(Dtype::to_string).collect();
        Err(self.wrong_dtype(&names.join(" or ")))
    }

    pub(super) fn expect_float(&self) -> Result<()> {
        match self.entry.dtype {
            Dtype::F32 | Dtype::BF16 | Dtype::F16 => Ok(()),
            _ => Err(self.wrong_dtype("F32, BF16 or F16")),
        }
    }

    /// The elements of a floating-point tensor, rounded to `T` where that is narrower.
    ///
    /// # Errors
    /// [`Error::DType`] for other tensors, [`Error::Value`] for a finite value that would become
    /// infinite, [`Error::OutOfMemory`].
    pub fn read<T: Float>(&self) -> Result<Vec<T>> {
        self.read_at(self.shape().iter().product(), |index| index)
    }

    /// `len` elements, of which number `i` is the tensor's number `place(i)`; as [`StoredTensor::read`].
    pub(super) fn read_at<T: Float>(
        &self,
        len: usize,
        place: impl Fn(usize) -> usize,
    ) -> Result<Vec<T>> {
        match self.entry.dtype {
            Dtype::F32 => self.round(len, place, f32::from_le_bytes),
            Dtype::BF16 => {
                self.round(len, place, |bytes| Float::to_f32(bf16::from_le_bytes(bytes)))
            }
            Dtype::F16 => self.round(len, place, |bytes| f16::from_le_bytes(bytes).to_f32()),
            _ => Err(self.wrong_dtype("F32, BF16 or F16")),
        }
    }

    /// The elements of a tensor of whole numbers.
    ///
    /// # Errors
    /// [`Error::DType`], [`Error::Value`] for a number that 32 bits do not hold.
    pub(super) fn read_i32(&self) -> Result<Vec<i32>> {
        match self.entry.dtype {
            Dtype::I32 => self.decode(i32::from_le_bytes),
            Dtype::I64 => {
                let wide = self.decode(i64::from_le_bytes)?;
                let narrow = |value: i64| {
                    let expected = "a number of 32 bits";
                    i32::try_from(value).map_err(|_| Error::value(&self.name, value, expected))
                };
                wide.into_iter().map(narrow).collect()
            }
            _ => Err(self.wrong_dtype("I32 or I64")),
        }
    }

    /// The elements as f64, of any type that f64 holds exactly (I64 up to 2^53).
    ///
    /// # Errors
    /// [`Error::DType`], [`Error::OutOfMemory`].
    pub fn read_f64(&self) -> Result<Vec<f64>> {
        match self.entry.dtype {
            Dtype::F64 => self.decode(f64::from_le_bytes),
            Dtype::F32 => self.decode(|bytes| f64::from(f32::from_le_bytes(bytes))),
            Dtype::BF16 => self.decode(|bytes| bf16::from_le_bytes(bytes).to_f64()),
            Dtype::F16 => self.decode(|bytes| f16::from_le_bytes(bytes).to_f64()),
            Dtype::I64 => self.decode(|bytes| i64::from_le_bytes(bytes) as f64),
            Dtype::U8 => self.decode(|[byte]: [u8; 1]| f64::from(byte)),
            _ => Err(self.wrong_dtype("F64, F32, BF16, F16, I64 or U8")),
        }
    }

    pub(super) fn dtype(&self) -> Dtype {
        self.entry.dtype
    }

    /// The tensor as it is stored, row by row.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.file.map[self.entry.bytes.clone()]
    }

    /// Bytes of one element.
    pub(super) fn element_bytes(&self) -> usize {
        self.entry.dtype.bitsize() / 8
    }

    /// Elements of `N` bytes.
    pub(super) fn elements<const N: usize>(&self) -> &[[u8; N]] {
        self.bytes().as_chunks::<N>().0
    }

    fn decode<const N: usize, U>(&self, element: impl Fn([u8; N]) -> U) -> Result<Vec<U>> {
        let elements = self.elements::<N>();
        let mut decoded = vec_with_room(&self.name, elements.len())?;
        decoded.extend(elements.iter().map(|&bytes| element(bytes)));
        Ok(decoded)
    }

    fn round<const N: usize, T: Float>(
        &self,
        len: usize,
        place: impl Fn(usize) -> usize,
        element: impl Fn([u8; N]) -> f32,
    ) -> Result<Vec<T>> {
        let elements = self.elements::<N>();
        let overflow = |wide: f32| wide.is_finite() && !T::from_f32(wide).to_f32().is_finite();
        let values = || (0..len).map(|index| element(elements[place(index)]));
        // Only these types have a smaller range than f32 and, for f16, than bf16.
        if T::DTYPE != DType::F32
            && !self.is(T::DTYPE)
            && let Some(value) = values().find(|&value| overflow(value))
        {
            let expected = format!("a value in the range of {}", T::DTYPE);
            return Err(Error::value(&self.name, value, expected));
        }
        let mut rounded = vec_with_room(&self.name, len)?;
        rounded.extend(values().map(T::from_f32));
        Ok(rounded)
    }

    pub(super) fn wrong_dtype(&self, expected: &str) -> Error {
        Error::DType {
            tensor: self.name.clone(),
            expected: expected.to_owned(),
            given: self.entry.foreign.clone().unwrap_or_else(|| self.entry.dtype.to_string()),
        }
    }
}
