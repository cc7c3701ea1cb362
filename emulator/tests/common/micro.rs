//! The conformance suite: one micro-kernel per wrapper and layout, its inputs, and the truth computed here.
//!
//! Inputs are small integers wherever sums are formed, so that results are exact in any order of summation.

mod alu;
mod boxes;
mod clusters;
mod copies;
mod matrix;
mod order;
mod sync;

use super::formats::*;
use super::*;
use std::cmp::Ordering;
use std::sync::OnceLock;

/// A tensor map over the input (or the output) of a micro-kernel.
#[derive(Clone)]
pub struct Map {
    pub over_out: bool,
    pub offset: u64,
    pub element: TensorElement,
    pub dims: Vec<u64>,
    pub strides: Vec<u64>,
    pub box_dims: Vec<u32>,
    pub swizzle: TensorSwizzle,
}
/// One micro-kernel with its data.
pub struct Micro {
    pub name: String,
    pub threads: u32,
    pub blocks: u32,
    pub shared: u32,
    pub input: Vec<u8>,
    pub maps: [Option<Map>; 2],
    /// What the output holds before the launch.
    pub out: Vec<u8>,
    /// The truth.
    pub want: Vec<u8>,
    /// Relative tolerance, for outputs of f32; `None`: every bit counts.
    pub tolerance: Option<f32>,
}
impl Micro {
    fn new(name: &str, threads: u32, input: Vec<u8>, want: Vec<u8>) -> Self {
        let out = vec![0; want.len()];
        Self {
            name: format!("micro_{name}"),
            threads,
            blocks: 1,
            shared: 64 << 10,
            input,
            maps: [None, None],
            out,
            want,
            tolerance: None,
        }
    }
    /// Runs it, and gives what it wrote.
    pub fn run<D: Driver>(&self, r: &Rig<D>) -> Result<Vec<u8>, String> {
        let (input, out) = (r.upload(&self.input), r.upload(&self.out));
        let nothing = Map {
            over_out: false,
            offset: 0,
            element: TensorElement::U8,
            dims: vec![16],
            strides: vec![],
            box_dims: vec![16],
            swizzle: TensorSwizzle::None,
        };
        let map = |m: &Option<Map>| {
            let m = m.as_ref().unwrap_or(&nothing).clone();
            let base = (if m.over_out { out } else { input }).offset(m.offset);
            r.driver.encode_tensor_map(&TensorMapDesc {
                base,
                element: m.element,
                dims: m.dims,
                strides: m.strides,
                box_dims: m.box_dims,
                swizzle: m.swizzle,
            })
        };
        let (a, b) = (map(&self.maps[0]).map_err(text)?, map(&self.maps[1]).map_err(text)?);
        let params = [input.0, out.0];
        let mut config = LaunchConfig::linear(self.blocks, self.threads).with_shared(self.shared);
        config.cluster = Dim3::linear(self.blocks);
        r.run(
            &self.name,
            config,
            &[KernelArg::new(&a), KernelArg::new(&b), KernelArg::new(&params)],
        )?;
        r.download(out, self.out.len())
    }
    /// Whether `got` is `want`, a golden file or the truth.
    pub fn same(&self, got: &[u8], want: &[u8]) -> Outcome {
        // What lies behind is scratch.
        let Some(got) = got.get(..want.len()) else {
            return Err(format!("{}: {} bytes, not {}", self.name, got.len(), want.len()));
        };
        let Some(tolerance) = self.tolerance else {
            return match got.iter().zip(want).position(|(a, b)| a != b) {
                None => Ok(()),
                Some(i) => {
                    Err(format!("{}: byte {i} is {:#x}, not {:#x}", self.name, got[i], want[i]))
                }
            };
        };
        for (i, (a, b)) in got.chunks_exact(4).zip(want.chunks_exact(4)).enumerate() {
            let (a, b) = (f32::from_bytes(a), f32::from_bytes(b));
            if (a - b)
                .abs()
                .partial_cmp(&(tolerance * b.abs().max(1e-3)))
                .is_none_or(Ordering::is_gt)
            {
                return Err(format!("{}: float {i} is {a}, not {b}", self.name));
            }
        }
        Ok(())
    }
}

pub fn all() -> &'static [Micro] {
    static ALL: OnceLock<Vec<Micro>> = OnceLock::new();
    ALL.get_or_init(|| {
        [
            matrix::wgmma(),
            matrix::matrix(),
            alu::alu(),
            copies::copies(),
            clusters::clusters(),
            sync::all(),
            order::all(),
        ]
        .into_iter()
        .flatten()
        .collect()
    })
}

fn words(w: impl IntoIterator<Item = u32>) -> Vec<u8> {
    w.into_iter().flat_map(u32::to_ne_bytes).collect()
}
fn halves(w: impl IntoIterator<Item = u16>) -> Vec<u8> {
    w.into_iter().flat_map(u16::to_ne_bytes).collect()
}
fn floats(w: impl IntoIterator<Item = f32>) -> Vec<u8> {
    words(w.into_iter().map(f32::to_bits))
}
fn word(b: &[u8], i: usize) -> u32 {
    u32::from_bytes(&b[4 * i..4 * i + 4])
}
fn random_bytes(seed: u64, n: usize) -> Vec<u8> {
    let mut r = Rand(seed);
    (0..n).map(|_| r.next() as u8).collect()
}
fn swizzle_of(span: u32) -> TensorSwizzle {
    match span {
        32 => TensorSwizzle::B32,
        64 => TensorSwizzle::B64,
        128 => TensorSwizzle::B128,
        _ => TensorSwizzle::None,
    }
}
