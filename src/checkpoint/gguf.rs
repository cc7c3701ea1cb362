//! The header of a GGUF file (versions 2 and 3, little-endian): metadata, and where tensors lie.
//!
//! Only the types of unquantised tensors are told apart; a tensor of another type is there by name, and
//! refused when it is asked for.

use std::collections::HashMap;

use safetensors::tensor::Dtype;
use serde_json::{Map, Value};

use super::tensor::Entry;

pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// What a header says.
pub(super) struct Header {
    pub(super) tensors: HashMap<String, Entry>,
    /// Arrays are left out: tokenizers are in them.
    pub(super) metadata: Map<String, Value>,
}

type Parsed<T> = Result<T, String>;

pub(super) fn parse(file: &[u8]) -> Parsed<Header> {
    let mut cursor = Cursor { file, at: MAGIC.len() };
    let version = cursor.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("GGUF version {version}; 2 and 3 are read"));
    }
    let (num_tensors, num_values) = (cursor.u64()?, cursor.u64()?);
    let mut metadata = Map::new();
    for _ in 0..num_values {
        let key = cursor.string()?;
        let kind = cursor.u32()?;
        if let Some(value) = cursor.value(kind)? {
            metadata.insert(key, value);
        }
    }
    let mut infos = Vec::new();
    for _ in 0..num_tensors {
        let name = cursor.string()?;
        let dims = cursor.u32()?;
        if dims > 4 {
            return Err(format!("tensor \"{name}\" has {dims} dimensions; 4 are the most"));
        }
        let mut shape = (0..dims).map(|_| cursor.size()).collect::<Parsed<Vec<usize>>>()?;
        // The first dimension is the one whose elements are neighbours.
        shape.reverse();
        infos.push((name, shape, cursor.u32()?, cursor.size()?));
    }
    let alignment = match metadata.get("general.alignment").map(|value| value.as_u64()) {
        None => 32,
        Some(Some(alignment @ 1..=65536)) => alignment as usize,
        Some(_) => return Err("general.alignment is no number from 1 to 65536".to_owned()),
    };
    let data = cursor.at.next_multiple_of(alignment);
    let mut tensors = HashMap::new();
    for (name, shape, kind, offset) in infos {
        let dtype = match kind {
            0 => Some(Dtype::F32),
            1 => Some(Dtype::F16),
            30 => Some(Dtype::BF16),
            _ => None,
        };
        let entry = match dtype {
            None => Entry::unreadable(shape, format!("GGML type {kind}")),
            Some(dtype) => {
                let bytes = shape
                    .iter()
                    .try_fold(dtype.bitsize() / 8, |bytes, &dim| bytes.checked_mul(dim));
                let start = data.checked_add(offset);
                let end = start.zip(bytes).and_then(|(start, bytes)| start.checked_add(bytes));
                match (start, end) {
                    (Some(start), Some(end)) if end <= file.len() => {
                        Entry::new(dtype, shape, start..end)
                    }
                    _ => return Err(format!("tensor \"{name}\" ends past the file's end")),
                }
            }
        };
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(format!("tensor \"{name}\" is there twice"));
        }
    }
    Ok(Header { tensors, metadata })
}

struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn bytes(&mut self, len: usize) -> Parsed<&[u8]> {
        let end = self.at.checked_add(len);
        let bytes = end.and_then(|end| self.file.get(self.at..end));
        let bytes =
            bytes.ok_or_else(|| format!("the header ends past byte {}", self.file.len()))?;
        self.at += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Parsed<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Parsed<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn size(&mut self) -> Parsed<usize> {
        let size = self.u64()?;
        usize::try_from(size).map_err(|_| format!("size {size} is beyond this machine"))
    }

    fn string(&mut self) -> Parsed<String> {
        let len = self.size()?;
        let bytes = self.bytes(len)?;
        let text = std::str::from_utf8(bytes).map_err(|_| "a name is no UTF-8".to_owned())?;
        Ok(text.to_owned())
    }

    /// A metadata value of this type; `None` for an array.
    fn value(&mut self, kind: u32) -> Parsed<Option<Value>> {
        Ok(Some(match kind {
            0 => self.array::<1>()?[0].into(),
            1 => i8::from_le_bytes(self.array()?).into(),
            2 => u16::from_le_bytes(self.array()?).into(),
            3 => i16::from_le_bytes(self.array()?).into(),
            4 => self.u32()?.into(),
            5 => i32::from_le_bytes(self.array()?).into(),
            6 => f32::from_le_bytes(self.array()?).into(),
            7 => (self.array::<1>()?[0] != 0).into(),
            8 => self.string()?.into(),
            9 => {
                let (kind, len) = (self.u32()?, self.u64()?);
                // Arrays of arrays would let a small file ask for any depth.
                if kind == 9 {
                    return Err("an array of arrays".to_owned());
                }
                for _ in 0..len {
                    self.value(kind)?;
                }
                return Ok(None);
            }
            10 => self.u64()?.into(),
            11 => i64::from_le_bytes(self.array()?).into(),
            12 => f64::from_le_bytes(self.array()?).into(),
            _ => return Err(format!("metadata of type {kind}")),
        }))
    }
}
