//! `K(n)`: what Canal replaces. `K0` with everything that flanneld and Felix install besides on both nodes: the chains
//! of the raw, mangle, nat and filter tables, the ip sets, and the settings of pods' interfaces, with the policy of
//! `n` rules in them.
//!
//! The rules are those that flanneld 0.28 and Felix 3.34-dev left on a node (`tests/fixtures/felix-flannel.*`), through
//! Debian's iptables in nft mode; policies are split into chains as Felix does it. A unit test compares them with the
//! fixture rule by rule, and a test with packets compares what one of each kind meets. What differs: names that Felix
//! makes by its own hash, nodes without a default route, and permanent neighbours in the pods in place of proxy ARP,
//! which no measured packet notices.

mod chains;
mod counters;
mod crossing;
mod sets;
mod site;
#[cfg(test)]
mod tests;

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, ensure};
use ipnet::Ipv4Net;

pub use counters::{Chain, Counters};

use self::{chains::Direction, site::Site};
use super::{
    Kind, Topology,
    policy::{self, Policy},
    vxlan,
};
use crate::{
    flannel::FlannelPod,
    load,
    netns::Netns,
    node::Node,
    probe::{Connect, Host},
    wait::until,
};

/// From rules in the kernel to what they do, on a busy machine.
const SETTLED: Duration = Duration::from_secs(10);
/// For what grows with the number of rules.
const LARGE: Duration = Duration::from_mins(2);

pub(super) fn build(kind: Kind, rules: u32) -> Result<Topology> {
    let (world, from, to) = vxlan::world()?;
    let policies = policy::policies(rules);
    let pods = [from.ip(), to.ip()];
    let sites = [(world.node(1), &from), (world.node(2), &to)].map(|(node, pod)| {
        let site = site(node, pod, &pods)?;
        configure(node.netns(), &site.interface)?;
        restore(node.netns(), "ipset restore", sets::text(&site, &policies))?;
        Ok((node.netns(), site))
    });
    let sites = sites.into_iter().collect::<Result<Vec<_>>>()?;
    let install = |policies: &[Policy]| {
        let texts = sites.iter().map(|(netns, site)| (netns, chains::text(site, policies)));
        texts.into_iter().try_for_each(|(netns, text)| restore(netns, "iptables-nft-restore", text))
    };
    // First without the last rule: that this cuts the way shows that the policy stands in it.
    let answer = || from.connect(to.ip(), load::PORTS.0);
    install(&policy::undecided(policies.clone()))?;
    ensure!(until(SETTLED, || answer() == Connect::TimedOut), "the policy does not deny: {:?}", answer());
    install(&policies)?;
    // By the pod itself, where nobody listens yet.
    ensure!(until(SETTLED, || answer() == Connect::Refused), "the policy does not allow: {:?}", answer());
    Ok(Topology { kind, from: Box::new(from), to: Box::new(to), world: Some(world) })
}

fn site(node: &Node, pod: &FlannelPod, pods: &[Ipv4Addr]) -> Result<Site> {
    let subnet = Ipv4Net::new(pod.ip(), 24)?.trunc();
    let management = Ipv4Addr::new(192, 168, 60, node.number());
    Ok(Site {
        interface: pod.host_interface().to_owned(),
        network: Ipv4Net::new(pod.ip(), 16)?.trunc(),
        subnet,
        own: vec![
            node.public_ip(),
            management,
            Ipv4Addr::LOCALHOST,
            subnet.network(),
            Ipv4Addr::new(127, 0, 0, 0),
        ],
        pods: pods.to_vec(),
    })
}

/// As Felix and the Calico plugin set a pod's interface. They leave `rp_filter` at the node's default: the raw table
/// has a rule for that.
fn configure(netns: &Netns, interface: &str) -> Result<()> {
    netns.sysctl(&format!("net.ipv4.neigh.{interface}.proxy_delay"), "0")?;
    for setting in ["route_localnet", "proxy_arp", "forwarding"] {
        netns.sysctl(&format!("net.ipv4.conf.{interface}.{setting}"), "1")?;
    }
    Ok(())
}

fn restore(netns: &Netns, command: &str, text: String) -> Result<()> {
    netns.cmd(command).stdin(text).deadline(LARGE).run().map(drop)
}

/// After some new flows: they were compared with every rule on both nodes, the last let them pass, and nothing was
/// dropped.
pub(super) fn prove(topology: &Topology, rules: u32) -> Result<()> {
    let policies = policy::policies(rules);
    let last = policies.last().context("no policies")?;
    let (one, two) = topology.nodes().context("no nodes")?;
    for (node, direction) in [(one, Direction::Egress), (two, Direction::Ingress)] {
        let counters = Counters::read(node.netns(), Some("filter"))?;
        let name = |policy| ("filter".to_owned(), chains::policy(direction, policy));
        let deciding = counters.chains.get(&name(last)).and_then(|rules| rules.first());
        let allowed = deciding.context("the last policy has no rule")?.packets;
        ensure!(allowed > 0, "{} let no flow pass by its last rule", node.name());
        let crossed = counters.crossed()?;
        let compared: u64 = policies.iter().filter_map(|policy| crossed.get(&name(policy))).sum();
        // Two rules for each but the last.
        let expected = allowed * (2 * u64::from(policy::each_way(rules)) - 1);
        ensure!(
            compared == expected,
            "{}: {allowed} packets met {compared} rules of policies instead of {expected}",
            node.name()
        );
        let dropped = counters.chains.values().flatten().filter(|rule| rule.text.ends_with("-j DROP"));
        let dropped: u64 = dropped.map(|rule| rule.packets).sum();
        ensure!(dropped == 0, "{}: {dropped} packets were dropped", node.name());
    }
    Ok(())
}
