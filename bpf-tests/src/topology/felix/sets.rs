//! The ip sets of a node, as text for `ipset restore`: Felix's fixed ones, and one for each selector in a rule.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    net::Ipv4Addr,
};

use super::{
    super::policy::{ENDS, Peer, Policy},
    site::Site,
};

/// Whom the network's profile lets in: the pods that have it.
pub(super) const PROFILE: &str = "has(canal)";

/// Filled only where Calico's own networking is on.
const EMPTY: [&str; 3] = ["cali40network-ip-pools", "cali40masq-ipam-pools", "cali40dscp-src-net"];

/// As Felix names the set of a selector: by a hash.
pub(super) fn name(selector: &str) -> String {
    let mut hasher = DefaultHasher::new();
    selector.hash(&mut hasher);
    format!("cali40s:{:016x}", hasher.finish())
}

/// Every set, with its members.
pub(super) fn text(site: &Site, policies: &[Policy]) -> String {
    let mut lines = Vec::new();
    let mut set = |name: &str, kind: &str, members: &[Ipv4Addr]| {
        lines.push(format!("create {name} {kind} family inet hashsize 1024 maxelem 1048576\n"));
        lines.extend(members.iter().map(|member| format!("add {name} {member}\n")));
    };
    set("cali40this-host", "hash:ip", &site.own);
    for name in EMPTY {
        set(name, "hash:net", &[]);
    }
    let rules = policies.iter().flat_map(|p| p.ingress.iter().chain(&p.egress));
    let selectors = rules.filter_map(|rule| match &rule.peer {
        Some(Peer::Selector(selector)) => Some(selector.as_str()),
        _ => None,
    });
    for selector in selectors.chain([PROFILE]).collect::<BTreeSet<_>>() {
        let members = if [PROFILE, ENDS].contains(&selector) { &site.pods[..] } else { &[] };
        set(&name(selector), "hash:net", members);
    }
    lines.concat()
}
