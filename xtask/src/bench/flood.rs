//! Owns: the study of a flood: one pod of a node opens flows as fast as it is told, and a pod beside it goes on with
//! its own to another node.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bpf_tests::{
    Host, World,
    load::{self, Flood, Path, Steady, SteadyFlows},
    policy, until,
};

use super::{
    figures::{Summary, percent},
    study::{Finding, Study},
    target::Limit,
};

const FLOWS_PER_SECOND: u64 = 200_000;
/// The pace is kept in steps, and the last one may be cut short.
const TOLERANCE: f64 = 0.98;
const SOON: Duration = Duration::from_secs(15);

/// With and without the flood in turn.
pub(super) fn measure(rounds: usize, duration: Duration) -> Result<Vec<Finding>> {
    let world = World::builder().build()?;
    world.start_agents()?;
    let here = world.node(1);
    let from = here.add_pod("from", &[("app", "steady")])?;
    let to = world.node(2).add_pod("to", &[("app", "steady")])?;
    let source = here.add_pod("source", &[("app", "flood")])?;
    let sink = here.add_pod("sink", &[("app", "flood")])?;
    world.etcd().put_global_policy("all", policy::allow_all())?;
    ensure!(
        until(SOON, || from.pings(to.ip()) && source.pings(sink.ip())),
        "the pods do not reach each other"
    );

    // Nobody is to answer a flow that nobody takes.
    for line in [
        "nft add table ip sink",
        "nft add chain ip sink first { type filter hook prerouting priority raw; policy drop; }",
    ] {
        sink.netns().cmd(line).run()?;
    }
    let path = Path { from: &from, to: &to };
    let mut flows = SteadyFlows::open(path)?;
    let (mut quiet, mut flooded, mut floods) = (Vec::new(), Vec::new(), Vec::new());
    let passed = || here.agent().count("from_pod", "delivered");
    for round in 0..rounds {
        quiet.push(flows.measure(path, duration).with_context(|| format!("round {round}, quiet"))?);
        let before = passed()?;
        let done = AtomicBool::new(false);
        let (flood, steady) = thread::scope(|scope| {
            let flood = scope.spawn(|| load::flood(&source, sink.ip(), FLOWS_PER_SECOND, &done));
            let steady = flows.measure(path, duration);
            done.store(true, Ordering::Relaxed);
            (flood.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), steady)
        });
        let flood = flood?;
        flooded.push(steady.with_context(|| format!("round {round}, under the flood"))?);
        let passed = passed()? - before;
        ensure!(passed >= flood.flows, "{} flows were sent, and only {passed} packets passed", flood.flows);
        floods.push(flood);
    }
    findings(&floods, [("quiet", &quiet), ("under the flood", &flooded)])
}

/// What is found, its unit, how it is read, and whether nothing of it may be.
type Quantity = (&'static str, &'static str, fn(&Steady) -> f64, bool);

fn findings(floods: &[Flood], states: [(&str, &[Steady]); 2]) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut add = |what: String, unit: &str, readings: Vec<f64>, target: Option<Limit>| -> Result<()> {
        let summary = Summary::of(&readings).context("no round was measured")?;
        findings.push(Finding { study: Study::Flood, what, unit: unit.to_owned(), summary, target });
        Ok(())
    };
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let least = FLOWS_PER_SECOND as f64 * TOLERANCE;
    let rates = floods.iter().map(Flood::per_second).collect();
    add("new flows of the flood".to_owned(), "1/s", rates, Some(Limit::AtLeast(least)))?;
    let quantities: [Quantity; 8] = [
        ("UDP datagrams lost", "%", |s| percent(s.udp_lost, s.udp_lost + count(&s.udp)), true),
        ("TCP segments sent again", "%", |s| percent(s.tcp_retransmitted, count(&s.tcp)), true),
        ("pings lost", "%", |s| percent(s.pings_lost, s.pings), true),
        ("connections failed", "%", |s| percent(s.connections_failed, s.connections), true),
        ("UDP round trip, p50", "us", |s| s.udp.quantile_us(500), false),
        ("UDP round trip, p99", "us", |s| s.udp.quantile_us(990), false),
        ("TCP round trip, p50", "us", |s| s.tcp.quantile_us(500), false),
        ("TCP round trip, p99", "us", |s| s.tcp.quantile_us(990), false),
    ];
    for (what, unit, reading, is_loss) in quantities {
        for (state, steady) in states {
            let target = is_loss.then_some(Limit::AtMost(0.0));
            add(format!("{what}, {state}"), unit, steady.iter().map(reading).collect(), target)?;
        }
    }
    Ok(findings)
}

fn count(trips: &load::RoundTrips) -> u64 {
    trips.count() as u64
}
