//! Weights in the host's memory: every layout read back exactly, and each matrix read once.

#![cfg(feature = "cpu")]

use std::sync::{Arc, Mutex};

use moe_kernels::Cpu;
use moe_kernels::backend::Backend;
use moe_kernels::config::GateUpLayout;
use moe_kernels::ops::{ExpertShape, Experts};
use moe_kernels::weights::{DenseExperts, ExpertMatrix, ExpertWeights};

const SHAPE: ExpertShape = ExpertShape { num_experts: 3, hidden_size: 2, intermediate_size: 4 };

/// gate_up [3, 8, 2] and down [3, 2, 4], each element its own index.
fn indexed(layout: GateUpLayout) -> DenseExperts<f32> {
    let values = |len: u16| (0..len).map(f32::from).collect();
    DenseExperts::stacked(SHAPE, layout, values(48), values(24)).unwrap()
}

#[test]
fn stacked_layouts_by_hand() {
    // Expert 1's part of gate_up is 16..32, of down 8..16.
    let first: Vec<f32> = (16..24u8).map(f32::from).collect();
    let second: Vec<f32> = (24..32u8).map(f32::from).collect();
    let even = [16.0, 17.0, 20.0, 21.0, 24.0, 25.0, 28.0, 29.0].to_vec();
    let odd = [18.0, 19.0, 22.0, 23.0, 26.0, 27.0, 30.0, 31.0].to_vec();
    for (layout, gate, up) in [
        (GateUpLayout::GateFirst, &first, &second),
        (GateUpLayout::UpFirst, &second, &first),
        (GateUpLayout::Interleaved, &even, &odd),
    ] {
        let experts = indexed(layout);
        let read = |matrix| experts.read(1, matrix).unwrap().into_owned();
        assert_eq!(&read(ExpertMatrix::Gate), gate, "{layout:?}");
        assert_eq!(&read(ExpertMatrix::Up), up, "{layout:?}");
        let down: Vec<f32> = (8..16u8).map(f32::from).collect();
        assert_eq!(read(ExpertMatrix::Down), down, "{layout:?}");
    }
}

#[test]
fn sizes_of_the_three_matrices() {
    assert_eq!(ExpertMatrix::Gate.dims(SHAPE), [4, 2]);
    assert_eq!(ExpertMatrix::Up.dims(SHAPE), [4, 2]);
    assert_eq!(ExpertMatrix::Down.dims(SHAPE), [2, 4]);
    assert_eq!(indexed(GateUpLayout::GateFirst).shape(), SHAPE);
}

/// What a progress bar counts: every matrix of every expert, once.
#[test]
fn preparing_reads_each_matrix_once() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let experts = indexed(GateUpLayout::Interleaved)
        .inspect(move |expert, matrix| log.lock().unwrap().push((expert, matrix.to_string())));
    let prepared = Cpu.prepare(experts).unwrap();
    assert_eq!(prepared.shape(), SHAPE);
    assert!(prepared.bytes() >= 72 * size_of::<f32>());
    let mut seen = seen.lock().unwrap().clone();
    seen.sort();
    let expected: Vec<(usize, String)> = (0..3)
        .flat_map(|expert| {
            ["down_proj", "gate_proj", "up_proj"].map(|name| (expert, name.to_owned()))
        })
        .collect();
    assert_eq!(seen, expected);
}
