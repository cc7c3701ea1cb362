//! Where experts' matrices and biases lie in a checkpoint's tensors, whatever the layout.

use crate::config::{ExpertNames, MlpNames};
use crate::error::{Error, Result};
use crate::ops::ExpertShape;
use crate::weights::ExpertMatrix;

use super::StoredTensor;
use super::layer::Finder;
use super::view::MatrixView;

/// Each expert's matrices.
#[derive(Clone, Debug)]
pub(super) struct Views {
    /// Empty without a gate.
    gate: Vec<MatrixView>,
    up: Vec<MatrixView>,
    down: Vec<MatrixView>,
}

impl Views {
    pub(super) fn num_matrices(&self) -> usize {
        self.gate.len() + self.up.len() + self.down.len()
    }

    pub(super) fn view(&self, expert: usize, matrix: ExpertMatrix) -> Result<&MatrixView> {
        let views = match matrix {
            ExpertMatrix::Gate => &self.gate,
            ExpertMatrix::Up => &self.up,
            ExpertMatrix::Down => &self.down,
        };
        let missing =
            || Error::value(matrix.to_string(), expert, format!("less than {}", views.len()));
        views.get(expert).ok_or_else(missing)
    }

    /// Those of one expert that is not among others.
    pub(super) fn of_one(
        find: &mut Finder<'_>,
        names: MlpNames,
        shape: ExpertShape,
    ) -> Result<Self> {
        match names {
            MlpNames::Split { gate, up, down } => {
                let names = ExpertNames::PerExpert { gate, up, down, biases: None };
                Self::of_experts(find, &names, shape)
            }
            MlpNames::Fused { gate_up, down } => {
                let (h, i) = (shape.hidden_size, shape.intermediate_size);
                let gate_up = find.float(gate_up, "gate and up", &[2 * i, h])?;
                let down = find.float(down, "down", &[h, i])?;
                Ok(Self {
                    gate: vec![MatrixView::rows(&gate_up, 0, [i, h])],
                    up: vec![MatrixView::rows(&gate_up, i * h, [i, h])],
                    down: vec![MatrixView::rows(&down, 0, [h, i])],
                })
            }
        }
    }

    pub(super) fn of_experts(
        find: &mut Finder<'_>,
        names: &ExpertNames,
        shape: ExpertShape,
    ) -> Result<Self> {
        let ExpertShape { num_experts: e, hidden_size: h, intermediate_size: i, gated } = shape;
        let each = |view: &dyn Fn(usize) -> MatrixView| (0..e).map(view).collect();
        match *names {
            ExpertNames::PerExpert { gate, up, down, .. } => {
                let mut all = |name: &str, matrix: ExpertMatrix| -> Result<Vec<MatrixView>> {
                    let dims = matrix.dims(shape);
                    let tensor = |expert: usize| {
                        let name = name.replace("{expert}", &expert.to_string());
                        let what = format!("{matrix} of expert {expert}");
                        let tensor = find.float(&name, &what, &dims)?;
                        Ok(MatrixView::rows(&tensor, 0, dims))
                    };
                    (0..e).map(tensor).collect()
                };
                Ok(Self {
                    gate: if gated { all(gate, ExpertMatrix::Gate)? } else { Vec::new() },
                    up: all(up, ExpertMatrix::Up)?,
                    down: all(down, ExpertMatrix::Down)?,
                })
            }
            ExpertNames::Fused { gate_up, down } => {
                let gate_up = find.float(gate_up, "gate and up", &[e, 2 * i, h])?;
                let down = find.float(down, "down", &[e, h, i])?;
                Ok(Self {
                    gate: each(&|x| MatrixView::rows(&gate_up, 2 * x * i * h, [i, h])),
                    up: each(&|x| MatrixView::rows(&gate_up, (2 * x + 1) * i * h, [i, h])),
                    down: each(&|x| MatrixView::rows(&down, x * h * i, [h, i])),
                })
            }
            ExpertNames::Transposed { gate_up, down, interleaved, .. } => {
                let gate_up = find.float(gate_up, "gate and up", &[e, h, 2 * i])?;
                let down = find.float(down, "down", &[e, i, h])?;
                let (step, second) = if interleaved { (2, 1) } else { (1, i) };
                let half = |x: usize, first: usize| {
                    MatrixView::strided(&gate_up, 2 * x * i * h + first, [i, h], [step, 2 * i])
                };
                Ok(Self {
                    gate: each(&|x| half(x, 0)),
                    up: each(&|x| half(x, second)),
                    down: each(&|x| MatrixView::strided(&down, x * h * i, [h, i], [1, h])),
                })
            }
            ExpertNames::Stacked { gate, up, down } => {
                let gate = find.float(gate, "gate", &[e, i, h])?;
                let up = find.float(up, "up", &[e, i, h])?;
                let down = find.float(down, "down", &[e, h, i])?;
                Ok(Self {
                    gate: each(&|x| MatrixView::rows(&gate, x * i * h, [i, h])),
                    up: each(&|x| MatrixView::rows(&up, x * i * h, [i, h])),
                    down: each(&|x| MatrixView::rows(&down, x * h * i, [h, i])),
                })
            }
            ExpertNames::Flat { gate, up, down } => {
                let dims = [e * i, h];
                let gate = find.float(gate, "gate", &dims)?;
                let up = find.float(up, "up", &dims)?;
                let down = find.float(down, "down", &dims)?;
                Ok(Self {
                    gate: each(&|x| MatrixView::rows(&gate, x * i * h, [i, h])),
                    up: each(&|x| MatrixView::rows(&up, x * i * h, [i, h])),
                    down: each(&|x| MatrixView::strided(&down, x * i * h, [h, i], [1, h])),
                })
            }
        }
    }
}

/// Experts' biases, as they lie in the checkpoint.
#[derive(Debug)]
pub(super) enum Biases {
    /// Of up and down, expert by expert.
    PerExpert { up: Vec<StoredTensor>, down: Vec<StoredTensor> },
    /// `[E, 2I]`, gate and up in turn or one after the other, and `[E, H]`.
    Stacked { gate_up: StoredTensor, down: StoredTensor, interleaved: bool, width: usize },
}

impl Biases {
    pub(super) fn find(
        find: &mut Finder<'_>,
        names: &ExpertNames,
        shape: ExpertShape,
    ) -> Result<Self> {
        let ExpertShape { num_experts: e, hidden_size: h, intermediate_size: i, .. } = shape;
        match *names {
            ExpertNames::PerExpert { biases: Some([up, down]), .. } => {
                let mut all = |name: &str, what: &str, len: usize| -> Result<Vec<StoredTensor>> {
                    let tensor = |expert: usize| {
                        let name = name.replace("{expert}", &expert.to_string());
                        find.float(&name, &format!("{what} of expert {expert}"), &[len])
                    };
                    (0..e).map(tensor).collect()
                };
                let up = all(up, "bias of up_proj", i)?;
                Ok(Self::PerExpert { up, down: all(down, "bias of down_proj", h)? })
            }
            ExpertNames::Transposed { biases: Some([gate_up, down]), interleaved, .. } => {
                Ok(Self::Stacked {
                    gate_up: find.float(gate_up, "biases of gate and up", &[e, 2 * i])?,
                    down: find.float(down, "biases of down_proj", &[e, h])?,
                    interleaved,
                    width: i,
                })
            }
            _ => Err(Error::Unsupported {
                what: "experts' biases in this layout".to_owned(),
                supported: "a tensor for each expert, or stacked and transposed".to_owned(),
            }),
        }
    }

    /// `[E, 2I]`, gate first, or `[E, I]`.
    pub(super) fn gate_up(&self) -> Result<Vec<f32>> {
        match self {
            Self::PerExpert { up, .. } => joined(up),
            Self::Stacked { gate_up, interleaved: false, .. } => gate_up.read(),
            Self::Stacked { gate_up, width, .. } => {
                let stored: Vec<f32> = gate_up.read()?;
                let halves = |biases: &[f32]| {
                    let (pairs, _) = biases.as_chunks::<2>();
                    let half = |which: usize| pairs.iter().map(move |pair| pair[which]);
                    half(0).chain(half(1)).collect::<Vec<_>>()
                };
                Ok(stored.chunks_exact(2 * width).flat_map(halves).collect())
            }
        }
    }

    /// `[E, H]`.
    pub(super) fn down(&self) -> Result<Vec<f32>> {
        match self {
            Self::PerExpert { down, .. } => joined(down),
            Self::Stacked { down, .. } => down.read(),
        }
    }
}

fn joined(tensors: &[StoredTensor]) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    for tensor in tensors {
        all.extend(tensor.read::<f32>()?);
    }
    Ok(all)
}
