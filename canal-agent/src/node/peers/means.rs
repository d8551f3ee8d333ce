//! What this node has to reach others with, and whom it must not take for pods.

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;

use crate::{dataplane::routes::is_flannels, netlink::Route, store::Backend};

/// How this node reaches others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Means {
    pub backend: Backend,
    /// MTU of the uplink, in bytes.
    pub uplink_mtu: u32,
    /// The network of this node's configuration; leases outside are of nodes with another.
    pub network: Ipv4Net,
    /// This node's addresses in the underlay.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Etcd's, as far as they are given as such.
    pub etcd: BTreeSet<Ipv4Addr>,
    /// Where this host sends what, by others' routes than ours.
    pub ways: Vec<Route>,
}

impl Means {
    pub(super) fn uplink_mtu(&self) -> u16 {
        u16::try_from(self.uplink_mtu).unwrap_or(u16::MAX)
    }

    /// Why a subnet cannot be pods' of the node with this address, whoever leases it.
    pub(super) fn refusal(&self, subnet: Ipv4Net, ip: Ipv4Addr) -> Option<String> {
        if let Some(own) = self.addresses.iter().find(|own| subnet.contains(*own)) {
            return Some(format!("its subnet holds {own}, which is this node's"));
        }
        if self.network.contains(&subnet) {
            return None;
        }
        if let Some(etcd) = self.etcd.iter().find(|etcd| subnet.contains(*etcd)) {
            return Some(format!(
                "its subnet is outside the network {} and holds {etcd}, which is etcd's",
                self.network
            ));
        }
        // Flanneld's own way to that node gives way to ours.
        let gives_way = |way: &Route| {
            way.dst == subnet && [ip, subnet.network()].iter().any(|gateway| is_flannels(way, *gateway))
        };
        let is_taken = |way: &&Route| {
            let on_link = way.oif.is_some() && way.gateway.is_none();
            (subnet.contains(&way.dst) || (on_link && way.dst.contains(&subnet))) && !gives_way(way)
        };
        let taken = self.ways.iter().find(is_taken)?;
        Some(format!(
            "its subnet is outside the network {}, and this host has a way to {} already",
            self.network, taken.dst
        ))
    }
}
