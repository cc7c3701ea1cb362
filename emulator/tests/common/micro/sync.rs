//! Truths of `emulator/kernels/micro_sync.cu`.

use super::{Micro, halves, word, words};

pub fn all() -> Vec<Micro> {
    let input = halves((0..4096_u16).map(|i| i.wrapping_mul(13) & 0x3fff));
    let at = |i: usize| word(&input, i);
    let case = |name: &str, want: Vec<u8>| Micro::new(name, 128, input.clone(), want);
    let each = |f: &dyn Fn(usize) -> u32| words((0..128).map(f));

    // A word moves on by 37 threads in each of three rounds, and gains 0 + 1 + 2.
    let passed = each(&|t| at((t + 3 * (128 - 37)) % 128).wrapping_add(3));
    let reused = each(&|t| at(t / 2).wrapping_add(at(0)).wrapping_add(0x1234567));
    let mirrored = each(&|t| at(t / 64 * 64 + 63 - t % 64));
    let rows = (0..128).flat_map(|t| &input[(127 - t) * 16..][..16]).copied().collect();

    let mut through_scratch = case("fence_proxy_async_global", rows);
    through_scratch.out = vec![0; 4096];
    let mut registers = case("setmaxnreg", words((0..384).map(|t| at(t).wrapping_mul(3))));
    registers.threads = 384;
    vec![
        case("mbarrier_expect_tx", [&input[..1024], &input[4096..5120]].concat()),
        case("mbarrier_phases", passed),
        case("mbarrier_invalidate", reused),
        case("barrier_arrive", mirrored),
        case("elect_one", each(&|_| 1)),
        registers,
        case("no_effect", each(&|t| at(t).wrapping_add(1))),
        through_scratch,
        case("bulk_wait_read", input[..4096].to_vec()),
    ]
}
