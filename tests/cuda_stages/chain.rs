//! Stage after stage on one stream, with nothing read in between: from compute capability 9.0 on, each
//! kernel starts while the one before it still runs, and must wait for what it reads.

use half::bf16;
use moe_emulator::{Options, Profile};
use moe_kernels::backend::Backend;
use moe_kernels::config::MoeConfig;
use moe_kernels::cuda::Path;
use moe_kernels::memory::{Matrix, MatrixMut, Memory};
use moe_kernels::ops::{Combine, Output, Permute, Plan, Router, RouterOutput, RoutingPlan};

use super::common::*;

/// `out[t] = (sum of t's weights) * x[t]`: tokens are sent to their experts' places and back, twice, the
/// second time over buffers that the first still uses.
fn there_and_back(device: &Emulated, config: &MoeConfig, x: &[bf16], gate: &[bf16]) -> Vec<bf16> {
    let MoeConfig { hidden_size: h, num_experts: e, top_k: k, .. } = *config;
    let tokens = x.len() / h;
    let (backend, stream) = (&device.backend, &device.stream);
    let weights = moe_kernels::weights::RouterWeights::model(gate.to_vec());
    let gate = backend.prepare_gate([e, h], weights, stream).unwrap();
    let mut hidden = device.put(x);
    let mut logits = backend.allocate::<f32>("logits", tokens * e).unwrap();
    let mut ids = backend.allocate::<i32>("ids", tokens * k).unwrap();
    let mut weights = backend.allocate::<f32>("weights", tokens * k).unwrap();
    let mut rows = backend.allocate::<bf16>("rows", tokens * k * h).unwrap();
    let mut plan = RoutingPlan::new(backend, e, tokens * k).unwrap();
    for _ in 0..2 {
        let output = RouterOutput {
            router_logits: MatrixMut::contiguous("logits", &mut logits, tokens, e).unwrap(),
            topk_ids: MatrixMut::contiguous("ids", &mut ids, tokens, k).unwrap(),
            topk_weights: MatrixMut::contiguous("weights", &mut weights, tokens, k).unwrap(),
        };
        let x = Matrix::contiguous("x", &hidden, tokens, h).unwrap();
        backend.router(Router::new(config, x, &gate, output).unwrap(), stream).unwrap();
        let chosen = Matrix::contiguous("ids", &ids, tokens, k).unwrap();
        backend.plan(Plan::new(chosen, None, &mut plan).unwrap(), stream).unwrap();
        let to = MatrixMut::contiguous("rows", &mut rows, tokens * k, h).unwrap();
        backend.permute(Permute::new(x, &plan, to).unwrap(), stream).unwrap();
        let from = Matrix::contiguous("rows", &rows, tokens * k, h).unwrap();
        let by = Matrix::contiguous("weights", &weights, tokens, k).unwrap();
        let to = MatrixMut::contiguous("hidden", &mut hidden, tokens, h).unwrap();
        let op = Combine::new(from, by, &plan, Output::overwrite(to)).unwrap();
        backend.combine(op, stream).unwrap();
    }
    device.get(&hidden)
}

#[test]
fn kernels_wait_for_what_they_read() {
    // A plan of one launch, and one of three.
    for (tokens, k, seeds) in [(33, 4, 1..9), (4100, 2, 1..2)] {
        let (h, e) = (24, 16);
        let config = MoeConfig::new(h, 8, e, k);
        let mut rng = Rng::new(1);
        // Renormalised weights have the sum 1: x comes back, but for the rounding of the weights.
        let x = rng.full::<bf16>(tokens * h, 1.0);
        let gate = rng.full::<bf16>(e * h, 0.4);
        for seed in seeds {
            let options = Options::checked(seed);
            let Some(device) = emulated(Profile::sm_90(), Path::Auto, options) else { return };
            let given = there_and_back(&device, &config, &x, &gate);
            assert_close("x", &wide(&given), &wide(&x), h, 1e-3);
        }
    }
}
