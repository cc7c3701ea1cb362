//! Routers of every rule: named ones, random ones, and data on which f32 cannot change the choice.

use moe_kernels::MoeConfig;
use moe_kernels::backend::Backend;
use moe_kernels::config::{
    Capacity, ExpertGroups, GroupFill, GroupScore, Renormalize, RouterConfig, Scoring, Selection,
};
use moe_kernels::weights::RouterWeights;

use super::reference::{self, Parts};
use super::{
    Bits, Device, LOOSE, Pad, Rng, Routed, Storage, TIGHT, check_router_with, run_router_with, wide,
};

/// A router with all that it needs.
#[derive(Clone, Debug)]
pub(crate) struct RouterCase<T: Storage> {
    pub(crate) what: String,
    pub(crate) config: MoeConfig,
    pub(crate) x: Vec<T>,
    pub(crate) weights: RouterWeights<T>,
    pub(crate) token_ids: Option<Vec<u32>>,
    pub(crate) sequence_offsets: Option<Vec<u32>>,
    pub(crate) parts: Parts,
    /// `[E, H]`.
    pub(crate) matrix: Vec<f64>,
    pub(crate) pad: Pad,
}

impl<T: Storage> RouterCase<T> {
    /// Random weights for `config`, and tokens whose choice no rounding of f32 can change.
    pub(crate) fn new(what: &str, config: MoeConfig, tokens: usize, rng: &mut Rng) -> Self {
        config.validate().unwrap();
        let (h, e, k) = (config.hidden_size, config.router_experts(), config.top_k);
        let rules = &config.router;
        let deviation = 1.5 / (h as f64).sqrt();
        let (mut weights, matrix) = if rng.below(2) == 0 {
            let matrix = rng.full::<f32>(e * h, deviation);
            (RouterWeights::f32(matrix.clone()), wide(&matrix))
        } else {
            let matrix = rng.full::<T>(e * h, deviation);
            (RouterWeights::model(matrix.clone()), wide(&matrix))
        };
        weights.bias = rules.bias.then(|| rng.full(e, 0.5));
        // Below 0, so that what the others' groups have is more than what the kept ones have, or around it.
        let shift = [0.0, -1.0][rng.below(2)];
        weights.selection_bias = rules
            .selection_bias
            .then(|| rng.full::<f32>(e, 0.2).into_iter().map(|bias| bias + shift).collect());
        weights.expert_scale = rules.expert_scale.then(|| rng.full(e, 1.0));
        weights.input_scale = rules.norm_eps.map(|_| rng.full(h, 1.0));
        let mut token_ids = None;
        if let Selection::HashTable { vocab_size } = rules.selection {
            let mut table = rng.ids(vocab_size, e, k);
            // Entries that are no expert, and tokens past the table.
            table.iter_mut().filter(|_| rng.below(9) == 0).for_each(|id| *id = -1);
            table[0] = e as i32;
            weights.hash_table = Some(table);
            let ids = (0..tokens).map(|_| rng.below(vocab_size + 1) as u32);
            let mut ids: Vec<u32> = ids.collect();
            ids.iter_mut().filter(|_| rng.below(9) == 0).for_each(|id| *id = u32::MAX);
            token_ids = Some(ids);
        }
        let by_sequence = matches!(rules.capacity, Capacity::Sequence { .. });
        let sequence_offsets = (by_sequence && rng.below(3) > 0).then(|| {
            let inner = (0..rng.below(5)).map(|_| rng.below(tokens + 1) as u32);
            let mut offsets: Vec<u32> = inner.chain([0, tokens as u32]).collect();
            offsets.sort_unstable();
            offsets
        });
        let wide_of = |part: &Option<Vec<f32>>| part.as_ref().map(|part| wide(part));
        let parts = Parts {
            bias: wide_of(&weights.bias),
            selection_bias: wide_of(&weights.selection_bias),
            expert_scale: wide_of(&weights.expert_scale),
            input_scale: wide_of(&weights.input_scale),
            hash_table: weights.hash_table.clone(),
            token_ids: token_ids.clone(),
            sequence_offsets: sequence_offsets.clone(),
        };
        let mut x = Vec::with_capacity(tokens * h);
        let mut tries = 0;
        while x.len() < tokens * h {
            let size = [0.1, 1.0, 4.0][rng.below(3)];
            let token: Vec<T> = rng.full(h, size);
            let logits = reference::router_logits(&config, &parts, &wide(&token), &matrix);
            if is_clear(&config, &parts, &logits) {
                x.extend(token);
            }
            tries += 1;
            assert!(tries < 100 * tokens.max(10), "{what}: no clear tokens for {config:?}");
        }
        let what = format!("{what}, {} {config:?}", T::NAME);
        let pad = if rng.below(2) == 0 { TIGHT } else { LOOSE };
        Self { what, config, x, weights, token_ids, sequence_offsets, parts, matrix, pad }
    }

    pub(crate) fn truth(&self) -> reference::Routing {
        let x = wide(&self.x);
        let logits = reference::router_logits(&self.config, &self.parts, &x, &self.matrix);
        reference::route_with(&self.config, &self.parts, logits)
    }

    pub(crate) fn run<B: Backend>(&self, device: &Device<B>, num_tokens: Option<u32>) -> Routed {
        let given = (self.token_ids.as_deref(), self.sequence_offsets.as_deref());
        let weights = self.weights.clone();
        run_router_with(device, &self.config, &self.x, weights, given, self.pad, num_tokens)
    }

    pub(crate) fn check<B: Backend>(&self, device: &Device<B>, truth: &reference::Routing) {
        let given = self.run(device, None);
        check_router_with(&self.what, &self.config, &self.parts, &given, truth);
    }
}

/// Whether no rounding of f32 can change the choice of one token's experts.
fn is_clear(config: &MoeConfig, parts: &Parts, logits: &[f64]) -> bool {
    const MARGIN: f64 = 2e-5;
    let greatest = |values: &[f64]| values.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
    // The best of the values, and the next one, are apart; or all alike, as what falls away is.
    let apart = |values: &[f64], k: usize| {
        let best = reference::select(values, values.len().min(k + 1));
        let margin = MARGIN * greatest(values).max(greatest(logits) * 0.01);
        best.windows(2).all(|pair| {
            let (a, b) = (values[pair[0] as usize], values[pair[1] as usize]);
            a - b > margin || (a == b && (a == 0.0 || a == f64::NEG_INFINITY))
        })
    };
    if parts.hash_table.is_some() {
        return true;
    }
    if let Scoring::SparseMixer { jitter } = config.router.scoring {
        let logits = reference::capped(config, logits);
        let best = reference::select(&logits, 2);
        let edge = 2.0 * f64::from(jitter);
        let near_edge = |id: i32, logit: f64| {
            (reference::far_by(logits[id as usize], logit) - edge).abs() < 1e-4 * (1.0 + edge)
        };
        return apart(&logits, 2)
            && logits.iter().all(|&l| best.iter().all(|&id| l == 0.0 || !near_edge(id, l)));
    }
    let values = reference::choice_values(config, parts, logits);
    if let Some(groups) = config.router.groups {
        let scores = reference::group_scores(groups, &values);
        let order = reference::select(&scores, groups.count);
        let at = |place: usize| scores[order[place] as usize];
        let kept = groups.kept;
        if kept < groups.count && at(kept - 1) - at(kept) <= MARGIN * greatest(&scores) {
            return false;
        }
    }
    let values = reference::within_groups(config, values);
    let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let k = config.top_k;
    if finite.len() > k { apart(&finite, k) } else { apart(&finite, finite.len()) }
}

/// `[H, E, K]` and rules.
fn config([h, e, k]: [usize; 3], rules: impl FnOnce(&mut RouterConfig)) -> MoeConfig {
    let mut config = MoeConfig::new(h, 8, e, k);
    rules(&mut config.router);
    config.num_experts -= config.router.zero_experts;
    config
}

fn groups(count: usize, kept: usize, score: GroupScore, fill: GroupFill) -> Option<ExpertGroups> {
    Some(ExpertGroups { count, kept, score, fill })
}

/// A name, tokens, and a configuration, for every rule and for what families make of them.
pub(crate) fn ruled() -> Vec<(&'static str, usize, MoeConfig)> {
    use GroupFill::{NegativeInfinity as Out, Zero};
    use GroupScore::{Max, Top2Sum};
    use Scoring::{Sigmoid, Softmax, SqrtSoftplus};
    let tiny = Renormalize::Sum { epsilon: 1e-20 };
    vec![
        ("a bias (gpt-oss)", 33, config([24, 32, 4], |r| r.bias = true)),
        (
            "a norm (Gemma-4)",
            35,
            config([264, 40, 4], |r| {
                (r.norm_eps, r.expert_scale) = (Some(1e-6), true);
            }),
        ),
        (
            "a norm and a bias",
            7,
            config([40, 7, 3], |r| {
                (r.norm_eps, r.bias, r.scoring) = (Some(0.5), true, Sigmoid);
                r.renormalize = Renormalize::None;
            }),
        ),
        (
            "a softcap (Laguna)",
            31,
            config([72, 72, 5], |r| (r.softcap, r.scoring) = (Some(1.5), Sigmoid)),
        ),
        ("a softcap, softmax", 9, config([8, 130, 6], |r| r.softcap = Some(30.0))),
        (
            "sqrt-softplus with a selection bias (DeepSeek-V4)",
            33,
            config([40, 160, 6], |r| {
                (r.scoring, r.selection_bias, r.scale) = (SqrtSoftplus, true, 1.5);
                r.renormalize = tiny;
            }),
        ),
        (
            "a hash table (DeepSeek-V4)",
            70,
            config([40, 96, 6], |r| {
                (r.scoring, r.scale, r.renormalize) = (SqrtSoftplus, 1.5, tiny);
                r.selection = Selection::HashTable { vocab_size: 50 };
            }),
        ),
        (
            "a hash table, softcap, bias and norm",
            33,
            config([40, 33, 32], |r| {
                r.selection = Selection::HashTable { vocab_size: 20 };
                (r.softcap, r.bias, r.norm_eps, r.expert_scale) =
                    (Some(2.0), true, Some(1e-5), true);
            }),
        ),
        (
            "groups by the greatest, 0 (DeepSeek-V2)",
            33,
            config([40, 160, 6], |r| {
                (r.groups, r.renormalize, r.scale) =
                    (groups(8, 3, Max, Zero), Renormalize::None, 16.0);
            }),
        ),
        (
            "groups by two, -inf (DeepSeek-V3)",
            33,
            config([40, 256, 8], |r| {
                (r.groups, r.scoring, r.selection_bias) =
                    (groups(8, 4, Top2Sum, Out), Sigmoid, true);
                (r.renormalize, r.scale) = (tiny, 2.5);
            }),
        ),
        (
            "groups by two, 0 (A.X-K2, Mistral-4)",
            33,
            config([24, 128, 8], |r| {
                (r.groups, r.selection_bias) = (groups(4, 1, Top2Sum, Zero), true);
            }),
        ),
        (
            "fewer experts in the kept groups than K",
            31,
            config([24, 60, 9], |r| {
                (r.groups, r.scoring) = (groups(20, 2, Max, Out), Sigmoid);
                r.renormalize = Renormalize::None;
            }),
        ),
        ("groups of one", 9, config([24, 32, 5], |r| r.groups = groups(32, 7, Max, Zero))),
        (
            "one group",
            9,
            config([24, 384, 8], |r| {
                (r.groups, r.scoring, r.selection_bias) =
                    (groups(1, 1, Top2Sum, Out), Sigmoid, true);
            }),
        ),
        (
            "1024 experts in 32 groups, K = 32",
            5,
            config([24, 1024, 32], |r| {
                (r.groups, r.scoring, r.selection_bias) =
                    (groups(32, 9, Top2Sum, Out), Sigmoid, true);
                r.renormalize = tiny;
            }),
        ),
        (
            "896 experts in 28 groups",
            5,
            config([24, 896, 16], |r| r.groups = groups(28, 5, Max, Out)),
        ),
        (
            "a selection bias and a least sum (ERNIE-4.5)",
            33,
            config([40, 64, 6], |r| {
                (r.selection_bias, r.renormalize) = (true, Renormalize::ClampMin { least: 1e-12 });
            }),
        ),
        (
            "a least sum that is more",
            9,
            config([24, 64, 3], |r| r.renormalize = Renormalize::ClampMin { least: 0.6 }),
        ),
        (
            "a great epsilon",
            9,
            config([24, 64, 3], |r| {
                (r.renormalize, r.scoring) = (Renormalize::Sum { epsilon: 0.25 }, Sigmoid);
            }),
        ),
        (
            "zero experts (LongCat)",
            33,
            config([40, 96, 6], |r| {
                (r.zero_experts, r.selection_bias) = (32, true);
                (r.renormalize, r.scale) = (Renormalize::None, 6.0);
            }),
        ),
        (
            "a 1-norm (DBRX)",
            33,
            config([40, 16, 4], |r| r.renormalize = Renormalize::PNorm { p: 1.0 }),
        ),
        (
            "a 2-norm",
            9,
            config([40, 16, 4], |r| {
                (r.renormalize, r.scoring) = (Renormalize::PNorm { p: 2.0 }, Sigmoid);
            }),
        ),
        (
            "a norm of 1/2",
            9,
            config([40, 16, 4], |r| r.renormalize = Renormalize::PNorm { p: 0.5 }),
        ),
        (
            "sparsemixer (Phi-3.5-MoE)",
            33,
            config([40, 16, 2], |r| {
                (r.scoring, r.renormalize) =
                    (Scoring::SparseMixer { jitter: 0.01 }, Renormalize::None);
            }),
        ),
        (
            "sparsemixer, wide, with bias, softcap and scales",
            33,
            config([40, 100, 2], |r| {
                (r.scoring, r.renormalize) =
                    (Scoring::SparseMixer { jitter: 0.3 }, Renormalize::None);
                (r.bias, r.softcap, r.scale, r.expert_scale) = (true, Some(3.0), -0.5, true);
            }),
        ),
        (
            "capacity by sequence (Switch)",
            70,
            config([24, 5, 1], |r| {
                (r.renormalize, r.capacity) = (Renormalize::None, Capacity::Sequence { tokens: 4 });
            }),
        ),
        (
            "capacity by batch (NLLB)",
            300,
            config([24, 8, 2], |r| {
                r.capacity = Capacity::Batch { fraction: 0.25 };
                r.renormalize = Renormalize::ClampMin { least: f32::EPSILON };
            }),
        ),
        (
            "capacity by sequence of three choices, sum 0 left",
            600,
            config([24, 4, 3], |r| {
                (r.capacity, r.bias) = (Capacity::Sequence { tokens: 40 }, true);
            }),
        ),
        (
            "all at once",
            70,
            config([72, 48, 5], |r| {
                (r.norm_eps, r.bias, r.softcap, r.selection_bias) =
                    (Some(1e-5), true, Some(2.5), true);
                (r.groups, r.scoring) = (groups(6, 4, Top2Sum, Zero), SqrtSoftplus);
                (r.renormalize, r.scale) = (Renormalize::PNorm { p: 3.0 }, 2.5);
                (r.expert_scale, r.zero_experts) = (true, 7);
                r.capacity = Capacity::Sequence { tokens: 6 };
            }),
        ),
        (
            "a softmax that nothing changes",
            9,
            config([24, 40, 4], |r| (r.scoring, r.scale) = (Softmax, 0.5)),
        ),
    ]
}

/// Rules drawn by lot, among those that go together.
pub(crate) fn random_rules(rng: &mut Rng) -> (usize, MoeConfig) {
    fn one<V: Copy, const N: usize>(rng: &mut Rng, of: [V; N]) -> V {
        of[rng.below(N)]
    }
    let chance = |rng: &mut Rng, of: usize| rng.below(of) == 0;
    let e = one(rng, [2, 6, 24, 40, 64, 96, 160, 256, 500]);
    let mut k = (1 + rng.below(8)).min(e);
    let h = one(rng, [8, 24, 136]);
    let mut config = config([h, e, k], |_| {});
    let r = &mut config.router;
    r.scale = one(rng, [1.0, 2.5, -0.5]);
    (r.bias, r.expert_scale) = (chance(rng, 3), chance(rng, 3));
    r.softcap = chance(rng, 4).then_some(1.0 + rng.below(9) as f32);
    r.norm_eps = chance(rng, 3).then_some(1e-5);
    r.zero_experts = if chance(rng, 4) { rng.below(e) } else { 0 };
    if chance(rng, 8) {
        (r.scoring, k) = (Scoring::SparseMixer { jitter: one(rng, [0.01, 0.2]) }, 2);
        r.renormalize = Renormalize::None;
    } else {
        r.scoring = one(rng, [Scoring::Softmax, Scoring::Sigmoid, Scoring::SqrtSoftplus]);
        r.renormalize = one(
            rng,
            [
                Renormalize::None,
                Renormalize::SUM,
                Renormalize::Sum { epsilon: 0.125 },
                Renormalize::ClampMin { least: 0.5 },
                Renormalize::PNorm { p: 1.0 },
                Renormalize::PNorm { p: 2.5 },
            ],
        );
        if chance(rng, 4) {
            r.selection = Selection::HashTable { vocab_size: 1 + rng.below(40) };
        } else {
            r.selection_bias = chance(rng, 2);
            let count = (0..40).map(|_| 1 + rng.below(32)).find(|&count| e.is_multiple_of(count));
            if let Some(count) = count.filter(|_| chance(rng, 2)) {
                let score = match e / count {
                    1 => GroupScore::Max,
                    _ => one(rng, [GroupScore::Max, GroupScore::Top2Sum]),
                };
                let fill = one(rng, [GroupFill::Zero, GroupFill::NegativeInfinity]);
                r.groups = groups(count, 1 + rng.below(count), score, fill);
            }
        }
        let few = 1 + rng.below(9);
        r.capacity = one(
            rng,
            [
                Capacity::Unlimited,
                Capacity::Unlimited,
                Capacity::Sequence { tokens: few },
                Capacity::Batch { fraction: 0.125 },
            ],
        );
    }
    config.num_experts -= config.router.zero_experts;
    config.top_k = k;
    (1 + rng.below(60), config)
}

/// Logits that are NaN, +Inf and -Inf for single experts of single tokens, with many ties besides, on a
/// grid where f32 logits are exact; each rule that ranks something else than logits.
pub(crate) fn faulty<T: Storage>() -> Vec<RouterCase<T>> {
    use GroupFill::{NegativeInfinity as Out, Zero};
    use Scoring::{Sigmoid, Softmax, SqrtSoftplus};
    let mut cases = Vec::new();
    for (e, k) in [(8, 2), (8, 8), (96, 5), (96, 32)] {
        for (scoring, fill) in [(Sigmoid, Zero), (SqrtSoftplus, Out), (Softmax, Zero)] {
            for rule in 0..6 {
                let config = config([8, e, k], |r| {
                    r.scoring = scoring;
                    r.renormalize = [Renormalize::None, Renormalize::SUM][rule % 2];
                    r.selection_bias = rule != 1;
                    r.groups = match rule {
                        0 | 1 => groups(4, 2, GroupScore::Max, fill),
                        2 => groups(e.min(32), 3, GroupScore::Max, fill),
                        _ => None,
                    };
                    match rule {
                        3 => (r.softcap, r.selection_bias) = (Some(2.0), false),
                        4 => (r.bias, r.expert_scale) = (true, true),
                        5 => r.capacity = Capacity::Batch { fraction: 0.5 },
                        _ => {}
                    }
                });
                cases.push(RouterCase::faulty(&format!("rule {rule}"), config));
            }
        }
        if k == 2 {
            let jitter = 0.05;
            cases.push(RouterCase::faulty(
                "sparsemixer",
                config([8, e, k], |r| {
                    (r.scoring, r.renormalize) =
                        (Scoring::SparseMixer { jitter }, Renormalize::None);
                }),
            ));
        }
    }
    cases
}

impl<T: Storage> RouterCase<T> {
    fn faulty(what: &str, config: MoeConfig) -> Self {
        let (h, e, tokens) = (config.hidden_size, config.num_experts, 18);
        let mut rng = Rng::new(15);
        let mut x = rng.grid::<T>(tokens * h, 4, 0.25);
        let mut matrix = rng.grid::<T>(e * h, 4, 0.125);
        // As in `faulty_logits`; the last tokens meet no NaN, the very last nothing at all.
        for (expert, column, value) in
            [(1, 0, f64::INFINITY), (3, 1, f64::NEG_INFINITY), (e - 1, 2, f64::NAN)]
        {
            matrix[expert * h..][..h].fill(T::nearest(0.0));
            matrix[expert * h + column] = T::nearest(value);
        }
        for (token, x) in x.chunks_mut(h).enumerate() {
            x[0] = T::nearest([1.0, -1.0, 0.0][token % 3]);
            x[1] = T::nearest([1.0, -1.0, 0.0][token / 3 % 3]);
        }
        x[16 * h..17 * h].fill(T::nearest(f64::NAN));
        x[17 * h..].fill(T::nearest(0.0));
        let mut weights = RouterWeights::model(matrix.clone());
        let r = &config.router;
        weights.bias = r.bias.then(|| rng.grid(e, 4, 0.125));
        weights.selection_bias = r.selection_bias.then(|| rng.grid(e, 2, 0.25));
        weights.expert_scale = r.expert_scale.then(|| rng.grid(e, 4, 0.5));
        let wide_of = |part: &Option<Vec<f32>>| part.as_ref().map(|part| wide(part));
        let parts = Parts {
            bias: wide_of(&weights.bias),
            selection_bias: wide_of(&weights.selection_bias),
            expert_scale: wide_of(&weights.expert_scale),
            ..Parts::default()
        };
        Self {
            what: format!("{what} faulty, {} {config:?}", T::NAME),
            config,
            x,
            weights,
            token_ids: None,
            sequence_offsets: None,
            parts,
            matrix: wide(&matrix),
            pad: LOOSE,
        }
    }
}

/// Ties among biased scores and among groups: the lowest ids, of experts and of groups.
pub(crate) fn check_ties<B: Backend, T: Storage>(device: &Device<B>) {
    for (fill, tokens, e, k) in
        [(GroupFill::Zero, 9, 64, 7), (GroupFill::NegativeInfinity, 5, 512, 32)]
    {
        // 1/2, and 1/E: sums with biases are exact.
        for scoring in [Scoring::Sigmoid, Scoring::Softmax] {
            for score in [GroupScore::Max, GroupScore::Top2Sum] {
                let config = config([8, e, k], |r| {
                    (r.scoring, r.selection_bias) = (scoring, true);
                    r.groups = groups(16, 9, score, fill);
                });
                let mut case = RouterCase::<T>::faulty("ties", config);
                let mut rng = Rng::new(e as u64);
                case.x = rng.grid(tokens * 8, 2, 0.5);
                // All logits, and so all scores, are equal; biases on a coarse grid decide.
                case.weights = RouterWeights::model(vec![T::nearest(0.0); e * 8]);
                let bias: Vec<f32> = rng.grid(e, 1, 0.5);
                case.parts.selection_bias = Some(wide(&bias));
                case.weights.selection_bias = Some(bias);
                case.matrix = vec![0.0; e * 8];
                case.check(device, &case.truth());
            }
        }
    }
}

/// A number of tokens in the backend's memory, with sequences that reach past it.
pub(crate) fn check_live_tokens<B: Backend, T: Storage>(device: &Device<B>) {
    let names = ["all at once", "capacity by sequence (Switch)", "a hash table (DeepSeek-V4)"];
    for (what, tokens, config) in ruled().into_iter().filter(|(what, ..)| names.contains(what)) {
        let mut case = RouterCase::<T>::new(what, config, tokens, &mut Rng::new(77));
        if matches!(case.config.router.capacity, Capacity::Sequence { .. }) {
            // The last sequence ends where the tokens do, whatever its offset says.
            let offsets = vec![0, 5, tokens as u32 / 2, u32::MAX];
            case.parts.sequence_offsets = Some(offsets.clone());
            case.sequence_offsets = Some(offsets);
        }
        let (h, e, k) = (case.config.hidden_size, case.config.router_experts(), case.config.top_k);
        for count in [0, 1, tokens - 3, tokens, tokens + 1] {
            let live = count.min(tokens);
            let mut fewer = case.clone();
            fewer.x.truncate(live * h);
            let ids = case.token_ids.as_ref().map(|ids| ids[..live].to_vec());
            fewer.parts.token_ids = ids;
            let truth = fewer.truth();
            let mut poisoned = case.clone();
            poisoned.x[live * h..].fill(T::POISON);
            let given = poisoned.run(device, Some(count as u32));
            let (logits, past_logits) = given.logits.split_at(live * e);
            let (ids, past_ids) = given.ids.split_at(live * k);
            let (weights, past_weights) = given.weights.split_at(live * k);
            let own =
                Routed { logits: logits.to_vec(), ids: ids.to_vec(), weights: weights.to_vec() };
            let what = format!("{count} tokens of {}", case.what);
            check_router_with(&what, &case.config, &fewer.parts, &own, &truth);
            let past = [past_logits, past_weights].concat();
            assert!(past.iter().all(|value| value.bits() == f32::POISON.bits()), "{what}");
            assert!(past_ids.iter().all(|&id| id == i32::POISON), "{what}");
        }
    }
}
