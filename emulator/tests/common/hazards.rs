//! Kernels about hand-overs between proxies, blocks and kernels, with their references.

use super::cases::{Case, dot};
use super::*;

pub const HAZARDS: &[Case] = &[
    Case { name: "gathered product", run: |r| gathered_product(r, "test_gathered_product") },
    Case {
        name: "fenced by producers",
        run: |r| gathered_product(r, "test_gathered_product_producers_fence"),
    },
    Case { name: "partial tile", run: partial_tile },
    Case { name: "flag", run: |r| handed_over(r, "test_flag", 5) },
    Case { name: "last block", run: |r| handed_over(r, "test_last_block", 5) },
    Case { name: "dependent kernels", run: dependent_kernels },
    Case { name: "edges", run: edges },
    Case { name: "typed stores", run: typed_stores },
    Case { name: "tensor map replaced", run: |r| conforms(r, "micro_tensor_map_replace") },
    Case { name: "multicast", run: |r| conforms(r, "micro_tma_load_2d_multicast") },
    Case { name: "distributed shared memory", run: |r| conforms(r, "micro_distributed_shared") },
    Case { name: "remote arrive", run: |r| conforms(r, "micro_remote_arrive") },
    Case { name: "neighbour", run: |r| conforms(r, "micro_send_to_neighbour") },
    Case { name: "micro_mbarrier_invalidate", run: |r| conforms(r, "micro_mbarrier_invalidate") },
    Case { name: "micro_barrier_arrive", run: |r| conforms(r, "micro_barrier_arrive") },
    Case {
        name: "micro_fence_proxy_async_global",
        run: |r| conforms(r, "micro_fence_proxy_async_global"),
    },
    Case { name: "micro_bulk_wait_read", run: |r| conforms(r, "micro_bulk_wait_read") },
    Case { name: "micro_release_acquire", run: |r| conforms(r, "micro_release_acquire") },
    Case { name: "micro_relaxed_fences", run: |r| conforms(r, "micro_relaxed_fences") },
    Case { name: "micro_atomics", run: |r| conforms(r, "micro_atomics") },
    Case { name: "micro_remote_expect_tx", run: |r| conforms(r, "micro_remote_expect_tx") },
    Case { name: "micro_fence_cluster", run: |r| conforms(r, "micro_fence_cluster") },
    Case {
        name: "micro_tma_load_3d_multicast",
        run: |r| conforms(r, "micro_tma_load_3d_multicast"),
    },
];

fn equal<T: PartialEq + std::fmt::Debug>(got: &[T], want: &[T]) -> Outcome {
    match got.iter().zip(want).position(|(a, b)| a != b) {
        None if got.len() == want.len() => Ok(()),
        at => Err(format!(
            "wrong result: element {at:?}: {:?}, not {:?}",
            at.map(|i| &got[i]),
            at.map(|i| &want[i])
        )),
    }
}
fn conforms(r: &Rig, name: &str) -> Outcome {
    let m = micro::all().iter().find(|m| m.name == name).expect("it is in the suite");
    let got = m.run(r)?;
    m.same(&got, &m.want).map_err(|e| format!("wrong result: {e}"))
}
/// bf16 integers, so that products are exact.
fn integers(seed: u64, n: usize) -> Vec<u16> {
    let mut rand = Rand(seed);
    (0..n).map(|_| to_bf16((rand.next() % 9) as f32 - 4.0)).collect()
}
fn products(a: &[u16], rows: &[usize], b: &[u16]) -> Vec<f32> {
    rows.iter()
        .flat_map(|&m| (0..64).map(move |n| (m, n)))
        .map(|(m, n)| dot(&a[m * 64..][..64], &b[n * 64..][..64]) as f32)
        .collect()
}
fn gathered_product(r: &Rig, kernel: &str) -> Outcome {
    let (a, b) = (integers(1, 100 * 64), integers(2, 64 * 64));
    let rows: Vec<usize> = (0..64).map(|i| i * 37 % 100).collect();
    let row_of: Vec<i32> = rows.iter().map(|&x| x as i32).collect();
    let (pa, pb, pr, out) =
        (r.upload(&a), r.upload(&b), r.upload(&row_of), r.alloc::<f32>(64 * 64));
    let map = r.map(pb, TensorElement::Bf16, &[64, 64], &[64, 64], TensorSwizzle::B128);
    r.run(
        kernel,
        LaunchConfig::linear(1, 256).with_shared(20 << 10),
        &[
            KernelArg::new(&map),
            KernelArg::new(&pa.0),
            KernelArg::new(&pr.0),
            KernelArg::new(&out.0),
        ],
    )?;
    equal(&r.download::<f32>(out, 64 * 64)?, &products(&a, &rows, &b))
}
fn partial_tile(r: &Rig) -> Outcome {
    let (a, b) = (integers(3, 32 * 64), integers(4, 64 * 64));
    let (pa, pb, out) = (r.upload(&a), r.upload(&b), r.alloc::<f32>(64 * 64));
    let map = |p, rows: u64| {
        r.map(p, TensorElement::Bf16, &[64, rows], &[64, rows as u32], TensorSwizzle::B128)
    };
    let (ma, mb) = (map(pa, 32), map(pb, 64));
    r.run(
        "test_partial_tile",
        LaunchConfig::linear(1, 128).with_shared(20 << 10),
        &[KernelArg::new(&ma), KernelArg::new(&mb), KernelArg::new(&out.0)],
    )?;
    let rows: Vec<usize> = (0..32).collect();
    equal(&r.download::<f32>(out, 32 * 64)?, &products(&a, &rows, &b))
}
fn handed_over(r: &Rig, kernel: &str, blocks: u32) -> Outcome {
    let (counters, words, sums) =
        (r.upload(&[0_u32; 64]), r.alloc::<u32>(32 * 32), r.alloc::<u32>(32));
    let flag = counters.offset(128).0;
    let last = [KernelArg::new(&counters.0), KernelArg::new(&words.0), KernelArg::new(&sums.0)];
    let with_flag = [last[0], KernelArg::new(&flag), last[1], last[2]];
    let (threads, args, producers, first) = if kernel == "test_flag" {
        (64, &with_flag[..], blocks - 1, 32)
    } else {
        (32, &last[..], blocks, 0)
    };
    r.run(kernel, LaunchConfig::linear(blocks, threads).with_shared(8 << 10), args)?;
    let want: Vec<u32> =
        (0..32).map(|i| (0..producers).map(|b| b * 1000 + i + first).sum()).collect();
    equal(&r.download::<u32>(sums, 32)?, &want)
}
fn dependent_kernels(r: &Rig) -> Outcome {
    let input: Vec<u32> = (0..256).collect();
    let (a, b, c) = (r.upload(&input), r.alloc::<u32>(256), r.alloc::<u32>(256));
    let config = LaunchConfig::linear(4, 64);
    r.launch("test_first", config, &[KernelArg::new(&a.0), KernelArg::new(&b.0)])?;
    let dependent = LaunchConfig { programmatic: true, ..config };
    r.launch(
        "test_second",
        dependent,
        &[KernelArg::new(&a.0), KernelArg::new(&b.0), KernelArg::new(&c.0)],
    )?;
    // A third in the chain reads what the second left in `a`.
    r.launch(
        "test_second",
        dependent,
        &[KernelArg::new(&b.0), KernelArg::new(&a.0), KernelArg::new(&c.0)],
    )?;
    let want: Vec<u32> = (0..256).map(|i| i * 2 + 2).collect();
    equal(&r.download::<u32>(c, 256)?, &want)
}
fn edges(r: &Rig) -> Outcome {
    let out = r.alloc::<u32>(64);
    // The struct has 264 bytes.
    r.run("test_edges", LaunchConfig::linear(1, 64).with_shared(264), &[KernelArg::new(&out.0)])?;
    let want: Vec<u32> = (0..64).map(|i| if i % 4 == 0 { 63 - i } else { i % 4 }).collect();
    equal(&r.download::<u32>(out, 64)?, &want)
}
fn typed_stores(r: &Rig) -> Outcome {
    // Integers that have a mark in one half, or two different ones; then floats, 1.0 in halves.
    let look_alikes = [0x7fda_0001, 0x0001_7fda, 0x7fdb_7fda, 0xffda_7fda, 0xffdc_0000_u32];
    let words: Vec<u32> =
        (0..256).map(|i| if i < 128 { look_alikes[i % 5] } else { 0x3c00_3c00 }).collect();
    let written: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
    let (input, out) = (r.alloc::<u8>(2048), r.upload(&[0_u8; 5120]));
    r.driver.copy_to_device(input, &written, r.stream).map_err(text)?;
    let map = |element: TensorElement, at| {
        let row = u64::from(128 / element.bytes());
        r.map(out.offset(at), element, &[row, 4], &[row as u32, 4], TensorSwizzle::None)
    };
    let (halves, floats, integers) = (
        map(TensorElement::F16, 2560),
        map(TensorElement::F32, 3072),
        map(TensorElement::I32, 3584),
    );
    r.run(
        "test_typed_stores",
        LaunchConfig::linear(1, 32).with_shared(1152),
        &[
            KernelArg::new(&halves),
            KernelArg::new(&floats),
            KernelArg::new(&integers),
            KernelArg::new(&input.0),
            KernelArg::new(&out.0),
        ],
    )?;
    let (words, floats) = written.split_at(512);
    let parts: [&[u8]; 8] =
        [&floats[..64], words, &words[..256], &floats[..128], words, floats, floats, words];
    let mut want = vec![0; 5120];
    for (i, part) in parts.iter().enumerate() {
        want[i * 512..][..part.len()].copy_from_slice(part);
    }
    for lane in 0..32 {
        let address = 0x0000_7f00_7fda_1230 + lane as u64;
        want[4096 + lane * 8..][..8].copy_from_slice(&address.to_ne_bytes());
    }
    want[4608..][..256].copy_from_slice(&floats[..256]);
    equal(&r.download::<u8>(out, 5120)?, &want)
}
