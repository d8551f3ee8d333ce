//! What comes in on the uplink.

use super::*;

#[test]
fn a_pod_gets_what_was_in_the_envelope_one_hop_older() {
    story(|lab| {
        for packet in [
            Packet::udp((REMOTE, 1000), A.at(53)).ttl(2),
            Packet::tcp((REMOTE, 1000), A.at(80), SYN),
            Packet::echo(REMOTE, A.ip, 9),
            Packet::ip(REMOTE, A.ip, 47, vec![1; 1]),
            Packet::udp((REMOTE, 1001), A.at(53)).options(24).tos(0xff),
            // The other node itself, by its own address.
            Packet::udp((REMOTE_NODE, 1000), A.at(53)),
        ] {
            let ran = arrive(lab, &packet);
            delivered(&ran);
            let ttl = packet.ttl - 1;
            assert_eq!(ran.frame, packet.ttl(ttl).macs(HOST_MAC, A.mac).bytes());
        }
    });
}

#[test]
fn ingress_policy_of_the_receiver_counts() {
    story(|lab| {
        lab.put_set(A.ingress_set(), &[DENY]);
        dropped(&arrive(lab, &Packet::udp((REMOTE, 1), A.at(53))), Reason::PolicyIngress);
        dropped(&arrive(lab, &Packet::udp((REMOTE_NODE, 1), A.at(53))), Reason::PolicyIngress);
        delivered(&arrive(lab, &Packet::udp((REMOTE, 1), B.at(53))));
    });
}

#[test]
fn a_node_without_a_lease_may_not_send() {
    story(|lab| {
        let stranger = Ipv4Addr::new(192, 168, 50, 66);
        for src in [REMOTE, stranger, WORLD, B.ip] {
            let packet = Packet::udp((src, 1), A.at(53)).macs(REMOTE_VTEP, VTEP_MAC);
            let frame = packet.in_vxlan(&Outer { src: stranger, ..outer() });
            dropped(&wire(lab, &frame), Reason::UnknownNode);
        }
    });
}

#[test]
fn a_node_speaks_for_its_own_subnet_only() {
    story(|lab| {
        let other = Node { ip: Ipv4Addr::new(192, 168, 50, 3).into(), ..remote_node() };
        lab.put_node(4, "10.244.3.0/24", other);
        let elsewhere = Ipv4Addr::new(10, 244, 3, 1);
        for src in
            [elsewhere, B.ip, A.ip, WORLD, NODE_IP, Ipv4Addr::new(192, 168, 50, 3), Ipv4Addr::UNSPECIFIED]
        {
            dropped(&arrive(lab, &Packet::udp((src, 1), A.at(53))), Reason::WrongSource);
            dropped(&arrive(lab, &Packet::tcp((src, 1), A.at(80), ACK)), Reason::WrongSource);
            let about = Packet::udp(A.at(9), (src, 1));
            dropped(&arrive(lab, &Packet::error(src, (3, 3), &about)), Reason::WrongSource);
        }
    });
}

#[test]
fn a_live_flow_does_not_let_another_node_in() {
    story(|lab| {
        let other = Ipv4Addr::new(192, 168, 50, 3);
        lab.put_node(4, "10.244.3.0/24", Node { ip: other.into(), ..remote_node() });
        let (out, back) = (Packet::udp(A.at(9), (REMOTE, 53)), Packet::udp((REMOTE, 53), A.at(9)));
        encapsulated(&leave(lab, A, &out));
        delivered(&arrive(lab, &back));
        let frame = back.macs(REMOTE_VTEP, VTEP_MAC).in_vxlan(&Outer { src: other, ..outer() });
        dropped(&wire(lab, &frame), Reason::WrongSource);
    });
}

#[test]
fn an_envelope_for_another_device_is_dropped() {
    story(|lab| {
        for mac in [REMOTE_VTEP, Mac::new([0xff; 6]), Mac::default(), A.mac] {
            let packet = Packet::udp((REMOTE, 1), A.at(53)).macs(REMOTE_VTEP, mac);
            dropped(&wire(lab, &packet.in_vxlan(&outer())), Reason::WrongVtep);
        }
    });
}

#[test]
fn what_is_inside_must_be_ipv4_and_sound() {
    story(|lab| {
        let inner = Packet::udp((REMOTE, 1), A.at(53)).macs(REMOTE_VTEP, VTEP_MAC).bytes();
        for ethertype in [0x86dd, 0x0806, 0x8100] {
            let mut frame = inner.clone();
            frame[12..14].copy_from_slice(&u16::to_be_bytes(ethertype));
            dropped(&wire(lab, &outer().around(&frame)), Reason::NotIpv4);
        }
        for (byte, value) in [(IP, 0x65), (IP, 0x44), (IP + 2, 0xff), (IP + 3, 19)] {
            let mut frame = inner.clone();
            frame[byte] = value;
            dropped(&wire(lab, &outer().around(&frame)), Reason::Malformed);
        }
        for len in [14, 20, 33, 34, 37] {
            dropped(&wire(lab, &outer().around(&inner[..len])), Reason::Malformed);
        }
    });
}

#[test]
fn everything_else_on_the_uplink_is_left_alone() {
    story(|lab| {
        let inner = Packet::udp((REMOTE, 1), A.at(53)).macs(REMOTE_VTEP, VTEP_MAC);
        let envelopes = [
            ("another VNI", Outer { vni: 2, ..outer() }),
            ("VNI 256", Outer { vni: 256, ..outer() }),
            ("no VNI", Outer { flags: 0, ..outer() }),
            ("flags beside the VNI's", Outer { flags: 0x88, ..outer() }),
            ("another port", Outer { dst_port: 4789, ..outer() }),
            ("another address", Outer { dst: REMOTE_NODE, ..outer() }),
            ("outer options", Outer { options: 4, ..outer() }),
            ("a first fragment", Outer { more: true, ..outer() }),
            ("a later fragment", Outer { offset: 100, ..outer() }),
        ];
        for (what, envelope) in envelopes {
            let frame = inner.in_vxlan(&envelope);
            let ran = wire(lab, &frame);
            assert_eq!((ran.action, ran.reason), (NEXT, None), "{what}");
            assert_eq!(ran.frame, frame, "{what}");
        }
        let tcp = Packet::tcp((REMOTE_NODE, 1), (NODE_IP, 22), SYN).bytes();
        untouched(&wire(lab, &tcp), &tcp);
        let question =
            arp(etherparse::ArpOperation::REQUEST, (REMOTE_VTEP, REMOTE_NODE), (VTEP_MAC, NODE_IP));
        untouched(&wire(lab, &question), &question);
        let mut ipv6 = Packet::tcp((REMOTE_NODE, 1), (NODE_IP, 22), SYN).payload(&[0; 40]).bytes();
        ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
        untouched(&wire(lab, &ipv6), &ipv6);
        // Cut anywhere in the envelope.
        let frame = inner.in_vxlan(&outer());
        for len in [34, 41, 49, 50, 63] {
            untouched(&wire(lab, &frame[..len]), &frame[..len]);
        }
        // Pods send directly to pods elsewhere, outside any tunnel.
        let plain = Packet::udp((REMOTE, 1), A.at(53)).bytes();
        untouched(&wire(lab, &plain), &plain);
    });
}

#[test]
fn traffic_class_and_plain_congestion_marks_do_not_matter() {
    story(|lab| {
        let inner = Packet::udp((REMOTE, 1), A.at(53)).macs(REMOTE_VTEP, VTEP_MAC);
        for tos in [1, 2, 0xb8, 0xfe] {
            delivered(&wire(lab, &inner.in_vxlan(&Outer { tos, ..outer() })));
        }
    });
}

#[test]
fn congestion_that_the_envelope_met_is_told_to_those_who_know_such_marks() {
    story(|lab| {
        let inner = |tos| Packet::udp((REMOTE, 1), A.at(53)).tos(tos).macs(REMOTE_VTEP, VTEP_MAC);
        let send = |lab: &mut Lab, tos, outer_tos| {
            wire(lab, &inner(tos).in_vxlan(&Outer { tos: outer_tos, ..outer() }))
        };
        for (tos, outer_tos, after) in
            [(0xb8 | 2, 3, 0xb8 | 3), (1, 3, 3), (3, 3, 3), (3, 0, 3), (2, 1, 1), (0xb8, 2, 0xb8)]
        {
            let ran = send(lab, tos, outer_tos);
            delivered(&ran);
            let want = inner(after);
            let ttl = want.ttl - 1;
            assert_eq!(ran.frame, want.ttl(ttl).macs(HOST_MAC, A.mac).bytes(), "{tos} in {outer_tos}");
        }
        dropped(&send(lab, 0xb8, 3), Reason::EcnUnaware);
    });
}

#[test]
fn what_is_for_the_host_or_too_old_goes_to_the_kernels_device_as_it_is() {
    story(|lab| {
        for packet in [
            Packet::udp((REMOTE, 1), (NODE_IP, 53)),
            Packet::udp((REMOTE, 1), (Ipv4Addr::new(10, 244, 1, 0), 53)),
            Packet::udp((REMOTE, 1), A.at(53)).ttl(1),
            Packet::udp((REMOTE, 1), A.at(53)).ttl(0),
        ] {
            let frame = packet.macs(REMOTE_VTEP, VTEP_MAC).in_vxlan(&outer());
            let ran = wire(lab, &frame);
            passes(&ran, NEXT, Reason::Fallback);
            assert_eq!(ran.frame, frame);
        }
    });
}
