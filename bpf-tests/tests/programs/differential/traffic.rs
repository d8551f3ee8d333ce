//! Random packets, as the definition sees them, as frames and as questions.

use std::net::Ipv4Addr;

use canal_agent::{compile::reference::Packet, model::rule::Direction};
use canal_common::{
    flow::{FlowKey, flow_key},
    icmp::Query,
    policy::{icmp_port, key},
    question::Question,
};

use super::{
    super::{SYN, WORLD},
    content::{PODS, pod_address},
};
use bpf_tests::{dice::Dice, progrun::packet};

const PORTS: [u16; 14] = [0, 53, 79, 80, 85, 90, 91, 443, 444, 999, 1000, 40000, 65534, 65535];
/// Addresses of nobody, or of network sets only.
const STRANGERS: [Ipv4Addr; 7] = [
    WORLD,
    Ipv4Addr::new(203, 0, 113, 8),
    Ipv4Addr::new(203, 0, 113, 200),
    Ipv4Addr::new(10, 244, 1, 9),
    Ipv4Addr::new(10, 244, 2, 200),
    Ipv4Addr::new(8, 8, 8, 8),
    Ipv4Addr::new(198, 51, 100, 1),
];
/// What an ICMP query calls itself.
const QUERY: u16 = 9;

/// A packet of the pod at `local`.
pub(super) fn random(dice: &mut Dice, local: Ipv4Addr, direction: Direction) -> Packet {
    let peer = if dice.chance(70) { pod_address(dice.below(PODS)) } else { dice.pick(&STRANGERS) };
    let (source, destination) = match direction {
        Direction::Egress => (local, peer),
        Direction::Ingress => (peer, local),
    };
    let protocol = dice.pick(&[6, 6, 6, 6, 6, 17, 17, 17, 132, 132, 1, 1, 47, 58, 136, 255]);
    let mut packet =
        Packet { source, destination, protocol, src_port: 0, dst_port: 0, icmp_type: 0, icmp_code: 0 };
    match protocol {
        6 | 17 | 132 => (packet.src_port, packet.dst_port) = (dice.pick(&PORTS), dice.pick(&PORTS)),
        1 => {
            let types = [(8, 0), (8, 1), (0, 0), (13, 0), (3, 0), (3, 1), (42, 0), (42, 255), (255, 0)];
            (packet.icmp_type, packet.icmp_code) = dice.pick(&types);
        }
        _ => {}
    }
    packet
}

/// Whether the programs judge it by policy alone: an ICMP error belongs to the flow that it is about.
pub(super) fn is_judged(packet: &Packet) -> bool {
    packet.protocol != 1 || packet.icmp_type != 3
}

pub(super) fn frame(packet: &Packet) -> packet::Packet {
    let (src, dst) = ((packet.source, packet.src_port), (packet.destination, packet.dst_port));
    match packet.protocol {
        6 => packet::Packet::tcp(src, dst, SYN),
        1 => {
            let [high, low] = QUERY.to_be_bytes();
            packet::Packet::icmp(src.0, dst.0, (packet.icmp_type, packet.icmp_code), [high, low, 0, 1])
        }
        17 => packet::Packet::udp(src, dst),
        132 => packet::Packet::sctp(src, dst, 0),
        136 => packet::Packet::udplite(src, dst),
        protocol => packet::Packet::ip(src.0, dst.0, protocol, vec![1; 16]),
    }
}

/// What the flow table remembers it as.
pub(super) fn flow(packet: &Packet) -> FlowKey {
    let (src, dst) = (packet.source.into(), packet.destination.into());
    let query = if packet.protocol == 1 { Query::of(packet.icmp_type, packet.icmp_code) } else { None };
    if let Some(Query { kind, is_answer }) = query {
        let (key, from_hi) = flow_key(src, dst, QUERY, QUERY, packet.protocol);
        return key.asking(kind, is_answer, from_hi);
    }
    flow_key(src, dst, packet.src_port, packet.dst_port, packet.protocol).0
}

/// What the policy of one end is asked about it.
pub(super) fn question(endpoint: u32, direction: Direction, packet: &Packet) -> Question {
    let (side, peer) = match direction {
        Direction::Ingress => (Question::INGRESS, packet.source),
        Direction::Egress => (Question::EGRESS, packet.destination),
    };
    let port =
        if packet.protocol == 1 { icmp_port(packet.icmp_type, packet.icmp_code) } else { packet.dst_port };
    Question {
        peer: peer.into(),
        key: key(packet.protocol, port),
        src_port: packet.src_port,
        direction: side,
        _pad: 0,
        endpoint,
    }
}
