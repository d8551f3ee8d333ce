//! The policy of `n` rules that topologies enforce, half of them for each direction, in nobody's words: each spells it in
//! its own.
//!
//! Every rule but the last denies something else than the measured traffic, and the last lets that pass, so a new flow
//! is compared with all of them where rules are tried one after another.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Of each direction, ten together, as users split theirs. The rules that let traffic pass have a policy of their own,
/// the last.
const RULES_PER_POLICY: usize = 5;

/// What the measured pods, and no others, are selected by.
pub(super) const ENDS: &str = "role == 'end'";

/// Selects [`ENDS`]; policies apply in the order of their list.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) ingress: Vec<Rule>,
    pub(super) egress: Vec<Rule>,
}

/// All that it states must hold.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) action: Action,
    pub(super) protocol: Option<Protocol>,
    /// The other end: ingress rules look at a packet's source, egress rules at its destination.
    pub(super) peer: Option<Peer>,
    /// Ranges, of destination ports in either direction; empty for any.
    pub(super) ports: Vec<(u16, u16)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Allow,
    Deny,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

#[derive(Debug, Clone)]
pub(super) enum Peer {
    Selector(String),
    Net(Ipv4Net),
}

/// How many of the rules a new flow is compared with in each direction.
pub(super) fn each_way(rules: u32) -> u32 {
    rules.div_ceil(2).max(1)
}

/// The policies that hold `rules` rules.
pub(super) fn policies(rules: u32) -> Vec<Policy> {
    let passed_by: Vec<_> = (1..each_way(rules)).map(passed_by).collect();
    let deciding = [Rule {
        action: Action::Allow,
        protocol: None,
        peer: Some(Peer::Selector(ENDS.to_owned())),
        ports: Vec::new(),
    }];
    let chunks = passed_by.chunks(RULES_PER_POLICY).chain([&deciding[..]]);
    let policy = |(number, rules): (usize, &[Rule])| Policy {
        name: format!("bench-{number}"),
        ingress: rules.to_vec(),
        egress: rules.to_vec(),
    };
    chunks.enumerate().map(policy).collect()
}

/// The same without the rule that lets traffic pass: its policy still selects the pods.
pub(super) fn undecided(mut policies: Vec<Policy>) -> Vec<Policy> {
    if let Some(last) = policies.last_mut() {
        last.ingress.clear();
        last.egress.clear();
    }
    policies
}

/// Rules as they occur in practice, by label, by net and by port range in turn; none matches the traffic.
fn passed_by(number: u32) -> Rule {
    let port = 1000 + u16::try_from(number % 15_000).unwrap_or_default();
    let (protocol, peer, ports) = match number % 3 {
        0 => (Protocol::Tcp, Peer::Selector(format!("app == 'app{number}'")), (port, port)),
        1 => (Protocol::Tcp, Peer::Net(unused_net(number / 3)), (port, port)),
        _ => (Protocol::Udp, Peer::Selector(ENDS.to_owned()), (port, port + 9)),
    };
    Rule { action: Action::Deny, protocol: Some(protocol), peer: Some(peer), ports: vec![ports] }
}

/// One of 4,096 networks of 172.16.0.0/12, in turn.
fn unused_net(number: u32) -> Ipv4Net {
    let first = u32::from(Ipv4Addr::new(172, 16, 0, 0));
    let net = Ipv4Addr::from(first + (number % 4096) * 256);
    Ipv4Net::new_assert(net, 24)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load;

    #[test]
    fn ten_rules_fill_a_policy_and_the_one_that_allows_is_the_last_of_all() {
        for (rules, sizes) in [(1, vec![1]), (10, vec![4, 1]), (14, vec![5, 1, 1]), (22, vec![5, 5, 1])] {
            let policies = policies(rules);
            assert_eq!(policies.iter().map(|p| p.ingress.len()).collect::<Vec<_>>(), sizes);
            assert_eq!(policies.iter().map(|p| p.egress.len()).collect::<Vec<_>>(), sizes);
            let all: Vec<_> = policies.iter().flat_map(|p| &p.ingress).collect();
            let allow = all.iter().position(|r| r.action == Action::Allow);
            assert_eq!(allow, Some(all.len() - 1));
        }
        assert!(undecided(policies(10)).iter().flat_map(|p| &p.egress).all(|r| r.action == Action::Deny));
    }

    #[test]
    fn no_rule_but_the_last_concerns_the_measured_traffic() {
        for rule in policies(10_000).iter().flat_map(|p| &p.ingress).filter(|r| r.action == Action::Deny) {
            assert!(rule.ports.iter().all(|(_, last)| *last < load::PORTS.0), "{rule:?}");
        }
    }
}
