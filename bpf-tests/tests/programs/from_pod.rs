//! What a pod sends.

use canal_common::wire::PROTO_IPIP;

use super::*;

#[test]
fn a_pod_of_this_node_gets_it_readdressed_and_one_hop_older() {
    story(|lab| {
        let packet = Packet::udp(A.at(1000), B.at(53)).ttl(33);
        let ran = leave(lab, A, &packet);
        delivered(&ran);
        assert_eq!(ran.frame, packet.ttl(32).macs(HOST_MAC, B.mac).bytes());
    });
}

#[test]
fn egress_of_the_sender_and_ingress_of_a_local_receiver_both_count() {
    story(|lab| {
        let (to_b, to_remote) = (Packet::udp(A.at(1), B.at(53)), Packet::udp(A.at(1), (REMOTE, 53)));
        lab.put_set(B.ingress_set(), &[DENY]);
        dropped(&leave(lab, A, &to_b), Reason::PolicyIngress);
        encapsulated(&leave(lab, A, &to_remote));
        lab.put_set(A.egress_set(), &[DENY]);
        for packet in [to_b, Packet::udp(A.at(2), (REMOTE, 53)), Packet::udp(A.at(2), (WORLD, 53))] {
            dropped(&leave(lab, A, &packet), Reason::PolicyEgress);
        }
        // What others may do to A is another set.
        delivered(&leave(lab, B, &Packet::udp(B.at(9), A.at(9))));
    });
}

#[test]
fn addresses_that_are_not_the_pods_own_are_spoofed() {
    story(|lab| {
        for src in
            [B.ip, REMOTE, WORLD, NODE_IP, Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST]
        {
            for packet in [
                Packet::udp((src, 1), (REMOTE, 53)),
                Packet::tcp((src, 1), B.at(80), SYN),
                Packet::tcp((src, 1), B.at(80), ACK),
                Packet::echo(src, REMOTE, 1),
                Packet::ip(src, REMOTE, 47, vec![0; 8]),
                Packet::udp((src, 1), (REMOTE, 53)).options(4),
                Packet::udp((src, 1), (REMOTE, 53)).split(8)[1].clone(),
                Packet::error(src, (3, 1), &Packet::udp(A.at(1), (src, 1))),
            ] {
                dropped(&leave(lab, A, &packet), Reason::SpoofedIp);
            }
        }
        assert_eq!((lab.flows().len(), lab.new_flows().len()), (0, 0));
    });
}

#[test]
fn a_live_flow_of_another_pod_cannot_be_used() {
    story(|lab| {
        let (out, back) = (Packet::udp(B.at(7), (REMOTE, 8)), Packet::udp((REMOTE, 8), B.at(7)));
        encapsulated(&leave(lab, B, &out));
        dropped(&leave(lab, A, &out), Reason::SpoofedIp);
        dropped(&leave(lab, A, &back), Reason::SpoofedIp);
        delivered(&arrive(lab, &back));
        dropped(&leave(lab, A, &out), Reason::SpoofedIp);
        dropped(&leave(lab, A, &back), Reason::SpoofedIp);
    });
}

#[test]
fn another_mac_is_spoofed_for_new_and_known_flows_alike() {
    story(|lab| {
        let context = A.from(lab);
        let packet = Packet::udp(A.at(1), B.at(53));
        for mac in [B.mac, HOST_MAC, Mac::new([0xff; 6]), Mac::default()] {
            let frame = packet.clone().macs(mac, HOST_MAC).bytes();
            dropped(&lab.send(Hook::FromPod, &frame, context), Reason::SpoofedMac);
        }
        delivered(&leave(lab, A, &packet));
        let frame = packet.macs(B.mac, HOST_MAC).bytes();
        dropped(&lab.send(Hook::FromPod, &frame, context), Reason::SpoofedMac);
    });
}

const EVERYWHERE: [Ipv4Addr; 5] = [B.ip, REMOTE, WORLD, NODE_IP, REMOTE_NODE];

fn vxlan(dst: Ipv4Addr, port: u16) -> Packet {
    Packet::udp(A.at(40000), (dst, port)).payload(&[0; 64])
}

/// With another packet inside, whose bytes nobody reads.
fn ipip(dst: Ipv4Addr) -> Packet {
    Packet::ip(A.ip, dst, PROTO_IPIP, vec![0; 64])
}

#[test]
fn tunnels_from_a_pod_are_dropped_wherever_they_go_and_in_fragments_too() {
    story(|lab| {
        for dst in EVERYWHERE {
            for packet in [vxlan(dst, VXLAN_PORT), vxlan(dst, Settings::CALICO_VXLAN_PORT), ipip(dst)] {
                dropped(&leave(lab, A, &packet), Reason::PodTunnel);
                let [first, later] = packet.split(16);
                dropped(&leave(lab, A, &first), Reason::PodTunnel);
                // Without its first part it leads nowhere: the next hook, if there is one, drops it.
                if [B.ip, REMOTE].contains(&dst) {
                    to_stack(&leave(lab, A, &later));
                } else {
                    dropped(&leave(lab, A, &later), Reason::FragUnknown);
                }
                dropped(&leave(lab, A, &packet.options(8)), Reason::PodTunnel);
            }
        }
        // The port alone does not make a tunnel.
        delivered(&leave(lab, A, &Packet::tcp(A.at(1), B.at(VXLAN_PORT), SYN)));
        delivered(&leave(lab, A, &Packet::udp(A.at(VXLAN_PORT), B.at(53))));
    });
}

#[test]
fn vxlan_that_is_allowed_is_judged_like_any_datagram_and_never_enters_our_overlay() {
    story_with(Settings::ALLOW_POD_VXLAN, |lab| {
        for port in [VXLAN_PORT, Settings::CALICO_VXLAN_PORT] {
            delivered(&leave(lab, A, &vxlan(B.ip, port)));
            encapsulated(&leave(lab, A, &vxlan(REMOTE, port)));
        }
        for dst in [WORLD, NODE_IP, REMOTE_NODE] {
            to_stack(&leave(lab, A, &vxlan(dst, Settings::CALICO_VXLAN_PORT)));
            // The masquerade would make it this node's.
            dropped(&leave(lab, A, &vxlan(dst, VXLAN_PORT)), Reason::PodTunnel);
        }
        dropped(&leave(lab, A, &ipip(B.ip)), Reason::PodTunnel);
        dropped(&leave(lab, B, &vxlan(REMOTE, VXLAN_PORT)), Reason::SpoofedIp);
        lab.forget_flows();
        lab.put_set(A.egress_set(), &[DENY]);
        dropped(&leave(lab, A, &vxlan(REMOTE, VXLAN_PORT)), Reason::PolicyEgress);
    });
}

#[test]
fn ip_in_ip_that_is_allowed_is_judged_like_any_packet() {
    story_with(Settings::ALLOW_POD_IPIP, |lab| {
        delivered(&leave(lab, A, &ipip(B.ip)));
        encapsulated(&leave(lab, A, &ipip(REMOTE)));
        to_stack(&leave(lab, A, &ipip(WORLD)));
        dropped(&leave(lab, A, &vxlan(B.ip, VXLAN_PORT)), Reason::PodTunnel);
        dropped(&leave(lab, B, &ipip(REMOTE)), Reason::SpoofedIp);
        lab.forget_flows();
        lab.put_set(A.egress_set(), &[DENY]);
        dropped(&leave(lab, A, &ipip(WORLD)), Reason::PolicyEgress);
    });
}

#[test]
fn only_ipv4_and_arp_pass() {
    story(|lab| {
        let context = A.from(lab);
        for ethertype in [0x86dd, 0x8100, 0x88cc, 0x0000, 0xffff, 0x0805] {
            let mut frame = Packet::udp(A.at(1), B.at(2)).payload(&[0; 40]).macs(A.mac, HOST_MAC).bytes();
            frame[12..14].copy_from_slice(&u16::to_be_bytes(ethertype));
            dropped(&lab.send(Hook::FromPod, &frame, context), Reason::NotIpv4);
        }
    });
}

#[test]
fn headers_that_contradict_themselves_are_malformed() {
    story(|lab| {
        let context = A.from(lab);
        let good = Packet::tcp(A.at(1), B.at(2), SYN).macs(A.mac, HOST_MAC).bytes();
        let changes: [(&str, usize, u8); 6] = [
            ("version 6", IP, 0x65),
            ("version 0", IP, 0x05),
            ("a header of 16 bytes", IP, 0x44),
            ("a header of 0 bytes", IP, 0x40),
            ("longer than the frame", IP + 2, 0xff),
            ("shorter than its header", IP + 3, 19),
        ];
        for (what, byte, value) in changes {
            let mut frame = good.clone();
            frame[byte] = value;
            let ran = lab.send(Hook::FromPod, &frame, context);
            assert_eq!((ran.action, ran.reason), (DROP, Some(Reason::Malformed)), "{what}");
        }
        for len in [34, 37, 47] {
            dropped(&lab.send(Hook::FromPod, &good[..len], context), Reason::Malformed);
        }
        // A whole IP packet whose transport header is cut.
        for (proto, len) in [(6, 13), (6, 0), (17, 3), (132, 2), (1, 3), (1, 7)] {
            let mut body = vec![0; len];
            body.iter_mut().take(1).for_each(|kind| *kind = 8);
            let packet = Packet::ip(A.ip, B.ip, proto, body);
            dropped(&leave(lab, A, &packet), Reason::Malformed);
            dropped(&leave(lab, A, &packet.options(12)), Reason::Malformed);
        }
    });
}

#[test]
fn options_do_not_hide_the_ports() {
    story(|lab| {
        let rule = row(&[
            (0, Verdict::new(Verdict::DENY, 9)),
            (key(6, 80), Verdict::new(Verdict::ALLOW, 8)),
            (key(6, 81), Verdict::new(Verdict::DENY, 9)),
        ]);
        lab.put_row(5, &rule);
        lab.put_set(B.ingress_set(), &[5]);
        for length in [0, 4, 20, 40] {
            delivered(&leave(lab, A, &Packet::tcp(A.at(100), B.at(80), SYN).options(length)));
            dropped(
                &leave(lab, A, &Packet::tcp(A.at(100), B.at(81), SYN).options(length)),
                Reason::PolicyIngress,
            );
        }
    });
}

#[test]
fn the_stack_gets_what_it_owns() {
    story(|lab| {
        // Nobody's, the node itself, and others' addresses.
        for dst in [WORLD, NODE_IP, REMOTE_NODE, Ipv4Addr::BROADCAST] {
            let packet = Packet::udp(A.at(1), (dst, 53));
            let ran = leave(lab, A, &packet);
            to_stack(&ran);
            assert_eq!(ran.frame, packet.macs(A.mac, HOST_MAC).bytes());
        }
        // Of the pod network, and no pod's: the stack has a bridge there, or says that nobody is there.
        no_pod(&leave(lab, A, &Packet::udp(A.at(1), (Ipv4Addr::new(10, 244, 1, 99), 53))));
        // A spent TTL: the stack sends the ICMP error.
        for (dst, ttl) in [(B.ip, 1), (B.ip, 0), (REMOTE, 1), (REMOTE, 0)] {
            let packet = Packet::udp(A.at(2), (dst, 53)).ttl(ttl);
            let ran = leave(lab, A, &packet);
            to_stack(&ran);
            assert_eq!(ran.frame, packet.macs(A.mac, HOST_MAC).bytes());
        }
        // Too large for the tunnel: the stack fragments it or says so.
        let len = usize::from(MTU) - 20;
        encapsulated(&leave(lab, A, &Packet::ip(A.ip, REMOTE, 47, vec![0; len])));
        to_stack(&leave(lab, A, &Packet::ip(A.ip, REMOTE, 47, vec![0; len + 1])));
        // Not too large for a neighbour.
        delivered(&leave(lab, A, &Packet::ip(A.ip, B.ip, 47, vec![0; len + 1])));
    });
}

#[test]
fn a_lease_that_ended_is_no_way_and_a_flow_looks_for_another() {
    story(|lab| {
        let packet = Packet::udp(A.at(1), (REMOTE, 53));
        encapsulated(&leave(lab, A, &packet));
        lab.set_node(REMOTE_INDEX, Node { flags: 0, ..remote_node() });
        // The route is still there: not for long.
        dropped(&leave(lab, A, &packet), Reason::NoRoute);
        lab.delete_route(REMOTE_NET);
        no_pod(&leave(lab, A, &packet));
        let moved = Node { ip: Ipv4Addr::new(192, 168, 50, 9).into(), ..remote_node() };
        lab.put_node(4, REMOTE_NET, moved);
        lab.bump(A.id);
        let ran = leave(lab, A, &packet);
        encapsulated(&ran);
        assert_eq!(&ran.frame[IP + 16..IP + 20], &[192, 168, 50, 9]);
    });
}

#[test]
fn a_header_that_ends_behind_the_packets_own_end_is_malformed() {
    story(|lab| {
        // The receiver reads what the length says; what lies behind it could tell us another story.
        for (proto, len) in [(6, 8), (6, 19), (17, 7), (1, 7), (132, 7)] {
            let packet = Packet::ip(A.ip, B.ip, proto, vec![0x10; len]);
            let mut frame = packet.clone().macs(A.mac, HOST_MAC).bytes();
            frame.extend([0x10; 40]);
            let context = A.from(lab);
            dropped(&lab.send(Hook::FromPod, &frame, context), Reason::Malformed);
        }
    });
}
