//! Owns: what a run is to show, as ratios of two topologies in one figure.

use bpf_tests::topology::{Build, Gear, Kind};

use super::{figures::Figures, row::Figure};

/// A ratio that is not to be missed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Target {
    pub(super) figure: Figure,
    pub(super) of: Kind,
    pub(super) to: Kind,
    pub(super) limit: Limit,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

/// A target and what was measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    pub(super) target: Target,
    pub(super) ratio: f64,
}

impl Limit {
    pub(super) fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }

    /// The sign and the number.
    pub(super) fn parts(self) -> (&'static str, f64) {
        match self {
            Self::AtMost(limit) => ("≤", limit),
            Self::AtLeast(limit) => ("≥", limit),
        }
    }
}

const L: Kind = Kind::Bare;
const K0: Kind = Kind::Vxlan;
const MANY: u32 = 10_000;

const fn k(rules: u32) -> Kind {
    Kind::Felix { rules }
}

const fn c(rules: u32) -> Kind {
    Kind::Canal { rules, gear: Gear::Auto, build: Build::Own }
}

const fn least(figure: Figure, of: Kind, to: Kind, limit: f64) -> Target {
    Target { figure, of, to, limit: Limit::AtLeast(limit) }
}

const TARGETS: [Target; 14] = [
    least(Figure::TcpBulk, c(10), k(10), 1.9),
    least(Figure::TcpBulk, c(10), L, 0.9),
    least(Figure::TcpBulkCubic, c(10), k(10), 1.9),
    least(Figure::TcpBulkCubic, c(10), L, 0.9),
    least(Figure::TcpBulkMtu, c(10), K0, 1.2),
    least(Figure::Udp64, c(10), k(10), 4.0),
    least(Figure::Udp64, c(10), L, 0.75),
    least(Figure::Receive, c(10), k(10), 4.0),
    Target { figure: Figure::RttP50, of: c(10), to: k(10), limit: Limit::AtMost(0.35) },
    least(Figure::Crr, c(10), k(10), 2.2),
    least(Figure::Crr, c(MANY), k(MANY), 20.0),
    least(Figure::Crr, c(10), L, 0.85),
    least(Figure::UdpFlows, c(10), k(10), 2.5),
    least(Figure::UdpFlows, c(MANY), k(MANY), 30.0),
];

/// What many rules may cost, on any row.
const OF_MANY: f64 = 0.95;
const COMPARED_BY_RULES: [Figure; 9] = [
    Figure::TcpBulk,
    Figure::TcpBulkCubic,
    Figure::TcpBulk4,
    Figure::TcpBulkMtu,
    Figure::Udp64,
    Figure::Udp64Path,
    Figure::Udp1400,
    Figure::Crr,
    Figure::UdpFlows,
];

/// Those that the run has figures for.
pub(super) fn outcomes(figures: &Figures) -> Vec<Outcome> {
    let by_rules = COMPARED_BY_RULES.map(|figure| least(figure, c(MANY), c(10), OF_MANY));
    let outcome = |target: Target| {
        let ratio = figures.ratio(target.figure, target.of, target.to)?;
        Some(Outcome { target, ratio })
    };
    TARGETS.into_iter().chain(by_rules).filter_map(outcome).collect()
}

impl Outcome {
    pub(super) fn is_met(&self) -> bool {
        self.target.limit.is_met(self.ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_judged_where_both_of_its_topologies_were_measured() {
        let mut figures = Figures::default();
        figures.add(c(10), &[(Figure::RttP50, 3.0), (Figure::TcpBulk, 18.0)]);
        figures.add(k(10), &[(Figure::RttP50, 10.0), (Figure::TcpBulk, 10.0)]);
        let outcomes = outcomes(&figures);
        let met: Vec<_> = outcomes.iter().map(|o| (o.target.figure, o.target.to, o.is_met())).collect();
        assert_eq!(met, [(Figure::TcpBulk, k(10), false), (Figure::RttP50, k(10), true)]);
    }
}
