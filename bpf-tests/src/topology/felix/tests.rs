//! The generator against what the real programs left on a node.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::policy::{Action, Peer, Policy, Protocol, Rule},
    *,
};

const RULES: &str = include_str!("../../../tests/fixtures/felix-flannel.iptables-save");
const SETS: &str = include_str!("../../../tests/fixtures/felix-flannel.ipset-save");

/// The node that the fixture is from.
fn site() -> Site {
    let own = ["192.168.50.2", "192.168.60.2", "127.0.0.1", "10.100.56.0", "127.0.0.0"];
    Site {
        interface: "calicb".to_owned(),
        network: "10.100.0.0/16".parse().unwrap(),
        subnet: "10.100.56.0/24".parse().unwrap(),
        own: own.map(|address| address.parse().unwrap()).to_vec(),
        pods: ["10.100.56.2", "10.100.30.2"].map(|address| address.parse().unwrap()).to_vec(),
    }
}

/// The policies that its store held.
fn policies() -> Vec<Policy> {
    let deny = |protocol, peer, ports: &[u16]| Rule {
        action: Action::Deny,
        protocol: Some(protocol),
        peer: Some(peer),
        ports: ports.iter().map(|port| (*port, *port)).collect(),
    };
    let net = |net: &str| Peer::Net(net.parse().unwrap());
    let allow = Rule { action: Action::Allow, protocol: None, peer: None, ports: Vec::new() };
    vec![
        Policy {
            name: "p0".to_owned(),
            ingress: vec![
                deny(Protocol::Tcp, net("198.18.0.0/32"), &[10_000]),
                deny(Protocol::Tcp, Peer::Selector("app == 'bad'".to_owned()), &[10_001, 10_002]),
            ],
            egress: vec![deny(Protocol::Udp, net("198.18.1.0/24"), &[])],
        },
        Policy { name: "zz".to_owned(), ingress: vec![allow.clone()], egress: vec![allow] },
    ]
}

/// Felix's hashes in our names.
fn named_as_ours(text: &str) -> String {
    text.replace("cali-gi-yN_GW4pfW5wDr9Z8znD1", &chains::group(Direction::Ingress))
        .replace("cali-go-pgxIiEbquFNvdkb2PsVB", &chains::group(Direction::Egress))
        .replace("cali40s:OsfPaHd8zhgeKhIPW1zw9Cy", &sets::name(sets::PROFILE))
        .replace("cali40s:ne6D4opuR4jx5b9z9DEMEc3", &sets::name("app == 'bad'"))
}

fn texts(text: &str) -> BTreeMap<Chain, Vec<String>> {
    let chains = Counters::parse(text).unwrap().chains.into_iter();
    chains.map(|(chain, rules)| (chain, rules.into_iter().map(|rule| rule.text).collect())).collect()
}

#[test]
fn the_store_of_the_real_programs_gives_their_chains_rule_by_rule() {
    let (theirs, ours) = (texts(&named_as_ours(RULES)), texts(&chains::text(&site(), &policies())));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (chain, rules) in &theirs {
        assert_eq!(&ours[chain], rules, "{chain:?}");
    }
}

#[test]
fn the_store_of_the_real_programs_gives_their_sets() {
    let sets = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        // What ipset chooses by itself follows the limit on members.
        lines.map(|line| line.split(" bucketsize").next().unwrap_or(line).to_owned()).collect()
    };
    assert_eq!(sets(&sets::text(&site(), &policies())), sets(&named_as_ours(SETS)));
}

#[test]
fn a_group_looks_once_in_five_policies_whether_it_can_go_home() {
    let text = chains::text(&site(), &policy::policies(101));
    let calls = &texts(&text)[&("filter".to_owned(), chains::group(Direction::Ingress))];
    assert_eq!(calls.len(), 11 + 2);
    for (number, call) in calls.iter().enumerate() {
        let condition = match number {
            0 | 6 | 12 => "",
            5 | 11 => " ! --mark 0x0/0x30000 -j RETURN",
            _ => " --mark 0x0/0x30000",
        };
        let marked = call.split_once("-m mark").map_or("", |(_, rest)| rest);
        assert!(
            marked.starts_with(condition) && condition.is_empty() == marked.is_empty(),
            "{number}: {call}"
        );
    }
}

#[test]
fn a_single_policy_is_called_by_the_endpoint_itself() {
    let chains = texts(&chains::text(&site(), &policy::policies(1)));
    assert!(!chains.contains_key(&("filter".to_owned(), chains::group(Direction::Egress))));
    let from_pod = &chains[&("filter".to_owned(), "cali-fw-calicb".to_owned())];
    assert!(from_pod[6].ends_with("--mark 0x0/0x20000 -j cali-po-gnp/bench-0"), "{}", from_pod[6]);
}
