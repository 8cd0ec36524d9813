//! What repetitions say together.

/// The middle of some repetitions, and how far they are apart.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    /// The median.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
    /// How many there were.
    pub repetitions: usize,
}

impl Summary {
    /// `None` if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let lower = sorted[(sorted.len() - 1) / 2];
        Some(Self {
            median: f64::midpoint(lower, sorted[sorted.len() / 2]),
            least,
            most,
            repetitions: sorted.len(),
        })
    }

    /// Whether the repetitions of `self` and `other` overlap: which of the two is the larger is then not known.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.least <= other.most && other.least <= self.most
    }

    /// Half of what the repetitions are apart, as a part of their median.
    pub fn spread(&self) -> f64 {
        (self.most - self.least) / 2.0 / self.median.max(f64::MIN_POSITIVE)
    }
}

/// A figure with three digits that matter.
pub fn digits(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let magnitude = value.abs().max(1e-9).log10().floor();
    // From 100 on whole numbers; `as` is exact for so few digits.
    let decimals = (2.0 - magnitude).clamp(0.0, 6.0) as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits() {
        let texts = [0.0, 0.001_234, 0.5, 9.419, 94.15, 12_345.6].map(digits);
        assert_eq!(texts, ["0", "0.00123", "0.500", "9.42", "94.2", "12346"]);
    }

    #[test]
    fn the_middle_and_the_ends() {
        assert_eq!(Summary::of(&[]), None);
        let odd = Summary::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.least, odd.most), (2.0, 1.0, 3.0));
        assert!((odd.spread() - 0.5).abs() < 1e-12);
        let even = Summary::of(&[4.0, 1.0, 2.0, 3.0]).unwrap();
        assert!((even.median - 2.5).abs() < 1e-12);
        assert!(even.overlaps(&odd));
        let far = Summary::of(&[9.0]).unwrap();
        assert!(!far.overlaps(&odd) && !odd.overlaps(&far));
    }
}
