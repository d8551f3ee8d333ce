//! Owns: `cargo xtask bench`: every row on every topology, in interleaved rounds of one run, and the studies.
//! Promises: fails when a topology is not what its name says, or loses packets that nobody counted; the figures
//! that it prints are those that it writes. Does not: know how to build a topology (`bpf_tests::topology`) nor how to
//! load one (`bpf_tests::load`).

mod figures;
mod flood;
mod hooks;
mod machine;
mod plan;
mod plot;
mod progress;
mod report;
mod results;
mod row;
mod study;
mod target;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use bpf_tests::topology::Topology;

use self::{
    figures::Figures, machine::Quietness, plan::Plan, progress::Progress, report::Report, study::Finding,
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
    let hooked = topologies.iter().filter(|topology| plan.shows_hooks(topology.kind()));
    let hooks = hooked.map(|t| hooks::cost(t, plan.duration)).collect::<Result<Vec<_>>>()?;
    let hooks: Vec<_> = hooks.into_iter().flatten().collect();
    let studies = plan.studies.iter().map(|study| study.measure(workspace, plan.quick));
    let findings: Vec<Finding> = studies.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    let others = quietness.others()?;
    let report = Report {
        plan: &plan,
        topologies: &topologies,
        figures: &figures,
        hooks: &hooks,
        findings: &findings,
        others,
    };
    report.show()?;
    let folder = if plan.is_full {
        workspace.root().join("bpf-tests/benches")
    } else {
        workspace.target().join("bench")
    };
    report.keep(&folder, workspace.root())?;
    run::say(format!("written: {}", folder.join("RESULTS.md").display()));
    Ok(())
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
                if !plan.takes(*row, kind) {
                    continue;
                }
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
