//! Full-size layers with random weights: a value is a function of its place, so that they are
//! made a matrix at a time, in any order, and are the same on every machine.

use std::borrow::Cow;

use moe_kernels::config::SharedCombine;
use moe_kernels::element::Float;
use moe_kernels::ops::ExpertShape;
use moe_kernels::weights::{
    DenseExperts, ExpertBiases, ExpertMatrix, ExpertSource, LayerWeights, RouterMatrix,
    RouterWeights, SharedFormat, SharedWeights,
};
use moe_kernels::{MoeConfig, Result};
use rayon::prelude::*;

/// Seed of the tokens.
pub const HIDDEN_STATES: u64 = 1;
/// Seed of the router's matrix; what else there is has the next ones.
const ROUTER: u64 = 2;
/// The first seed of the experts; each matrix has its own.
pub const EXPERTS: u64 = 100;
const SHARED: u64 = 1 << 32;
const LATENT: u64 = 2 << 32;

/// The spread of weights, as models are initialised.
const WEIGHT_STD: f32 = 0.02;

/// `len` values of mean 0 and standard deviation `std`, evenly distributed.
pub fn values<T: Float>(seed: u64, std: f32, len: usize) -> Vec<T> {
    let half_width = 3f32.sqrt() * std;
    let start = mix(seed);
    let value = move |index: usize| {
        // The top 24 bits, as a number in [-1, 1).
        let unit = (mix(start ^ index as u64) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        T::from_f32(half_width * unit)
    };
    (0..len).into_par_iter().with_min_len(1 << 16).map(value).collect()
}

/// Router, shared expert and all else that `config` says beside the experts.
pub fn weights<T: Float>(config: &MoeConfig) -> Result<LayerWeights<DenseExperts<T>>> {
    let (h, e) = (config.hidden_size, config.router_experts());
    let (rules, router) = (&config.experts, &config.router);
    let mut seeds = ROUTER + 1..EXPERTS;
    // Of mean `mean`, where it is there.
    let mut vector = |is_there: bool, mean: f32, len: usize| {
        let noise = values::<f32>(seeds.next().unwrap_or(ROUTER), WEIGHT_STD, len);
        is_there.then(|| noise.into_iter().map(|noise| mean + noise).collect::<Vec<f32>>())
    };
    let mut weights = RouterWeights::model(values(ROUTER, WEIGHT_STD, e * h));
    weights.bias = vector(router.bias, 0.0, e);
    weights.selection_bias = vector(router.selection_bias, 0.0, e);
    weights.expert_scale = vector(router.expert_scale, 1.0, e);
    weights.input_scale = vector(router.norm_eps.is_some(), 1.0, h);
    let shape = ExpertShape::from(config);
    let mut experts = DenseExperts::from_source(shape, Experts { shape, seed: EXPERTS })?;
    let gate_up = vector(rules.bias, 0.0, shape.num_experts * shape.gate_up_columns());
    let down = vector(rules.bias, 0.0, shape.num_experts * shape.hidden_size);
    if let (Some(gate_up), Some(down)) = (gate_up, down) {
        experts = experts.with_biases(ExpertBiases { gate_up, down })?;
    }
    let mut all = LayerWeights::new(weights, experts);
    all.output_bias = vector(rules.output_bias, 0.0, h);
    if let Some(shared) = rules.shared {
        let gated = shared.activation.is_gated();
        let shape = ExpertShape::gated(1, h, shared.intermediate_size);
        let source = Experts { shape: ExpertShape { gated, ..shape }, seed: SHARED };
        let gate = (shared.combine == SharedCombine::SigmoidGate)
            .then(|| RouterMatrix::Model(values(SHARED + 3, WEIGHT_STD, h)));
        let experts = SharedFormat::Same(DenseExperts::from_source(source.shape, source)?);
        all.shared = Some(SharedWeights { experts, gate });
    }
    if let Some(width) = rules.latent_size {
        let shape = ExpertShape::ungated(1, h, width);
        all.latent = Some(DenseExperts::from_source(shape, Experts { shape, seed: LATENT })?);
    }
    Ok(all)
}

/// A named model's experts.
#[derive(Clone, Copy)]
pub struct Experts {
    pub shape: ExpertShape,
    /// Of the first matrix.
    pub seed: u64,
}

impl<T: Float> ExpertSource<T> for Experts {
    fn read(&self, expert: usize, matrix: ExpertMatrix) -> Result<Cow<'_, [T]>> {
        let seed = self.seed + 3 * expert as u64 + matrix as u64;
        let [rows, columns] = matrix.dims(self.shape);
        Ok(Cow::Owned(values(seed, WEIGHT_STD, rows * columns)))
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014).
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
