//! What the agent writes about other nodes, seen by the packets.

use std::collections::BTreeMap;

use aya::maps::{HashMap, Map, MapData};
use canal_agent::dataplane::nodes::{Nodes, Peer};
use canal_common::{
    Ip4, names,
    node::{MAX_NODES, NodeRef},
};
use ipnet::Ipv4Net;

use super::*;

const OTHER_NODE: Ipv4Addr = Ipv4Addr::new(192, 168, 50, 3);

fn peer(ip: Ipv4Addr) -> Peer {
    Peer { ip, vtep_mac: REMOTE_VTEP, mtu: MTU, on_link: false, direct: false }
}

fn leases(of: &[(&str, Peer)]) -> BTreeMap<Ipv4Net, Peer> {
    of.iter().map(|(subnet, peer)| (subnet.parse().unwrap(), *peer)).collect()
}

/// Whom the envelope of a packet from A to `dst` is for.
fn next_node(lab: &mut Lab, dst: Ipv4Addr) -> Option<Ipv4Addr> {
    let ran = leave(lab, A, &Packet::udp(A.at(1), (dst, 53)));
    (ran.reason == Some(Reason::Encapsulated)).then(|| {
        let [.., a, b, c, d] = ran.frame[..IP + 20] else { panic!("it has an outer IP header") };
        Ipv4Addr::new(a, b, c, d)
    })
}

fn from_node(lab: &mut Lab, node: Ipv4Addr, src: Ipv4Addr) -> Ran {
    let packet = Packet::udp((src, 7), A.at(7)).macs(REMOTE_VTEP, VTEP_MAC);
    wire(lab, &packet.in_vxlan(&Outer { src: node, ..outer() }))
}

#[test]
fn nodes_that_swap_their_addresses_in_one_change_both_stay_known() {
    let mut lab = Lab::open().unwrap();
    lab.visit(|lab| {
        add_pods(lab);
        let mut nodes = Nodes::adopt(&mut lab.object.ebpf).unwrap();
        let second = "10.244.3.0/24";
        nodes.apply(&leases(&[(REMOTE_NET, peer(REMOTE_NODE)), (second, peer(OTHER_NODE))]));
        nodes.apply(&leases(&[(REMOTE_NET, peer(OTHER_NODE)), (second, peer(REMOTE_NODE))]));
        // What a node itself sends, by its own address.
        delivered(&from_node(lab, REMOTE_NODE, REMOTE_NODE));
        delivered(&from_node(lab, OTHER_NODE, OTHER_NODE));
    });
}

#[test]
fn leases_come_move_and_go_under_live_flows() {
    let mut lab = Lab::open().unwrap();
    lab.visit(|lab| {
        add_pods(lab);
        let mut nodes = Nodes::adopt(&mut lab.object.ebpf).unwrap();
        assert_eq!(next_node(lab, REMOTE), None);
        dropped(&from_node(lab, REMOTE_NODE, REMOTE), Reason::UnknownNode);
        lab.forget_flows();

        let problems = nodes.apply(&leases(&[(REMOTE_NET, peer(REMOTE_NODE))]));
        assert_eq!((problems, nodes.len()), (Vec::new(), 1));
        assert_eq!(next_node(lab, REMOTE), Some(REMOTE_NODE));
        delivered(&from_node(lab, REMOTE_NODE, REMOTE));

        // The subnet moves to another node: flows follow, and the old node is nobody.
        nodes.apply(&leases(&[(REMOTE_NET, peer(OTHER_NODE))]));
        assert_eq!(next_node(lab, REMOTE), Some(OTHER_NODE));
        delivered(&from_node(lab, OTHER_NODE, REMOTE));
        dropped(&from_node(lab, REMOTE_NODE, REMOTE), Reason::UnknownNode);

        // A node with two subnets stays known when it loses one.
        let second = Ipv4Addr::new(10, 244, 3, 9);
        nodes.apply(&leases(&[(REMOTE_NET, peer(OTHER_NODE)), ("10.244.3.0/24", peer(OTHER_NODE))]));
        assert_eq!((next_node(lab, REMOTE), next_node(lab, second)), (Some(OTHER_NODE), Some(OTHER_NODE)));
        nodes.apply(&leases(&[("10.244.3.0/24", peer(OTHER_NODE))]));
        dropped(&from_node(lab, OTHER_NODE, REMOTE), Reason::WrongSource);
        delivered(&from_node(lab, OTHER_NODE, second));
        delivered(&from_node(lab, OTHER_NODE, OTHER_NODE));
        assert_eq!(next_node(lab, REMOTE), None);

        nodes.apply(&BTreeMap::new());
        assert!(nodes.is_empty());
        assert_eq!(next_node(lab, second), None);
        dropped(&from_node(lab, OTHER_NODE, second), Reason::UnknownNode);
    });
}

#[test]
fn what_did_not_change_is_not_touched() {
    let mut lab = Lab::open().unwrap();
    lab.visit(|lab| {
        add_pods(lab);
        let mut nodes = Nodes::adopt(&mut lab.object.ebpf).unwrap();
        let wanted = leases(&[(REMOTE_NET, peer(REMOTE_NODE))]);
        nodes.apply(&wanted);
        assert_eq!(next_node(lab, REMOTE), Some(REMOTE_NODE));
        let judged = lab.hits(ALLOW);
        nodes.apply(&wanted);
        nodes.apply(&leases(&[(REMOTE_NET, peer(REMOTE_NODE)), ("10.244.9.0/24", peer(OTHER_NODE))]));
        assert_eq!(next_node(lab, REMOTE), Some(REMOTE_NODE));
        assert_eq!(lab.hits(ALLOW), judged, "the flow still knows its node");
        // Another VTEP MAC of the same node is another lease.
        nodes.apply(&leases(&[(REMOTE_NET, Peer { vtep_mac: B.mac, ..peer(REMOTE_NODE) })]));
        let ran = leave(lab, A, &Packet::udp(A.at(1), (REMOTE, 53)));
        encapsulated(&ran);
        assert_eq!(ran.frame[50..56], B.mac.octets);
    });
}

#[test]
fn many_leases_at_once_are_all_reached_and_what_has_no_room_is_named() {
    let mut lab = Lab::open().unwrap();
    lab.visit(|lab| {
        add_pods(lab);
        let mut nodes = Nodes::adopt(&mut lab.object.ebpf).unwrap();
        let subnet =
            |number: u32| Ipv4Net::new(Ipv4Addr::from_bits(0x0af5_0000 + (number << 4)), 28).unwrap();
        let node = |number: u32| Ipv4Addr::from_bits(0xac10_0000 + number);
        let wanted: BTreeMap<Ipv4Net, Peer> =
            (1..=MAX_NODES).map(|number| (subnet(number), peer(node(number)))).collect();
        let problems = nodes.apply(&wanted);
        assert_eq!((problems.len(), nodes.len()), (1, MAX_NODES as usize - 1));
        assert!(problems[0].contains(&subnet(MAX_NODES).to_string()), "{problems:?}");
        for number in [1, 2, 5000, MAX_NODES - 1] {
            assert_eq!(next_node(lab, subnet(number).addr()), Some(node(number)), "{number}");
        }
        assert_eq!(next_node(lab, subnet(MAX_NODES).addr()), None);
    });
}

#[test]
fn a_lease_that_the_kernel_refuses_keeps_no_other_back_and_is_tried_again() {
    let mut lab = Lab::open().unwrap();
    lab.visit(|lab| {
        add_pods(lab);
        let Some(Map::HashMap(table)) = lab.object.ebpf.map(names::NODE_IPS) else { panic!() };
        let id = table.info().unwrap().id();
        let mut nodes = Nodes::adopt(&mut lab.object.ebpf).unwrap();
        let table = Map::HashMap(MapData::from_id(id).unwrap());
        let mut addresses: HashMap<_, Ip4, NodeRef> = table.try_into().unwrap();
        // Full, so that one address finds no place any more, and the other has one.
        let other = |number| Ip4::from(Ipv4Addr::from_bits(0xac10_0000 + number));
        addresses.insert(Ip4::from(OTHER_NODE), NodeRef { node: 0 }, 0).unwrap();
        let filled =
            (0..=MAX_NODES).take_while(|at| addresses.insert(other(*at), NodeRef { node: 0 }, 0).is_ok());
        assert!(filled.count() < MAX_NODES as usize);

        let second = Ipv4Addr::new(10, 244, 3, 9);
        let wanted = leases(&[(REMOTE_NET, peer(REMOTE_NODE)), ("10.244.3.0/24", peer(OTHER_NODE))]);
        let problems = nodes.apply(&wanted);
        assert!(problems.len() == 1 && problems[0].contains(REMOTE_NET), "{problems:?}");
        assert_eq!((next_node(lab, REMOTE), next_node(lab, second)), (None, Some(OTHER_NODE)));
        lab.forget_flows();
        addresses.remove(&other(0)).unwrap();
        assert_eq!(nodes.apply(&wanted), Vec::<String>::new());
        assert_eq!((next_node(lab, REMOTE), next_node(lab, second)), (Some(REMOTE_NODE), Some(OTHER_NODE)));
    });
}
