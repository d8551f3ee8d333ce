//! Every byte of the VXLAN packets that are made here.

use std::collections::BTreeSet;

use canal_common::wire::{ENVELOPE_LEN, SRC_PORT_MAX, SRC_PORT_MIN};

use super::*;

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Checks the envelope around `inner`, which is as the pod sent it; the answer is the outer source port.
fn check(frame: &[u8], inner: &Packet, outer_tos: u8) -> u16 {
    let (outer_ip, udp, vxlan, inner_eth) = (&frame[IP..34], &frame[34..42], &frame[42..50], &frame[50..64]);
    let inner_len = inner.bytes().len();
    assert_eq!(frame.len(), inner_len + ENVELOPE_LEN);
    assert_eq!(frame[12..14], [8, 0], "outer ethertype");

    assert_eq!(outer_ip[0], 0x45);
    assert_eq!(outer_ip[1], outer_tos, "outer TOS");
    assert_eq!(usize::from(be16(outer_ip, 2)), frame.len() - IP, "outer length");
    assert_eq!(be16(outer_ip, 6), 0, "may be fragmented, is not");
    assert_eq!(outer_ip[8..10], [64, 17], "TTL and protocol");
    assert_eq!(checksum(outer_ip), 0, "outer checksum");
    assert_eq!(outer_ip[12..16], NODE_IP.octets());
    assert_eq!(outer_ip[16..20], REMOTE_NODE.octets());

    let port = be16(udp, 0);
    assert!((SRC_PORT_MIN..=SRC_PORT_MAX).contains(&port), "source port {port}");
    assert_eq!(be16(udp, 2), VXLAN_PORT);
    assert_eq!(usize::from(be16(udp, 4)), frame.len() - 34, "UDP length");
    assert_eq!(be16(udp, 6), 0, "no UDP checksum");
    assert_eq!(vxlan, [8, 0, 0, 0, 0, 0, 1, 0], "VNI 1");

    assert_eq!(inner_eth[..6], REMOTE_VTEP.octets);
    assert_eq!(inner_eth[6..12], VTEP_MAC.octets);
    assert_eq!(inner_eth[12..], [8, 0]);
    let forwarded = inner.clone().ttl(inner.ttl - 1).bytes();
    assert_eq!(frame[64..], forwarded[IP..], "the inner packet, one hop older");
    port
}

#[test]
fn a_remote_pods_packet_is_wrapped_as_a_linux_vxlan_device_would_do_it() {
    story(|lab| {
        for packet in [
            Packet::udp(A.at(1000), (REMOTE, 53)),
            Packet::tcp(A.at(1000), (REMOTE, 80), SYN),
            Packet::echo(A.ip, REMOTE, 77),
            Packet::ip(A.ip, REMOTE, 47, vec![0xab; 1]),
            Packet::ip(A.ip, REMOTE, 132, vec![0xab; 1400]),
            Packet::udp(A.at(1000), (REMOTE, 54)).ttl(2),
            Packet::udp(A.at(1000), (REMOTE, 55)).ttl(255).options(40),
        ] {
            let ran = leave(lab, A, &packet);
            encapsulated(&ran);
            check(&ran.frame, &packet, 0);
        }
    });
}

#[test]
fn established_packets_get_the_same_envelope() {
    story(|lab| {
        let (out, back) = (Packet::udp(A.at(9), (REMOTE, 53)), Packet::udp((REMOTE, 53), A.at(9)));
        let first = leave(lab, A, &out);
        delivered(&arrive(lab, &back));
        let second = leave(lab, A, &out);
        encapsulated(&second);
        let ports = [first, second].map(|ran| check(&ran.frame, &out, 0));
        assert_eq!(ports[0], ports[1], "a flow keeps its way through the fabric");
    });
}

#[test]
fn congestion_marks_cross_and_the_traffic_class_does_not() {
    story(|lab| {
        for (tos, outer_tos) in [(0, 0), (1, 1), (2, 2), (3, 3), (0xb8, 0), (0xbb, 3)] {
            let packet = Packet::udp(A.at(5), (REMOTE, 53)).tos(tos);
            let ran = leave(lab, A, &packet);
            encapsulated(&ran);
            check(&ran.frame, &packet, outer_tos);
        }
    });
}

#[test]
fn flows_spread_over_the_source_ports() {
    story(|lab| {
        let mut ports = BTreeSet::new();
        for port in 1..=100 {
            let packet = Packet::udp(A.at(port), (REMOTE, 53));
            let ran = leave(lab, A, &packet);
            ports.insert(check(&ran.frame, &packet, 0));
        }
        assert!(ports.len() > 90, "{} different ports for 100 flows", ports.len());
    });
}

#[test]
fn the_host_stacks_packets_keep_their_ttl() {
    story(|lab| {
        let packet = Packet::udp((NODE_IP, 1), (REMOTE, 53)).ttl(1);
        let context = Context::on(lab.links.overlay);
        let ran = lab.send(Hook::ToOverlay, &packet.bytes(), context);
        encapsulated(&ran);
        // The stack has taken its hop off already.
        check(&ran.frame, &packet.ttl(2), 0);
    });
}

#[test]
fn what_the_helper_declines_is_left_to_the_stack_as_it_was() {
    story(|lab| {
        // An aggregate of no known type.
        let packet = Packet::udp(A.at(1), (REMOTE, 53)).payload(&[0; 400]).ttl(9);
        let context = A.from(lab).segments_of(100);
        let ran = lab.send(Hook::FromPod, &packet.clone().macs(A.mac, HOST_MAC).bytes(), context);
        to_stack(&ran);
        assert_eq!(ran.frame, packet.macs(A.mac, HOST_MAC).bytes(), "hops and all");
        // Segments that are too large for the tunnel are not even tried.
        let packet = Packet::udp(A.at(1), (REMOTE, 54)).payload(&[0; 400]);
        let context = A.from(lab).segments_of(u32::from(MTU));
        let ran = lab.send(Hook::FromPod, &packet.clone().macs(A.mac, HOST_MAC).bytes(), context);
        to_stack(&ran);
        assert_eq!(ran.frame, packet.macs(A.mac, HOST_MAC).bytes());
    });
}
