//! Truths of `micro_wgmma.cu` and `micro_matrix.cu`.

use super::*;

pub fn wgmma() -> Vec<Micro> {
    let mut v = Vec::new();
    for n in [8, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256] {
        v.push(wgmma_shape(&format!("wgmma_bf16_n{n}"), Format::Bf16, n));
        v.push(wgmma_shape(&format!("wgmma_bf16_ra_n{n}"), Format::Bf16, n));
    }
    for (suffix, format) in [("f16", Format::F16), ("e4m3", Format::E4m3)] {
        for n in [8, 64, 128, 256] {
            v.push(wgmma_shape(&format!("wgmma_{suffix}_n{n}"), format, n));
            v.push(wgmma_shape(&format!("wgmma_{suffix}_ra_n{n}"), format, n));
        }
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

pub fn matrix() -> Vec<Micro> {
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
