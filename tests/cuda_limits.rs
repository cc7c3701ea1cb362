//! What the kernels must take: odd sizes, many tokens, and rows so far into memory that 32 bits do not
//! count their elements.
//!
//! That much memory is not there: operands start far before the buffer that holds their last rows, and
//! the plan's offsets, rewritten, send the experts to those rows alone. Whoever computes an address in
//! 32 bits reads or writes elsewhere, which the emulator reports.

#![cfg(feature = "cpu")]

mod common;

use common::*;
use half::bf16;
use moe_emulator::{EmulatedDriver, Options, Profile};
use moe_kernels::MoeConfig;
use moe_kernels::backend::Backend;
use moe_kernels::config::{ActivationFn, GateUpLayout};
use moe_kernels::cuda::driver::{DevicePtr, Driver};
use moe_kernels::cuda::{CudaBuffer, CudaExperts, Path};
use moe_kernels::memory::{Matrix, MatrixMut};
use moe_kernels::ops::{Epilogue, ExpertShape, Gather, GroupedGemm};
use moe_kernels::weights::DenseExperts;

/// Rows of the only expert that has any: the last ones.
const LIVE: usize = 3;
const H: usize = 8;

type Buffer = CudaBuffer<EmulatedDriver, bf16>;

/// `len` elements, of which only the last ones are there: those of `end`.
fn far(device: &Emulated, end: &Buffer, held: usize, len: usize) -> Buffer {
    let before = (len - held) * size_of::<bf16>();
    // SAFETY: what is not there is never reached; the emulator would report it.
    #[allow(unsafe_code)]
    unsafe { CudaBuffer::from_raw(&device.backend, end.address() - before as u64, len) }.unwrap()
}

fn check(device: &Emulated, rows: usize, num_experts: usize, intermediate_size: usize) {
    let (i, what) = (intermediate_size, device.backend.path());
    assert!(rows * i > 1 << 31);
    let shape = ExpertShape::gated(num_experts, H, i);
    let mut rng = Rng::new(5);
    let gate: Vec<bf16> = rng.full(i * H, 0.3);
    let up: Vec<bf16> = rng.full(i * H, 0.3);
    let down: Vec<bf16> = rng.full(H * i, 0.01);
    let (gate_up_end, down_end) = (device.put(&[&gate[..], &up].concat()), device.put(&down));
    let matrix = i * H;
    let experts = CudaExperts::stacked(
        &device.backend,
        shape,
        GateUpLayout::GateFirst,
        far(device, &gate_up_end, 2 * matrix, 2 * num_experts * matrix),
        far(device, &down_end, matrix, num_experts * matrix),
    )
    .unwrap();

    // Every token goes to the last expert, whose rows then begin at the last three.
    let plan = device.plan(&vec![num_experts as i32 - 1; rows], 1, num_experts);
    let mut offsets = vec![(rows - LIVE) as u32; num_experts];
    offsets.push(rows as u32);
    let bytes: Vec<u8> = offsets.iter().flat_map(|offset| offset.to_ne_bytes()).collect();
    let at = DevicePtr(plan.expert_offsets().address());
    device.backend.driver().copy_to_device(at, &bytes, device.stream.raw()).unwrap();

    let x: Vec<bf16> = rng.full(LIVE * H, 1.0);
    let x_end = device.put(&x);
    let x_buffer = far(device, &x_end, x.len(), rows * H);
    let activated_end = device.put(&vec![bf16::POISON; LIVE * i]);
    let mut activated = far(device, &activated_end, LIVE * i, rows * i);
    let op = GroupedGemm::gate_up(
        Matrix::contiguous("x", &x_buffer, rows, H).unwrap(),
        Gather::TokenOfRow,
        &plan,
        &experts,
        Epilogue::Activation(ActivationFn::SwiGlu),
        MatrixMut::contiguous("activated", &mut activated, rows, i).unwrap(),
    )
    .unwrap();
    device.backend.grouped_gemm::<DenseExperts<bf16>>(op, &device.stream).unwrap();
    let given = device.get(&activated_end);
    let dot =
        |a: &[bf16], b: &[bf16]| -> f64 { a.iter().zip(b).map(|(a, b)| a.wide() * b.wide()).sum() };
    let truth: Vec<f64> = x
        .chunks(H)
        .flat_map(|x| gate.chunks(H).zip(up.chunks(H)).map(move |(g, u)| (dot(x, g), dot(x, u))))
        .map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
        .collect();
    assert_close(&format!("activated, {what}"), &wide(&given), &truth, i, 1e-2);

    let out_end = device.put(&[bf16::POISON; LIVE * H]);
    let mut out = far(device, &out_end, LIVE * H, rows * H);
    let op = GroupedGemm::down(
        Matrix::contiguous("activated", &activated, rows, i).unwrap(),
        &plan,
        &experts,
        MatrixMut::contiguous("out", &mut out, rows, H).unwrap(),
    )
    .unwrap();
    device.backend.grouped_gemm::<DenseExperts<bf16>>(op, &device.stream).unwrap();
    let truth: Vec<f64> = given
        .chunks(i)
        .flat_map(|row| down.chunks(i).map(move |weights| dot(row, weights)))
        .collect();
    assert_close(&format!("out, {what}"), &wide(&device.get(&out_end)), &truth, H, 1e-2);
}

fn on_both_paths(rows: usize, num_experts: usize, intermediate_size: usize) {
    for path in [Path::Hopper, Path::Portable] {
        let options = Options::checked(1);
        let Some(device) = emulated(Profile::sm_90(), path, options) else { return };
        check(&device, rows, num_experts, intermediate_size);
    }
}

/// All rows with one expert: tokens as M.
#[test]
fn more_than_2_31_elements_of_many_rows() {
    on_both_paths((1 << 16) + LIVE, 1, (1 << 15) + 8);
}

/// The last of 1024 experts, with few rows each: weights as M, and weights past 2^31 bytes.
#[test]
fn more_than_2_31_elements_of_few_rows() {
    on_both_paths(60_000, 1024, 35_808);
}

/// A layer of this shape `[T, H, I, E, K]`, against the oracle.
fn layer_of([tokens, h, i, e, k]: [usize; 5], paths: &[Path]) {
    let name = format!("T {tokens}, H {h}, I {i}, E {e}, K {k}");
    let config = MoeConfig::new(h, i, e, k);
    let (load, values, pad) = (Load::Even, Values::Full, TIGHT);
    let case = Case { name, tokens, config, load, values, pad };
    for &path in paths {
        let options = Options::plain(1);
        let Some(device) = emulated(Profile::sm_90(), path, options) else { return };
        check_case::<_, bf16>(&format!("path {path}"), &device, &case);
    }
}

#[test]
fn sizes_of_released_models_that_no_tile_divides() {
    for shape in [[3, 2880, 704, 2, 1], [70, 704, 1856, 1, 1], [2, 1856, 2880, 3, 2]] {
        layer_of(shape, &[Path::Hopper, Path::Portable]);
    }
}

#[test]
fn many_tokens() {
    layer_of([8191, 8, 8, 5, 1], &[Path::Hopper]);
    layer_of([8193, 8, 8, 60, 1], &[Path::Portable]);
}
