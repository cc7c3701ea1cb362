//! Full-size layers with random weights: a value is a function of its place, so that they are
//! made a matrix at a time, in any order, and are the same on every machine.

use std::borrow::Cow;

use moe_kernels::element::Float;
use moe_kernels::ops::ExpertShape;
use moe_kernels::weights::{ExpertMatrix, ExpertSource, RouterWeights};
use moe_kernels::{MoeConfig, Result};
use rayon::prelude::*;

/// Seed of the tokens.
pub const HIDDEN_STATES: u64 = 1;
/// Seed of the router.
const ROUTER: u64 = 2;
/// The first seed of the experts; each matrix has its own.
const EXPERTS: u64 = 3;

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

pub fn router<T: Float>(config: &MoeConfig) -> RouterWeights<T> {
    let len = config.num_experts * config.hidden_size;
    RouterWeights::model(values(ROUTER, WEIGHT_STD, len))
}

/// A named model's experts.
pub struct Experts(pub ExpertShape);

impl<T: Float> ExpertSource<T> for Experts {
    fn read(&self, expert: usize, matrix: ExpertMatrix) -> Result<Cow<'_, [T]>> {
        let seed = EXPERTS + 3 * expert as u64 + matrix as u64;
        let [rows, columns] = matrix.dims(self.0);
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
