//! Figures of runs that were made in turn: medians with their spread, and ratios pair by pair, since the machine's speed
//! drifts.

use std::fmt;

/// What was measured, run by run, in milliseconds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Series(Vec<f64>);

impl Series {
    /// Adds a run.
    pub(crate) fn push(&mut self, ms: f64) {
        self.0.push(ms);
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The middle run.
    pub(crate) fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        match (sorted.get(middle), sorted.get(middle.wrapping_sub(1))) {
            (Some(upper), Some(lower)) if sorted.len().is_multiple_of(2) => f64::midpoint(*upper, *lower),
            (Some(only), _) => *only,
            (None, _) => f64::NAN,
        }
    }

    /// What so many of a hundred do not exceed.
    pub(crate) fn at_percent(&self, percent: usize) -> f64 {
        let sorted = self.sorted();
        let at = (sorted.len() * percent).div_ceil(100);
        sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    /// The ratio of each run to the other series' run beside it.
    pub(crate) fn ratio_to(&self, other: &Self) -> Self {
        Self(
            self.0
                .iter()
                .zip(&other.0)
                .map(|(ours, theirs)| ours / theirs)
                .collect(),
        )
    }
}

/// Median, smallest and largest.
impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sorted = self.sorted();
        let (Some(first), Some(last)) = (sorted.first(), sorted.last()) else {
            return f.write_str("–");
        };
        let digits = if self.median() < 10.0 { 2 } else { 0 };
        write!(f, "{:.digits$} ({first:.digits$}–{last:.digits$})", self.median())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_and_ratios_go_pair_by_pair() {
        let ours = Series(vec![3.0, 1.0, 8.0, 2.0]);
        let theirs = Series(vec![1.0, 1.0, 4.0, 2.0]);
        assert_eq!(ours.median(), 2.5);
        assert_eq!(
            [50, 75, 99].map(|percent| ours.at_percent(percent)),
            [2.0, 3.0, 8.0]
        );
        assert_eq!(ours.ratio_to(&theirs).0, [3.0, 1.0, 2.0, 1.0]);
        assert_eq!(ours.to_string(), "2.50 (1.00–8.00)");
        assert_eq!(Series::default().to_string(), "–");
    }
}
