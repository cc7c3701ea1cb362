//! The emulator as a driver: what it refuses, streams, events, capture, devices, threads.

mod common;
use common::{Rig, device};
use moe_emulator::{Options, Profile};
use moe_kernels::cuda::driver::*;

/// Launches `iota(out, n)` on this stream.
fn iota(r: &Rig, out: DevicePtr, n: u32, stream: Stream) {
    let f = r.driver.function(r.driver.load_module(&[]).unwrap(), "iota").unwrap();
    // SAFETY: `iota` takes a pointer to n u32 and n.
    unsafe {
        r.driver.launch(
            f,
            &LaunchConfig::linear(n.div_ceil(64), 64),
            &[KernelArg::new(&out.0), KernelArg::new(&n)],
            stream,
        )
    }
    .unwrap();
}
fn words(r: &Rig, p: DevicePtr, n: usize, stream: Stream) -> Vec<u32> {
    let mut bytes = vec![0; n * 4];
    r.driver.copy_to_host(&mut bytes, p, stream).unwrap();
    bytes.chunks_exact(4).map(|b| u32::from_ne_bytes(b.try_into().unwrap())).collect()
}
fn ascending(n: u32) -> Vec<u32> {
    (0..n).collect()
}

#[test]
fn launches_that_no_device_accepts_are_refused() {
    let Some(r) = Rig::new(Options::default()) else { return };
    let out = r.alloc::<u32>(64);
    let n = 64_u32;
    let args = [KernelArg::new(&out.0), KernelArg::new(&n)];
    let ok = LaunchConfig::linear(1, 64);
    let refused = |config: LaunchConfig, args: &[KernelArg<'_>], why: &str| {
        let e = r.launch("iota", config, args).expect_err(why);
        assert!(e.contains("cannot launch `iota`") && e.contains(why), "{e}");
    };
    refused(LaunchConfig { block: Dim3::linear(0), ..ok }, &args, "0 threads per block");
    refused(LaunchConfig { block: Dim3::linear(2048), ..ok }, &args, "2048 threads per block");
    refused(LaunchConfig { grid: Dim3 { x: 1, y: 0, z: 1 }, ..ok }, &args, "a grid of");
    refused(LaunchConfig { cluster: Dim3::linear(16), ..ok }, &args, "a cluster of 16 blocks");
    refused(
        LaunchConfig { grid: Dim3::linear(3), cluster: Dim3::linear(2), ..ok },
        &args,
        "no multiple of the cluster",
    );
    refused(ok, &args[..1], "arguments of [8] bytes where the kernel takes [8, 4]");
    refused(ok, &[args[1], args[0]], "arguments of [4, 8] bytes");
    let f = r.driver.function(r.driver.load_module(&[]).unwrap(), "iota").unwrap();
    // SAFETY: refused before anything runs.
    let e = unsafe { r.driver.launch(f, &ok.with_shared(49 << 10), &args, r.stream) };
    assert!(
        matches!(e, Err(DriverError::Launch { .. })),
        "more than 48 KiB without opting in: {e:?}"
    );
    assert!(matches!(
        r.driver.set_max_dynamic_shared(f, 228 << 10),
        Err(DriverError::InvalidValue { .. })
    ));
    assert_eq!(
        r.driver.function(Module(0), "no_such_kernel"),
        Err(DriverError::UnknownFunction { name: "no_such_kernel".into() })
    );
    // Nothing of this poisoned the device.
    r.run("iota", ok, &args).unwrap();
    assert_eq!(words(&r, out, 64, r.stream), ascending(64));
}

#[test]
fn each_device_has_its_limits() {
    let limits = [
        (Profile::sm_80(), 163),
        (Profile::sm_86(), 99),
        (Profile::sm_89(), 99),
        (Profile::sm_90(), 227),
        (Profile::sm_100(), 227),
        (Profile::sm_120(), 99),
    ];
    for (profile, kib) in limits {
        let arch = profile.properties.compute_capability;
        let Some(r) = Rig::on(profile, Options::checked(1)) else { return };
        let f = r.driver.function(r.driver.load_module(&[]).unwrap(), "iota").unwrap();
        assert!(r.driver.set_max_dynamic_shared(f, kib << 10).is_ok(), "sm_{arch}");
        assert!(r.driver.set_max_dynamic_shared(f, (kib << 10) + 1).is_err(), "sm_{arch}");
        // wgmma belongs to sm_90a alone, mma.sync to all; tensor maps begin with 90.
        let map = r.driver.encode_tensor_map(&plain_map(r.alloc::<u16>(64 * 64)));
        assert_eq!(map.is_ok(), arch >= 90, "sm_{arch}");
        assert_eq!(common::cases::mma(&r, 64, 64, 8), Ok(()), "sm_{arch}");
        if arch >= 90 {
            let result = common::cases::wgmma_transposed(&r);
            match arch {
                90 => assert_eq!(result, Ok(())),
                _ => assert!(
                    result.expect_err("no wgmma").contains("needs sm_90a, and the device is sm_")
                ),
            }
        }
    }
}
#[test]
fn fp8_conversions_need_sm_89() {
    for (profile, has) in [(Profile::sm_80(), false), (Profile::sm_89(), true)] {
        let Some(r) = Rig::on(profile, Options::checked(0)) else { return };
        let (input, out) = (r.upload(&[0_u32; 384]), r.alloc::<u32>(128));
        let (params, map) = ([input.0, out.0], TensorMap([0; 16]));
        let result = r.run(
            "micro_pack_e4m3",
            LaunchConfig::linear(1, 128),
            &[KernelArg::new(&map), KernelArg::new(&map), KernelArg::new(&params)],
        );
        assert_eq!(result.is_ok(), has, "{result:?}");
    }
}

fn plain_map(base: DevicePtr) -> TensorMapDesc {
    TensorMapDesc {
        base,
        element: TensorElement::Bf16,
        dims: vec![64, 64],
        strides: vec![128],
        box_dims: vec![64, 64],
        swizzle: TensorSwizzle::B128,
    }
}
#[test]
fn tensor_maps_that_the_driver_refuses_are_refused() {
    let Some(r) = Rig::new(Options::default()) else { return };
    let p = r.alloc::<u16>(64 * 64);
    let good = plain_map(p);
    assert!(r.driver.encode_tensor_map(&good).is_ok());
    let refuse = |change: &dyn Fn(&mut TensorMapDesc), why: &str| {
        let mut d = good.clone();
        change(&mut d);
        match r.driver.encode_tensor_map(&d) {
            Err(DriverError::TensorMap { why: got }) => {
                assert!(got.contains(why), "{got}, not {why}")
            }
            other => panic!("{why}: {other:?}"),
        }
    };
    refuse(&|d| d.base = p.offset(8), "not 16-byte aligned");
    refuse(&|d| d.dims[1] = 0, "zero");
    refuse(&|d| d.dims[1] = (1 << 32) + 1, "above 2^32");
    refuse(&|d| d.box_dims[1] = 257, "outside 1..256");
    refuse(&|d| d.box_dims[1] = 0, "outside 1..256");
    refuse(&|d| d.strides[0] = 120, "multiple of 16");
    refuse(&|d| d.strides[0] = 1 << 40, "2^40");
    refuse(&|d| d.box_dims[0] = 4, "multiple of 16 bytes");
    refuse(&|d| d.box_dims[0] = 128, "wider than the swizzle span");
    refuse(&|d| d.strides.clear(), "do not fit together");
    refuse(
        &|d| {
            *d = TensorMapDesc {
                dims: vec![16; 6],
                strides: vec![32; 5],
                box_dims: vec![16; 6],
                ..d.clone()
            }
        },
        "do not fit together",
    );
    // A ragged map: its extent exceeds any buffer, and the driver does not mind.
    let ragged = TensorMapDesc {
        dims: vec![64, 1 << 30, 0x7fff_0000, 0x7fff_0000],
        strides: vec![128, 128, (1 << 34) - 128],
        box_dims: vec![64, 64, 1, 1],
        ..good
    };
    assert!(r.driver.encode_tensor_map(&ragged).is_ok());
}

#[test]
fn memory_is_bounded_counted_and_poisoned() {
    let Some(r) = Rig::new(Options::default()) else { return };
    let before = r.driver.bytes_in_use();
    let p = r.driver.alloc(100).unwrap();
    assert_eq!((p.0 % 256, r.driver.bytes_in_use()), (0, before + 100));
    let mut bytes = [0; 100];
    r.driver.copy_to_host(&mut bytes, p, r.stream).unwrap();
    assert!(bytes.iter().all(|&b| b != 0), "fresh memory must not look like zeros");
    assert!(matches!(
        r.driver.copy_to_host(&mut [0; 101], p, r.stream),
        Err(DriverError::InvalidValue { what: "src", .. })
    ));
    assert!(matches!(
        r.driver.fill(p.offset(1), 0, 100, r.stream),
        Err(DriverError::InvalidValue { what: "dst", .. })
    ));
    r.driver.fill(p, 7, 50, r.stream).unwrap();
    r.driver.copy(p.offset(50), p, 50, r.stream).unwrap();
    r.driver.copy_to_host(&mut bytes, p, r.stream).unwrap();
    assert_eq!(bytes, [7; 100]);
    r.driver.free(p).unwrap();
    assert_eq!(r.driver.bytes_in_use(), before);
    assert!(r.driver.free(p).is_err(), "freed twice");
    assert!(matches!(r.driver.alloc(1 << 40), Err(DriverError::OutOfMemory { .. })));
    assert!(matches!(r.driver.alloc(0), Err(DriverError::InvalidValue { .. })));
}

#[test]
fn streams_are_ordered_by_events_alone() {
    let Some(r) = Rig::new(Options::checked(3)) else { return };
    let (a, b) = (r.driver.create_stream().unwrap(), r.driver.create_stream().unwrap());
    let (x, y) = (r.upload(&[9_u32; 64]), r.upload(&[9_u32; 64]));
    r.driver.synchronize(r.stream).unwrap();
    // Without an event the copy in b runs before the kernel in a: as late as possible is as bad as possible.
    iota(&r, x, 64, a);
    r.driver.copy(y, x, 256, b).unwrap();
    assert_eq!(words(&r, y, 64, b), vec![9; 64]);
    let e = r.driver.create_event().unwrap();
    r.driver.record_event(e, a).unwrap();
    r.driver.wait_event(b, e).unwrap();
    r.driver.copy(y, x, 256, b).unwrap();
    assert_eq!(words(&r, y, 64, b), ascending(64));
    let later = r.driver.create_event().unwrap();
    r.driver.record_event(later, b).unwrap();
    assert!(r.driver.elapsed_ms(e, later).unwrap() >= 0.0);
    for s in [a, b] {
        r.driver.destroy_stream(s).unwrap();
    }
    assert_eq!(
        r.driver.synchronize(a),
        Err(DriverError::UnknownHandle { kind: "stream", handle: a.0 })
    );
    r.driver.destroy_event(e).unwrap();
    assert!(r.driver.record_event(e, r.stream).is_err());
}

#[test]
fn a_captured_graph_runs_again_and_nothing_before() {
    let Some(r) = Rig::new(Options::checked(2)) else { return };
    let x = r.upload(&[5_u32; 64]);
    r.driver.begin_capture(r.stream).unwrap();
    iota(&r, x, 32, r.stream);
    // What waits or allocates is refused while a stream captures.
    assert_eq!(r.driver.synchronize(r.stream), Err(DriverError::Capturing("synchronize")));
    assert_eq!(r.driver.alloc(16), Err(DriverError::Capturing("alloc")));
    assert!(r.driver.begin_capture(r.stream).is_err());
    let graph = r.driver.end_capture(r.stream).unwrap();
    assert_eq!(words(&r, x, 64, r.stream), vec![5; 64], "capturing runs nothing");
    for _ in 0..2 {
        r.driver.fill(x, 0, 256, r.stream).unwrap();
        // SAFETY: x is alive.
        unsafe { r.driver.launch_graph(graph, r.stream) }.unwrap();
        let got = words(&r, x, 64, r.stream);
        assert_eq!((&got[..32], &got[32..]), (&ascending(32)[..], &[0; 32][..]));
    }
    r.driver.destroy_graph(graph).unwrap();
    // SAFETY: refused.
    assert!(unsafe { r.driver.launch_graph(graph, r.stream) }.is_err());
}

/// Fork and join: `second` fills what the stream of the capture then copies. With `join`, it waits.
fn forked(r: &Rig, second: Stream, x: DevicePtr, y: DevicePtr, join: bool) -> Result<Graph> {
    let (fork, done) = (r.driver.create_event()?, r.driver.create_event()?);
    r.driver.begin_capture(r.stream)?;
    r.driver.fill(x, 0, 256, r.stream)?;
    r.driver.record_event(fork, r.stream)?;
    r.driver.wait_event(second, fork)?;
    iota(r, x, 32, second);
    r.driver.record_event(done, second)?;
    if join {
        r.driver.wait_event(r.stream, done)?;
    }
    r.driver.copy(y, x, 256, r.stream)?;
    let graph = r.driver.end_capture(r.stream);
    assert!(r.driver.synchronize_event(done).is_err(), "the event belongs to the capture");
    graph
}
#[test]
fn a_capture_takes_in_the_streams_that_wait_for_its_events() {
    let Some(r) = Rig::new(Options::checked(2)) else { return };
    let (x, y) = (r.upload(&[5_u32; 64]), r.upload(&[6_u32; 64]));
    let second = r.driver.create_stream().unwrap();
    let graph = forked(&r, second, x, y, true).unwrap();
    assert_eq!(words(&r, y, 64, r.stream), vec![6; 64], "capturing runs nothing");
    for _ in 0..2 {
        r.driver.fill(y, 1, 256, r.stream).unwrap();
        // SAFETY: x and y are alive.
        unsafe { r.driver.launch_graph(graph, r.stream) }.unwrap();
        let got = words(&r, y, 64, r.stream);
        assert_eq!((&got[..32], &got[32..]), (&ascending(32)[..], &[0; 32][..]));
    }
    // Both streams have left the capture.
    iota(&r, y, 64, second);
    assert_eq!(words(&r, y, 64, second), ascending(64));
}
#[test]
fn a_capture_refuses_what_cuda_refuses() {
    let Some(r) = Rig::new(Options::checked(2)) else { return };
    let (x, y) = (r.upload(&[5_u32; 64]), r.upload(&[6_u32; 64]));
    let (second, third) = (r.driver.create_stream().unwrap(), r.driver.create_stream().unwrap());
    let why = |e: DriverError| e.to_string();
    // Work of the second stream would run at some time that nothing orders.
    let e = forked(&r, second, x, y, false).map_err(why).unwrap_err();
    assert!(e.contains("is not waited for"), "{e}");
    iota(&r, y, 64, second);
    assert_eq!(words(&r, y, 64, second), ascending(64), "both have left the capture");

    let (outside, inside) = (r.driver.create_event().unwrap(), r.driver.create_event().unwrap());
    r.driver.record_event(outside, third).unwrap();
    r.driver.begin_capture(r.stream).unwrap();
    r.driver.record_event(inside, r.stream).unwrap();
    r.driver.wait_event(second, inside).unwrap();
    let e = r.driver.wait_event(r.stream, outside).map_err(why).unwrap_err();
    assert!(e.contains("not recorded in the capture"), "{e}");
    let e = r.driver.end_capture(second).map_err(why).unwrap_err();
    assert!(e.contains("began in another stream"), "{e}");
    assert_eq!(r.driver.destroy_stream(second), Err(DriverError::Capturing("destroy_stream")));
    r.driver.begin_capture(third).unwrap();
    let e = r.driver.wait_event(third, inside).map_err(why).unwrap_err();
    assert!(e.contains("another capture"), "{e}");
    r.driver.end_capture(third).unwrap();
    r.driver.record_event(inside, second).unwrap();
    r.driver.wait_event(r.stream, inside).unwrap();
    r.driver.end_capture(r.stream).unwrap();
    let e = r.driver.wait_event(third, inside).map_err(why).unwrap_err();
    assert!(e.contains("has ended"), "{e}");
}

#[test]
fn a_fault_appears_at_the_next_wait_and_sticks() {
    let Some(r) = Rig::new(Options { fault: 106, ..Options::checked(1) }) else { return };
    let out = r.alloc::<u32>(64);
    r.launch("test_edges", LaunchConfig::linear(1, 64).with_shared(264), &[KernelArg::new(&out.0)])
        .expect("launching is asynchronous");
    assert!(matches!(r.driver.synchronize(r.stream), Err(DriverError::KernelFault { .. })));
    assert!(matches!(r.driver.synchronize(r.stream), Err(DriverError::ContextPoisoned { .. })));
    assert!(matches!(r.driver.alloc(16), Err(DriverError::ContextPoisoned { .. })));
    assert_eq!(r.driver.free(out), Ok(()), "buffers are dropped after a fault");
    assert_eq!(r.driver.fault().unwrap().kind, moe_emulator::FaultKind::Trap);
}

#[test]
fn attributes_and_occupancy_follow_the_launch_bounds() {
    let Some(r) = Rig::new(Options::default()) else { return };
    let f = r.driver.function(r.driver.load_module(&[]).unwrap(), "test_gemm_n128").unwrap();
    let a = r.driver.function_attributes(f).unwrap();
    assert_eq!((a.max_threads_per_block, a.registers, a.local_bytes), (384, 168, 0));
    r.driver.set_max_dynamic_shared(f, 200 << 10).unwrap();
    assert_eq!(
        r.driver.occupancy(f, 384, 100 << 10),
        Ok(1),
        "168 registers x 384 threads fill a multiprocessor"
    );
    assert_eq!(r.driver.occupancy(f, 128, 50 << 10), Ok(3));
    assert_eq!(r.driver.occupancy(f, 128, 200 << 10), Ok(1));
    assert_eq!(r.driver.occupancy(f, 385, 0), Ok(0));
}

#[test]
fn one_device_serves_many_threads() {
    let Some(d) = device(Profile::sm_90()) else { return };
    d.set_options(Options::checked(5));
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                let stream = d.create_stream().unwrap();
                let (module, p, n) =
                    (d.load_module(&[]).unwrap(), d.alloc(4 * 500).unwrap(), 500_u32);
                let f = d.function(module, "iota").unwrap();
                for _ in 0..10 {
                    d.fill(p, 0, 2000, stream).unwrap();
                    // SAFETY: p holds n u32.
                    unsafe {
                        d.launch(
                            f,
                            &LaunchConfig::linear(8, 64),
                            &[KernelArg::new(&p.0), KernelArg::new(&n)],
                            stream,
                        )
                    }
                    .unwrap();
                    let mut out = vec![0; 2000];
                    d.copy_to_host(&mut out, p, stream).unwrap();
                    assert!(
                        out.chunks_exact(4)
                            .enumerate()
                            .all(|(i, b)| u32::from_ne_bytes(b.try_into().unwrap()) == i as u32)
                    );
                }
            });
        }
    });
}

#[test]
fn the_lint_counts_bank_conflicts_per_line() {
    // The swizzled staging of the GEMM has none; without the swizzle (fault 43) eight rows fall on one bank group.
    let passes = |fault| -> Option<f64> {
        let r = Rig::new(Options {
            lint: true,
            fault,
            checks: moe_emulator::Checks::None,
            ..Options::default()
        })?;
        let _ = common::cases::gemm(&r, &[64, 64], 64, 64, 128, 2);
        let report = r.driver.lint_report();
        let line = report.lines().find(|l| l.contains("stmatrix_x4"));
        let line = line.unwrap_or_else(|| panic!("no stmatrix_x4 in:\n{report}"));
        assert!(
            line.starts_with("shared store 16 bytes") && line.contains("grouped_gemm.cu:"),
            "{line}"
        );
        line.split(", ").nth(2)?.split(' ').next()?.parse().ok()
    };
    if Rig::new(Options::default()).is_none() {
        return;
    }
    assert_eq!((passes(0), passes(43)), (Some(1.0), Some(8.0)));
}
