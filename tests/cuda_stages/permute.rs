//! Permute: rows in expert order, bit for bit.

use super::common::*;
use super::{for_each_float16, on_every_device, same_bits_everywhere};

#[track_caller]
fn check<T: Storage>(what: &str, x: &[T], hidden: usize, ids: (&[i32], usize, usize), pad: Pad) {
    let plan = reference::plan(ids.0, ids.1, ids.2, None);
    let mut expected = bits(&reference::permute(x, &plan, hidden));
    expected.resize(ids.0.len() * hidden, T::POISON.bits());
    on_every_device(|device| {
        let given = bits(&run_permute(device, x, hidden, ids, pad));
        assert_exact(&format!("{what} {}", T::NAME), &given, &expected, hidden);
    });
}

fn every_case<T: Storage>() {
    for case in cases() {
        let (h, e, k) = (case.config.hidden_size, case.config.num_experts, case.config.top_k);
        let data = Data::<T>::new(&case);
        let mut ids = data.routing(&case.config).ids;
        let mut rng = case.rng();
        check(&case.name, &data.x, h, (&ids, k, e), case.pad);
        ids.iter_mut().filter(|_| rng.below(4) == 0).for_each(|id| *id = -1);
        check(&case.name, &data.x, h, (&ids, k, e), LOOSE);
    }
}

#[test]
fn every_case_equals_the_oracle() {
    for_each_float16!(T => every_case::<T>());
}

/// More columns than a block has threads for, and a number that no block's width divides.
#[test]
fn wide_rows() {
    let mut rng = Rng::new(1);
    for hidden in [1016, 1024, 1032, 2880, 4104] {
        let x = rng.full::<half::bf16>(5 * hidden, 1.0);
        check("wide", &x, hidden, (&rng.ids(5, 7, 3), 3, 7), LOOSE);
    }
}

fn odd_values<T: Storage>() {
    let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 0.0, 1e-40, 65504.0];
    let mut x: Vec<T> = (0..16 * 8).map(|place| T::nearest(odd[place % odd.len()])).collect();
    // A NaN of its own bits.
    x[21] = T::POISON;
    check("odd values", &x, 8, (&Rng::new(1).ids(16, 6, 3), 3, 6), TIGHT);
}

#[test]
fn values_are_copied_bit_for_bit() {
    for_each_float16!(T => odd_values::<T>());
}

#[test]
fn nothing_is_written_where_nothing_is_routed() {
    let x = Rng::new(2).full::<half::f16>(33 * 8, 1.0);
    check("none", &x, 8, (&[-1; 66], 2, 5), LOOSE);
}

#[test]
fn the_same_bits_every_time() {
    let mut rng = Rng::new(4);
    let x = rng.full::<half::bf16>(130 * 40, 1.0);
    let ids = rng.ids(130, 16, 4);
    same_bits_everywhere("permute", |device| {
        bits(&run_permute(device, &x, 40, (&ids, 4, 16), LOOSE))
    });
}
