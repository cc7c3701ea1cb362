//! Whole layers against the truth, on any backend.

use half::bf16;
#[cfg(feature = "driver")]
use moe_kernels::Cuda;
use moe_kernels::backend::Backend;
#[cfg(feature = "checkpoint")]
use moe_kernels::checkpoint::Checkpoint;
#[cfg(feature = "checkpoint")]
use moe_kernels::config::ModelConfig;
#[cfg(feature = "driver")]
use moe_kernels::cuda::driver::Driver;
use moe_kernels::memory::{Matrix, MatrixMut, Memory};
use moe_kernels::ops::{LayerInput, Output};
use moe_kernels::weights::LayerWeights;
use moe_kernels::{MoeConfig, MoeLayer};

use super::*;

/// The layer's own routing: exact ids, weights, plan; output within the bounds.
pub(crate) fn check_case<B: Backend, T: Storage>(on: &str, device: &Device<B>, case: &Case) {
    let what = format!("{} {} on {on}", case.name, T::NAME);
    let MoeConfig { hidden_size: h, num_experts: e, top_k: k, .. } = case.config;
    let data = Data::<T>::new(case);
    let layer = layer(device, case, &data);
    let mut workspace = layer.workspace(case.tokens).unwrap();
    let truth = data.routing(&case.config);

    let call = Call { pad: case.pad, ..Call::new(&data.x) };
    let given = forward(device, &layer, &call, &mut workspace);
    let routing = workspace.routing().unwrap();
    let mut ids = device.get(routing.topk_ids.buffer());
    ids.truncate(truth.ids.len());
    assert_exact(&format!("{what}: ids"), &ids, &truth.ids, k);
    let mut logits = wide(&device.get(workspace.router_logits().unwrap().buffer()));
    logits.truncate(truth.logits.len());
    assert_close(&format!("{what}: logits"), &logits, &truth.logits, e, 1e-6);
    let mut weights = wide(&device.get(routing.topk_weights.buffer()));
    weights.truncate(truth.weights.len());
    assert_close(&format!("{what}: weights"), &weights, &truth.weights, k, 5e-6);
    let plan = reference::plan(&truth.ids, k, e, None);
    assert_eq!(device.read_plan(workspace.plan()), plan, "{what}");
    let [exact, plain] = expected(case, &data, (&truth.ids, &truth.weights), None);
    assert_within::<T>(&what, &wide(&given), &exact, &plain, h);

    let before: Vec<T> = case.rng().full(case.tokens * h, 1.0);
    let call = Call { before: Some(&before), ..call };
    let given = forward(device, &layer, &call, &mut workspace);
    let [exact, plain] = expected(case, &data, (&truth.ids, &truth.weights), Some(&before));
    assert_within::<T>(&format!("{what}: accumulate"), &wide(&given), &exact, &plain, h);
}

/// A graph captured once serves other tokens, numbers of tokens and routing.
#[cfg(feature = "driver")]
pub(crate) fn check_graph<D: Driver + 'static>(on: &str, device: &Device<Cuda<D>>) {
    let case = named("regular [");
    let MoeConfig { hidden_size: h, .. } = case.config;
    let mut rng = case.rng();
    let data = Data::<bf16>::new(&case);
    let (backend, stream) = (&device.backend, &device.stream);
    let layer = layer(device, &case, &data);
    let mut workspace = layer.workspace(case.tokens).unwrap();
    let mut x = device.put(&data.x);
    let mut num_tokens = device.put(&[case.tokens as u32]);
    let mut out = backend.allocate::<bf16>("out", case.tokens * h).unwrap();

    backend.driver().begin_capture(stream.raw()).unwrap();
    let mut input = LayerInput::new(Matrix::contiguous("x", &x, case.tokens, h).unwrap());
    input.num_tokens = Some(&num_tokens);
    let matrix = MatrixMut::contiguous("out", &mut out, case.tokens, h).unwrap();
    layer.forward(&input, Output::overwrite(matrix), &mut workspace, stream).unwrap();
    let graph = backend.driver().end_capture(stream.raw()).unwrap();

    for count in [case.tokens, 1, 37, 0, 2] {
        let tokens: Vec<bf16> = rng.full(count * h, 1.0);
        backend.upload(&tokens, &mut x, stream).unwrap();
        backend.upload(&[count as u32], &mut num_tokens, stream).unwrap();
        // SAFETY: the buffers of the captured forward live until the end of the block.
        #[allow(unsafe_code)]
        unsafe { backend.driver().launch_graph(graph, stream.raw()) }.unwrap();
        let given = device.get(&out);
        let mut own = layer.workspace(case.tokens).unwrap();
        // T decides about the tiles, and with them about the order of sums.
        let mut padded = tokens.clone();
        padded.resize(case.tokens * h, bf16::ZERO);
        let call = Call { num_tokens: Some(count as u32), ..Call::new(&padded) };
        let expected = forward(device, &layer, &call, &mut own);
        let what = format!("{count} tokens on {on}");
        assert_exact(&what, &bits(&given[..count * h]), &bits(&expected[..count * h]), h);
    }
    backend.driver().destroy_graph(graph).unwrap();
}
