//! Truths of `micro_cluster.cu`.

use super::boxes::*;
use super::*;

pub fn clusters() -> Vec<Micro> {
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
