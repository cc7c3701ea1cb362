//! The named cases, and seeded data for them.

use moe_kernels::MoeConfig;
use moe_kernels::config::{GateUpLayout, Renormalize, Scoring};
use moe_kernels::ops::ExpertShape;
use moe_kernels::weights::{DenseExperts, RouterWeights};

use super::reference::{self, Experts};
use super::{LOOSE, Pad, Storage, TIGHT, wide};

/// Whose tokens are whose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Random experts.
    Even,
    /// Every token has the last expert as its first choice.
    OneHot,
    /// Only the experts with an odd id; with K above their number, even ones fill up.
    OddOnly,
}

/// Which numbers a case is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Values {
    /// Every bit of the storage type; no two logits too close for f32 to order.
    Full,
    /// A coarse grid on which f32 logits are exact in any order of summation, with many ties.
    Grid,
}

/// A layer, its tokens, and where they lie.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) tokens: usize,
    pub(crate) config: MoeConfig,
    pub(crate) load: Load,
    pub(crate) values: Values,
    pub(crate) pad: Pad,
}

/// `[T, H, I, E, K]`.
type Shape = [usize; 5];

fn case(name: &str, [tokens, h, i, e, k]: Shape) -> Case {
    let name = format!("{name} [T {tokens}, H {h}, I {i}, E {e}, K {k}]");
    let config = MoeConfig::new(h, i, e, k);
    Case { name, tokens, config, load: Load::Even, values: Values::Full, pad: TIGHT }
}

impl Case {
    fn rules(mut self, scoring: Scoring, renormalize: Renormalize) -> Self {
        self.config.router.scoring = scoring;
        self.config.router.renormalize = renormalize;
        self
    }

    fn load(self, load: Load) -> Self {
        Self { load, ..self }
    }

    fn values(self, values: Values) -> Self {
        Self { values, ..self }
    }

    fn loose(self) -> Self {
        Self { pad: LOOSE, ..self }
    }

    pub(crate) fn shape(&self) -> ExpertShape {
        ExpertShape::from(&self.config)
    }

    pub(crate) fn rng(&self) -> Rng {
        Rng::new(self.name.bytes().fold(7, |seed, byte| seed * 31 % 0xffff_fffb + u64::from(byte)))
    }
}

/// Regular, ragged and corner cases, each small enough for naive loops in f64.
pub(crate) fn cases() -> Vec<Case> {
    use Renormalize::None as Raw;
    const SUM: Renormalize = Renormalize::SUM;
    use Scoring::{Sigmoid, Softmax};
    vec![
        case("regular", [64, 64, 32, 8, 2]),
        case("regular, top 1", [64, 32, 64, 16, 1]).rules(Softmax, Raw),
        case("no token", [0, 24, 40, 5, 2]),
        case("one token", [1, 40, 24, 8, 2]),
        case("one token of all sizes 8", [1, 8, 8, 1, 1]),
        case("two tokens", [2, 8, 24, 5, 5]),
        case("ragged", [31, 40, 24, 5, 3]).rules(Sigmoid, SUM),
        case("ragged", [33, 24, 40, 16, 4]).rules(Sigmoid, Raw).loose(),
        case("ragged", [130, 72, 200, 40, 8]).loose(),
        // Past the CPU's blocks of 256 along K and its 512 columns.
        case("ragged", [19, 520, 264, 5, 2]),
        case("ragged", [7, 264, 776, 4, 3]).loose(),
        case("one expert", [33, 8, 24, 1, 1]),
        case("sixty experts", [130, 40, 8, 60, 4]).rules(Softmax, Raw),
        case("72 experts", [33, 200, 72, 72, 6]).loose(),
        case("128 experts", [130, 24, 24, 128, 8]),
        case("160 experts", [31, 72, 40, 160, 6]).rules(Softmax, Raw),
        case("1024 experts, top 32", [3, 8, 8, 1024, 32]).rules(Sigmoid, SUM),
        case("all experts", [33, 24, 8, 16, 16]),
        case("all experts, unnormalised", [2, 8, 40, 32, 32]).rules(Sigmoid, Raw),
        case("top 32 of 40", [31, 24, 8, 40, 32]),
        case("all on one", [130, 40, 72, 8, 1]).load(Load::OneHot),
        case("one taken by all", [130, 24, 40, 16, 2]).load(Load::OneHot).loose(),
        case("every other expert empty", [33, 24, 24, 16, 2]).load(Load::OddOnly),
        case("ties", [130, 8, 8, 16, 4]).values(Values::Grid),
        case("ties", [33, 24, 8, 72, 7]).values(Values::Grid).rules(Sigmoid, SUM).loose(),
        // More than one block of rows and of columns for one expert.
        case("long expert", [530, 264, 296, 2, 1]),
    ]
}

pub(crate) fn named(name: &str) -> Case {
    cases().into_iter().find(|case| case.name.starts_with(name)).unwrap()
}

/// splitmix64.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// In (-1, 1), with 53 bits.
    pub(crate) fn signed(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// Of standard deviation `scale`, in every bit of `T`.
    pub(crate) fn full<T: Storage>(&mut self, len: usize, scale: f64) -> Vec<T> {
        (0..len).map(|_| T::nearest(self.signed() * scale * 3f64.sqrt())).collect()
    }

    /// Multiples of `step` up to `most * step` either way.
    pub(crate) fn grid<T: Storage>(&mut self, len: usize, most: usize, step: f64) -> Vec<T> {
        let value = |rng: &mut Self| (rng.below(2 * most + 1) as f64 - most as f64) * step;
        (0..len).map(|_| T::nearest(value(self))).collect()
    }

    /// `top_k` different ids for each token.
    pub(crate) fn ids(&mut self, tokens: usize, experts: usize, top_k: usize) -> Vec<i32> {
        let mut all = Vec::new();
        for _ in 0..tokens {
            let mut order: Vec<i32> = (0..experts as i32).collect();
            for place in 0..top_k {
                let other = place + self.below(experts - place);
                order.swap(place, other);
            }
            all.extend_from_slice(&order[..top_k]);
        }
        all
    }
}

/// A case's tensors.
#[derive(Clone, Debug)]
pub(crate) struct Data<T> {
    /// `[T, H]`.
    pub(crate) x: Vec<T>,
    /// `[E, H]`: the router's weight.
    pub(crate) router: Vec<T>,
    /// `[E, I, H]`.
    pub(crate) gate: Vec<T>,
    /// `[E, I, H]`.
    pub(crate) up: Vec<T>,
    /// `[E, H, I]`.
    pub(crate) down: Vec<T>,
}

/// Logits closer than this, relative to the terms they are sums of, could be ordered differently
/// by f32.
const MARGIN: f64 = 1e-5;

impl<T: Storage> Data<T> {
    pub(crate) fn new(case: &Case) -> Self {
        Self::seeded(case, &mut case.rng())
    }

    pub(crate) fn seeded(case: &Case, rng: &mut Rng) -> Self {
        let MoeConfig { hidden_size: h, intermediate_size: i, num_experts: e, .. } = case.config;
        let mut router: Vec<T> = match case.values {
            Values::Full => rng.full(e * h, 1.5 / (h as f64).sqrt()),
            Values::Grid => rng.grid(e * h, 1, 0.25),
        };
        // Column 0 of every token is 1, so that of the gate is a bias.
        let bias = |expert: usize| match case.load {
            Load::Even => None,
            Load::OneHot => (expert + 1 == e).then_some(32.0),
            Load::OddOnly => expert.is_multiple_of(2).then_some(-32.0),
        };
        for expert in 0..e {
            if let Some(bias) = bias(expert) {
                router[expert * h] = T::nearest(bias);
            }
        }
        let wide_router = wide(&router);
        let mut x = Vec::with_capacity(case.tokens * h);
        while x.len() < case.tokens * h {
            let mut token: Vec<T> = match case.values {
                Values::Full => rng.full(h, 1.0),
                Values::Grid => rng.grid(h, 2, 0.5),
            };
            if case.load != Load::Even {
                token[0] = T::nearest(1.0);
            }
            if case.values == Values::Grid || is_unambiguous(&wide(&token), &wide_router, case) {
                x.extend(token);
            }
        }
        let gate = rng.full(e * i * h, 2.0 / (h as f64).sqrt());
        let up = rng.full(e * i * h, 1.0 / (h as f64).sqrt());
        let down = rng.full(e * i * h, 1.0 / (i as f64).sqrt());
        Self { x, router, gate, up, down }
    }

    pub(crate) fn experts(&self) -> Experts {
        Experts { gate: wide(&self.gate), up: wide(&self.up), down: wide(&self.down) }
    }

    /// `[E, 2I, H]`.
    pub(crate) fn gate_up(&self, shape: ExpertShape, layout: GateUpLayout) -> Vec<T> {
        let ExpertShape { num_experts, hidden_size: h, intermediate_size: i, .. } = shape;
        let mut gate_up = Vec::with_capacity(2 * self.gate.len());
        for expert in 0..num_experts {
            let gate = &self.gate[expert * i * h..][..i * h];
            let up = &self.up[expert * i * h..][..i * h];
            match layout {
                GateUpLayout::GateFirst => gate_up.extend([gate, up].concat()),
                GateUpLayout::UpFirst => gate_up.extend([up, gate].concat()),
                GateUpLayout::Interleaved => {
                    for row in 0..i {
                        gate_up.extend_from_slice(&gate[row * h..][..h]);
                        gate_up.extend_from_slice(&up[row * h..][..h]);
                    }
                }
            }
        }
        gate_up
    }

    pub(crate) fn dense(&self, shape: ExpertShape, layout: GateUpLayout) -> DenseExperts<T> {
        let gate_up = self.gate_up(shape, layout);
        DenseExperts::stacked(shape, layout, gate_up, self.down.clone()).unwrap()
    }

    pub(crate) fn router_weights(&self) -> RouterWeights<T> {
        RouterWeights::model(self.router.clone())
    }

    /// The true routing.
    pub(crate) fn routing(&self, config: &MoeConfig) -> reference::Routing {
        self.routing_of(&self.x, config)
    }

    /// The true routing of another router input.
    pub(crate) fn routing_of(&self, x: &[T], config: &MoeConfig) -> reference::Routing {
        let (h, e) = (config.hidden_size, config.num_experts);
        reference::route(config, reference::logits(&wide(x), &wide(&self.router), h, e))
    }
}

/// Whether no rounding of f32 can change the order of a token's best K + 1 logits.
fn is_unambiguous(token: &[f64], router: &[f64], case: &Case) -> bool {
    let MoeConfig { hidden_size, num_experts, top_k, .. } = case.config;
    let logits = reference::logits(token, router, hidden_size, num_experts);
    let best = reference::select(&logits, num_experts.min(top_k + 1));
    let scale = logits.iter().fold(1.0, |scale: f64, logit| scale.max(logit.abs()));
    best.windows(2).all(|pair| logits[pair[0] as usize] - logits[pair[1] as usize] > MARGIN * scale)
}
