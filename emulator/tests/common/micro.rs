//! The conformance suite: one micro-kernel per wrapper and layout, its inputs, and the truth computed here.
//!
//! Inputs are small integers wherever sums are formed, so that results are exact in any order of summation.

mod order;
mod sync;

use super::formats::*;
use super::*;
use half::{bf16 as Bf16, f16 as F16};
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
        [wgmma(), matrix(), alu(), copies(), clusters(), sync::all(), order::all()]
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

// ------------------------------------------------------------------ wgmma
fn wgmma() -> Vec<Micro> {
    let mut v = Vec::new();
    for n in [8, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256] {
        v.push(wgmma_shape(&format!("wgmma_bf16_n{n}"), Format::Bf16, n));
        v.push(wgmma_shape(&format!("wgmma_bf16_ra_n{n}"), Format::Bf16, n));
    }
    for (suffix, format) in [("f16", Format::F16), ("e4m3", Format::E4m3)] {
        v.push(wgmma_shape(&format!("wgmma_{suffix}_n64"), format, 64));
        v.push(wgmma_shape(&format!("wgmma_{suffix}_ra_n64"), format, 64));
    }
    for width in [16, 32, 64, 128] {
        let pairs: &[(bool, bool)] = if width == 128 {
            &[(false, false), (true, false), (false, true), (true, true)]
        } else {
            &[(false, false), (true, false), (false, true)]
        };
        for &(ta, tb) in pairs {
            v.push(wgmma_layout(width, ta, tb));
        }
    }
    v
}
fn wgmma_shape(name: &str, format: Format, n: usize) -> Micro {
    let k = 128 / format.bytes();
    let (a, b) = (integers(n as u64, 64 * k), integers(n as u64 + 1, n * k));
    let input = a.iter().chain(&b).flat_map(|&x| format.encode(x)).collect();
    let mut m = Micro::new(name, 128, input, floats(product(&a, &b, 64, n, k)));
    let map = |offset: u64, rows: u64| Map {
        over_out: false,
        offset,
        element: format.element(),
        dims: vec![k as u64, rows],
        strides: vec![128],
        box_dims: vec![k as u32, rows as u32],
        swizzle: TensorSwizzle::B128,
    };
    m.maps = [Some(map(0, 64)), Some(map(64 * 128, n as u64))];
    m
}
fn wgmma_layout(width: u32, ta: bool, tb: bool) -> Micro {
    let (a, b) = (integers(3, 64 * 64), integers(4, 64 * 64));
    let stored = |x: &[f32], transposed: bool| -> Vec<u8> {
        (0..64 * 64)
            .flat_map(|i| {
                Format::Bf16.encode(if transposed { x[i % 64 * 64 + i / 64] } else { x[i] })
            })
            .collect()
    };
    let mut input = stored(&a, ta);
    input.extend(stored(&b, tb));
    let name = format!("wgmma_layout_{width}_{}{}", u8::from(ta), u8::from(tb));
    let mut m = Micro::new(&name, 128, input, floats(product(&a, &b, 64, 64, 64)));
    let map = |offset| Map {
        over_out: false,
        offset,
        element: TensorElement::Bf16,
        dims: vec![64, 64],
        strides: vec![128],
        box_dims: vec![width / 2, 64],
        swizzle: swizzle_of(width),
    };
    m.maps = [Some(map(0)), Some(map(64 * 128))];
    m
}

// ------------------------------------------------------------------ ldmatrix, stmatrix, mma
fn matrix() -> Vec<Micro> {
    let rows = random_bytes(11, 512);
    // Element (row, column) of matrix m, in rows of eight halves.
    let at = |m: usize, r: usize, c: usize| {
        u32::from(u16::from_bytes(&rows[(m * 8 + r) * 16 + c * 2..][..2]))
    };
    let fragment = |lane: usize, m: usize, transposed: bool| {
        let (r, c) = (lane / 4, lane % 4 * 2);
        if transposed {
            at(m, c, r) | at(m, c + 1, r) << 16
        } else {
            at(m, r, c) | at(m, r, c + 1) << 16
        }
    };
    let mut v = Vec::new();
    for (name, count, transposed) in [
        ("ldmatrix_x4", 4, false),
        ("ldmatrix_x4_trans", 4, true),
        ("ldmatrix_x2", 2, false),
        ("ldmatrix_x2_trans", 2, true),
    ] {
        let want = words((0..32 * count).map(|i| fragment(i / count, i % count, transposed)));
        v.push(Micro::new(name, 32, rows.clone(), want));
    }
    for (name, count, transposed) in
        [("stmatrix_x4", 4, false), ("stmatrix_x4_trans", 4, true), ("stmatrix_x2", 2, false)]
    {
        // The inverse: four words of each lane, matrix m from word m.
        let input = words((0..128).map(|i| fragment(i / 4, i % 4, transposed)));
        v.push(Micro::new(name, 32, input, rows[..count * 128].to_vec()));
    }
    for (name, format) in
        [("mma_bf16", Format::Bf16), ("mma_f16", Format::F16), ("mma_e4m3", Format::E4m3)]
    {
        let k = 32 / format.bytes();
        let (a, b) = (integers(21, 16 * k), integers(22, 8 * k));
        let input = a.iter().chain(&b).flat_map(|&x| format.encode(x)).collect();
        // Each thread's four accumulators begin as 1, 2, 3, 4: by column parity and half of the rows.
        let want = product(&a, &b, 16, 8, k)
            .iter()
            .enumerate()
            .map(|(i, x)| x + (i / 64 * 2 + i % 2 + 1) as f32)
            .collect::<Vec<_>>();
        v.push(Micro::new(name, 32, input, floats(want)));
    }
    v
}

// ------------------------------------------------------------------ arithmetic
fn alu() -> Vec<Micro> {
    let mut r = Rand(31);
    let bits: Vec<u32> = (0..384).map(|_| r.next() ^ r.next() << 7).collect();
    let numbers: Vec<f32> =
        (0..384).map(|_| r.unit() * 2f32.powi((r.next() % 24) as i32 - 14)).collect();
    let small: Vec<f32> = (0..384).map(|_| r.unit() * 4.0).collect();
    let pairs = |f: Format| -> Vec<u32> {
        small
            .iter()
            .zip(numbers.iter().rev())
            .map(|(&x, &y)| {
                let (a, b) = (f.encode(x), f.encode(y));
                u32::from(u16::from_bytes(&a)) | u32::from(u16::from_bytes(&b)) << 16
            })
            .collect()
    };
    let (bf, hf) = (pairs(Format::Bf16), pairs(Format::F16));
    let mut v = Vec::new();
    let mut each = |name: &str, input: &[u32], f: &dyn Fn(u32, u32, u32) -> u32| {
        let want = words((0..128).map(|t| f(input[3 * t], input[3 * t + 1], input[3 * t + 2])));
        v.push(Micro::new(name, 128, words(input.iter().copied()), want));
    };
    let number_bits: Vec<u32> = numbers.iter().map(|x| x.to_bits()).collect();
    let f = f32::from_bits;
    each("pack_bf16", &number_bits, &|a, b, _| {
        u32::from(Bf16::from_f32(f(a)).to_bits()) | u32::from(Bf16::from_f32(f(b)).to_bits()) << 16
    });
    each("pack_f16", &number_bits, &|a, b, _| {
        u32::from(F16::from_f32(f(a)).to_bits()) | u32::from(F16::from_f32(f(b)).to_bits()) << 16
    });
    each("pack_e4m3", &number_bits, &|a, b, _| {
        u32::from(nearest_fp8(f(a), e4m3, 0x7e)) | u32::from(nearest_fp8(f(b), e4m3, 0x7e)) << 8
    });
    each("pack_e5m2", &number_bits, &|a, b, _| {
        u32::from(nearest_fp8(f(a), e5m2, 0x7b)) | u32::from(nearest_fp8(f(b), e5m2, 0x7b)) << 8
    });
    // All codes but the NaNs.
    let codes: Vec<u32> = (0..384_u32)
        .map(|i| {
            let c = i / 3 * 2;
            (c & 0xff).min(0x77 | c & 0x80) | ((c + 1) & 0xff).min(0x77 | (c + 1) & 0x80) << 8
        })
        .collect();
    let wide = |decode: fn(u8) -> f32| {
        move |a: u32| {
            u32::from(F16::from_f32(decode(a as u8)).to_bits())
                | u32::from(F16::from_f32(decode((a >> 8) as u8)).to_bits()) << 16
        }
    };
    each("e4m3_to_f16", &codes, &|a, _, _| wide(e4m3)(a));
    each("e5m2_to_f16", &codes, &|a, _, _| wide(e5m2)(a));
    each("f16_to_float", &hf, &|a, _, _| F16::from_bits(a as u16).to_f32().to_bits());
    let on_bf = |a: u32, b: u32, c: u32, op: &dyn Fn(f64, f64, f64) -> f64| {
        let x = |v: u32, h: u32| Bf16::from_bits((v >> h) as u16).to_f64();
        [0, 16].iter().fold(0, |out, &h| {
            out | u32::from(Bf16::from_f64(op(x(a, h), x(b, h), x(c, h))).to_bits()) << h
        })
    };
    let on_f16 = |a: u32, b: u32, c: u32, op: &dyn Fn(f64, f64, f64) -> f64| {
        let x = |v: u32, h: u32| F16::from_bits((v >> h) as u16).to_f64();
        [0, 16].iter().fold(0, |out, &h| {
            out | u32::from(F16::from_f64(op(x(a, h), x(b, h), x(c, h))).to_bits()) << h
        })
    };
    each("add_bf16x2", &bf, &|a, b, c| on_bf(a, b, c, &|x, y, _| x + y));
    each("mul_bf16x2", &bf, &|a, b, c| on_bf(a, b, c, &|x, y, _| x * y));
    each("fma_bf16x2", &bf, &|a, b, c| on_bf(a, b, c, &|x, y, z| x.mul_add(y, z)));
    each("max_bf16x2", &bf, &|a, b, c| on_bf(a, b, c, &|x, y, _| x.max(y)));
    each("mul_f16x2", &hf, &|a, b, c| on_f16(a, b, c, &|x, y, _| x * y));
    each("fma_f16x2", &hf, &|a, b, c| on_f16(a, b, c, &|x, y, z| x.mul_add(y, z)));
    each("permute_bytes", &bits, &|a, b, c| {
        let bytes = u64::from(a) | u64::from(b) << 32;
        (0..4).fold(0, |out, k| {
            let s = c >> (4 * k) & 15;
            let byte = (bytes >> (8 * (s & 7))) as u8;
            let byte = if s & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
            out | u32::from(byte) << (8 * k)
        })
    });
    each("lop3", &bits, &|a, b, c| (a & b) | (!a & c));
    let warp = |t: usize| (t / 32 * 32..t / 32 * 32 + 32).map(|i| bits[3 * i]).collect::<Vec<_>>();
    let mut reduce = |name: &str, f: &dyn Fn(Vec<u32>) -> u32| {
        v.push(Micro::new(
            name,
            128,
            words(bits.iter().copied()),
            words((0..128).map(|t| f(warp(t)))),
        ))
    };
    reduce("redux_add", &|w| w.into_iter().fold(0, u32::wrapping_add));
    reduce("redux_max", &|w| w.into_iter().max().unwrap());
    reduce("redux_min", &|w| w.into_iter().min().unwrap());
    reduce("redux_max_signed", &|w| w.into_iter().map(|x| x as i32).max().unwrap() as u32);
    reduce("redux_or", &|w| w.into_iter().fold(0, |a, b| a | b));
    let mut approximate = |name: &str, f: &dyn Fn(f32) -> f32| {
        let mut m = Micro::new(
            name,
            128,
            floats(small.iter().map(|x| x + 0.001)),
            floats((0..128).map(|t| f(small[3 * t] + 0.001))),
        );
        m.tolerance = Some(2e-3);
        v.push(m);
    };
    approximate("exp2_approx", &|x| x.exp2());
    approximate("log2_approx", &|x| x.abs().log2());
    approximate("reciprocal_approx", &|x| 1.0 / x);
    approximate("tanh_approx", &|x| x.tanh());
    v
}

// ------------------------------------------------------------------ copies
/// What a box of `map` at `at` looks like in shared memory, with the offset in the tensor of each element.
fn box_of(map: &Map, at: &[i64]) -> Vec<Option<usize>> {
    let e = map.element.bytes() as usize;
    let n: usize = map.box_dims.iter().map(|&b| b as usize).product();
    let span = map.swizzle.span() as usize;
    let mut tile = vec![None; n];
    for i in 0..n {
        let (mut rest, mut offset, mut inside) = (i, 0, true);
        for (d, &origin) in at.iter().enumerate() {
            let x = origin + (rest % map.box_dims[d] as usize) as i64;
            rest /= map.box_dims[d] as usize;
            inside &= x >= 0 && (x as u64) < map.dims[d];
            offset += x * if d == 0 { e as i64 } else { map.strides[d - 1] as i64 };
        }
        // Within its span, a 16-byte chunk moves by the number of the 128-byte line that it lies in.
        let mut byte = i * e;
        if span > 0 {
            byte ^= (byte / 128 * 16) & (span - 16);
        }
        tile[byte / e] = inside.then_some(offset as usize);
    }
    tile
}
fn read_box(map: &Map, at: &[i64], from: &[u8]) -> Vec<u8> {
    let e = map.element.bytes() as usize;
    box_of(map, at)
        .into_iter()
        .flat_map(|o| o.map_or(vec![0; e], |o| from[map.offset as usize + o..][..e].to_vec()))
        .collect()
}
fn dense(over_out: bool, element: TensorElement, dims: &[u64], box_dims: &[u32], span: u32) -> Map {
    let mut strides = Vec::new();
    let mut at = u64::from(element.bytes());
    for d in &dims[..dims.len() - 1] {
        at *= d;
        strides.push(at);
    }
    Map {
        over_out,
        offset: 0,
        element,
        dims: dims.to_vec(),
        strides,
        box_dims: box_dims.to_vec(),
        swizzle: swizzle_of(span),
    }
}
fn copies() -> Vec<Micro> {
    use TensorElement::{Bf16, F32};
    let input = halves((0..8192_u16).map(|i| i.wrapping_mul(7) & 0x3fff));
    let mut v = Vec::new();
    let mut load = |name: &str, map: Map, at: &[i64]| {
        let mut m = Micro::new(name, 128, input.clone(), read_box(&map, at, &input));
        m.maps[0] = Some(map);
        v.push(m);
    };
    load("tma_load_1d", dense(false, Bf16, &[40], &[64], 0), &[-8]);
    load("tma_load_2d", dense(false, Bf16, &[56, 20], &[64, 32], 0), &[32, 5]);
    load("tma_load_2d_swizzle_32", dense(false, Bf16, &[56, 20], &[16, 32], 32), &[16, -1]);
    load("tma_load_2d_swizzle_64", dense(false, Bf16, &[56, 20], &[32, 32], 64), &[32, -1]);
    load("tma_load_2d_swizzle_128", dense(false, Bf16, &[64, 20], &[64, 32], 128), &[32, -1]);
    load("tma_load_2d_policy", dense(false, Bf16, &[64, 32], &[64, 32], 0), &[0, 0]);
    load("tma_load_3d", dense(false, Bf16, &[24, 6, 5], &[16, 4, 16], 0), &[8, 3, 1]);
    load("tma_load_4d", dense(false, Bf16, &[24, 3, 4, 5], &[16, 2, 4, 8], 0), &[8, 1, 0, 2]);
    load(
        "tma_load_5d",
        dense(false, Bf16, &[24, 3, 4, 2, 3], &[16, 2, 4, 2, 4], 0),
        &[8, 1, 0, 1, -1],
    );
    // One static map for groups of rows of any length: its extents exceed every buffer, and its addresses wrap
    // at 64 bits back to row (group's begin + row).
    let ragged = Map {
        over_out: false,
        offset: 0,
        element: Bf16,
        dims: vec![64, 1 << 30, 0x7fff_0000, 0x7fff_0000],
        strides: vec![128, 128, (1 << 34) - 128],
        box_dims: vec![64, 32, 1, 1],
        swizzle: TensorSwizzle::None,
    };
    let group = (8..40).flat_map(|row| {
        if row < 20 { input[(10 + row) * 128..][..128].to_vec() } else { vec![0; 128] }
    });
    let mut m = Micro::new("tma_load_4d_ragged", 128, input.clone(), group.collect());
    m.maps[0] = Some(ragged);
    v.push(m);
    v.push(Micro::new("bulk_load", 128, input.clone(), input[64..1088].to_vec()));

    let mut store = |name: &str, map: Map, at: &[i64], add: bool, source: &[u8], out: Vec<u8>| {
        let e = map.element.bytes() as usize;
        let mut want = out.clone();
        for (i, o) in box_of(&map, at).into_iter().enumerate() {
            let Some(o) = o else { continue };
            let value = &source[i * e..][..e];
            if add {
                let sum = f32::from_bytes(&want[o..o + 4]) + f32::from_bytes(value);
                want[o..o + 4].copy_from_slice(&sum.to_ne_bytes());
            } else {
                want[o..o + e].copy_from_slice(value);
            }
        }
        let mut m = Micro::new(name, 128, source.to_vec(), want);
        m.maps[1] = Some(map);
        m.out = out;
        v.push(m);
    };
    store(
        "tma_store_2d",
        dense(true, Bf16, &[56, 20], &[64, 32], 0),
        &[32, 5],
        false,
        &input,
        vec![1; 56 * 20 * 2],
    );
    store(
        "tma_store_3d",
        dense(true, Bf16, &[24, 6, 5], &[16, 4, 16], 0),
        &[8, 3, 1],
        false,
        &input,
        vec![1; 24 * 6 * 5 * 2],
    );
    store(
        "tma_store_4d",
        dense(true, Bf16, &[24, 3, 4, 5], &[16, 2, 4, 8], 0),
        &[8, 1, 0, 2],
        false,
        &input,
        vec![1; 24 * 3 * 4 * 5 * 2],
    );
    let (addends, sums) = (floats(integers(41, 1024)), floats(integers(42, 1024)));
    store(
        "tma_reduce_add_2d",
        dense(true, F32, &[28, 20], &[32, 32], 0),
        &[16, 5],
        true,
        &addends,
        sums[..28 * 20 * 4].to_vec(),
    );
    for (name, add) in [("bulk_store", false), ("bulk_reduce_add_f32", true)] {
        let mut want = sums[..1152].to_vec();
        for i in 0..256 {
            let x = f32::from_bytes(&addends[i * 4..][..4])
                + if add { f32::from_bytes(&want[64 + i * 4..][..4]) } else { 0.0 };
            want[64 + i * 4..][..4].copy_from_slice(&x.to_ne_bytes());
        }
        let mut m = Micro::new(name, 128, addends.clone(), want);
        m.out = sums[..1152].to_vec();
        v.push(m);
    }
    let partial =
        (0..2048).map(|i| if i % 16 < 16 - i / 16 % 4 * 4 { input[i] } else { 0 }).collect();
    v.push(Micro::new("cp_async_16", 128, input.clone(), partial));
    v.push(Micro::new(
        "cp_async_4",
        128,
        input.clone(),
        words((0..128).map(|t| if t % 3 != 0 { word(&input, 127 - t) } else { 0 })),
    ));
    v.push(Micro::new(
        "cp_async_arrive",
        128,
        input.clone(),
        (0..2048).map(|i| input[((i / 16) ^ 5) * 16 + i % 16]).collect(),
    ));
    // The replaced map: address + 256, nine rows, 160 bytes apart.
    let before = dense(false, Bf16, &[64, 32], &[64, 32], 0);
    let after = Map { offset: 256, dims: vec![64, 9], strides: vec![160], ..before.clone() };
    let mut m =
        Micro::new("tensor_map_replace", 128, input.clone(), read_box(&after, &[0, 0], &input));
    m.out = vec![0; 8192 + 128];
    m.maps[0] = Some(before);
    v.push(m);
    v.push(Micro::new("loads", 128, input.clone(), input[..2048].to_vec()));
    v
}

// ------------------------------------------------------------------ clusters
fn clusters() -> Vec<Micro> {
    let input = halves((0..4096_u16).map(|i| i.wrapping_mul(11) & 0x3fff));
    let mut v = Vec::new();
    let mut cluster = |name: &str, want: Vec<u8>, map: Option<Map>| {
        let mut m = Micro::new(name, 32, input.clone(), want);
        m.blocks = 4;
        m.maps[0] = map;
        v.push(m);
    };
    let map = dense(false, TensorElement::Bf16, &[64, 16], &[32, 16], 0);
    let (left, right) = (read_box(&map, &[0, 0], &input), read_box(&map, &[32, 0], &input));
    cluster("tma_load_2d_multicast", [&left[..], &left, &right, &left].concat(), Some(map));
    cluster("bulk_load_multicast", input[..1024].repeat(4), None);
    let part = |f: &dyn Fn(u32, u32) -> Option<u32>| {
        words((0..1024).map(|i| f(i / 256, i % 256).unwrap_or(0)))
    };
    // Block r is written by its right neighbour, which had read the one further right.
    cluster(
        "distributed_shared",
        part(&|r, i| (i < 32).then(|| (r + 2) % 4 * 100 + i + 1000)),
        None,
    );
    cluster("remote_arrive", part(&|r, i| (r == 0 && i < 4).then(|| i * 7)), None);
    let mut sent = part(&|r, i| (128..160).contains(&i).then(|| (r + 3) % 4 * 1000 + i - 128));
    for r in 0..4 {
        sent[r * 1024..][..512].copy_from_slice(&input[(r + 3) % 4 * 512..][..512]);
    }
    cluster("send_to_neighbour", sent, None);
    let solid = dense(false, TensorElement::Bf16, &[24, 6, 9], &[16, 4, 8], 0);
    let (shared, own) =
        (read_box(&solid, &[16, 4, -1], &input), read_box(&solid, &[-8, 1, 2], &input));
    cluster("tma_load_3d_multicast", [&shared[..], &shared, &own, &shared].concat(), Some(solid));
    cluster("remote_expect_tx", part(&|r, i| (i < 32).then(|| (r + 3) % 4 * 1000 + 31 - i)), None);
    cluster("fence_cluster", part(&|r, i| (i < 32).then(|| (3 - r) * 50 + 31 - i)), None);
    v
}
