//! The stages' operands.

use crate::common::*;
use half::bf16;
use moe_kernels::backend::Backend;
use moe_kernels::config::{ActivationFn, MoeConfig};
use moe_kernels::cpu::CpuBuffer;
use moe_kernels::memory::{Layout, Matrix, MatrixMut};
use moe_kernels::ops::{
    Activation, Combine, Epilogue, Gather, GroupedGemm, Output, Permute, Plan, Router, RouterOutput,
};
use moe_kernels::weights::{DenseExperts, RouterWeights};
use moe_kernels::{Cpu, Error, Result};

use crate::{ROOM, SHAPE, SWIGLU, misaligned, ones, plan_of, rows, strided};

#[test]
fn a_gate_of_another_length() {
    for len in [0, 31, 33] {
        refused!(
            Cpu.prepare_gate([4, 8], RouterWeights::<bf16>::f32(vec![0.0; len]), &()),
            Error::Shape { .. },
            "router weight",
            "[32]",
            format!("[{len}]")
        );
    }
}

#[test]
fn router_operands() {
    let config = MoeConfig::new(8, 8, 4, 2);
    let x = CpuBuffer::from(vec![bf16::ONE; ROOM]);
    let f32s = CpuBuffer::from(vec![1.0f32; ROOM]);
    let go = |x_layout, gate: [usize; 2], outputs: [Layout; 3]| {
        let (mut logits, mut weights) = (f32s.clone(), f32s.clone());
        let mut ids = CpuBuffer::from(vec![-5i32; ROOM]);
        let output = RouterOutput {
            router_logits: MatrixMut::new("logits", &mut logits, outputs[0])?,
            topk_ids: MatrixMut::new("ids", &mut ids, outputs[1])?,
            topk_weights: MatrixMut::new("weights", &mut weights, outputs[2])?,
        };
        let weights = RouterWeights::model(vec![bf16::ONE; gate[0] * gate[1]]);
        let gate = Cpu.prepare_gate(gate, weights, &())?;
        let op =
            Router::<Cpu, bf16, _>::new(&config, Matrix::new("x", &x, x_layout)?, &gate, output)?;
        Cpu.router(op, &())?;
        Ok(ids[..6].to_vec())
    };
    let fine = [rows(3, 4), rows(3, 2), rows(3, 2)];
    let gate = [4, 8];
    for cols in [0, 7, 16] {
        refused!(
            go(rows(3, cols), gate, fine),
            Error::Shape { .. },
            "router input",
            "[3, 8]",
            format!("[3, {cols}]")
        );
    }
    for wrong in [[3, 8], [5, 8], [4, 16], [8, 4]] {
        refused!(
            go(rows(3, 8), wrong, fine),
            Error::Shape { .. },
            "gate",
            "[4, 8]",
            format!("{wrong:?}")
        );
    }
    for (place, name, expected, wrong) in [
        (0, "router_logits", "[3, 4]", rows(3, 5)),
        (0, "router_logits", "[3, 4]", rows(2, 4)),
        (1, "topk_ids", "[3, 2]", rows(3, 3)),
        (1, "topk_ids", "[3, 2]", rows(4, 2)),
        (2, "topk_weights", "[3, 2]", rows(3, 1)),
        (2, "topk_weights", "[3, 2]", rows(0, 2)),
    ] {
        let mut outputs = fine;
        outputs[place] = wrong;
        let given = format!("[{}, {}]", wrong.rows, wrong.cols);
        refused!(go(rows(3, 8), gate, outputs), Error::Shape { .. }, name, expected, given);
    }
    for (layout, [what, elements]) in misaligned(3) {
        refused!(
            go(layout, gate, fine),
            Error::Alignment { .. },
            "router input",
            what,
            elements,
            "bf16",
            "16 bytes"
        );
    }
    assert_eq!(go(rows(3, 8), gate, fine).unwrap(), [0, 1, 0, 1, 0, 1]);
}

#[test]
fn plan_operands() {
    let ids = CpuBuffer::from(vec![1i32; ROOM]);
    let mut plan = plan_of(4, 2, 3);
    let before = cpu().read_plan(&plan);
    let mut go = |layout, map: Option<Layout>| -> Result<usize> {
        let map = map.map(|layout| Matrix::new("map", &ids, layout)).transpose()?;
        let op = Plan::new(Matrix::new("ids", &ids, layout)?, map, &mut plan).map(drop);
        op.map(|()| 0)
    };
    for top_k in [0, 33, 64] {
        refused!(go(rows(1, top_k), None), Error::Value { .. }, "top_k", top_k, "1 to 32");
    }
    refused!(go(rows(5, 2), None), Error::View { .. }, "routing plan", "10", "8");
    refused!(go(rows(4, 3), None), Error::View { .. }, "routing plan", "12", "8");
    for map in [rows(2, 4), rows(0, 4)] {
        let given = format!("[{}, 4]", map.rows);
        refused!(go(rows(4, 2), Some(map)), Error::Shape { .. }, "expert_map", "[1, 4]", given);
    }
    // Refusals leave the plan as it was.
    assert_eq!((plan.num_tokens(), plan.num_assignments()), (4, 8));
    assert_eq!(cpu().read_plan(&plan), before);
}

/// A contract that is made and not run is no plan: sizes and maps still belong together.
#[test]
fn a_contract_that_is_dropped_leaves_the_plan_as_it_was() {
    let mut plan = plan_of(8, 1, 1);
    let ids = CpuBuffer::from(vec![0i32; 8]);
    {
        let ids = Matrix::<Cpu, i32>::contiguous("ids", &ids, 1, 2).unwrap();
        let _not_run = Plan::new(ids, None, &mut plan).unwrap();
    }
    assert_eq!((plan.num_tokens(), plan.num_assignments()), (8, 8));
}

#[test]
fn permute_operands() {
    let plan = plan_of(4, 2, 3);
    let x = CpuBuffer::from(vec![bf16::ONE; ROOM]);
    let go = |x_layout, out_layout| -> Result<f32> {
        let mut out = CpuBuffer::from(vec![bf16::ZERO; ROOM]);
        let out_matrix = MatrixMut::new("out", &mut out, out_layout)?;
        let op = Permute::<Cpu, bf16>::new(Matrix::new("x", &x, x_layout)?, &plan, out_matrix)?;
        Cpu.permute(op, &())?;
        Ok(out.iter().map(|value| value.to_f32()).sum())
    };
    refused!(go(rows(3, 8), rows(8, 8)), Error::Shape { .. }, "hidden_states", "[4, 8]", "[3, 8]");
    refused!(go(rows(4, 8), rows(4, 8)), Error::Shape { .. }, "rows", "[8, 8]", "[4, 8]");
    refused!(go(rows(4, 8), rows(8, 16)), Error::Shape { .. }, "rows", "[8, 8]", "[8, 16]");
    refused!(
        go(rows(4, 4), rows(8, 4)),
        Error::Alignment { .. },
        "hidden_states",
        "row",
        "4",
        "bf16"
    );
    for (layout, [what, elements]) in misaligned(4) {
        refused!(go(layout, rows(8, 8)), Error::Alignment { .. }, "hidden_states", what, elements);
    }
    for (layout, [what, elements]) in misaligned(8) {
        refused!(go(rows(4, 8), layout), Error::Alignment { .. }, "rows", what, elements);
    }
    assert_eq!(go(rows(4, 8), rows(8, 8)).unwrap(), 64.0);
}

#[test]
fn grouped_gemm_operands() {
    type Op<'a> = GroupedGemm<'a, Cpu, bf16, <Cpu as Backend>::Experts<DenseExperts<bf16>>>;
    let experts = Cpu.prepare(ones(SHAPE), &()).unwrap();
    let plan = plan_of(4, 2, 3);
    let x = CpuBuffer::from(vec![bf16::ONE; ROOM]);
    let other_plan = plan_of(4, 2, 4);
    let gate_up = |plan, x_layout, gather, epilogue, out_layout| -> Result<f32> {
        let mut out = CpuBuffer::from(vec![bf16::ZERO; ROOM]);
        let out_matrix = MatrixMut::new("out", &mut out, out_layout)?;
        let x = Matrix::new("x", &x, x_layout)?;
        let op = Op::gate_up(x, gather, plan, &experts, epilogue, out_matrix)?;
        Cpu.grouped_gemm::<DenseExperts<bf16>>(op, &())?;
        Ok(out[0].to_f32())
    };
    let down = |plan, x_layout, out_layout| -> Result<f32> {
        let mut out = CpuBuffer::from(vec![bf16::ZERO; ROOM]);
        let out_matrix = MatrixMut::new("out", &mut out, out_layout)?;
        let op = Op::down(Matrix::new("x", &x, x_layout)?, plan, &experts, out_matrix)?;
        Cpu.grouped_gemm::<DenseExperts<bf16>>(op, &())?;
        Ok(out[0].to_f32())
    };
    let (input, output) = ("grouped GEMM input", "grouped GEMM output");
    let (packed, gather) = (Gather::Packed, Gather::TokenOfRow);
    for result in [
        gate_up(&other_plan, rows(8, 8), packed, SWIGLU, rows(8, 16)),
        down(&other_plan, rows(8, 16), rows(8, 8)),
    ] {
        refused!(result, Error::Value { .. }, "experts", "4", "3");
    }
    for (result, operand, expected, given) in [
        (gate_up(&plan, rows(4, 8), packed, SWIGLU, rows(8, 16)), input, "[8, 8]", "[4, 8]"),
        (gate_up(&plan, rows(8, 8), gather, SWIGLU, rows(8, 16)), input, "[4, 8]", "[8, 8]"),
        (gate_up(&plan, rows(4, 16), gather, SWIGLU, rows(8, 16)), input, "[4, 8]", "[4, 16]"),
        (gate_up(&plan, rows(4, 8), gather, SWIGLU, rows(8, 32)), output, "[8, 16]", "[8, 32]"),
        (
            gate_up(&plan, rows(4, 8), gather, Epilogue::Store, rows(8, 16)),
            output,
            "[8, 32]",
            "[8, 16]",
        ),
        (gate_up(&plan, rows(4, 8), gather, SWIGLU, rows(4, 16)), output, "[8, 16]", "[4, 16]"),
        (down(&plan, rows(8, 8), rows(8, 8)), input, "[8, 16]", "[8, 8]"),
        (down(&plan, rows(4, 16), rows(8, 8)), input, "[8, 16]", "[4, 16]"),
        (down(&plan, rows(8, 16), rows(8, 16)), output, "[8, 8]", "[8, 16]"),
    ] {
        refused!(result, Error::Shape { .. }, operand, expected, given);
    }
    for (layout, [what, elements]) in misaligned(8) {
        let result = gate_up(&plan, layout, packed, SWIGLU, rows(8, 16));
        refused!(result, Error::Alignment { .. }, input, what, elements, "bf16");
        refused!(down(&plan, rows(8, 16), layout), Error::Alignment { .. }, output, what, elements);
    }
    assert_eq!(gate_up(&plan, rows(4, 8), gather, Epilogue::Store, rows(8, 32)).unwrap(), 8.0);
    assert_eq!(down(&plan, rows(8, 16), rows(8, 8)).unwrap(), 16.0);
}

#[test]
fn activation_operands() {
    let plan = plan_of(4, 2, 3);
    let x = CpuBuffer::from(vec![bf16::ZERO; ROOM]);
    let go = |x_layout, out_layout| -> Result<f32> {
        let mut out = CpuBuffer::from(vec![bf16::ONE; ROOM]);
        let out_matrix = MatrixMut::new("out", &mut out, out_layout)?;
        let x = Matrix::<Cpu, bf16>::new("x", &x, x_layout)?;
        let op = Activation::new(ActivationFn::SwiGlu, x, &plan, out_matrix)?;
        Cpu.activation(op, &())?;
        Ok(out[0].to_f32())
    };
    refused!(go(rows(8, 8), rows(8, 8)), Error::Shape { .. }, "gate_up", "[8, 16]", "[8, 8]");
    refused!(go(rows(4, 16), rows(8, 8)), Error::Shape { .. }, "gate_up", "[8, 16]", "[4, 16]");
    refused!(go(rows(8, 16), rows(7, 8)), Error::Shape { .. }, "output", "[8, 8]", "[7, 8]");
    refused!(go(rows(8, 8), rows(8, 4)), Error::Alignment { .. }, "output", "row", "4", "bf16");
    refused!(
        go(strided(8, 16, 20, 0), rows(8, 8)),
        Error::Alignment { .. },
        "gate_up",
        "row stride",
        "20"
    );
    for (layout, [what, elements]) in misaligned(8) {
        refused!(go(rows(8, 16), layout), Error::Alignment { .. }, "output", what, elements);
    }
    assert_eq!(go(rows(8, 16), rows(8, 8)).unwrap(), 0.0);
}

#[test]
fn combine_operands() {
    let plan = plan_of(4, 2, 3);
    let x = CpuBuffer::from(vec![bf16::ONE; ROOM]);
    let weights = CpuBuffer::from(vec![0.5f32; ROOM]);
    let go = |x_layout, weight_layout, out_layout| -> Result<f32> {
        let mut out = CpuBuffer::from(vec![bf16::ZERO; ROOM]);
        let output = Output::overwrite(MatrixMut::new("out", &mut out, out_layout)?);
        let weights = Matrix::new("weights", &weights, weight_layout)?;
        let op =
            Combine::<Cpu, bf16>::new(Matrix::new("x", &x, x_layout)?, weights, &plan, output)?;
        Cpu.combine(op, &())?;
        Ok(out[0].to_f32())
    };
    let (x_fine, w_fine, o_fine) = (rows(8, 8), rows(4, 2), rows(4, 8));
    refused!(go(rows(4, 8), w_fine, o_fine), Error::Shape { .. }, "rows", "[8, 8]", "[4, 8]");
    refused!(go(rows(8, 16), w_fine, o_fine), Error::Shape { .. }, "rows", "[8, 8]", "[8, 16]");
    refused!(
        go(x_fine, rows(4, 3), o_fine),
        Error::Shape { .. },
        "topk_weights",
        "[4, 2]",
        "[4, 3]"
    );
    refused!(
        go(x_fine, rows(8, 1), o_fine),
        Error::Shape { .. },
        "topk_weights",
        "[4, 2]",
        "[8, 1]"
    );
    refused!(go(x_fine, w_fine, rows(8, 8)), Error::Shape { .. }, "output", "[4, 8]", "[8, 8]");
    for (layout, [what, elements]) in misaligned(8) {
        refused!(go(layout, w_fine, o_fine), Error::Alignment { .. }, "rows", what, elements);
    }
    for (layout, [what, elements]) in misaligned(4) {
        refused!(go(x_fine, w_fine, layout), Error::Alignment { .. }, "output", what, elements);
    }
    assert_eq!(go(x_fine, w_fine, o_fine).unwrap(), 1.0);
}

/// Layouts without rows reach no memory, whatever their other numbers; the constructors that
/// multiply these must not overflow.
#[test]
fn huge_numbers_in_layouts_without_rows() {
    let plan = plan_of(0, 2, 3);
    let x = CpuBuffer::from(vec![0.0f32; 8]);
    let mut outcomes = Vec::new();
    for layout in [
        strided(0, 8, 8, usize::MAX - 3),
        strided(0, 8, usize::MAX - 7, 0),
        strided(0, usize::MAX - 7, 8, 0),
        strided(0, 1 << 63, 1 << 63, 0),
    ] {
        let permute = std::panic::catch_unwind(|| {
            let mut out = x.clone();
            let matrix = Matrix::<Cpu, f32>::new("x", &x, layout)?;
            let out = MatrixMut::new("out", &mut out, strided(0, layout.cols, 8, 0))?;
            Cpu.permute(Permute::new(matrix, &plan, out)?, &())
        });
        let activation = std::panic::catch_unwind(|| {
            let mut out = x.clone();
            let gate_up = Matrix::<Cpu, f32>::new("x", &x, rows(0, 16))?;
            let out = MatrixMut::new("out", &mut out, layout)?;
            Cpu.activation(Activation::new(ActivationFn::SwiGlu, gate_up, &plan, out)?, &())
        });
        outcomes.push((layout, permute.is_err(), activation.is_err()));
    }
    let panics: Vec<_> = outcomes.iter().filter(|(_, a, b)| *a || *b).collect();
    assert!(panics.is_empty(), "(layout, permute panics, activation panics): {panics:?}");
}

/// One row's stride is never used, and must not be multiplied.
#[test]
fn a_huge_stride_of_a_single_row() {
    let plan = plan_of(1, 1, 1);
    let x = CpuBuffer::from(vec![1.0f32; 8]);
    let mut out = CpuBuffer::from(vec![0.0f32; 8]);
    let matrix = Matrix::<Cpu, f32>::new("x", &x, strided(1, 8, usize::MAX - 3, 0)).unwrap();
    let rows = MatrixMut::contiguous("out", &mut out, 1, 8).unwrap();
    match Permute::new(matrix, &plan, rows) {
        Ok(op) => Cpu.permute(op, &()).unwrap(),
        Err(error) => assert!(matches!(error, Error::Alignment { .. } | Error::Overflow { .. })),
    }
}
