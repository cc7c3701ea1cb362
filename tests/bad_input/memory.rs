//! Buffers and views.

use crate::common::*;
use moe_kernels::cpu::CpuBuffer;
use moe_kernels::memory::{Matrix, MatrixMut, Memory};
use moe_kernels::{Cpu, Error};

use crate::{rows, strided};

#[test]
fn views_that_do_not_fit_their_buffer() {
    let mut buffer = CpuBuffer::from(vec![0.0f32; 100]);
    let view =
        |buffer: &CpuBuffer<f32>, layout| Matrix::<Cpu, f32>::new("x", buffer, layout).map(drop);
    for (layout, needed) in [
        (rows(1, 101), "101"),
        (rows(13, 8), "104"),
        (strided(4, 8, 40, 0), "128"),
        (strided(4, 8, 24, 24), "104"),
        (strided(1, 8, 8, 93), "101"),
    ] {
        refused!(view(&buffer, layout), Error::View { .. }, "x:", needed, "100");
        refused!(
            MatrixMut::<Cpu, f32>::new("x", &mut buffer, layout),
            Error::View { .. },
            "x:",
            needed,
            "100"
        );
    }
    for layout in [
        strided(3, 8, usize::MAX, 0),
        strided(usize::MAX, 8, 8, 0),
        strided(2, usize::MAX, usize::MAX, 0),
        strided(1, 8, 8, usize::MAX),
        strided(2, 8, usize::MAX - 4, 0),
    ] {
        refused!(view(&buffer, layout), Error::Overflow { .. }, "x:", "overflow");
    }
    for layout in [rows(12, 8), strided(4, 8, 24, 20), strided(1, 8, 0, 92), rows(0, 8)] {
        view(&buffer, layout).unwrap();
    }
}

#[test]
fn rows_that_overlap() {
    let mut buffer = CpuBuffer::from(vec![0.0f32; 100]);
    for stride in [0, 1, 7] {
        let layout = strided(2, 8, stride, 0);
        refused!(
            Matrix::<Cpu, f32>::new("x", &buffer, layout),
            Error::Value { .. },
            "x: row stride",
            stride,
            "8 elements"
        );
        refused!(
            MatrixMut::<Cpu, f32>::new("x", &mut buffer, layout),
            Error::Value { .. },
            "x: row stride",
            stride,
            "8 elements"
        );
    }
}

#[test]
fn buffers_beyond_memory() {
    refused!(Cpu.allocate::<f32>("big", usize::MAX), Error::Overflow { .. }, "big", "overflow");
    refused!(Cpu.allocate::<f32>("big", 1 << 60), Error::OutOfMemory { .. }, "big", 1u64 << 62);
    refused!(Cpu.allocate::<u8>("big", usize::MAX), Error::OutOfMemory { .. }, "big");
    assert_eq!(Cpu.allocate::<f32>("none", 0).unwrap().len(), 0);
}

#[test]
fn copies_that_do_not_fit() {
    let mut buffer = CpuBuffer::from(vec![7i32; 4]);
    refused!(
        Cpu.upload(&[1; 5], &mut buffer, &()),
        Error::Shape { .. },
        "upload destination",
        "[5]",
        "[4]"
    );
    assert_eq!(buffer[..], [7; 4]);
    let mut host = [9i32; 5];
    refused!(
        Cpu.download(&buffer, &mut host, &()),
        Error::Shape { .. },
        "download source",
        "[5]",
        "[4]"
    );
    assert_eq!(host, [9; 5]);
    Cpu.upload(&[1, 2, 3], &mut buffer, &()).unwrap();
    assert_eq!(buffer[..], [1, 2, 3, 7]);
}
