//! Combine: weighted sums, overwriting and accumulating, against the oracle.

#![cfg(feature = "cpu")]

mod common;

use common::*;
use moe_kernels::ops::Write;

fn check<T: Storage>(case: &Case, ids: &[i32]) {
    let (h, k, e) = (case.config.hidden_size, case.config.top_k, case.config.num_experts);
    let plan = reference::plan(ids, k, e, None);
    let mut rng = case.rng();
    let rows: Vec<T> = rng.full(plan.token_of_row.len() * h, 1.0);
    let weights: Vec<f32> = rng.full(ids.len(), 0.7);
    let before: Vec<T> = rng.full(case.tokens * h, 1.0);
    let poison = vec![T::POISON; before.len()];
    let mut input = CombineInput {
        ids,
        top_k: k,
        experts: e,
        weights: &weights,
        rows: &rows,
        before: &poison,
        hidden: h,
    };
    let expected = |before: Option<&[f64]>, store| {
        reference::combine(&wide(&rows), &wide(&weights), &plan, h, k, before, store)
    };

    let given = run_combine(&cpu(), &input, Write::Overwrite, case.pad);
    let (truth, plain) = (expected(None, &reference::exact), expected(None, &round::<T>));
    assert_within::<T>(&format!("{}: overwrite", case.name), &wide(&given), &truth, &plain, h);

    input.before = &before;
    let given = run_combine(&cpu(), &input, Write::Accumulate, case.pad);
    let before_wide = wide(&before);
    let truth = expected(Some(&before_wide), &reference::exact);
    let plain = expected(Some(&before_wide), &round::<T>);
    assert_within::<T>(&format!("{}: accumulate", case.name), &wide(&given), &truth, &plain, h);

    for (token, assignments) in ids.chunks(k).enumerate() {
        if assignments.iter().all(|&id| id < 0) {
            let own = token * h..(token + 1) * h;
            assert_eq!(bits(&given[own.clone()]), bits(&before[own]), "token {token}");
        }
    }
}

fn every_case<T: Storage>() {
    for case in cases() {
        let mut ids = Data::<T>::new(&case).routing(&case.config).ids;
        check::<T>(&case, &ids);
        let mut rng = case.rng();
        ids.iter_mut().filter(|_| rng.below(2) == 0).for_each(|id| *id = -1);
        check::<T>(&case, &ids);
        check::<T>(&case, &vec![-1; ids.len()]);
    }
}

#[test]
fn every_case_equals_the_oracle() {
    for_each_storage!(T => every_case::<T>());
}

fn tokens_without_experts<T: Storage>() {
    let ids = [1, -1, -1, -1, 0, 1];
    let rows: Vec<T> = Rng::new(1).full(3 * 8, 1.0);
    let odd = [f64::NAN, f64::INFINITY, -0.0, 1e-40, 0.0, -1.0, 3.0, f64::NEG_INFINITY];
    let mut before: Vec<T> = odd.map(T::nearest).repeat(3);
    before[8] = T::POISON;
    // A signalling NaN: any arithmetic would quieten it.
    before[13] = signalling::<T>();
    let weights = [0.5; 6];
    let input = CombineInput {
        ids: &ids,
        top_k: 2,
        experts: 2,
        weights: &weights,
        rows: &rows,
        before: &before,
        hidden: 8,
    };
    let given = run_combine(&cpu(), &input, Write::Accumulate, TIGHT);
    assert_exact("kept bits", &bits(&given[8..16]), &bits(&before[8..16]), 8);
    let given = run_combine(&cpu(), &input, Write::Overwrite, TIGHT);
    assert_exact("zeros", &bits(&given[8..16]), &[0; 8], 8);
    assert!(wide(&given).iter().all(|value| value.is_finite()), "the old output was read");
}

fn signalling<T: Storage>() -> T {
    let any: Box<dyn std::any::Any> = match T::NAME {
        "f32" => Box::new(f32::from_bits(0x7f80_0001)),
        "bf16" => Box::new(half::bf16::from_bits(0x7f81)),
        _ => Box::new(half::f16::from_bits(0x7c01)),
    };
    *any.downcast::<T>().unwrap()
}

#[test]
fn a_token_without_experts_gets_zeros_or_keeps_its_bits() {
    for_each_storage!(T => tokens_without_experts::<T>());
}

/// A sum is rounded once: parts that cancel or vanish in the storage type are not lost.
fn rounded_once<T: Storage>() {
    let step = match T::NAME {
        "f32" => return,
        "bf16" => 2f64.powi(-9),
        _ => 2f64.powi(-12),
    };
    let k = 32;
    let ids: Vec<i32> = (0..k).collect();
    let rows: Vec<T> = vec![T::nearest(1.0); 32 * 8];
    // Each step alone is lost when added to 1 in T; all of them are not.
    let weights = vec![step as f32; 32];
    let before = vec![T::nearest(1.0); 8];
    let input = CombineInput {
        ids: &ids,
        top_k: 32,
        experts: 32,
        weights: &weights,
        rows: &rows,
        before: &before,
        hidden: 8,
    };
    let given = run_combine(&cpu(), &input, Write::Accumulate, TIGHT);
    assert_exact("rounded once", &wide(&given), &[1.0 + 32.0 * step; 8], 8);
    assert_eq!(round::<T>(1.0 + step), 1.0, "the test cannot tell");
}

#[test]
fn a_sum_is_rounded_once() {
    for_each_storage!(T => rounded_once::<T>());
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
        let rows: Vec<f32> = values.iter().rev().flat_map(|&value| [value; 8]).collect();
        let input = CombineInput {
            ids: &ids,
            top_k: 3,
            experts: 3,
            weights: &[1.0; 3],
            rows: &rows,
            before: &[before; 8],
            hidden: 8,
        };
        let given = run_combine(&cpu(), &input, Write::Accumulate, TIGHT);
        assert_exact(&format!("{values:?} onto {before}"), &given, &[expected; 8], 8);
        if before == 0.0 {
            let given = run_combine(&cpu(), &input, Write::Overwrite, TIGHT);
            assert_exact(&format!("{values:?}"), &given, &[expected; 8], 8);
        }
    }
}

#[test]
fn one_tokens_fault_touches_no_other() {
    let (h, k) = (24, 2);
    let mut rng = Rng::new(4);
    let ids = rng.ids(33, 5, k);
    let plan = reference::plan(&ids, k, 5, None);
    let rows: Vec<f32> = rng.full(66 * h, 1.0);
    let weights: Vec<f32> = rng.full(66, 1.0);
    let before = vec![f32::POISON; 33 * h];
    let go = |rows: &[f32], weights: &[f32]| {
        let input = CombineInput {
            ids: &ids,
            top_k: k,
            experts: 5,
            weights,
            rows,
            before: &before,
            hidden: h,
        };
        run_combine(&cpu(), &input, Write::Overwrite, TIGHT)
    };
    let clean = go(&rows, &weights);
    let mut faulty_rows = rows.clone();
    faulty_rows[plan.row_of_assignment[2 * 7] as usize * h..][..h].fill(f32::NAN);
    let mut faulty_weights = weights.clone();
    faulty_weights[2 * 7 + 1] = f32::NAN;
    for given in [go(&faulty_rows, &weights), go(&rows, &faulty_weights)] {
        for token in 0..33 {
            let own = token * h..(token + 1) * h;
            let same = bits(&given[own.clone()]) == bits(&clean[own]);
            assert_eq!(same, token != 7, "token {token}");
        }
    }
}

#[test]
fn the_same_bits_every_time() {
    let case = cases().into_iter().find(|case| case.name.starts_with("ragged [T 130")).unwrap();
    let (h, k, e) = (case.config.hidden_size, case.config.top_k, case.config.num_experts);
    let mut rng = case.rng();
    let ids = rng.ids(case.tokens, e, k);
    let rows: Vec<half::bf16> = rng.full(ids.len() * h, 1.0);
    let weights: Vec<f32> = rng.full(ids.len(), 1.0);
    let before: Vec<half::bf16> = rng.full(case.tokens * h, 1.0);
    same_on_every_pool("combine", || {
        let input = CombineInput {
            ids: &ids,
            top_k: k,
            experts: e,
            weights: &weights,
            rows: &rows,
            before: &before,
            hidden: h,
        };
        [Write::Overwrite, Write::Accumulate]
            .map(|write| bits(&run_combine(&cpu(), &input, write, LOOSE)))
    });
}

#[test]
fn random_terms_equal_the_oracle() {
    for_each_storage!(T => (0..60).for_each(|seed| check_combine_terms::<_, T>(&cpu(), seed)));
}

#[test]
fn terms_are_added_in_their_order() {
    check_order_of_terms(&cpu());
}
