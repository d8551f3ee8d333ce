//! Owns: the readings of a run, and what can be said of them together.

use std::collections::BTreeMap;

use bpf_tests::topology::Kind;

use super::row::{Figure, Reading};

#[derive(Debug, Default)]
pub(super) struct Figures {
    readings: BTreeMap<(Figure, Kind), Vec<f64>>,
}

/// The rounds of one figure on one topology.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Summary {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Figures {
    pub(super) fn add(&mut self, kind: Kind, readings: &[Reading]) {
        for (figure, value) in readings {
            self.readings.entry((*figure, kind)).or_default().push(*value);
        }
    }

    /// In the order of the table.
    pub(super) fn names(&self) -> Vec<Figure> {
        let mut names: Vec<_> = self.readings.keys().map(|(figure, _)| *figure).collect();
        names.dedup();
        names
    }

    pub(super) fn summary(&self, figure: Figure, kind: Kind) -> Option<Summary> {
        Summary::of(self.readings.get(&(figure, kind))?)
    }

    /// The median over the rounds of this topology's reading to the other's reading in the same round: what the
    /// machine did to both in that round is divided away.
    pub(super) fn ratio(&self, figure: Figure, kind: Kind, to: Kind) -> Option<f64> {
        let (ours, theirs) = (self.readings.get(&(figure, kind))?, self.readings.get(&(figure, to))?);
        let ratios: Vec<_> = ours.iter().zip(theirs).map(|(a, b)| a / b).collect();
        Summary::of(&ratios).map(|summary| summary.median)
    }
}

impl Summary {
    /// Nothing can be said of no readings.
    pub(super) fn of(readings: &[f64]) -> Option<Self> {
        let mut sorted = readings.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }
}

/// Of nothing, nothing.
#[expect(clippy::cast_precision_loss, reason = "a share for people")]
pub(super) fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_disturbed_round_moves_neither_median_nor_ratio() {
        let mut figures = Figures::default();
        for (ours, theirs) in [(8.0, 10.0), (4.0, 5.0), (8.0, 10.0), (1.0, 10.0), (7.2, 9.0)] {
            figures.add(Kind::Routed, &[(Figure::Crr, ours)]);
            figures.add(Kind::Bare, &[(Figure::Crr, theirs)]);
        }
        let summary = figures.summary(Figure::Crr, Kind::Routed).unwrap();
        assert_eq!(summary, Summary { median: 7.2, min: 1.0, max: 8.0 });
        let ratio = figures.ratio(Figure::Crr, Kind::Routed, Kind::Bare).unwrap();
        assert!((ratio - 0.8).abs() < 1e-9, "{ratio}");
    }

    #[test]
    fn a_topology_that_was_not_measured_has_neither_figure_nor_ratio() {
        let mut figures = Figures::default();
        figures.add(Kind::Bare, &[(Figure::Crr, 1.0)]);
        assert_eq!(figures.summary(Figure::Crr, Kind::Vxlan), None);
        assert_eq!(figures.ratio(Figure::Crr, Kind::Bare, Kind::Vxlan), None);
    }

    #[test]
    fn of_an_even_number_of_rounds_the_median_is_between_the_middle_two() {
        let even = Summary::of(&[4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!(even, Summary { median: 2.5, min: 1.0, max: 4.0 });
    }
}
