//! `C(n)`: Canal as users run it, with a policy that the measured traffic passes by its last rule.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Kind, Topology};
use crate::{
    etcd::Etcd,
    load,
    probe::{Connect, Host},
    wait::until,
    world::World,
};

/// As Felix splits rules over policies.
const RULES_PER_POLICY: usize = 10;
/// From the policy in etcd to its verdict in the kernel, with many rules on a busy machine.
const ENFORCED: Duration = Duration::from_mins(1);

pub(super) fn build(kind: Kind, rules: u32) -> Result<Topology> {
    let world = World::builder().build()?;
    world.start_agents()?;
    let from = world.node(1).add_pod("end1", &[("role", "end")])?;
    let to = world.node(2).add_pod("end2", &[("role", "end")])?;
    // First without the last rule: that this cuts the way shows that the policy stands in it, and that it opens again
    // shows that the last rule decides.
    let rules: Vec<_> = (1..rules).map(passed_by).chain([deciding()]).collect();
    put(world.etcd(), &rules[..rules.len() - 1])?;
    let answer = || from.connect(to.ip(), load::PORTS.0);
    ensure!(until(ENFORCED, || answer() == Connect::TimedOut), "the policy does not deny: {:?}", answer());
    put(world.etcd(), &rules)?;
    // By the pod itself, where nobody listens yet.
    ensure!(until(ENFORCED, || answer() == Connect::Refused), "the policy does not allow: {:?}", answer());
    for node in world.nodes() {
        let status = node.agent().status()?;
        let problems = status["problems"].as_array().context("the status lists no problems")?;
        ensure!(problems.is_empty(), "the agent of {} has problems: {problems:?}", node.name());
    }
    Ok(Topology { kind, from: Box::new(from), to: Box::new(to), world: Some(world) })
}

/// The rules in both directions of the pods, ten to a policy.
fn put(etcd: &Etcd, rules: &[Value]) -> Result<()> {
    // Even without a rule a policy selects the pods.
    let empty = rules.is_empty().then_some(&[][..]);
    for (number, chunk) in rules.chunks(RULES_PER_POLICY).chain(empty).enumerate() {
        let spec = json!({
            "order": 100 + number, "selector": "role == 'end'", "types": ["Ingress", "Egress"],
            "ingress": chunk.iter().map(|rule| from_peer(rule, "source")).collect::<Vec<_>>(),
            "egress": chunk.iter().map(|rule| from_peer(rule, "destination")).collect::<Vec<_>>(),
        });
        etcd.put_global_policy(&format!("bench-{number}"), spec)?;
    }
    Ok(())
}

/// Rules as they occur in practice, by label, by net and by port range in turn; none matches the traffic.
fn passed_by(number: u32) -> Value {
    let port = 1000 + number % 15_000;
    match number % 3 {
        0 => {
            json!({"protocol": "TCP", "peer": {"selector": format!("app == 'app{number}'")}, "ports": [port]})
        }
        1 => {
            let (block, net) = (16 + number / 3 / 256 % 16, number / 3 % 256);
            json!({"protocol": "TCP", "peer": {"nets": [format!("172.{block}.{net}.0/24")]}, "ports": [port]})
        }
        _ => {
            let range = format!("{port}:{}", port + 9);
            json!({"protocol": "UDP", "peer": {"selector": "role == 'end'"}, "ports": [range]})
        }
    }
}

/// Lets the traffic pass.
fn deciding() -> Value {
    json!({"peer": {"selector": "role == 'end'"}})
}

/// The rule in Calico's words; ports are the destination's in either direction.
fn from_peer(rule: &Value, side: &str) -> Value {
    let mut spelled = json!({"action": "Allow"});
    spelled[side] = rule["peer"].clone();
    if !rule["ports"].is_null() {
        spelled["protocol"] = rule["protocol"].clone();
        spelled["destination"]["ports"] = rule["ports"].clone();
    }
    spelled
}
