//! Medians, ranges, ratios and geometric means.

use serde::Serialize;

/// What several runs gave for one figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The middle one, or the mean of both in the middle.
    pub median: f64,
    /// The smallest.
    pub low: f64,
    /// The largest.
    pub high: f64,
}

impl Spread {
    /// That of `values`; `None` if there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&low, &high) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            1 => values[middle],
            _ => (values[middle - 1] + values[middle]) / 2.0,
        };
        Some(Self { median, low, high })
    }
}

/// `over` by `under`, if both are more than nothing.
pub fn ratio(over: f64, under: f64) -> Option<f64> {
    (over > 0.0 && under > 0.0).then(|| over / under)
}

/// The geometric mean; `None` if there are no values.
pub fn geometric_mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0_u32);
    for value in values {
        sum += value.ln();
        count += 1;
    }
    (count > 0).then(|| (sum / f64::from(count)).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let of = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(of(&[]), None);
        let expect = |median, low, high| Some(Spread { median, low, high });
        assert_eq!(of(&[7.0]), expect(7.0, 7.0, 7.0));
        assert_eq!(of(&[9.0, 1.0, 2.0]), expect(2.0, 1.0, 9.0));
        assert_eq!(of(&[4.0, 1.0, 2.0, 9.0]), expect(3.0, 1.0, 9.0));
    }

    #[test]
    fn ratios_need_both() {
        assert_eq!(ratio(6.0, 2.0), Some(3.0));
        assert_eq!(ratio(6.0, 0.0), None);
        assert_eq!(ratio(0.0, 2.0), None);
    }

    #[test]
    fn twice_and_half_cancel_out() {
        let mean = geometric_mean([2.0, 0.5]).expect("two");
        assert!((mean - 1.0).abs() < 1e-12);
        let mean = geometric_mean([1.0, 10.0, 100.0]).expect("three");
        assert!((mean - 10.0).abs() < 1e-9);
        assert_eq!(geometric_mean([]), None);
    }
}
