//! Layers, their inputs and workspaces.

use crate::common::*;
use half::bf16;
use moe_kernels::backend::Backend;
use moe_kernels::config::Scoring;
use moe_kernels::cpu::{CpuBuffer, PackedExperts};
use moe_kernels::memory::{Layout, Matrix, MatrixMut};
use moe_kernels::ops::{ExpertShape, Layer, LayerInput, LayerParts, Output, Routing, Workspace};
use moe_kernels::weights::{DenseExperts, LayerWeights, RouterWeights};
use moe_kernels::{Cpu, Error, MoeConfig, MoeLayer, Result};

use crate::{ROOM, SHAPE, misaligned, ones, rows};

#[test]
fn layer_weights_of_other_shapes() {
    let config = MoeConfig::new(8, 16, 3, 2);
    let new = |router, shape| {
        MoeLayer::new(Cpu, config.clone(), LayerWeights::new(router, ones(shape)), &())
    };
    let router = |len| RouterWeights::<bf16>::f32(vec![0.0; len]);
    new(router(24), SHAPE).unwrap();
    for (shape, given) in [
        (ExpertShape { num_experts: 4, ..SHAPE }, "[4, 8, 16]"),
        (ExpertShape { hidden_size: 16, ..SHAPE }, "[3, 16, 16]"),
        (ExpertShape { intermediate_size: 8, ..SHAPE }, "[3, 8, 8]"),
        // Transposed.
        (ExpertShape { hidden_size: 16, intermediate_size: 8, ..SHAPE }, "[3, 16, 8]"),
    ] {
        refused!(new(router(24), shape), Error::Shape { .. }, "experts", "[3, 8, 16]", given);
    }
    for len in [0, 23, 25, 48] {
        let given = format!("[{len}]");
        refused!(new(router(len), SHAPE), Error::Shape { .. }, "router weight", "[24]", given);
        refused!(
            new(RouterWeights::model(vec![bf16::ONE; len]), SHAPE),
            Error::Shape { .. },
            "router weight",
            "[24]",
            given
        );
    }
}

/// A layer of H 8, I 16, E 3, K 2, its tokens, and what it gives for them.
struct Fixture {
    layer: MoeLayer<Cpu, DenseExperts<bf16>>,
    workspace: Workspace<Cpu, bf16>,
    x: CpuBuffer<bf16>,
    ids: CpuBuffer<i32>,
    weights: CpuBuffer<f32>,
    clean: Vec<bf16>,
}

impl Fixture {
    fn new() -> Self {
        let mut case = cases().remove(0);
        case.config = MoeConfig::new(8, 16, 3, 2);
        case.tokens = 4;
        let data = Data::<bf16>::new(&case);
        let layer = layer(&cpu(), &case, &data);
        let mut workspace = layer.workspace(4).unwrap();
        let clean = forward(&cpu(), &layer, &Call::new(&data.x), &mut workspace);
        let mut x = data.x;
        x.resize(ROOM, bf16::POISON);
        Self {
            layer,
            workspace,
            x: x.into(),
            ids: vec![0; ROOM].into(),
            weights: vec![0.5; ROOM].into(),
            clean,
        }
    }

    /// A forward that must be refused before anything is written; then one that must not.
    #[track_caller]
    fn refuses(&mut self, x: Layout, out: Layout, extra: Extra) -> Result<()> {
        let plan = cpu().read_plan(self.workspace.plan());
        let mut memory = CpuBuffer::from(vec![bf16::POISON; ROOM]);
        let u32s = CpuBuffer::from(vec![0u32; 8]);
        let mask = CpuBuffer::from(vec![1u8; 8]);
        let mut input = LayerInput::new(Matrix::new("x", &self.x, x).unwrap());
        match extra {
            Extra::Nothing => {}
            Extra::RouterInput(x) => {
                input.router_input = Some(Matrix::new("router", &self.x, x).unwrap());
            }
            Extra::Routing(ids, weights) => {
                input.routing = Some(Routing {
                    topk_ids: Matrix::new("ids", &self.ids, ids).unwrap(),
                    topk_weights: Matrix::new("weights", &self.weights, weights).unwrap(),
                });
            }
            Extra::RouterInputAndRouting => {
                input.router_input = Some(Matrix::new("router", &self.x, rows(4, 8)).unwrap());
                input.routing = Some(Routing {
                    topk_ids: Matrix::new("ids", &self.ids, rows(4, 2)).unwrap(),
                    topk_weights: Matrix::new("weights", &self.weights, rows(4, 2)).unwrap(),
                });
            }
            Extra::TokenIds => input.token_ids = Some(&u32s),
            Extra::SequenceOffsets => input.sequence_offsets = Some(&u32s),
            Extra::Mask => input.mask = Some(&mask),
        }
        let output = Output::overwrite(MatrixMut::new("out", &mut memory, out).unwrap());
        let result = self.layer.forward(&input, output, &mut self.workspace, &());
        assert!(memory.iter().all(|v| v.bits() == bf16::POISON.bits()), "{result:?}: written");
        assert_eq!(cpu().read_plan(self.workspace.plan()), plan, "{result:?}: replanned");
        self.still_works();
        result
    }

    #[track_caller]
    fn still_works(&mut self) {
        let x = self.x[..32].to_vec();
        let after = forward(&cpu(), &self.layer, &Call::new(&x), &mut self.workspace);
        assert_eq!(bits(&after), bits(&self.clean), "the layer gives something else now");
    }
}

/// What is given besides tokens.
enum Extra {
    Nothing,
    RouterInput(Layout),
    /// Ids and weights.
    Routing(Layout, Layout),
    RouterInputAndRouting,
    TokenIds,
    SequenceOffsets,
    Mask,
}

#[test]
fn layer_operands() {
    let mut fixture = Fixture::new();
    let fine = rows(4, 8);
    for (x, out, operand, expected, given) in [
        (rows(4, 16), fine, "hidden_states", "[4, 8]", "[4, 16]"),
        (rows(4, 7), fine, "hidden_states", "[4, 8]", "[4, 7]"),
        (fine, rows(3, 8), "output", "[4, 8]", "[3, 8]"),
        (fine, rows(4, 16), "output", "[4, 8]", "[4, 16]"),
        (rows(0, 8), fine, "output", "[0, 8]", "[4, 8]"),
    ] {
        let result = fixture.refuses(x, out, Extra::Nothing);
        refused!(result, Error::Shape { .. }, operand, expected, given);
    }
    for router in [rows(3, 8), rows(4, 16)] {
        let given = format!("[{}, {}]", router.rows, router.cols);
        let result = fixture.refuses(fine, fine, Extra::RouterInput(router));
        refused!(result, Error::Shape { .. }, "router_input", "[4, 8]", given);
    }
    for (layout, [what, elements]) in misaligned(4) {
        let result = fixture.refuses(layout, fine, Extra::Nothing);
        refused!(result, Error::Alignment { .. }, "hidden_states", what, elements, "bf16");
        let result = fixture.refuses(fine, layout, Extra::Nothing);
        refused!(result, Error::Alignment { .. }, "output", what, elements, "bf16");
        let result = fixture.refuses(fine, fine, Extra::RouterInput(layout));
        refused!(result, Error::Alignment { .. }, "router_input", what, elements, "bf16");
    }
    for (ids, weights, operand, given) in [
        (rows(3, 2), rows(4, 2), "topk_ids", "[3, 2]"),
        (rows(4, 3), rows(4, 3), "topk_ids", "[4, 3]"),
        (rows(4, 2), rows(4, 1), "topk_weights", "[4, 1]"),
        (rows(4, 2), rows(8, 2), "topk_weights", "[8, 2]"),
    ] {
        let result = fixture.refuses(fine, fine, Extra::Routing(ids, weights));
        refused!(result, Error::Shape { .. }, operand, "[4, 2]", given);
    }
    let result = fixture.refuses(rows(5, 8), rows(5, 8), Extra::Nothing);
    refused!(result, Error::Workspace { max_tokens: 4, num_tokens: 5 }, "4 tokens", "5");
}

#[test]
fn layer_inputs_that_nobody_would_read() {
    let mut fixture = Fixture::new();
    let fine = rows(4, 8);
    for (extra, name, supported) in [
        (Extra::TokenIds, "token_ids", "hash table"),
        (Extra::SequenceOffsets, "sequence_offsets", "capacity by sequence"),
        (Extra::Mask, "mask", "hidden_states"),
    ] {
        let result = fixture.refuses(fine, fine, extra);
        refused!(result, Error::Unsupported { .. }, name, "supported", supported);
    }
    let result = fixture.refuses(fine, fine, Extra::RouterInputAndRouting);
    refused!(result, Error::Unsupported { .. }, "router_input", "routing", "one of them");
}

/// A backend's own weights, brought to a contract of another configuration.
#[test]
fn prepared_weights_of_another_configuration() {
    let config = MoeConfig::new(8, 16, 3, 2);
    let fine = Cpu.prepare_gate([3, 8], RouterWeights::model(vec![bf16::ONE; 24]), &()).unwrap();
    let experts = Cpu.prepare(ones(SHAPE), &()).unwrap();
    let x = CpuBuffer::from(vec![bf16::ONE; ROOM]);
    let input = LayerInput::new(Matrix::new("x", &x, rows(4, 8)).unwrap());
    let mut workspace = Workspace::new(&Cpu, &config, 4).unwrap();
    let mut out = CpuBuffer::from(vec![bf16::ONE; ROOM]);

    let parts = |gate, experts| LayerParts::<Cpu, _, _, PackedExperts<bf16>>::new(gate, experts);
    let gate = Cpu.prepare_gate([4, 8], RouterWeights::model(vec![bf16::ONE; 32]), &()).unwrap();
    let output = Output::overwrite(MatrixMut::new("out", &mut out, rows(4, 8)).unwrap());
    refused!(
        Layer::new(&config, &input, &parts(gate, experts), output, &mut workspace),
        Error::Shape { .. },
        "gate",
        "[3, 8]",
        "[4, 8]"
    );
    let wide = ExpertShape { intermediate_size: 24, ..SHAPE };
    let experts = Cpu.prepare(ones(wide), &()).unwrap();
    let output = Output::overwrite(MatrixMut::new("out", &mut out, rows(4, 8)).unwrap());
    refused!(
        Layer::new(&config, &input, &parts(fine, experts), output, &mut workspace),
        Error::Shape { .. },
        "experts",
        "[3, 8, 16]",
        "[3, 8, 24]"
    );
}

#[test]
fn a_workspace_of_another_configuration() {
    let mut fixture = Fixture::new();
    let mut configs = vec![
        MoeConfig::new(16, 16, 3, 2),
        MoeConfig::new(8, 8, 3, 2),
        MoeConfig::new(8, 16, 4, 2),
        MoeConfig::new(8, 16, 3, 1),
        MoeConfig::new(8, 16, 3, 2),
    ];
    configs[4].router.scoring = Scoring::Sigmoid;
    for config in configs {
        let mut workspace = Workspace::new(&Cpu, &config, 64).unwrap();
        let mut out = CpuBuffer::from(vec![bf16::POISON; 32]);
        let input = LayerInput::new(Matrix::new("x", &fixture.x, rows(4, 8)).unwrap());
        let output = Output::overwrite(MatrixMut::new("out", &mut out, rows(4, 8)).unwrap());
        let given = format!("{config:?}");
        refused!(
            fixture.layer.forward(&input, output, &mut workspace, &()),
            Error::Value { .. },
            "workspace",
            given,
            format!("{:?}", fixture.layer.config())
        );
        assert!(out.iter().all(|value| value.bits() == bf16::POISON.bits()));
        fixture.still_works();
    }
}
