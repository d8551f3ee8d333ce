//! The host's own routes beside that of the overlay device: to nodes that are reached without an envelope, for what the
//! fast path leaves to the stack; and those that refuse what nobody has, so that it never leaves by a default route.
//!
//! A fresh process knows them by their protocol number, [`ROUTE_PROTOCOL`].

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;
use tracing::info;

use super::{nodes::Peer, overlay::ROUTE_PROTOCOL};
use crate::{
    netlink::{Netlink, Route},
    store::Backend,
};

/// Behind every other route: a bridge that owns the node's subnet, a static route, are there for a reason.
const LAST_RESORT: u32 = 0xff00_0000;

/// What this node's routes depend on.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub backend: &'a Backend,
    /// The whole pod network, and this node's part of it.
    pub network: Ipv4Net,
    pub subnet: Ipv4Net,
    pub uplink: u32,
}

/// The routes that should be there.
pub fn wanted(place: Place<'_>, peers: &BTreeMap<Ipv4Net, Peer>) -> Vec<Route> {
    let Place { backend, network, subnet, uplink } = place;
    let refuse = |dst| Route { metric: LAST_RESORT, ..Route::unreachable(dst) };
    let mut wanted = vec![refuse(subnet)];
    // With vxlan the whole network is routed to the overlay device, where there is the same refusal; with alloc others know.
    if matches!(backend, Backend::HostGw) {
        wanted.push(refuse(network));
    }
    let via = |ip: Ipv4Addr, subnet| Route::via(subnet, ip, uplink);
    wanted.extend(peers.iter().filter(|(_, peer)| peer.direct).map(|(subnet, peer)| via(peer.ip, *subnet)));
    wanted.into_iter().map(|route| Route { protocol: ROUTE_PROTOCOL, ..route }).collect()
}

/// Sets what is missing and removes what is ours and not wanted any more, in that order: what replaces is there before. One that cannot
/// be set is told and keeps nobody back.
pub fn ensure(netlink: &mut Netlink, present: &[Route], wanted: &[Route]) -> Vec<String> {
    let mut problems = Vec::new();
    for route in wanted.iter().filter(|route| !present.contains(route)) {
        match netlink.replace_route(route) {
            Ok(()) => info!(%route, "set"),
            Err(error) => problems.push(error.to_string()),
        }
    }
    let is_stale = |route: &&Route| {
        // The kernel knows a route by destination and metric: such a one was replaced.
        let replaced = wanted.iter().any(|new| (new.dst, new.metric) == (route.dst, route.metric));
        // Those that lead to pods and to the device's own link are kept elsewhere.
        let is_here = route.gateway.is_some() || route.unreachable;
        route.protocol == ROUTE_PROTOCOL && is_here && !replaced
    };
    for route in present.iter().filter(is_stale) {
        match netlink.delete_route(route) {
            Ok(_) => info!(%route, "removed"),
            Err(error) => problems.push(error.to_string()),
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::VxlanOptions;

    #[test]
    fn direct_peers_are_routed_and_what_nobody_has_is_refused() {
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        let peer = |last, direct| Peer {
            ip: Ipv4Addr::new(192, 0, 2, last),
            vtep_mac: canal_common::Mac::default(),
            mtu: 1500,
            on_link: direct,
            direct,
        };
        let peers =
            BTreeMap::from([(net("10.1.2.0/24"), peer(2, true)), (net("10.1.3.0/24"), peer(3, false))]);
        let shown = |backend: &Backend| {
            let place = Place { backend, network: net("10.1.0.0/16"), subnet: net("10.1.1.0/24"), uplink: 7 };
            wanted(place, &peers).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let own = "unreachable route to 10.1.1.0/24";
        let direct = "route to 10.1.2.0/24 via 192.0.2.2 on interface 7";
        assert_eq!(shown(&Backend::Vxlan(VxlanOptions::default())), [own, direct]);
        assert_eq!(shown(&Backend::HostGw), [own, "unreachable route to 10.1.0.0/16", direct]);
    }
}
