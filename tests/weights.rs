//! Weights in the host's memory: every layout read back exactly, and each matrix read once.

#![cfg(feature = "cpu")]

use std::sync::{Arc, Mutex};

use moe_kernels::Cpu;
use moe_kernels::backend::Backend;
use moe_kernels::config::GateUpLayout;
use moe_kernels::ops::{ExpertShape, Experts};
use moe_kernels::weights::{DenseExperts, ExpertMatrix, ExpertWeights};

const SHAPE: ExpertShape = ExpertShape::gated(3, 8, 16);

/// gate_up [3, 32, 8] and down [3, 8, 16], each element its own index.
fn indexed(layout: GateUpLayout) -> DenseExperts<f32> {
    let values = |len: u16| (0..len).map(f32::from).collect();
    DenseExperts::stacked(SHAPE, layout, values(768), values(384)).unwrap()
}

#[test]
fn stacked_layouts_by_hand() {
    // Expert 1's part of gate_up is 256..512, of down 128..256.
    let first: Vec<f32> = (256..384u16).map(f32::from).collect();
    let second: Vec<f32> = (384..512u16).map(f32::from).collect();
    let row = |row: u16| (0..8).map(move |column| f32::from(256 + 8 * row + column));
    let even: Vec<f32> = (0..16).flat_map(|index| row(2 * index)).collect();
    let odd: Vec<f32> = (0..16).flat_map(|index| row(2 * index + 1)).collect();
    assert_eq!((even[7], even[8], odd[0], odd[127]), (263.0, 272.0, 264.0, 511.0));
    for (layout, gate, up) in [
        (GateUpLayout::GateFirst, &first, &second),
        (GateUpLayout::UpFirst, &second, &first),
        (GateUpLayout::Interleaved, &even, &odd),
    ] {
        let experts = indexed(layout);
        let read = |matrix| experts.read(1, matrix).unwrap().into_owned();
        assert_eq!(&read(ExpertMatrix::Gate), gate, "{layout:?}");
        assert_eq!(&read(ExpertMatrix::Up), up, "{layout:?}");
        let down: Vec<f32> = (128..256u16).map(f32::from).collect();
        assert_eq!(read(ExpertMatrix::Down), down, "{layout:?}");
    }
}

#[test]
fn sizes_of_the_three_matrices() {
    assert_eq!(ExpertMatrix::Gate.dims(SHAPE), [16, 8]);
    assert_eq!(ExpertMatrix::Up.dims(SHAPE), [16, 8]);
    assert_eq!(ExpertMatrix::Down.dims(SHAPE), [8, 16]);
    assert_eq!(indexed(GateUpLayout::GateFirst).shape(), SHAPE);
}

/// What a progress bar counts: every matrix of every expert, once.
#[test]
fn preparing_reads_each_matrix_once() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let experts = indexed(GateUpLayout::Interleaved)
        .inspect(move |expert, matrix| log.lock().unwrap().push((expert, matrix.to_string())));
    let prepared = Cpu.prepare(experts, &()).unwrap();
    assert_eq!(prepared.shape(), SHAPE);
    assert!(prepared.bytes() >= 1152 * size_of::<f32>());
    let mut seen = seen.lock().unwrap().clone();
    seen.sort();
    let expected: Vec<(usize, String)> = (0..3)
        .flat_map(|expert| {
            ["down_proj", "gate_proj", "up_proj"].map(|name| (expert, name.to_owned()))
        })
        .collect();
    assert_eq!(seen, expected);
}
