//! Combine: weighted sums, overwriting and accumulating.

use half::bf16;
use moe_kernels::ops::Write;

use super::common::*;
use super::{for_each_float16, on_device, on_every_device, same_bits_everywhere};

/// On the devices whose turns these are.
fn check<T: Storage>(case: &Case, ids: &[i32], turns: std::ops::Range<usize>) {
    let (h, k, e) = (case.config.hidden_size, case.config.top_k, case.config.num_experts);
    let plan = reference::plan(ids, k, e, None);
    let mut rng = case.rng();
    let rows: Vec<T> = rng.full(plan.token_of_row.len() * h, 1.0);
    let weights: Vec<f32> = rng.full(ids.len(), 0.7);
    let before: Vec<T> = rng.full(case.tokens * h, 1.0);
    let poison = vec![T::POISON; before.len()];
    for (write, before) in [(Write::Overwrite, &poison), (Write::Accumulate, &before)] {
        let input = CombineInput {
            ids,
            top_k: k,
            experts: e,
            weights: &weights,
            rows: &rows,
            before,
            hidden: h,
        };
        let added = (write == Write::Accumulate).then(|| wide(before));
        let expected = |store| {
            let (rows, weights) = (wide(&rows), wide(&weights));
            reference::combine(&rows, &weights, &plan, h, k, added.as_deref(), store)
        };
        let (truth, plain) = (expected(&reference::exact), expected(&round::<T>));
        let check = |device: &Emulated| {
            let given = run_combine(device, &input, write, case.pad);
            let what = format!("{}: {write:?}", case.name);
            assert_within::<T>(&what, &wide(&given), &truth, &plain, h);
            for (token, assignments) in ids.chunks(k).enumerate() {
                if assignments.iter().all(|&id| id < 0) {
                    let own = token * h..(token + 1) * h;
                    match write {
                        Write::Overwrite => assert_eq!(bits(&given[own]), vec![0; h]),
                        Write::Accumulate => {
                            assert_eq!(bits(&given[own.clone()]), bits(&before[own]));
                        }
                    }
                }
            }
        };
        turns.clone().for_each(|turn| on_device(turn, check));
    }
}

fn every_case<T: Storage>() {
    for (turn, case) in cases().into_iter().enumerate() {
        let turn = turn + 2 * usize::from(T::NAME == "f16");
        let mut ids = Data::<T>::new(&case).routing(&case.config).ids;
        check::<T>(&case, &ids, turn..turn + 1);
        let mut rng = case.rng();
        ids.iter_mut().filter(|_| rng.below(2) == 0).for_each(|id| *id = -1);
        check::<T>(&case, &ids, turn + 1..turn + 2);
        check::<T>(&case, &vec![-1; ids.len()], turn..turn + 1);
    }
}

#[test]
fn every_case_equals_the_oracle() {
    for_each_float16!(T => every_case::<T>());
}

/// More columns than a block has threads for, and every K.
#[test]
fn wide_rows_and_every_top_k() {
    let template = cases().remove(0);
    for (hidden, k) in [(1016, 1), (1024, 5), (1032, 3), (2880, 4), (4104, 32)] {
        let mut case = template.clone();
        (case.tokens, case.config.hidden_size, case.config.top_k) = (3, hidden, k);
        case.config.num_experts = 33;
        check::<bf16>(&case, &Rng::new(k as u64).ids(3, 33, k), 0..4);
    }
    for k in 1..=32 {
        let mut case = template.clone();
        (case.tokens, case.config.hidden_size, case.config.top_k) = (3, 8, k);
        case.config.num_experts = 32;
        check::<bf16>(&case, &Rng::new(k as u64).ids(3, 32, k), k..k + 1);
    }
}

/// NaN, infinities, subnormals and a signalling NaN, of tokens without experts.
fn odd_values_are_kept<T: Storage>() {
    let ids = [1, -1, -1, -1, 0, 1];
    let rows: Vec<T> = Rng::new(1).full(3 * 8, 1.0);
    let odd = [f64::NAN, f64::INFINITY, -0.0, 1e-40, 0.0, -1.0, 3.0, f64::NEG_INFINITY];
    let mut before: Vec<T> = odd.map(T::nearest).repeat(3);
    before[8] = T::POISON;
    let input = CombineInput {
        ids: &ids,
        top_k: 2,
        experts: 2,
        weights: &[0.5; 6],
        rows: &rows,
        before: &before,
        hidden: 8,
    };
    on_every_device(|device| {
        let given = run_combine(device, &input, Write::Accumulate, TIGHT);
        assert_exact("kept bits", &bits(&given[8..16]), &bits(&before[8..16]), 8);
        let given = run_combine(device, &input, Write::Overwrite, TIGHT);
        assert_exact("zeros", &bits(&given[8..16]), &[0; 8], 8);
        assert!(wide(&given).iter().all(|value| value.is_finite()), "the old output was read");
    });
}

#[test]
fn a_token_without_experts_gets_zeros_or_keeps_its_bits() {
    for_each_float16!(T => odd_values_are_kept::<T>());
}

/// A sum is rounded once: parts that vanish in the storage type one by one are not lost.
fn rounded_once<T: Storage>() {
    let step = if T::NAME == "bf16" { 2f64.powi(-9) } else { 2f64.powi(-12) };
    assert_eq!(round::<T>(1.0 + step), 1.0, "the test cannot tell");
    let ids: Vec<i32> = (0..32).collect();
    let input = CombineInput {
        ids: &ids,
        top_k: 32,
        experts: 32,
        weights: &[step as f32; 32],
        rows: &[T::nearest(1.0); 32 * 8],
        before: &[T::nearest(1.0); 8],
        hidden: 8,
    };
    on_every_device(|device| {
        let given = run_combine(device, &input, Write::Accumulate, TIGHT);
        assert_exact("rounded once", &wide(&given), &[1.0 + 32.0 * step; 8], 8);
    });
}

#[test]
fn a_sum_is_rounded_once() {
    for_each_float16!(T => rounded_once::<T>());
}

/// Sums are made in the order of k, from what the output held: another order gives another sum.
#[test]
fn a_sum_is_made_in_the_order_of_k() {
    let great = 2f32.powi(26);
    for (values, before, expected) in [
        ([great, 1.0, -great], 0.0, 0.0),
        ([great, -great, 1.0], 0.0, 1.0),
        ([1.0, great, -great], 0.0, 0.0),
        ([-great, 1.0, 1.0], great, 2.0),
        ([1.0, 1.0, -great], great, 0.0),
    ] {
        // Rows are in expert order: the reverse of the order of k.
        let ids = [2, 1, 0];
        let rows: Vec<bf16> =
            values.iter().rev().flat_map(|&value| [bf16::from_f32(value); 8]).collect();
        let input = CombineInput {
            ids: &ids,
            top_k: 3,
            experts: 3,
            weights: &[1.0; 3],
            rows: &rows,
            before: &[bf16::from_f32(before); 8],
            hidden: 8,
        };
        on_every_device(|device| {
            let given = run_combine(device, &input, Write::Accumulate, TIGHT);
            assert_exact(&format!("{values:?} onto {before}"), &wide(&given), &[expected; 8], 8);
        });
    }
}

#[test]
fn a_number_of_tokens_on_the_device() {
    let (h, k, tokens) = (24, 2, 37);
    let mut rng = Rng::new(4);
    let ids = rng.ids(tokens, 5, k);
    let rows: Vec<bf16> = rng.full(tokens * k * h, 1.0);
    let weights: Vec<f32> = rng.full(tokens * k, 1.0);
    let before: Vec<bf16> = rng.full(tokens * h, 1.0);
    let input = CombineInput {
        ids: &ids,
        top_k: k,
        experts: 5,
        weights: &weights,
        rows: &rows,
        before: &before,
        hidden: h,
    };
    on_every_device(|device| {
        for write in [Write::Overwrite, Write::Accumulate] {
            let all = run_combine(device, &input, write, TIGHT);
            for count in [0, 1, 36, 37, 38] {
                let live = tokens.min(count as usize) * h;
                let given = run_combine_for(device, &input, write, LOOSE, Some(count));
                assert_exact("live", &bits(&given[..live]), &bits(&all[..live]), h);
                assert_exact("past them", &bits(&given[live..]), &bits(&before[live..]), h);
            }
        }
    });
}

#[test]
fn the_same_bits_every_time() {
    let (h, k, tokens) = (72, 8, 50);
    let mut rng = Rng::new(9);
    let ids = rng.ids(tokens, 40, k);
    let rows: Vec<bf16> = rng.full(ids.len() * h, 1.0);
    let weights: Vec<f32> = rng.full(ids.len(), 1.0);
    let before: Vec<bf16> = rng.full(tokens * h, 1.0);
    let input = CombineInput {
        ids: &ids,
        top_k: k,
        experts: 40,
        weights: &weights,
        rows: &rows,
        before: &before,
        hidden: h,
    };
    same_bits_everywhere("combine", |device| {
        [Write::Overwrite, Write::Accumulate]
            .map(|write| bits(&run_combine(device, &input, write, LOOSE)))
    });
}

#[test]
fn random_terms_equal_the_oracle() {
    for_each_float16!(T => {
        for seed in 0..60 {
            let turn = seed as usize + 2 * usize::from(T::NAME == "f16");
            on_device(turn, |device| check_combine_terms::<_, T>(device, seed));
        }
    });
}

#[test]
fn terms_are_added_in_their_order() {
    on_every_device(check_order_of_terms);
}
