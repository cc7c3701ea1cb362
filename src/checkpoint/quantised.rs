//! Quantised experts in a checkpoint: codes and scales, by the conventions of who released them.

use std::borrow::Cow;

use half::bf16;
use safetensors::tensor::Dtype;

use crate::config::{ExpertNames, MlpNames, ModelConfig};
use crate::error::{Error, Result};
use crate::ops::ExpertShape;
use crate::weights::{ExpertMatrix, QuantFormat, QuantSource, QuantisedMatrix, Scales};

use super::StoredTensor;
use super::layer::Finder;

/// Each expert's matrices.
#[derive(Clone, Debug)]
pub(super) struct QuantViews {
    pub(super) format: QuantFormat,
    /// Empty without a gate.
    gate: Vec<QuantView>,
    up: Vec<QuantView>,
    down: Vec<QuantView>,
}

/// Some rows of a tensor of codes, and of one of scales.
#[derive(Clone, Debug)]
struct QuantView {
    codes: Rows,
    scales: Rows,
}

/// Rows `first`, `first + step`, ... of a tensor, each of `len` elements.
#[derive(Clone, Debug)]
struct Rows {
    tensor: StoredTensor,
    first: usize,
    step: usize,
    count: usize,
    len: usize,
}

impl Rows {
    fn all(tensor: StoredTensor) -> Self {
        let (count, len) = match *tensor.shape() {
            [count, len] => (count, len),
            _ => (1, tensor.shape().iter().product()),
        };
        Self { tensor, first: 0, step: 1, count, len }
    }

    /// The elements, of `N` bytes each.
    fn read<const N: usize, U>(&self, element: impl Fn([u8; N]) -> U) -> Vec<U> {
        let elements = self.tensor.elements::<N>();
        let row = |row: usize| &elements[(self.first + row * self.step) * self.len..][..self.len];
        (0..self.count).flat_map(|index| row(index).iter().map(|&bytes| element(bytes))).collect()
    }

    fn bytes(&self) -> Cow<'_, [u8]> {
        let width = self.tensor.element_bytes();
        if self.step == 1 {
            let all = self.tensor.bytes();
            return Cow::Borrowed(
                &all[self.first * self.len * width..][..self.count * self.len * width],
            );
        }
        Cow::Owned(self.read(|[byte]: [u8; 1]| byte))
    }

    fn scales(&self, format: QuantFormat) -> Result<Scales<'_>> {
        let dtype = self.tensor.dtype();
        Ok(match (format, dtype) {
            (QuantFormat::Fp8Block, Dtype::F32) => {
                Scales::F32(self.read(f32::from_le_bytes).into())
            }
            (QuantFormat::Fp8Block, Dtype::BF16) => {
                Scales::F32(self.read(|bytes| bf16::from_le_bytes(bytes).to_f32()).into())
            }
            (QuantFormat::Fp8Block, Dtype::F8_E8M0 | Dtype::U8) => {
                Scales::F32(self.read(|[byte]: [u8; 1]| crate::weights::power_of_two(byte)).into())
            }
            (QuantFormat::Mxfp4, Dtype::F8_E8M0 | Dtype::U8) => Scales::E8m0(self.bytes()),
            (QuantFormat::Int4 { .. }, Dtype::BF16) => {
                Scales::Bf16(self.read(bf16::from_le_bytes).into())
            }
            (QuantFormat::Fp8Block, _) => {
                return Err(self.tensor.wrong_dtype("F32, BF16 or F8_E8M0"));
            }
            (QuantFormat::Mxfp4, _) => return Err(self.tensor.wrong_dtype("U8 or F8_E8M0")),
            (QuantFormat::Int4 { .. }, _) => return Err(self.tensor.wrong_dtype("BF16")),
        })
    }
}

impl QuantSource for QuantViews {
    fn read(&self, expert: usize, matrix: ExpertMatrix) -> Result<QuantisedMatrix<'_>> {
        let views = match matrix {
            ExpertMatrix::Gate => &self.gate,
            ExpertMatrix::Up => &self.up,
            ExpertMatrix::Down => &self.down,
        };
        let missing =
            || Error::value(matrix.to_string(), expert, format!("less than {}", views.len()));
        let view = views.get(expert).ok_or_else(missing)?;
        Ok(QuantisedMatrix { codes: view.codes.bytes(), scales: view.scales.scales(self.format)? })
    }
}

/// Refuses what `quantization_config` says, where no layout here is that.
pub(super) fn check_method(model: &ModelConfig) -> Result<()> {
    let Some(quantization) = &model.quantization else { return Ok(()) };
    let unsupported = |key: &str, value: &serde_json::Value, supported: &str| {
        let what = format!("quantization_config: {key} = {value} (family {})", model.family.name);
        Err(Error::Unsupported { what, supported: supported.to_owned() })
    };
    let method = quantization.get("quant_method").unwrap_or(&serde_json::Value::Null);
    match method.as_str() {
        Some("fp8") => match quantization.get("weight_block_size") {
            Some(size) if *size != serde_json::json!([128, 128]) => {
                unsupported("weight_block_size", size, "[128, 128]")
            }
            _ => Ok(()),
        },
        Some("mxfp4" | "compressed-tensors") => Ok(()),
        _ => unsupported("quant_method", method, "\"fp8\", \"mxfp4\", \"compressed-tensors\""),
    }
}

impl QuantViews {
    pub(super) fn num_matrices(&self) -> usize {
        self.gate.len() + self.up.len() + self.down.len()
    }

    /// Those of one expert that is not among others, if it is quantised.
    pub(super) fn of_one(
        find: &mut Finder<'_>,
        names: MlpNames,
        shape: ExpertShape,
    ) -> Result<Option<Self>> {
        match names {
            MlpNames::Split { gate, up, down } => {
                let names = ExpertNames::PerExpert { gate, up, down, biases: None };
                Self::of_experts(find, &names, shape)
            }
            MlpNames::Fused { .. } => Ok(None),
        }
    }

    /// Those of all experts, or `None` if they are not quantised.
    pub(super) fn of_experts(
        find: &mut Finder<'_>,
        names: &ExpertNames,
        shape: ExpertShape,
    ) -> Result<Option<Self>> {
        match *names {
            ExpertNames::PerExpert { gate, up, down, .. } => {
                // Of any of the three: one that is missing, or of another type, is to be named later.
                let mut kind = None;
                for name in [up, gate, down] {
                    if kind.is_none() && !name.is_empty() {
                        kind = Kind::of(find, &name.replace("{expert}", "0"))?;
                    }
                }
                let Some(kind) = kind else { return Ok(None) };
                let mut all = |name: &str, matrix: ExpertMatrix| {
                    (0..shape.num_experts)
                        .map(|expert| {
                            let name = name.replace("{expert}", &expert.to_string());
                            let what = format!("{matrix} of expert {expert}");
                            kind.view(find, &name, &what, matrix.dims(shape))
                        })
                        .collect::<Result<Vec<_>>>()
                };
                Ok(Some(Self {
                    format: kind.format(),
                    gate: if shape.gated { all(gate, ExpertMatrix::Gate)? } else { Vec::new() },
                    up: all(up, ExpertMatrix::Up)?,
                    down: all(down, ExpertMatrix::Down)?,
                }))
            }
            ExpertNames::Transposed { gate_up, down, interleaved, .. }
                if find.contains(&format!("{gate_up}_blocks")) =>
            {
                Self::mxfp4_blocks(find, [gate_up, down], interleaved, shape).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// gpt-oss: blocks `[E, rows, depth / 32, 16]` and scales `[E, rows, depth / 32]`, in which a row is a
    /// column of the transposed bf16 parameter.
    fn mxfp4_blocks(
        find: &mut Finder<'_>,
        [gate_up, down]: [&str; 2],
        interleaved: bool,
        shape: ExpertShape,
    ) -> Result<Self> {
        let ExpertShape { num_experts: e, hidden_size: h, intermediate_size: i, .. } = shape;
        let mut tensors = |name: &str, rows: usize, depth: usize| -> Result<[StoredTensor; 2]> {
            let blocks = format!("{name}_blocks");
            let blocks = find.of_type(&blocks, "mxfp4 blocks", &[e, rows, depth / 32, 16], U8)?;
            let scales = format!("{name}_scales");
            let scales = find.of_type(&scales, "mxfp4 scales", &[e, rows, depth / 32], U8)?;
            Ok([blocks, scales])
        };
        let gate_up = tensors(gate_up, 2 * i, h)?;
        let down = tensors(down, h, i)?;
        let view = |tensors: &[StoredTensor; 2], first: usize, step, count, depth: usize| {
            let rows = |tensor: &StoredTensor, len| {
                let tensor = tensor.clone();
                Rows { tensor, first, step, count, len }
            };
            QuantView { codes: rows(&tensors[0], depth / 2), scales: rows(&tensors[1], depth / 32) }
        };
        let (step, second) = if interleaved { (2, 1) } else { (1, i) };
        let half = |half: usize| {
            (0..e).map(|x| view(&gate_up, 2 * x * i + half, step, i, h)).collect::<Vec<_>>()
        };
        Ok(Self {
            format: QuantFormat::Mxfp4,
            gate: half(0),
            up: half(second),
            down: (0..e).map(|x| view(&down, x * h, 1, h, i)).collect(),
        })
    }
}

const U8: &[Dtype] = &[Dtype::U8];

/// How a matrix that has a tensor of its own is quantised.
#[derive(Clone, Copy)]
enum Kind {
    /// `weight` F8_E4M3 `[rows, depth]` beside `weight_scale_inv` or `scale`.
    Fp8,
    /// `weight` I8 `[rows, depth / 2]` beside `scale` (DeepSeek-V4).
    Mxfp4,
    /// `weight_packed` I32 `[rows, depth / 8]`, `weight_scale`, `weight_shape` (compressed-tensors).
    Int4 { group: usize },
}

impl Kind {
    /// `None` for a matrix of floating-point numbers, or none at all.
    fn of(find: &mut Finder<'_>, name: &str) -> Result<Option<Self>> {
        if find.contains(name) {
            return Ok(match find.peek(name)?.dtype() {
                Dtype::F8_E4M3 => Some(Self::Fp8),
                Dtype::I8 | Dtype::U8 => Some(Self::Mxfp4),
                _ => None,
            });
        }
        let (packed, scale) = (format!("{name}_packed"), format!("{name}_scale"));
        if !find.contains(&packed) || !find.contains(&scale) {
            return Ok(None);
        }
        let (packed, scale) = (find.peek(&packed)?, find.peek(&scale)?);
        let depth = packed.shape().last().map_or(0, |words| 8 * words);
        let groups = scale.shape().last().copied().unwrap_or(0).max(1);
        Ok(Some(Self::Int4 { group: depth / groups }))
    }

    fn format(self) -> QuantFormat {
        match self {
            Self::Fp8 => QuantFormat::Fp8Block,
            Self::Mxfp4 => QuantFormat::Mxfp4,
            Self::Int4 { group } => QuantFormat::Int4 { group },
        }
    }

    fn view(
        self,
        find: &mut Finder<'_>,
        name: &str,
        what: &str,
        dims: [usize; 2],
    ) -> Result<QuantView> {
        let [rows, depth] = dims;
        let scale_dims = self.format().scale_dims(dims);
        let (codes, scale) = match self {
            Self::Fp8 => {
                let codes = find.of_type(name, what, &[rows, depth], &[Dtype::F8_E4M3])?;
                let (inverse, sibling) = (format!("{name}_scale_inv"), sibling(name));
                let scale = if find.contains(&sibling) { sibling } else { inverse };
                (codes, scale)
            }
            Self::Mxfp4 => {
                let dtypes = &[Dtype::I8, Dtype::U8];
                (find.of_type(name, what, &[rows, depth / 2], dtypes)?, sibling(name))
            }
            Self::Int4 { .. } => {
                let packed = format!("{name}_packed");
                let codes = find.of_type(&packed, what, &[rows, depth / 8], &[Dtype::I32])?;
                let shape = format!("{name}_shape");
                if find.contains(&shape) {
                    let stored = find.of_type(&shape, what, &[2], &[Dtype::I32, Dtype::I64])?;
                    if stored.read_i32()? != [rows as i32, depth as i32] {
                        return Err(Error::value(shape, "another shape", format!("{dims:?}")));
                    }
                }
                (codes, format!("{name}_scale"))
            }
        };
        let dtypes = &[Dtype::F32, Dtype::BF16, Dtype::F8_E8M0, Dtype::U8];
        let scales = find.of_type(&scale, &format!("scales of {what}"), &scale_dims, dtypes)?;
        Ok(QuantView { codes: Rows::all(codes), scales: Rows::all(scales) })
    }
}

/// `experts.0.w1.scale` of `experts.0.w1.weight`.
fn sibling(name: &str) -> String {
    format!("{}.scale", name.strip_suffix(".weight").unwrap_or(name))
}
