//! The host's own routes, for what the fast path leaves to the stack: to nodes, by the overlay device or without an envelope;
//! and those that refuse what nobody has, so that it never leaves by a default route.
//!
//! A fresh process knows them by their protocol number, [`ROUTE_PROTOCOL`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;
use tracing::info;

use super::{
    nodes::Peer,
    overlay::{Overlay, ROUTE_PROTOCOL},
};
use crate::{
    netlink::{self, Link, Netlink, Route, protocol},
    store::Backend,
};

/// Behind every other route to the same: a bridge that owns the node's subnet is there for a reason.
const LAST_RESORT: u32 = 0xff00_0000;

/// What this node's routes depend on.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    pub backend: &'a Backend,
    /// The overlay device and its index.
    pub overlay: Option<(&'a Overlay, u32)>,
    /// What only nodes bring.
    pub pods: &'a [Ipv4Net],
    /// This node's part of it.
    pub subnet: Ipv4Net,
    pub uplink: u32,
}

/// The routes that should be there, given those that are. `lost`: subnets of nodes that cannot be reached.
pub fn wanted(
    place: Place<'_>,
    peers: &BTreeMap<Ipv4Net, Peer>,
    lost: &[Ipv4Net],
    present: &[Route],
) -> Vec<Route> {
    let Place { backend, overlay, pods, subnet, uplink } = place;
    let refuse = |dst| Route { metric: LAST_RESORT, ..Route::unreachable(dst) };
    let is_outside = |net: &Ipv4Net| !pods.iter().any(|pods| pods.contains(net));
    let mut wanted = vec![refuse(subnet)];
    // With vxlan all of it is routed to the overlay device, where there is the same refusal; with alloc others know.
    // Somebody's own way there, or to more than that, stays: it would lose to ours.
    let has_way = |net: &Ipv4Net| {
        let leads =
            |r: &Route| r.protocol != ROUTE_PROTOCOL && r.dst.prefix_len() != 0 && r.dst.contains(net);
        present.iter().any(leads)
    };
    if matches!(backend, Backend::HostGw) {
        wanted.extend(pods.iter().filter(|net| !has_way(net)).map(|net| refuse(*net)));
    }
    // Nor is refused what somebody else has who can be reached.
    let is_reached = |net: &Ipv4Net| {
        let around = |len| Ipv4Net::new(net.addr(), len).is_ok_and(|net| peers.contains_key(&net.trunc()));
        (0..=net.prefix_len()).any(around)
            || peers.range(*net..).next().is_some_and(|(inner, _)| net.contains(inner))
    };
    wanted.extend(lost.iter().filter(|net| is_outside(net) && !is_reached(net)).map(|net| refuse(*net)));
    if let Some((overlay, index)) = overlay {
        let outside = peers.iter().filter(|(net, peer)| !peer.direct && is_outside(net)).map(|(net, _)| net);
        wanted.extend(overlay.routed.iter().chain(outside).map(|net| overlay.route(*net, index)));
    }
    let via = |ip: Ipv4Addr, subnet| Route::via(subnet, ip, uplink);
    wanted.extend(peers.iter().filter(|(_, peer)| peer.direct).map(|(subnet, peer)| via(peer.ip, *subnet)));
    wanted.into_iter().map(|route| Route { protocol: ROUTE_PROTOCOL, ..route }).collect()
}

/// Sets what is missing and removes what is ours and not wanted any more, in that order: what replaces is there before. One that cannot
/// be set is told and keeps nobody back; somebody else's in its place stays. `overlay`: the device's index.
pub fn ensure(
    netlink: &mut Netlink,
    overlay: Option<u32>,
    present: &[Route],
    wanted: &[Route],
) -> Vec<String> {
    // The kernel knows a route by destination and metric.
    let place = |route: &Route| (route.dst, route.metric);
    let found: BTreeMap<_, &Route> = present.iter().map(|route| (place(route), route)).collect();
    let kept: BTreeSet<_> = wanted.iter().map(place).collect();
    let mut problems = Vec::new();
    for route in wanted {
        match found.get(&place(route)) {
            Some(there) if *there == route => continue,
            Some(there) if !may_replace(there, route) => {
                problems.push(format!(
                    "the {there} is somebody else's (protocol {}), where ours would be the {route}; remove it, or what this \
                     node's stack sends there goes that way",
                    there.protocol
                ));
                continue;
            }
            _ => {}
        }
        match netlink.replace_route(route) {
            Ok(()) => info!(%route, "set"),
            Err(error) => problems.push(error.to_string()),
        }
    }
    let is_stale = |route: &&Route| {
        // Those that lead to this node's pods are kept elsewhere.
        let is_here =
            route.gateway.is_some() || route.unreachable || (overlay.is_some() && route.oif == overlay);
        route.protocol == ROUTE_PROTOCOL && is_here && !kept.contains(&place(route))
    };
    for route in present.iter().filter(is_stale) {
        match netlink.delete_route(route) {
            Ok(_) => info!(%route, "removed"),
            Err(error) => problems.push(error.to_string()),
        }
    }
    problems
}

/// Removes every route of ours, pods' and the device's too; tells of each.
pub fn remove_all(netlink: &mut Netlink) -> Result<Vec<String>, netlink::Error> {
    let mut removed = Vec::new();
    for route in netlink.routes()?.iter().filter(|route| route.protocol == ROUTE_PROTOCOL) {
        if netlink.delete_route(route)? {
            removed.push(format!("removed the {route}"));
        }
    }
    Ok(removed)
}

/// Whether somebody lives in this subnet of this node, whoever made the pods.
pub fn lead_to_pods(routes: &[Route], links: &[Link], subnet: Ipv4Net) -> bool {
    // To the whole of it leads a bridge, which has a carrier if somebody is behind it, or the overlay device.
    let is_used = |route: &Route| {
        let runs = links.iter().any(|link| route.oif == Some(link.index) && link.running);
        route.dst != subnet || (runs && route.protocol != ROUTE_PROTOCOL)
    };
    routes.iter().any(|route| route.oif.is_some() && subnet.contains(&route.dst) && is_used(route))
}

/// Flanneld's way to a node: by its address, or in an envelope by that of the node's device.
pub fn is_flannels(route: &Route, gateway: Ipv4Addr) -> bool {
    route.protocol == protocol::BOOT && route.gateway == Some(gateway)
}

/// Whether the kernel takes the two for one route, by destination and metric, and the present one is somebody else's.
pub(super) fn is_taken(there: &Route, ours: &Route) -> bool {
    (there.dst, there.metric) == (ours.dst, ours.metric) && !may_replace(there, ours)
}

/// Ours, or flanneld's own way to the same node.
fn may_replace(there: &Route, ours: &Route) -> bool {
    let gateway = ours.gateway.unwrap_or_else(|| ours.dst.network());
    there.protocol == ROUTE_PROTOCOL || (is_flannels(there, gateway) && !ours.unreachable)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{dataplane::overlay::Device, store::VxlanOptions};

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
        let peers = [("10.1.2.0/24", true), ("10.1.3.0/24", false), ("10.3.3.0/24", false)];
        let peers = BTreeMap::from(peers.map(|(subnet, direct)| (net(subnet), peer(2, direct))));
        let (pods, lost) =
            ([net("10.1.0.0/16")], ["10.1.4.0/24", "10.2.4.0/24", "10.3.3.128/25", "10.3.0.0/16"].map(net));
        let device = Device { vni: 1, port: 8472, mac: canal_common::Mac::default(), mtu: 1450 };
        let overlay = Overlay { device, network: pods[0], subnet: net("10.1.1.0/24"), routed: pods.to_vec() };
        let shown = |backend: &Backend, present: &[Route]| {
            let overlay = backend.vxlan().map(|_| (&overlay, 9));
            let place = Place { backend, overlay, pods: &pods, subnet: net("10.1.1.0/24"), uplink: 7 };
            wanted(place, &peers, &lost, present).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let own = "unreachable route to 10.1.1.0/24";
        let direct = "route to 10.1.2.0/24 via 192.0.2.2 on interface 7";
        let gateway = |dst| Route::via(net(dst), Ipv4Addr::new(192, 0, 2, 254), 7);
        let world = [gateway("0.0.0.0/0"), gateway("10.1.9.0/24")];
        let lost = "unreachable route to 10.2.4.0/24";
        let overlay = ["route to 10.1.0.0/16 on interface 9", "route to 10.3.3.0/24 on interface 9"];
        let vxlan = Backend::Vxlan(VxlanOptions::default());
        assert_eq!(shown(&vxlan, &world), [own, lost, overlay[0], overlay[1], direct]);
        let whole = "unreachable route to 10.1.0.0/16";
        assert_eq!(shown(&Backend::HostGw, &world), [own, whole, lost, direct]);
        // A router knows more of the network than we do.
        assert_eq!(shown(&Backend::HostGw, &[gateway("10.0.0.0/8")]), [own, lost, direct]);
    }

    #[test]
    fn pods_live_where_a_route_leads_to_one_or_a_bridge_has_a_carrier() {
        let (pod, subnet) = ("10.1.2.3/32".parse().unwrap(), "10.1.2.0/24".parse().unwrap());
        let elsewhere = "10.1.3.0/24".parse().unwrap();
        let ours = Route { protocol: ROUTE_PROTOCOL, ..Route::link(subnet, 9) };
        let links = [(8, false), (9, true), (10, true)].map(|(index, running)| Link {
            index,
            running,
            ..Link::default()
        });
        for (route, lives) in [
            (Route::link(pod, 8), true),
            (Route::link(subnet, 10), true),
            (Route::link(subnet, 8), false),
            (ours, false),
            (Route::unreachable(subnet), false),
            (Route::link(elsewhere, 10), false),
        ] {
            assert_eq!(lead_to_pods(std::slice::from_ref(&route), &links, subnet), lives, "{route}");
        }
    }

    #[test]
    fn a_route_that_somebody_else_made_is_not_replaced_but_flannels_is() {
        let net = "10.1.2.0/24".parse().unwrap();
        let [a, b] = [Ipv4Addr::new(192, 0, 2, 2), Ipv4Addr::new(192, 0, 2, 3)];
        let ours = Route { protocol: ROUTE_PROTOCOL, ..Route::via(net, a, 7) };
        assert!(may_replace(&Route { mtu: Some(1400), ..ours.clone() }, &ours));
        assert!(may_replace(&Route::via(net, a, 7), &ours));
        assert!(!may_replace(&Route::via(net, b, 7), &ours));
        let by_device = Route { protocol: ROUTE_PROTOCOL, ..Route::link(net, 9) };
        assert!(
            may_replace(&Route::via(net, net.network(), 8), &by_device)
                && !may_replace(&Route::via(net, a, 7), &by_device)
        );
        assert!(!may_replace(&Route { protocol: protocol::STATIC, ..Route::via(net, a, 7) }, &ours));
    }
}
