//! Combine on test data: a backend's stage with all its terms.

use moe_kernels::backend::Backend;
use moe_kernels::memory::{Matrix, MatrixMut};
use moe_kernels::ops::{Combine, Output, SharedRows, Write};

use super::stages::odd;
use super::{
    Bits, Device, LOOSE, Pad, Placed, Rng, Storage, TIGHT, assert_exact, assert_within, bits,
    reference, round, wide,
};

/// A token's experts, the rows of all, and what the output held before.
#[derive(Clone, Copy)]
pub(crate) struct CombineInput<'a, T> {
    pub(crate) ids: &'a [i32],
    pub(crate) top_k: usize,
    pub(crate) experts: usize,
    pub(crate) weights: &'a [f32],
    /// `[routed, H]`.
    pub(crate) rows: &'a [T],
    pub(crate) before: &'a [T],
    pub(crate) hidden: usize,
}

/// Rows, weights of tokens, and a scale.
type Shared<'a, T> = (&'a [T], Option<&'a [f32]>, f32);

/// What is combined besides experts' rows.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a, T> {
    /// All weights are 1, and none are given.
    pub(crate) unweighted: bool,
    pub(crate) scale: f32,
    /// `[T, H]`: the output of experts from id E on, and how many those are.
    pub(crate) zero: Option<(&'a [T], usize)>,
    /// `[T, H]`, weights `[T, 1]`, and the scale.
    pub(crate) shared: Option<Shared<'a, T>>,
    /// `[H]`.
    pub(crate) bias: Option<&'a [f32]>,
}

impl<T> Default for Terms<'_, T> {
    fn default() -> Self {
        Self { unweighted: false, scale: 1.0, zero: None, shared: None, bias: None }
    }
}

pub(crate) fn run_combine<B: Backend, T: Storage>(
    device: &Device<B>,
    input: &CombineInput<'_, T>,
    write: Write,
    pad: Pad,
) -> Vec<T> {
    run_combine_for(device, input, write, pad, None)
}

/// The same for a number of tokens in the backend's memory.
pub(crate) fn run_combine_for<B: Backend, T: Storage>(
    device: &Device<B>,
    input: &CombineInput<'_, T>,
    write: Write,
    pad: Pad,
    num_tokens: Option<u32>,
) -> Vec<T> {
    run_combine_with(device, input, &Terms::default(), write, pad, num_tokens)
}

/// The same with further terms.
pub(crate) fn run_combine_with<B: Backend, T: Storage>(
    device: &Device<B>,
    input: &CombineInput<'_, T>,
    terms: &Terms<'_, T>,
    write: Write,
    pad: Pad,
    num_tokens: Option<u32>,
) -> Vec<T> {
    let CombineInput { ids, top_k, experts, weights, rows, before, hidden } = *input;
    let plan = device.plan(ids, top_k, experts);
    let mut rows = rows.to_vec();
    // Rows past the last offset, and weights of assignments without a row, must not be read.
    rows.resize(ids.len() * hidden, T::POISON);
    let last = (experts + terms.zero.map_or(0, |(_, count)| count)) as i32;
    let weights: Vec<f32> = ids
        .iter()
        .zip(weights)
        .map(|(&id, &weight)| if (0..last).contains(&id) { weight } else { f32::POISON })
        .collect();
    let tokens = ids.len() / top_k;
    let rows = Placed::new(&rows, ids.len(), hidden, pad);
    let weights = Placed::new(&weights, tokens, top_k, odd(pad));
    let out = Placed::new(before, tokens, hidden, pad);
    let (rows_buffer, weights_buffer) = (rows.put(device), weights.put(device));
    let mut out_buffer = out.put(device);
    let matrix = MatrixMut::new("output", &mut out_buffer, out.layout).unwrap();
    let output = match write {
        Write::Overwrite => Output::overwrite(matrix),
        Write::Accumulate => Output::accumulate(matrix),
    };
    let count = num_tokens.map(|count| device.put(&[count]));
    let rows = Matrix::new("rows", &rows_buffer, rows.layout).unwrap();
    let mut op = if terms.unweighted {
        Combine::unweighted(rows, &plan, output).unwrap()
    } else {
        let weights = Matrix::new("topk_weights", &weights_buffer, weights.layout).unwrap();
        Combine::new(rows, weights, &plan, output).unwrap()
    };
    op = op.with_scale(terms.scale);
    let ids = Placed::new(ids, tokens, top_k, odd(pad));
    let ids_buffer = ids.put(device);
    let x = terms.zero.map(|(x, _)| Placed::new(x, tokens, hidden, pad));
    let x_buffer = x.as_ref().map(|x| x.put(device));
    if let (Some(x), Some(buffer), Some((_, count))) = (&x, &x_buffer, terms.zero) {
        let x = Matrix::new("x", buffer, x.layout).unwrap();
        let ids = Matrix::new("ids", &ids_buffer, ids.layout).unwrap();
        op = op.with_zero_experts(x, ids, experts..experts + count).unwrap();
    }
    let shared = terms.shared.map(|(rows, ..)| Placed::new(rows, tokens, hidden, pad));
    let shared_buffer = shared.as_ref().map(|rows| rows.put(device));
    let factors = terms.shared.and_then(|(_, weights, _)| weights);
    let factors = factors.map(|weights| Placed::new(weights, tokens, 1, odd(pad)));
    let factors_buffer = factors.as_ref().map(|weights| weights.put(device));
    if let (Some(rows), Some(buffer), Some((.., scale))) = (&shared, &shared_buffer, terms.shared) {
        let rows = Matrix::new("shared", buffer, rows.layout).unwrap();
        let weights = factors.as_ref().zip(factors_buffer.as_ref());
        let weights = weights
            .map(|(weights, buffer)| Matrix::new("weights", buffer, weights.layout).unwrap());
        op = op.with_shared(SharedRows { rows, weights, scale }).unwrap();
    }
    let bias = terms.bias.map(|bias| device.put(bias));
    if let Some(bias) = &bias {
        op = op.with_bias(bias).unwrap();
    }
    if let Some(count) = &count {
        op = op.with_num_tokens(count).unwrap();
    }
    device.backend.combine(op, &device.stream).unwrap();
    out.take("output", device, &out_buffer)
}

/// A random combination of terms against the truth, overwriting and accumulating.
pub(crate) fn check_combine_terms<B: Backend, T: Storage>(device: &Device<B>, seed: u64) {
    let mut rng = Rng::new(seed);
    let (tokens, hidden) = ([1, 3, 33, 70][rng.below(4)], 8 * [1, 3, 16, 129][rng.below(4)]);
    let (experts, top_k) = (1 + rng.below(12), 1 + rng.below(5));
    let zeros = rng.below(3) * (1 + rng.below(4));
    let ids: Vec<i32> = (0..tokens * top_k)
        .map(|_| match rng.below(4) {
            0 => [-1, i32::MIN, (experts + zeros) as i32][rng.below(3)],
            1 => (experts + rng.below(zeros + 1)) as i32,
            _ => rng.below(experts) as i32,
        })
        .collect();
    let plan = reference::plan(&ids, top_k, experts, None);
    let rows: Vec<T> = rng.full(plan.token_of_row.len() * hidden, 1.0);
    let weights: Vec<f32> = rng.full(ids.len(), 0.7);
    let x: Vec<T> = rng.full(tokens * hidden, 1.0);
    let shared: Vec<T> = rng.full(tokens * hidden, 1.0);
    let factors: Vec<f32> = rng.full(tokens, 1.0);
    let bias: Vec<f32> = rng.full(hidden, 1.0);
    let before: Vec<T> = rng.full(tokens * hidden, 1.0);
    let terms = Terms {
        unweighted: rng.below(3) == 0,
        scale: [1.0, 0.5, -2.5][rng.below(3)],
        zero: (zeros > 0).then_some((&x[..], zeros)),
        shared: (rng.below(2) == 0).then(|| {
            let factors = (rng.below(2) == 0).then_some(&factors[..]);
            (&shared[..], factors, [1.0, 0.5, 3.0][rng.below(3)])
        }),
        bias: (rng.below(2) == 0).then_some(&bias[..]),
    };
    let unweighted = terms.unweighted;
    let truth_of = |before: Option<&[f64]>, store: reference::Store<'_>| {
        let factors = terms.shared.map(|(_, factors, scale)| {
            let ones = vec![1.0; tokens];
            let factors = wide(factors.unwrap_or(&ones));
            factors.iter().map(|factor| factor * f64::from(scale)).collect()
        });
        let first = experts as i32;
        let terms = reference::Terms {
            scale: terms.scale.into(),
            zero: (zeros > 0).then(|| (wide(&x), ids.clone(), first..first + zeros as i32)),
            shared: factors.map(|factors| (wide(&shared), factors)),
            bias: terms.bias.map(wide),
        };
        let sizes = [hidden, top_k];
        let weights = if unweighted { vec![1.0; ids.len()] } else { wide(&weights) };
        reference::combine_with(&terms, &wide(&rows), &weights, &plan, sizes, before, store)
    };
    let pad = if rng.below(2) == 0 { TIGHT } else { LOOSE };
    for write in [Write::Overwrite, Write::Accumulate] {
        let poison = vec![T::POISON; before.len()];
        let wide_before = wide(&before);
        let (before, added) = match write {
            Write::Overwrite => (&poison, None),
            Write::Accumulate => (&before, Some(&wide_before[..])),
        };
        let input = CombineInput {
            ids: &ids,
            top_k,
            experts,
            weights: &weights,
            rows: &rows,
            before,
            hidden,
        };
        let given = run_combine_with(device, &input, &terms, write, pad, None);
        let (truth, plain) = (truth_of(added, &reference::exact), truth_of(added, &round::<T>));
        let what = format!("seed {seed}, {}, {write:?}", T::NAME);
        assert_within::<T>(&what, &wide(&given), &truth, &plain, hidden);
        for (token, ids) in ids.chunks(top_k).enumerate() {
            let is_alone = !ids.iter().any(|id| (0..(experts + zeros) as i32).contains(id));
            if is_alone && terms.shared.is_none() && terms.bias.is_none() {
                let own = token * hidden..(token + 1) * hidden;
                match write {
                    Write::Overwrite => assert_eq!(bits(&given[own]), vec![0; hidden], "{what}"),
                    Write::Accumulate => {
                        assert_eq!(bits(&given[own.clone()]), bits(&before[own]), "{what}");
                    }
                }
            }
        }
    }
}

/// Terms are added in the documented order: another order gives another sum.
pub(crate) fn check_order_of_terms<B: Backend>(device: &Device<B>) {
    let great = 2f32.powi(26);
    let row = |value: f32| [half::bf16::from_f32(value); 8];
    // What the output held, the experts of k = 0 and 1 (the second without weights), the shared row,
    // the bias, and their sum.
    for ([before, first, second, shared, bias], expected) in [
        ([great, -great, 1.0, 0.0, 0.0], 1.0),
        ([1.0, great, -great, 2.0, 0.0], 2.0),
        ([0.0, 1.0, great, -great, 4.0], 4.0),
        ([0.0, great, -great, 2.0, 4.0], 6.0),
        ([0.0, 1.0, 2.0, great, -great], 0.0),
        ([1.0, 0.0, great, 1.0, -great], 0.0),
    ] {
        let input = CombineInput {
            ids: &[0, 1],
            top_k: 2,
            experts: 1,
            weights: &[1.0; 2],
            rows: &row(first),
            before: &row(before),
            hidden: 8,
        };
        let (x, shared, bias) = (row(second), row(shared), [bias; 8]);
        let terms = Terms {
            zero: Some((&x[..], 1)),
            shared: Some((&shared[..], None, 1.0)),
            bias: Some(&bias[..]),
            ..Terms::default()
        };
        let given = run_combine_with(device, &input, &terms, Write::Accumulate, TIGHT, None);
        let what = format!("{before} + {first} + {second} + {shared:?} + {bias:?}");
        assert_exact(&what, &wide(&given), &[expected; 8], 8);
    }
}
