//! A layer made from a case, and one forward of it with all that can be given.

use moe_kernels::MoeLayer;
use moe_kernels::backend::Backend;
use moe_kernels::config::{GateUpLayout, MoeConfig};
use moe_kernels::memory::{Matrix, MatrixMut};
use moe_kernels::ops::{LayerInput, Output, Routing, Workspace};
use moe_kernels::weights::{DenseExperts, LayerWeights};

use super::{Bits, Case, Data, Device, Pad, Placed, Storage, TIGHT, reference, round, wide};

pub(crate) type Layer<B, T> = MoeLayer<B, DenseExperts<T>>;

pub(crate) fn layer<B: Backend, T: Storage>(
    device: &Device<B>,
    case: &Case,
    data: &Data<T>,
) -> Layer<B, T> {
    MoeLayer::new(
        device.backend.clone(),
        case.config.clone(),
        LayerWeights::new(data.router_weights(), data.dense(case.shape(), GateUpLayout::GateFirst)),
        &device.stream,
    )
    .unwrap()
}

/// What a forward is given.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a, T> {
    pub(crate) x: &'a [T],
    pub(crate) router_input: Option<&'a [T]>,
    pub(crate) routing: Option<(&'a [i32], &'a [f32])>,
    pub(crate) expert_map: Option<&'a [i32]>,
    /// As a number in the backend's memory.
    pub(crate) num_tokens: Option<u32>,
    /// Accumulates into this; without it, overwrites poison.
    pub(crate) before: Option<&'a [T]>,
    pub(crate) pad: Pad,
}

impl<'a, T> Call<'a, T> {
    pub(crate) fn new(x: &'a [T]) -> Self {
        Self {
            x,
            router_input: None,
            routing: None,
            expert_map: None,
            num_tokens: None,
            before: None,
            pad: TIGHT,
        }
    }
}

/// The output of one forward.
pub(crate) fn forward<B: Backend, T: Storage>(
    device: &Device<B>,
    layer: &Layer<B, T>,
    call: &Call<'_, T>,
    workspace: &mut Workspace<B, T>,
) -> Vec<T> {
    let MoeConfig { hidden_size: h, top_k: k, .. } = *layer.config();
    let tokens = call.x.len() / h;
    let x = Placed::new(call.x, tokens, h, call.pad);
    let x_buffer = x.put(device);
    let mut input = LayerInput::new(Matrix::new("x", &x_buffer, x.layout).unwrap());

    let router = call.router_input.map(|x| Placed::new(x, tokens, h, call.pad));
    let router_buffer = router.as_ref().map(|x| x.put(device));
    if let (Some(router), Some(buffer)) = (&router, &router_buffer) {
        input.router_input = Some(Matrix::new("router input", buffer, router.layout).unwrap());
    }

    // Ids and weights need no alignment.
    let odd = Pad { offset: call.pad.offset / 5, gap: call.pad.gap / 2 + 1, tail: 1 };
    let routing = call.routing.map(|(ids, weights)| {
        (Placed::new(ids, tokens, k, odd), Placed::new(weights, tokens, k, odd))
    });
    let buffers = routing.as_ref().map(|(ids, weights)| (ids.put(device), weights.put(device)));
    if let (Some((ids, weights)), Some((id_buffer, weight_buffer))) = (&routing, &buffers) {
        input.routing = Some(Routing {
            topk_ids: Matrix::new("ids", id_buffer, ids.layout).unwrap(),
            topk_weights: Matrix::new("weights", weight_buffer, weights.layout).unwrap(),
        });
    }

    let map = call.expert_map.map(|map| Placed::new(map, 1, map.len(), odd));
    let map_buffer = map.as_ref().map(|map| map.put(device));
    if let (Some(map), Some(buffer)) = (&map, &map_buffer) {
        input.expert_map = Some(Matrix::new("expert_map", buffer, map.layout).unwrap());
    }
    let num_tokens = call.num_tokens.map(|count| device.put(&[count]));
    input.num_tokens = num_tokens.as_ref();

    let out = match call.before {
        Some(before) => Placed::new(before, tokens, h, call.pad),
        None => Placed::poison(tokens, h, call.pad),
    };
    let mut out_buffer = out.put(device);
    let matrix = MatrixMut::new("output", &mut out_buffer, out.layout).unwrap();
    let output = match call.before {
        Some(_) => Output::accumulate(matrix),
        None => Output::overwrite(matrix),
    };
    layer.forward(&input, output, workspace, &device.stream).unwrap();
    out.take("output", device, &out_buffer)
}

/// The truth, and what a plain implementation of T's precision gives.
pub(crate) fn expected<T: Storage>(
    case: &Case,
    data: &Data<T>,
    routing: (&[i32], &[f64]),
    before: Option<&[T]>,
) -> [Vec<f64>; 2] {
    let before = before.map(wide);
    let experts = data.experts();
    let stores: [reference::Store<'_>; 2] = [&reference::exact, &round::<T>];
    stores.map(|store| {
        reference::layer(&case.config, &wide(&data.x), routing, &experts, before.as_deref(), store)
    })
}
