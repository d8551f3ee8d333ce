//! Owns: `cargo xtask bench`: every row on every topology, in interleaved rounds of one run, and the studies.
//! Promises: fails when a topology is not what its name says, or loses packets that nobody counted; the figures
//! that it prints are those that it writes. Does not: know how to build a topology (`bpf_tests::topology`) nor how to
//! load one (`bpf_tests::load`).

mod figures;
mod flood;
mod hooks;
mod machine;
mod progress;
mod report;
mod row;
mod study;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bpf_tests::topology::{Build, Kind, Topology};

use self::{
    figures::Figures,
    machine::Quietness,
    progress::Progress,
    row::Row,
    study::{Finding, Study},
};
use crate::{
    object::{self, Profile},
    run,
    setup::{self, Purpose},
    workspace::Workspace,
};

#[derive(Debug, clap::Args)]
pub(crate) struct BenchArguments {
    /// Fewer and shorter rounds: a first impression in less than three minutes
    #[arg(long)]
    quick: bool,
    /// Only these rows, topologies and studies, by name: `--only udp_64,rtt --only 'K0,C(10)'`, `--only verdict,scale`
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// How often each row is measured on each topology
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Measure the Canal whose binaries are in this folder, too, as C(n)'
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// Measure the binaries that are there, without building
    #[arg(long, hide = true)]
    no_build: bool,
}

/// Without `--only`.
const TOPOLOGIES: [Kind; 5] = [
    Kind::Bare,
    Kind::Routed,
    Kind::Vxlan,
    Kind::Felix { rules: 10 },
    Kind::Canal { rules: 10, build: Build::Own },
];

/// What to measure, and for how long.
struct Plan {
    topologies: Vec<Kind>,
    rows: Vec<Row>,
    studies: Vec<Study>,
    rounds: usize,
    duration: Duration,
    quick: bool,
}

impl Plan {
    fn new(arguments: &BenchArguments) -> Result<Self> {
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
        let only_studies = !studies.is_empty() && rows.is_empty() && topologies.is_empty();
        if arguments.only.is_empty() {
            studies.extend(Study::ALL);
        }
        if topologies.is_empty() && !only_studies {
            topologies.extend(TOPOLOGIES);
        }
        if arguments.against.is_some() {
            let others = topologies.iter().filter_map(|kind| match kind {
                Kind::Canal { rules, .. } => Some(Kind::Canal { rules: *rules, build: Build::Other }),
                _ => None,
            });
            topologies.extend(others.collect::<Vec<_>>());
        }
        if rows.is_empty() && !only_studies {
            rows.extend(Row::ALL);
        }
        let quick = arguments.quick;
        let (rounds, duration) =
            if quick { (5, Duration::from_millis(700)) } else { (9, Duration::from_secs(2)) };
        let rounds = arguments.rounds.unwrap_or(rounds);
        ensure!(rounds > 0, "--rounds must be at least 1");
        Ok(Self { topologies, rows, studies, rounds, duration, quick })
    }

    fn samples(&self) -> usize {
        self.topologies.len() * self.rows.len() * self.rounds
    }
}

pub(crate) fn bench(workspace: &Workspace, arguments: &BenchArguments) -> Result<()> {
    let plan = Plan::new(arguments)?;
    setup::require(workspace, &[Purpose::Build, Purpose::Bench])?;
    if !arguments.no_build {
        object::build(workspace, Profile::Release)?;
    }
    bpf_tests::clean_up_own_on_interrupt()?;
    let topologies = build(&plan, arguments.against.as_deref())?;
    let quietness = Quietness::start()?;
    let figures = measure(&plan, &topologies)?;
    let hooks = topologies.iter().map(|t| hooks::cost(t, plan.duration)).collect::<Result<Vec<_>>>()?;
    let hooks: Vec<_> = hooks.into_iter().flatten().collect();
    let studies = plan.studies.iter().map(|study| study.measure(workspace, plan.quick));
    let findings: Vec<Finding> = studies.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    let others = quietness.others()?;
    report::Report {
        plan: &plan,
        topologies: &topologies,
        figures: &figures,
        hooks: &hooks,
        findings: &findings,
        others,
    }
    .publish(workspace)
}

fn build(plan: &Plan, other: Option<&Path>) -> Result<Vec<Topology>> {
    let mut topologies = Vec::new();
    for kind in &plan.topologies {
        run::say(format!("{kind}: {}", kind.sentence()));
        topologies.push(Topology::build(*kind, other)?);
    }
    Ok(topologies)
}

/// Round by round, so that whatever changes on the machine changes for all.
fn measure(plan: &Plan, topologies: &[Topology]) -> Result<Figures> {
    let mut figures = Figures::default();
    let mut progress = Progress::new(plan.samples());
    for round in 0..plan.rounds {
        for row in &plan.rows {
            for step in 0..topologies.len() {
                // Each topology comes first as often as last.
                let topology = &topologies[(step + round) % topologies.len()];
                let kind = topology.kind();
                progress.next(&format!("round {} of {}: {} on {kind}", round + 1, plan.rounds, row.name()));
                let readings = row
                    .measure(topology, plan.duration)
                    .with_context(|| format!("{} on {kind}, round {}", row.name(), round + 1))?;
                figures.add(kind, &readings);
            }
        }
    }
    Ok(figures)
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
        assert_eq!(plan.topologies, [Kind::Canal { rules: 1000, build: Build::Own }]);
        assert_eq!(plan.rows.iter().map(|row| row.name()).collect::<Vec<_>>(), ["udp_64"]);
        assert_eq!(plan.studies, []);
        assert_eq!(Plan::new(&arguments(&["rtt"])).unwrap().topologies, TOPOLOGIES);
    }

    #[test]
    fn studies_need_no_topologies_and_all_are_made_when_nothing_is_named() {
        let plan = Plan::new(&arguments(&["scale", "flood"])).unwrap();
        assert_eq!((plan.samples(), plan.studies), (0, vec![Study::Scale, Study::Flood]));
        let plan = Plan::new(&arguments(&[])).unwrap();
        assert_eq!((plan.studies, plan.topologies), (Study::ALL.to_vec(), TOPOLOGIES.to_vec()));
    }

    #[test]
    fn an_unknown_name_is_an_error_that_lists_the_known_ones() {
        let error = format!("{:#}", Plan::new(&arguments(&["udp_65"])).err().unwrap());
        assert!(error.contains("udp_65") && error.contains("udp_64") && error.contains("K0"), "{error}");
    }
}
