//! Owns: what a run measures, and for how long.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bpf_tests::topology::{Build, Gear, Kind};

use super::{BenchArguments, row::Row, study::Study};

pub(super) struct Plan {
    pub(super) topologies: Vec<Kind>,
    pub(super) rows: Vec<Row>,
    pub(super) studies: Vec<Study>,
    pub(super) rounds: usize,
    pub(super) duration: Duration,
    pub(super) quick: bool,
    /// Everything, as long as it should take: what is kept with the source.
    pub(super) is_full: bool,
    /// The topologies were named one by one.
    are_asked: bool,
}

const MANY: u32 = 10_000;

/// Without `--only`.
const FULL: [Kind; 11] = [
    Kind::Bare,
    Kind::Routed,
    Kind::Vxlan,
    Kind::Felix { rules: 10 },
    Kind::Felix { rules: 1_000 },
    Kind::Felix { rules: MANY },
    canal(10),
    canal(1_000),
    canal(MANY),
    Kind::Canal { rules: 10, gear: Gear::Kernel, build: Build::Own },
    Kind::Canal { rules: 10, gear: Gear::Xdp, build: Build::Own },
];

/// With `--quick`.
const QUICK: [Kind; 4] = [Kind::Bare, Kind::Vxlan, Kind::Felix { rules: 10 }, canal(10)];

const fn canal(rules: u32) -> Kind {
    Kind::Canal { rules, gear: Gear::Auto, build: Build::Own }
}

impl Plan {
    pub(super) fn new(arguments: &BenchArguments) -> Result<Self> {
        let (mut topologies, mut rows, mut studies) = (Vec::new(), Vec::new(), Vec::new());
        for name in arguments.only.iter().map(|name| name.trim()) {
            if let Some(row) = Row::ALL.iter().find(|row| row.name() == name) {
                rows.push(*row);
            } else if let Some(study) = Study::ALL.iter().find(|study| study.name() == name) {
                studies.push(*study);
            } else {
                let known = Row::ALL.iter().map(|row| row.name()).chain(Study::ALL.map(Study::name));
                let known: Vec<_> = known.collect();
                let context = || format!("{name:?} is no row and no study ({})", known.join(", "));
                topologies.push(name.parse().with_context(context)?);
            }
        }
        let quick = arguments.quick;
        let are_asked = !topologies.is_empty();
        let only_studies = !studies.is_empty() && rows.is_empty() && topologies.is_empty();
        if arguments.only.is_empty() {
            studies.extend(Study::ALL);
        }
        if topologies.is_empty() && !only_studies {
            topologies.extend(if quick { &QUICK[..] } else { &FULL[..] });
        }
        if arguments.against.is_some() {
            let others = topologies.iter().filter_map(|kind| match kind {
                Kind::Canal { rules, gear, .. } => {
                    Some(Kind::Canal { rules: *rules, gear: *gear, build: Build::Other })
                }
                _ => None,
            });
            topologies.extend(others.collect::<Vec<_>>());
        }
        if rows.is_empty() && !only_studies {
            rows.extend(Row::ALL);
        }
        let (rounds, duration) =
            if quick { (3, Duration::from_millis(300)) } else { (7, Duration::from_millis(1500)) };
        let rounds = arguments.rounds.unwrap_or(rounds);
        ensure!(rounds > 0, "--rounds must be at least 1");
        let is_full = !quick && arguments.only.is_empty() && arguments.against.is_none();
        Ok(Self { topologies, rows, studies, rounds, duration, quick, is_full, are_asked })
    }

    /// Rules can matter to new flows only. That they do not matter to others is shown with the most of them.
    pub(super) fn takes(&self, row: Row, kind: Kind) -> bool {
        if self.are_asked {
            return true;
        }
        // What it adds to the row before it is the gears' own.
        if row == Row::ReceiveDriver {
            return matches!(kind, Kind::Felix { rules: 10 } | Kind::Canal { rules: 10, .. });
        }
        let always = match kind {
            // A veth is no card: what its sender would leave to it, XDP has to do without.
            Kind::Canal { gear: Gear::Xdp, .. } => row == Row::TcpBulkMtu,
            // The way out is the same.
            Kind::Canal { gear: Gear::Kernel, .. } => {
                matches!(row, Row::TcpBulk | Row::TcpBulkMtu | Row::Udp64Path | Row::Rtt | Row::Receive)
            }
            Kind::Felix { rules } => rules <= 10,
            Kind::Canal { rules, .. } => rules <= 10 || rules == MANY,
            _ => true,
        };
        always
            || matches!(row, Row::Crr | Row::UdpFlows) && !matches!(kind, Kind::Canal { gear: Gear::Xdp, .. })
    }

    pub(super) fn shows_hooks(&self, kind: Kind) -> bool {
        self.are_asked || matches!(kind, Kind::Canal { rules: 10, .. })
    }

    pub(super) fn samples(&self) -> usize {
        let taken = self
            .rows
            .iter()
            .flat_map(|row| self.topologies.iter().filter(move |kind| self.takes(*row, **kind)));
        taken.count() * self.rounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(only: &[&str]) -> BenchArguments {
        let only = only.iter().map(ToString::to_string).collect();
        BenchArguments { quick: true, only, rounds: None, against: None, no_build: false }
    }

    #[test]
    fn only_names_rows_and_topologies_and_what_is_not_named_stays_whole() {
        let plan = Plan::new(&arguments(&["udp_64", "C(1000)"])).unwrap();
        assert_eq!(plan.topologies, [canal(1000)]);
        assert_eq!(plan.rows.iter().map(|row| row.name()).collect::<Vec<_>>(), ["udp_64"]);
        assert_eq!(plan.studies, []);
        assert_eq!(Plan::new(&arguments(&["rtt"])).unwrap().topologies, QUICK);
    }

    #[test]
    fn studies_need_no_topologies_and_all_are_made_when_nothing_is_named() {
        let plan = Plan::new(&arguments(&["scale", "flood"])).unwrap();
        assert_eq!((plan.samples(), plan.studies), (0, vec![Study::Scale, Study::Flood]));
        let plan = Plan::new(&arguments(&[])).unwrap();
        assert_eq!((plan.studies, plan.topologies), (Study::ALL.to_vec(), QUICK.to_vec()));
    }

    #[test]
    fn an_unknown_name_is_an_error_that_lists_the_known_ones() {
        let error = format!("{:#}", Plan::new(&arguments(&["udp_65"])).err().unwrap());
        assert!(error.contains("udp_65") && error.contains("udp_64") && error.contains("K0"), "{error}");
    }

    #[test]
    fn many_rules_are_measured_where_they_could_matter_unless_they_are_asked_for() {
        let full = Plan::new(&BenchArguments { quick: false, ..arguments(&[]) }).unwrap();
        let many = Kind::Felix { rules: 1_000 };
        assert!(full.is_full && full.takes(Row::Crr, many) && !full.takes(Row::Rtt, many));
        let mut common = Row::ALL.iter().filter(|row| **row != Row::ReceiveDriver);
        assert!(common.all(|row| full.takes(*row, canal(MANY)) && full.takes(*row, Kind::Bare)));
        let asked = Plan::new(&arguments(&["rtt", "K(1000)"])).unwrap();
        assert!(!asked.is_full && asked.takes(Row::Rtt, many));
    }
}
