//! `C(n)`: Canal as users run it, with a policy that the measured traffic passes by its last rule.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Gear, Kind, Topology,
    policy::{self, Action, Peer, Policy, Protocol, Rule},
};
use crate::{
    etcd::Etcd,
    load,
    probe::{Connect, Host},
    wait::until,
    world::World,
};

/// From the policy in etcd to its verdict in the kernel, with many rules on a busy machine.
const ENFORCED: Duration = Duration::from_mins(1);

pub(super) fn build(kind: Kind, rules: u32, gear: Gear) -> Result<Topology> {
    let world = World::builder().build()?;
    if let Some(flag) = gear.flag() {
        world.nodes().iter().for_each(|node| node.agent().set_flag("--decap-gear", flag));
    }
    world.start_agents()?;
    let from = world.node(1).add_pod("end1", &[("role", "end")])?;
    let to = world.node(2).add_pod("end2", &[("role", "end")])?;
    // First without the last rule: that this cuts the way shows that the policy stands in it, and that it opens again
    // shows that the last rule decides.
    let policies = policy::policies(rules);
    put(world.etcd(), &policy::undecided(policies.clone()))?;
    let answer = || from.connect(to.ip(), load::PORTS.0);
    ensure!(until(ENFORCED, || answer() == Connect::TimedOut), "the policy does not deny: {:?}", answer());
    put(world.etcd(), &policies)?;
    // By the pod itself, where nobody listens yet.
    ensure!(until(ENFORCED, || answer() == Connect::Refused), "the policy does not allow: {:?}", answer());
    for node in world.nodes() {
        let status = node.agent().status()?;
        let problems = status["problems"].as_array().context("the status lists no problems")?;
        ensure!(problems.is_empty(), "the agent of {} has problems: {problems:?}", node.name());
    }
    Ok(Topology { kind, from: Box::new(from), to: Box::new(to), world: Some(world) })
}

fn put(etcd: &Etcd, policies: &[Policy]) -> Result<()> {
    for (number, Policy { name, ingress, egress }) in policies.iter().enumerate() {
        let spec = json!({
            "order": 100 + number, "selector": policy::ENDS, "types": ["Ingress", "Egress"],
            "ingress": ingress.iter().map(|rule| spelled(rule, "source")).collect::<Vec<_>>(),
            "egress": egress.iter().map(|rule| spelled(rule, "destination")).collect::<Vec<_>>(),
        });
        etcd.put_global_policy(name, spec)?;
    }
    Ok(())
}

/// In Calico's words, with the peer on that side.
fn spelled(rule: &Rule, side: &str) -> Value {
    let mut spelled = json!({"action": match rule.action {
        Action::Allow => "Allow",
        Action::Deny => "Deny",
    }});
    match &rule.peer {
        Some(Peer::Selector(selector)) => spelled[side]["selector"] = json!(selector),
        Some(Peer::Net(net)) => spelled[side]["nets"] = json!([net.to_string()]),
        None => {}
    }
    match rule.protocol {
        Some(Protocol::Tcp) => spelled["protocol"] = json!("TCP"),
        Some(Protocol::Udp) => spelled["protocol"] = json!("UDP"),
        None => {}
    }
    if !rule.ports.is_empty() {
        let ports = rule
            .ports
            .iter()
            .map(|(first, last)| if first == last { json!(first) } else { json!(format!("{first}:{last}")) });
        spelled["destination"]["ports"] = ports.collect();
    }
    spelled
}
