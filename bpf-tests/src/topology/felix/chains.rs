//! The rules of a node, as text for `iptables-restore`: the fixed chains, and those of the policies as Felix makes them.
//!
//! A policy has a chain for each direction with two rules for each of its own: one that matches and marks, one that
//! acts on the mark. Policies with the same selector are a group, whose chain calls theirs in order while none has
//! marked the packet, and looks once in five whether it can go home.

use super::{
    super::policy::{Action, Peer, Policy, Protocol, Rule},
    sets,
    site::Site,
};

const TEMPLATE: &str = include_str!("chains.rules");
const COMMENT: &str = r#"-m comment --comment "c""#;

/// The pod's view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Ingress,
    Egress,
}

/// Once in so many policies a group looks whether there is a verdict.
const STRIDE: usize = 5;

/// Felix hashes what a group consists of into its name; the measured pods have one group.
pub(super) fn group(direction: Direction) -> String {
    match direction {
        Direction::Ingress => "cali-gi-bench".to_owned(),
        Direction::Egress => "cali-go-bench".to_owned(),
    }
}

pub(super) fn policy(direction: Direction, policy: &Policy) -> String {
    match direction {
        Direction::Ingress => format!("cali-pi-gnp/{}", policy.name),
        Direction::Egress => format!("cali-po-gnp/{}", policy.name),
    }
}

/// Every table, whole.
pub(super) fn text(site: &Site, policies: &[Policy]) -> String {
    let called = |direction| match policies {
        // A group of one is no group.
        [only] => policy(direction, only),
        _ => group(direction),
    };
    let fixed = TEMPLATE
        .replace("{pod}", &site.interface)
        .replace("{network}", &site.network.to_string())
        .replace("{subnet}", &site.subnet.to_string())
        .replace("{ingress}", &called(Direction::Ingress))
        .replace("{egress}", &called(Direction::Egress))
        .replace("{profile}", &sets::name(sets::PROFILE));
    let chains = [Direction::Ingress, Direction::Egress].map(|d| chains(d, policies)).concat();
    let names: Vec<_> = chains.iter().map(|(name, _)| format!(":{name} - [0:0]\n")).collect();
    let appended = |(name, rules): &(String, Vec<String>)| -> Vec<_> {
        rules.iter().map(|rule| format!("-A {name} {rule}\n")).collect()
    };
    let rules: Vec<_> = chains.iter().flat_map(appended).collect();
    let text =
        fixed.replace("{policy chains}\n", &names.concat()).replace("{policy rules}\n", &rules.concat());
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.replace("%%", "% %").replace('%', COMMENT) + "\n").collect()
}

/// What the policies need in one direction: each chain's name and rules.
fn chains(direction: Direction, policies: &[Policy]) -> Vec<(String, Vec<String>)> {
    let own = policies.iter().map(|each| (policy(direction, each), rules(direction, each)));
    let own: Vec<_> = own.collect();
    if own.len() < 2 {
        return own;
    }
    let names: Vec<_> = own.iter().map(|(name, _)| name.as_str()).collect();
    [vec![(group(direction), calls(&names))], own].concat()
}

fn calls(policies: &[&str]) -> Vec<String> {
    let mut calls = Vec::new();
    for (number, policy) in policies.iter().enumerate() {
        if number % STRIDE != 0 {
            calls.push(format!("% -m mark --mark 0x0/0x30000 -j {policy}"));
            continue;
        }
        if number > 0 {
            calls.push("%% -m mark ! --mark 0x0/0x30000 -j RETURN".to_owned());
        }
        calls.push(format!("% -j {policy}"));
    }
    calls
}

fn rules(direction: Direction, policy: &Policy) -> Vec<String> {
    let rules = match direction {
        Direction::Ingress => &policy.ingress,
        Direction::Egress => &policy.egress,
    };
    let mut spelled = Vec::new();
    for (number, rule) in rules.iter().enumerate() {
        let (mark, verdict) = match rule.action {
            Action::Allow => ("0x10000/0x10000", "RETURN"),
            Action::Deny => ("0x40000/0x40000", "DROP"),
        };
        // The first tells the policy's name, too.
        let comments = if number == 0 { "%%" } else { "%" };
        spelled.push(format!("{} -j MARK --set-xmark {mark}", matches(direction, rule, comments)));
        spelled.push(format!("% -m mark --mark {mark} -j {verdict}"));
    }
    // At the end of a chain it returns by itself.
    spelled.pop_if(|last| last.ends_with("-j RETURN"));
    spelled
}

/// In the order in which iptables hands them to the kernel, which tries them in that order.
fn matches(direction: Direction, rule: &Rule, comments: &str) -> String {
    let (flag, side) = match direction {
        Direction::Ingress => ("-s", "src"),
        Direction::Egress => ("-d", "dst"),
    };
    let mut words = Vec::new();
    if let Some(Peer::Net(net)) = &rule.peer {
        words.push(format!("{flag} {net}"));
    }
    match rule.protocol {
        Some(Protocol::Tcp) => words.push("-p tcp".to_owned()),
        Some(Protocol::Udp) => words.push("-p udp".to_owned()),
        None => {}
    }
    words.push(comments.to_owned());
    if let Some(Peer::Selector(selector)) = &rule.peer {
        words.push(format!("-m set --match-set {} {side}", sets::name(selector)));
    }
    if !rule.ports.is_empty() {
        let range = |(first, last): &(u16, u16)| {
            if first == last { first.to_string() } else { format!("{first}:{last}") }
        };
        let ports: Vec<_> = rule.ports.iter().map(range).collect();
        words.push(format!("-m multiport --dports {}", ports.join(",")));
    }
    words.join(" ")
}
