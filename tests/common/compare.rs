//! The one comparer: floats by relative L2, everything else exactly.

use std::fmt::Debug;

/// Whether two values are both finite, or the same NaN or infinity.
fn same_mask(a: f64, b: f64) -> bool {
    match (a.is_finite(), b.is_finite()) {
        (true, true) => true,
        (false, false) => a.is_nan() == b.is_nan() && (a.is_nan() || a == b),
        _ => false,
    }
}

fn place(index: usize, cols: usize) -> String {
    match cols {
        0 => format!("[{index}]"),
        cols => format!("[{}, {}]", index / cols, index % cols),
    }
}

fn worst(
    actual: &[f64],
    expected: &[f64],
    cols: usize,
    badness: impl Fn(f64, f64) -> f64,
) -> String {
    let mut order: Vec<usize> = (0..actual.len()).collect();
    order.sort_by(|&a, &b| {
        badness(actual[b], expected[b]).total_cmp(&badness(actual[a], expected[a]))
    });
    let lines = order.iter().take(3).map(|&index| {
        format!("  {} = {:e}, expected {:e}", place(index, cols), actual[index], expected[index])
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// `|actual - expected| / |expected|` over all elements of a matrix of `cols` columns, or what
/// forbids it: another length, or a NaN or infinity on one side alone.
pub(crate) fn rel_l2(actual: &[f64], expected: &[f64], cols: usize) -> Result<f64, String> {
    if actual.len() != expected.len() {
        return Err(format!("{} elements, expected {}", actual.len(), expected.len()));
    }
    let differing = actual.iter().zip(expected).filter(|&(&a, &b)| !same_mask(a, b)).count();
    if differing > 0 {
        let worst = worst(actual, expected, cols, |a, b| f64::from(!same_mask(a, b)));
        return Err(format!("{differing} NaN or Inf on one side alone\n{worst}"));
    }
    let (mut error, mut norm) = (0.0, 0.0);
    for (a, b) in actual.iter().zip(expected).filter(|(_, b)| b.is_finite()) {
        error += (a - b) * (a - b);
        norm += b * b;
    }
    Ok(if error == 0.0 { 0.0 } else { (error / norm).sqrt() })
}

/// Relative L2 at most `bound`, over all elements; and no element off by more than `bound` times
/// its own size plus four times the rms of its row or of all, so that one wrong element among
/// many is found.
#[track_caller]
pub(crate) fn assert_close(
    what: &str,
    actual: &[f64],
    expected: &[f64],
    cols: usize,
    bound: f64,
) -> f64 {
    match rel_l2(actual, expected, cols) {
        Err(reason) => panic!("{what}: {reason}"),
        Ok(error) if error <= bound => {}
        Ok(error) => panic!(
            "{what}: relative L2 {error:.3e}, bound {bound:.3e}\n{}",
            worst(actual, expected, cols, |a, b| (a - b).abs())
        ),
    }
    let rms = |values: &[f64]| {
        let finite = values.iter().filter(|value| value.is_finite());
        (finite.map(|value| value * value).sum::<f64>() / values.len() as f64).sqrt()
    };
    let rms_of_all = rms(expected);
    for (row, (actual, expected)) in
        actual.chunks(cols.max(1)).zip(expected.chunks(cols.max(1))).enumerate()
    {
        let rms = rms(expected).max(rms_of_all);
        for (col, (a, b)) in actual.iter().zip(expected).enumerate() {
            let allowed = bound * (b.abs() + 4.0 * rms);
            assert!(
                !b.is_finite() || (a - b).abs() <= allowed,
                "{what}: [{row}, {col}] = {a:e}, expected {b:e} within {allowed:.3e}"
            );
        }
    }
    rel_l2(actual, expected, cols).unwrap()
}

/// Equal in every element.
#[track_caller]
pub(crate) fn assert_exact<T: PartialEq + Debug>(
    what: &str,
    actual: &[T],
    expected: &[T],
    cols: usize,
) {
    assert_eq!(actual.len(), expected.len(), "{what}: number of elements");
    let differing: Vec<usize> =
        (0..actual.len()).filter(|&index| actual[index] != expected[index]).collect();
    let lines = differing.iter().take(5).map(|&index| {
        format!("  {} = {:?}, expected {:?}", place(index, cols), actual[index], expected[index])
    });
    assert!(
        differing.is_empty(),
        "{what}: {} of {} differ\n{}",
        differing.len(),
        actual.len(),
        lines.collect::<Vec<_>>().join("\n")
    );
}
