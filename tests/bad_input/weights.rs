//! Weights that backends prepare.

use std::borrow::Cow;

use crate::common::*;
use half::bf16;
use moe_kernels::backend::Backend;
use moe_kernels::config::GateUpLayout;
use moe_kernels::ops::ExpertShape;
use moe_kernels::weights::{DenseExperts, ExpertMatrix, ExpertSource, LayerWeights, RouterWeights};
use moe_kernels::{Cpu, Error, MoeConfig, MoeLayer, Result};

use crate::{SHAPE, ones};

#[test]
fn stacked_experts_of_other_lengths() {
    let of = |shape, gate_up: usize, down: usize| {
        DenseExperts::stacked(
            shape,
            GateUpLayout::GateFirst,
            vec![0.0f32; gate_up],
            vec![0.0; down],
        )
    };
    of(SHAPE, 768, 384).unwrap();
    refused!(of(SHAPE, 767, 384), Error::Shape { .. }, "gate_up", "[768]", "[767]");
    refused!(of(SHAPE, 384, 384), Error::Shape { .. }, "gate_up", "[768]", "[384]");
    refused!(of(SHAPE, 768, 0), Error::Shape { .. }, "down", "[384]", "[0]");
    for shape in [
        ExpertShape::gated(3, usize::MAX, 16),
        ExpertShape::gated(usize::MAX, 8, 16),
        ExpertShape::gated(1 << 40, 1 << 12, 1 << 12),
    ] {
        refused!(of(shape, 768, 384), Error::Overflow { .. }, "overflow");
    }
}

/// An expert that there is not.
#[test]
fn an_expert_past_the_last() {
    for matrix in [ExpertMatrix::Gate, ExpertMatrix::Up, ExpertMatrix::Down] {
        assert_eq!(ones(SHAPE).read(2, matrix).unwrap().len(), 128);
        refused!(ones(SHAPE).read(3, matrix), Error::Value { .. }, "expert", "3");
    }
}

/// Reads what it is told to.
struct Source(fn(usize, ExpertMatrix) -> Result<Vec<bf16>>);

impl ExpertSource<bf16> for Source {
    fn read(&self, expert: usize, matrix: ExpertMatrix) -> Result<Cow<'_, [bf16]>> {
        (self.0)(expert, matrix).map(Cow::Owned)
    }
}

#[test]
fn sources_that_fail() {
    let short = Source(|expert, matrix| {
        let short = expert == 1 && matrix == ExpertMatrix::Up;
        Ok(vec![bf16::ONE; if short { 127 } else { 128 }])
    });
    refused!(
        DenseExperts::from_source(SHAPE, short).and_then(|experts| Cpu.prepare(experts, &())),
        Error::Shape { .. },
        "up_proj of expert 1",
        "[128]",
        "[127]"
    );
    let missing = || {
        Source(|expert, matrix| match (expert, matrix) {
            (2, ExpertMatrix::Down) => Err(Error::MissingTensor {
                path: "model.safetensors".into(),
                tensor: "experts.2.w2".to_owned(),
                expected: "[8, 16]".to_owned(),
            }),
            _ => Ok(vec![bf16::ONE; 128]),
        })
    };
    refused!(
        DenseExperts::from_source(SHAPE, missing()).and_then(|experts| Cpu.prepare(experts, &())),
        Error::MissingTensor { .. },
        "model.safetensors",
        "experts.2.w2",
        "[8, 16]"
    );
    refused!(
        MoeLayer::new(
            Cpu,
            MoeConfig::new(8, 16, 3, 1),
            LayerWeights::new(
                RouterWeights::f32(vec![0.0; 24]),
                DenseExperts::from_source(SHAPE, missing()).unwrap(),
            ),
            &(),
        ),
        Error::MissingTensor { .. },
        "experts.2.w2"
    );
}

/// A source can claim any shape.
#[test]
fn experts_of_a_shape_that_overflows() {
    for hidden_size in [usize::MAX, 1 << 61] {
        let huge = ExpertShape::gated(1, hidden_size, 16);
        let source = Source(|_, _| Ok(vec![]));
        refused!(
            DenseExperts::from_source(huge, source),
            Error::Value { .. },
            "hidden_size",
            hidden_size,
            "2^24"
        );
    }
}

#[test]
fn experts_without_width() {
    for (hidden_size, intermediate_size, name) in
        [(8, 0, "intermediate_size"), (0, 8, "hidden_size")]
    {
        let shape = ExpertShape::gated(3, hidden_size, intermediate_size);
        refused!(
            DenseExperts::<bf16>::stacked(shape, GateUpLayout::GateFirst, vec![], vec![]),
            Error::Value { .. },
            name,
            "= 0",
            "multiple of 8"
        );
    }
}
