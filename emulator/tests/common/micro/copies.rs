//! Truths of `micro_copy.cu`.

use super::boxes::*;
use super::*;

/// a + b, of one element.
fn sum(element: TensorElement, a: &[u8], b: &[u8]) -> Vec<u8> {
    let bits = |x: &[u8]| u16::from_bytes(x);
    match element {
        TensorElement::F32 => (f32::from_bytes(a) + f32::from_bytes(b)).to_ne_bytes().to_vec(),
        TensorElement::I32 => (i32::from_bytes(a) + i32::from_bytes(b)).to_ne_bytes().to_vec(),
        TensorElement::Bf16 => Format::Bf16.encode(bf16(bits(a)) + bf16(bits(b))),
        TensorElement::F16 => {
            let [x, y] = [a, b].map(|v| half::f16::from_bits(bits(v)).to_f32());
            Format::F16.encode(x + y)
        }
        TensorElement::U8 => unreachable!("bytes are not added up"),
    }
}

pub fn copies() -> Vec<Micro> {
    use TensorElement::{Bf16, F16, F32, I32};
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
            let value = if add { sum(map.element, value, &want[o..][..e]) } else { value.to_vec() };
            want[o..o + e].copy_from_slice(&value);
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
    for (name, element, encode) in [
        ("tma_reduce_add_2d_f16", F16, (|x| Format::F16.encode(x)) as fn(f32) -> Vec<u8>),
        ("tma_reduce_add_2d_bf16", Bf16, |x| Format::Bf16.encode(x)),
        ("tma_reduce_add_2d_i32", I32, |x| (x as i32).to_ne_bytes().to_vec()),
    ] {
        let encoded = |seed, n| integers(seed, n).into_iter().flat_map(encode).collect::<Vec<u8>>();
        let map = dense(true, element, &[24, 20], &[32, 32], 0);
        store(name, map, &[16, 5], true, &encoded(43, 1024), encoded(44, 24 * 20));
    }
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
    let mut stored: Vec<u8> = (0..128).flat_map(|t| input[(127 - t) * 2..][..2].to_vec()).collect();
    stored.extend((0..128).flat_map(|t| &input[(t ^ 1) * 8..][..8]));
    stored.extend((0..128).flat_map(|t| &input[(t ^ 3) * 16..][..16]));
    v.push(Micro::new("stores", 128, input.clone(), stored));
    v.push(Micro::new("loads", 128, input.clone(), input[..2048].to_vec()));
    v
}
