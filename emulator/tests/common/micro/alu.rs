//! Truths of `micro_alu.cu`.

use super::*;
use half::{bf16 as Bf16, f16 as F16};

pub fn alu() -> Vec<Micro> {
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
    // NaN, zeros of both signs and infinities among the numbers, each against each.
    let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1.0, -1.0, 1e-40];
    let mut floats_of_all = number_bits.clone();
    for (place, pair) in floats_of_all.chunks_mut(3).take(64).enumerate() {
        pair[0] = special[place / 8].to_bits();
        pair[1] = special[place % 8].to_bits();
    }
    let order = |a: f32, b: f32, least: bool| match (a.is_nan() || b.is_nan(), a.total_cmp(&b)) {
        (true, _) => 0x7fff_ffff,
        (_, order) => if order.is_lt() == least { a } else { b }.to_bits(),
    };
    each("min_nan", &floats_of_all, &|a, b, _| order(f(a), f(b), true));
    each("max_nan", &floats_of_all, &|a, b, _| order(f(a), f(b), false));
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
