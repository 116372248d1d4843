//! Several measurements of one thing: smallest, median, largest.

use serde_json::{Value, json};

use crate::units::rate;

/// Measurements in order of size; at least one.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rates(Vec<f64>);

impl Rates {
    pub(super) fn sorted(mut rates: Vec<f64>) -> Self {
        rates.sort_by(f64::total_cmp);
        Rates(rates)
    }

    pub(super) fn min(&self) -> f64 {
        self.0[0]
    }

    pub(super) fn max(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    pub(super) fn median(&self) -> f64 {
        let n = self.0.len();
        (self.0[(n - 1) / 2] + self.0[n / 2]) / 2.0
    }

    pub(super) fn json(&self) -> Value {
        json!({ "min": self.min(), "median": self.median(), "max": self.max() })
    }

    /// `(12.1 to 12.9)`.
    pub(super) fn range(&self) -> String {
        format!("({} to {})", rate(self.min()), rate(self.max()))
    }
}

/// The median of the ratios of measurements that were taken in turn.
pub(super) fn pairs(ours: &[f64], theirs: &[f64]) -> f64 {
    Rates::sorted(ours.iter().zip(theirs).map(|(a, b)| a / b).collect()).median()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_between() {
        assert_eq!(Rates::sorted(vec![3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(Rates::sorted(vec![4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        assert_eq!(Rates::sorted(vec![7.0]).json(), json!({ "min": 7.0, "median": 7.0, "max": 7.0 }));
        // A machine that slows down for both does not change who is faster.
        assert_eq!(pairs(&[20.0, 10.0, 5.0], &[10.0, 5.0, 2.5]), 2.0);
    }
}
