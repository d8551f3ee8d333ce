//! Peers as flanneld reaches them.

use std::{collections::BTreeMap, net::Ipv4Addr};

use aya::maps::{Array, LpmTrie, Map, MapData, MapError};
use canal_common::{
    Ip4, names,
    node::{Node, NodeRef},
};
use ipnet::Ipv4Net;

use super::super::{nodes::Peer, pins::Pins};
use crate::netlink::{self, Netlink, Route, protocol};

/// The routes by which flanneld sends to peers without a tunnel (`DirectRouting`, `host-gw`): `<subnet> via <PublicIP>`.
/// They win over ours, which is that of the whole network.
pub fn direct_routes(routes: &[Route], peers: &BTreeMap<Ipv4Net, Peer>) -> Vec<Route> {
    let is_flannels = |route: &&Route| {
        is_unsigned(route) && peers.get(&route.dst).is_some_and(|peer| route.gateway == Some(peer.ip))
    };
    routes.iter().filter(is_flannels).cloned().collect()
}

/// One that may be of this kind, for those who do not know the peers yet.
pub fn may_be_direct(routes: &[Route], network: Ipv4Net) -> Option<&Route> {
    let inside = |dst: &Ipv4Net| network.contains(dst) && *dst != network;
    routes.iter().find(|route| is_unsigned(route) && route.gateway.is_some() && inside(&route.dst))
}

/// As flanneld writes its routes; those of administrators and routing daemons should say whose they are.
fn is_unsigned(route: &Route) -> bool {
    route.protocol == protocol::BOOT
}

/// The peers that the tables of a stopped agent hold.
pub fn pinned(pins: &Pins) -> Result<BTreeMap<Ipv4Net, Node>, MapError> {
    let open = |name| MapData::from_pin(pins.table(name));
    let routes: LpmTrie<_, Ip4, NodeRef> = LpmTrie::try_from(Map::LpmTrie(open(names::ROUTES)?))?;
    let nodes: Array<_, Node> = Array::try_from(Map::Array(open(names::NODES)?))?;
    let mut peers = BTreeMap::new();
    for entry in &routes {
        let (key, NodeRef { node }) = entry?;
        let node = nodes.get(&node, 0)?;
        let length = u8::try_from(key.prefix_len()).unwrap_or(32);
        if let (Ok(subnet), true) = (Ipv4Net::new(key.data().into(), length), node.flags & Node::ALIVE != 0) {
            peers.insert(subnet, node);
        }
    }
    Ok(peers)
}

/// Neighbour, FDB entry and route, in flanneld's order.
pub fn program(
    netlink: &mut Netlink,
    device: u32,
    subnet: Ipv4Net,
    node: Node,
) -> Result<(), netlink::Error> {
    let via = subnet.network();
    netlink.add_neigh_permanent(device, via, node.vtep_mac)?;
    netlink.add_fdb_permanent(device, node.vtep_mac, Ipv4Addr::from(node.ip))?;
    netlink.replace_route(&Route { onlink: true, ..Route::via(subnet, via, device) })
}

#[cfg(test)]
mod tests {
    use canal_common::Mac;

    use super::*;

    #[test]
    fn direct_routes_are_those_to_a_peers_subnet_by_its_address_that_nobody_signed() {
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        let [a, b] = [Ipv4Addr::new(192, 0, 2, 2), Ipv4Addr::new(192, 0, 2, 3)];
        let peer = |ip| Peer { ip, vtep_mac: Mac::new([2; 6]), mtu: 1450, on_link: true, direct: true };
        let peers = BTreeMap::from([(net("10.77.1.0/24"), peer(a)), (net("10.77.2.0/24"), peer(b))]);
        let flannels = [Route::via(net("10.77.1.0/24"), a, 2), Route::via(net("10.77.2.0/24"), b, 2)];
        let strangers = [
            Route::via(net("10.77.1.0/24"), b, 2),
            Route::via(net("10.77.1.0/25"), a, 2),
            Route::via(net("10.77.3.0/24"), a, 2),
            Route::link(net("10.77.2.0/24"), 2),
            Route { protocol: protocol::STATIC, ..Route::via(net("10.77.2.0/24"), b, 2) },
            Route { protocol: 202, ..Route::via(net("10.77.2.0/24"), b, 2) },
            Route { protocol: 12, ..Route::via(net("10.77.2.0/24"), b, 2) },
            Route::via(net("0.0.0.0/0"), a, 2),
        ];
        let all: Vec<_> = strangers.into_iter().chain(flannels.clone()).collect();
        assert_eq!(direct_routes(&all, &peers), flannels);
        assert_eq!(direct_routes(&all, &BTreeMap::new()), []);
        assert_eq!(may_be_direct(&flannels, net("10.77.0.0/16")), flannels.first());
        assert_eq!(may_be_direct(&flannels, net("10.78.0.0/16")), None);
        assert_eq!(may_be_direct(&all[3..7], net("10.77.0.0/16")), None, "signed, or without a gateway");
    }
}
