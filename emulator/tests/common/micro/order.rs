//! Truths of `emulator/kernels/micro_order.cu`: four blocks of 32 threads, flags behind 4096 bytes of output.

use super::{Micro, words};

pub fn all() -> Vec<Micro> {
    let input: Vec<u32> = (0..128).map(|i| i * i % 97 + 1).collect();
    let case = |name: &str, want: Vec<u32>| {
        let mut m = Micro::new(name, 32, words(input.iter().copied()), words(want));
        m.blocks = 4;
        m.out = vec![0; 8192];
        m
    };
    // Element `i` adds to that of its predecessor, by `back`.
    let chain = |back: &dyn Fn(usize) -> usize, factor: u32| {
        let mut sums = input.clone();
        for i in 32..128 {
            sums[i] += sums[i - back(i)] * factor;
        }
        sums
    };
    let sum_of = |every: usize, first: usize| -> u32 { input[first..].iter().step_by(every).sum() };
    let mut atomics: Vec<u32> = (0..8).map(|i| (sum_of(8, i) as f32).to_bits()).collect();
    atomics.resize(8 + 128, 1);
    atomics.extend([sum_of(32, 0), sum_of(32, 0) * 2]);
    vec![
        case("release_acquire", chain(&|i| 31 + i % 2 * 2, 1)),
        case("relaxed_fences", chain(&|_| 32, 2)),
        case("atomics", atomics),
    ]
}
