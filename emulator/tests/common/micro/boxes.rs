//! What a tensor map's box looks like in shared memory.

use super::*;

/// What a box of `map` at `at` looks like in shared memory, with the offset in the tensor of each element.
pub fn box_of(map: &Map, at: &[i64]) -> Vec<Option<usize>> {
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
pub fn read_box(map: &Map, at: &[i64], from: &[u8]) -> Vec<u8> {
    let e = map.element.bytes() as usize;
    box_of(map, at)
        .into_iter()
        .flat_map(|o| o.map_or(vec![0; e], |o| from[map.offset as usize + o..][..e].to_vec()))
        .collect()
}
pub fn dense(
    over_out: bool,
    element: TensorElement,
    dims: &[u64],
    box_dims: &[u32],
    span: u32,
) -> Map {
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
