//! The control plane: the agent as users run it, with a real etcd.

mod latency;
mod start;
mod store;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use bpf_tests::{Node, Pod, World};
use canal_agent::model::resource::Kind;
use serde_json::json;

use self::{start::Start, store::Store};
use super::{Figure, memory, scale};

const CONFIG: &str = r#"{"Network":"10.64.0.0/10","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;

const LEASES: [u32; 2] = [5_000, 10_000];
/// For the first number of leases.
const TARGET_S: f64 = 0.3;

/// For any number of leases.
const SINCE_LIST_S: f64 = 1.0;

const POLICIES: u32 = 2_000;
const ENDPOINTS: u32 = 20_000;
/// Pods of the node; policies are for all of them.
const PODS: u32 = 10;

const RULES: [u32; 2] = [10, 10_000];
const CHANGES_PER_ROUND: u32 = 8;

pub(super) fn measure(rounds: u32) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    with_leases(rounds, &mut figures).context("with many leases")?;
    with_policies(rounds, &mut figures).context("with many policies")?;
    for rules in RULES {
        change(rules, rounds * CHANGES_PER_ROUND, &mut figures)
            .with_context(|| format!("with {rules} rules"))?;
    }
    Ok(figures)
}

fn world() -> Result<(World, Store)> {
    let world = World::builder().nodes(1).config(Some(CONFIG)).build()?;
    let store = Store::connect(&world)?;
    Ok((world, store))
}

fn with_leases(rounds: u32, figures: &mut Vec<Figure>) -> Result<()> {
    let (world, mut store) = world()?;
    let node = world.node(1);
    let mut there = 0;
    for leases in LEASES {
        store.put_all((there + 1..=leases).map(start::lease).collect())?;
        there = leases;
        let (mut starts, mut memory) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            eprintln!("{leases} leases, start {}", round + 1);
            starts.push(start::until_peers(node, leases)?);
            if round + 1 == rounds {
                sizes(node, &format!("{leases} leases"), &mut memory)?;
                memory.extend(changed_peer(node, &mut store, leases)?);
            }
            node.agent().terminate()?;
            node.agent().clean_up()?;
        }
        let name = format!("{leases} leases: from start until every peer is in the kernel");
        let target = (leases == LEASES[0]).then_some(TARGET_S);
        let since_list: Vec<f64> = starts.iter().filter_map(|start| start.since_list).collect();
        figures.extend(summary(&name, starts, target));
        ensure!(!since_list.is_empty(), "the log does not say when the leases were listed");
        let name = format!("{leases} leases: from the list of leases until every peer is in the kernel");
        figures.push(Figure::median(name, "s", since_list).at_most(SINCE_LIST_S));
        figures.extend(memory);
    }
    Ok(())
}

/// Of so many, one gets another address and MAC, and gets its own back.
fn changed_peer(node: &Node, store: &mut Store, leases: u32) -> Result<Vec<Figure>> {
    let (touched, seconds) = start::change_one(node, store, leases / 2)?;
    store.put(start::lease(leases / 2))?;
    let name = format!("{leases} leases: from one peer's change in etcd to its entry in the kernel");
    let mut figures = vec![Figure::of(name, "ms", seconds * 1e3)];
    figures.extend(touched.into_iter().map(|(table, elements)| {
        let elements = u32::try_from(elements).unwrap_or(u32::MAX);
        Figure::of(format!("  of {table}, this touches"), "elements", f64::from(elements))
    }));
    Ok(figures)
}

fn with_policies(rounds: u32, figures: &mut Vec<Figure>) -> Result<()> {
    let (world, mut store) = world()?;
    let node = world.node(1);
    node.agent().start()?;
    let endpoints =
        (0..ENDPOINTS).map(|number| scale::endpoint(scale::LOCAL + number, number % scale::LABEL_SETS));
    store.put_all(endpoints.collect())?;
    let policies = (0..POLICIES).map(|number| {
        let name = format!("default.p{number}");
        let value = json!({ "metadata": { "name": name }, "spec": scale::policy_spec(number, 8080) });
        scale::entry(Kind::GlobalNetworkPolicy, "", &name, &value)
    });
    store.put_all(policies.collect())?;
    let pod =
        |number| node.add_pod(&format!("p{number}"), &[("app", &format!("app{number}")), ("tier", "t0")]);
    let pods: Vec<Pod> = (0..PODS).map(pod).collect::<Result<_>>()?;
    let mut starts = Vec::new();
    for round in 0..rounds {
        eprintln!("{POLICIES} policies, start {}", round + 1);
        node.agent().terminate()?;
        starts.push(start::until_pods(node, &pods)?);
    }
    let state = format!("{POLICIES} policies, {ENDPOINTS} endpoints");
    figures.extend(summary(&format!("{state}: from start until {PODS} pods are ready"), starts, None));
    sizes(node, &state, figures)
}

fn change(rules: u32, changes: u32, figures: &mut Vec<Figure>) -> Result<()> {
    let (world, mut store) = world()?;
    let node = world.node(1);
    node.agent().start()?;
    let from = node.add_pod("from", &[("role", "sender")])?;
    let to = node.add_pod("to", &[("role", "receiver")])?;
    store.put_all(latency::policies(rules))?;
    store.put(latency::flip("Deny"))?;
    eprintln!("{changes} changes with {rules} rules");
    let changes = latency::measure(&mut store, &from, &to, changes)?;
    let name = format!("{rules} rules: from a change in etcd to the first packet judged by it");
    let (judged, stored): (Vec<f64>, Vec<f64>) =
        changes.iter().map(|change| (change.judged, change.stored)).unzip();
    let mut sorted = judged.clone();
    sorted.sort_by(f64::total_cmp);
    figures.push(Figure::median(format!("{name}, p50"), "ms", judged));
    figures.push(Figure::of(format!("{name}, p99"), "ms", sorted[sorted.len() * 99 / 100]));
    figures.push(Figure::median("  of this, until etcd has answered, p50", "ms", stored));
    sizes(node, &format!("{rules} rules"), figures)
}

fn summary(name: &str, starts: Vec<Start>, at_most: Option<f64>) -> Vec<Figure> {
    let whole = Figure::median(name, "s", starts.iter().map(|start| start.seconds).collect());
    let mut figures = vec![Figure { at_most, ..whole }];
    let mut phases: BTreeMap<usize, (&str, Vec<f64>)> = BTreeMap::new();
    for start in starts {
        for (at, (phase, seconds)) in start.phases.into_iter().enumerate() {
            phases.entry(at).or_insert((phase, Vec::new())).1.push(seconds);
        }
    }
    figures.extend(
        phases.into_values().map(|(phase, all)| Figure::median(format!("  of this, {phase}"), "s", all)),
    );
    figures
}

/// What the agent and its tables take now.
fn sizes(node: &Node, state: &str, figures: &mut Vec<Figure>) -> Result<()> {
    let process = node.agent().pid().context("no agent runs")?;
    let tables: u64 = memory::tables(process)?.values().sum();
    figures.push(Figure::of(
        format!("{state}: resident memory of the agent"),
        "MB",
        memory::resident_mb(process, "VmRSS")?,
    ));
    figures.push(Figure::of(
        format!("{state}: kernel memory of all tables"),
        "MB",
        memory::megabytes(tables),
    ));
    Ok(())
}
