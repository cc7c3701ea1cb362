//! Permute: rows in expert order, bit for bit.

#![cfg(feature = "cpu")]

mod common;

use common::*;

#[track_caller]
fn check<T: Storage>(what: &str, x: &[T], hidden: usize, ids: (&[i32], usize, usize), pad: Pad) {
    let plan = reference::plan(ids.0, ids.1, ids.2, None);
    let mut expected = bits(&reference::permute(x, &plan, hidden));
    expected.resize(ids.0.len() * hidden, T::POISON.bits());
    let given = bits(&run_permute(&cpu(), x, hidden, ids, pad));
    assert_exact(&format!("{what} {}", T::NAME), &given, &expected, hidden);
}

fn every_case<T: Storage>() {
    for case in cases() {
        let (h, e, k) = (case.config.hidden_size, case.config.num_experts, case.config.top_k);
        let data = Data::<T>::new(&case);
        let mut ids = data.routing(&case.config).ids;
        check(&case.name, &data.x, h, (&ids, k, e), case.pad);
        let mut rng = case.rng();
        ids.iter_mut().filter(|_| rng.below(4) == 0).for_each(|id| *id = -1);
        check(&case.name, &data.x, h, (&ids, k, e), LOOSE);
    }
}

#[test]
fn every_case_equals_the_oracle() {
    for_each_storage!(T => every_case::<T>());
}

fn odd_values<T: Storage>() {
    let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 0.0, 1e-40, 65504.0];
    let mut x: Vec<T> = (0..16 * 8).map(|place| T::nearest(odd[place % odd.len()])).collect();
    // A NaN of its own bits.
    x[21] = T::POISON;
    let ids = Rng::new(1).ids(16, 6, 3);
    check("odd values", &x, 8, (&ids, 3, 6), TIGHT);
}

#[test]
fn values_are_copied_bit_for_bit() {
    for_each_storage!(T => odd_values::<T>());
}

#[test]
fn nothing_is_written_where_nothing_is_routed() {
    check::<f32>("none", &Rng::new(2).full(33 * 8, 1.0), 8, (&[-1; 66], 2, 5), LOOSE);
}

#[test]
fn long_inputs() {
    let mut rng = Rng::new(3);
    for tokens in [8191, 8192, 8193] {
        let x = rng.full::<half::bf16>(tokens * 8, 1.0);
        let ids = rng.ids(tokens, 40, 4);
        check("long", &x, 8, (&ids, 4, 40), TIGHT);
    }
}

#[test]
fn the_same_bits_every_time() {
    let mut rng = Rng::new(4);
    let x = rng.full::<f32>(130 * 40, 1.0);
    let ids = rng.ids(130, 16, 4);
    same_on_every_pool("permute", || bits(&run_permute(&cpu(), &x, 40, (&ids, 4, 16), LOOSE)));
}
