//! Which addresses only nodes bring, and where the host's stack sends them. Pure.
//!
//! A `Network` may hold more than the pods': nodes, their gateways and etcd in one 10.0.0.0/8 with them, with `SubnetMin` and
//! `SubnetMax` to keep them apart. What is outside that range goes its usual way.

use std::net::Ipv4Addr;

use ipnet::{Ipv4Net, Ipv4Subnets};

use crate::store::NetworkConfig;

/// A range of addresses that are pods', or nobody's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Territory {
    pub(super) first: Ipv4Addr,
    pub(super) last: Ipv4Addr,
    /// Whose address keeps it to this node's own subnet.
    pub(super) stranger: Option<Ipv4Addr>,
}

impl Territory {
    /// What the network hands out; or `subnet`, this node's own, alone where `strangers`, who are no pods, have addresses among
    /// them.
    pub(super) fn new(
        network: &NetworkConfig,
        subnet: Option<Ipv4Net>,
        strangers: impl IntoIterator<Item = Ipv4Addr>,
    ) -> Self {
        let whole = handed_out(network);
        match (strangers.into_iter().find(|stranger| whole.contains(*stranger)), subnet) {
            (Some(stranger), Some(own)) => {
                Self { first: own.network(), last: own.broadcast(), stranger: Some(stranger) }
            }
            _ => whole,
        }
    }

    pub(super) fn contains(&self, addr: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&addr)
    }

    /// The networks that make it up, as routes want them. None where it is this node's own subnet, which has routes of its own.
    pub(super) fn nets(&self) -> Vec<Ipv4Net> {
        if self.stranger.is_some() {
            Vec::new()
        } else {
            Ipv4Subnets::new(self.first, self.last, 0).collect()
        }
    }

    /// Why less is routed to the overlay than the network's configuration says.
    pub(super) fn problem(&self, network: Ipv4Net) -> Option<String> {
        let stranger = self.stranger?;
        Some(format!(
            "the pod network {network} holds {stranger}, which is no pod's: only the subnets of nodes are taken for pods'; set \
             SubnetMin and SubnetMax so that they leave it out"
        ))
    }
}

/// All of the network, unless it says that a part of it is for nodes.
fn handed_out(network: &NetworkConfig) -> Territory {
    let NetworkConfig { network, subnet_len, subnet_min, subnet_max, .. } = network;
    let mut subnets = network.subnets(*subnet_len).into_iter().flatten();
    // Flannel leaves out the first one where nothing is said.
    let usual_min = subnets.nth(1).map(|net| net.network());
    let last_of = |at: Ipv4Addr| Ipv4Net::new(at, *subnet_len).map_or(at, |net| net.broadcast());
    let last = last_of(*subnet_max);
    let is_usual = usual_min == Some(*subnet_min) && last == network.broadcast();
    let first = if is_usual { network.network() } else { *subnet_min };
    Territory { first, last, stranger: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn territory(config: &str, own: &str, strangers: &[&str]) -> Territory {
        let network = NetworkConfig::parse(config.as_bytes()).unwrap();
        let strangers = strangers.iter().map(|ip| ip.parse().unwrap());
        Territory::new(&network, Some(own.parse().unwrap()), strangers)
    }

    fn nets(territory: &Territory) -> String {
        territory.nets().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn it_is_what_nodes_may_take() {
        let whole = r#"{"Network":"10.77.0.0/16","Backend":{"Type":"vxlan"}}"#;
        assert_eq!(nets(&territory(whole, "10.77.5.0/24", &["192.0.2.1"])), "10.77.0.0/16");
        let part = r#"{"Network":"10.0.0.0/8","SubnetLen":20,"SubnetMin":"10.10.0.0","SubnetMax":"10.99.0.0","Backend":{"Type":"vxlan"}}"#;
        let found = territory(part, "10.10.16.0/20", &["10.0.1.5", "10.0.2.7"]);
        assert_eq!(
            nets(&found),
            "10.10.0.0/15 10.12.0.0/14 10.16.0.0/12 10.32.0.0/11 10.64.0.0/11 10.96.0.0/15 10.98.0.0/16 10.99.0.0/20"
        );
        for (ip, inside) in
            [("10.10.0.0", true), ("10.99.15.255", true), ("10.99.16.0", false), ("10.9.255.255", false)]
        {
            assert_eq!(found.contains(ip.parse().unwrap()), inside, "{ip}");
        }
        // With a subnet of an earlier range: what lies between is others'.
        assert_eq!(nets(&territory(part, "10.8.0.0/20", &["10.9.0.1"])), nets(&found));
    }

    #[test]
    fn where_others_live_in_it_only_this_nodes_subnet_is() {
        let config = r#"{"Network":"10.0.0.0/8","Backend":{"Type":"vxlan"}}"#;
        let found = territory(config, "10.4.7.0/24", &["192.0.2.1", "10.0.1.5"]);
        assert_eq!(nets(&found), "");
        for (ip, inside) in
            [("10.4.6.255", false), ("10.4.7.0", true), ("10.4.7.255", true), ("10.4.8.0", false)]
        {
            assert_eq!(found.contains(ip.parse().unwrap()), inside, "{ip}");
        }
        assert!(found.problem("10.0.0.0/8".parse().unwrap()).unwrap().contains("10.0.1.5"));
    }
}
