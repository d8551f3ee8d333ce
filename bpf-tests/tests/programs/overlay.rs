//! The two hooks of the kernel's VXLAN device. `from_overlay` needs a tunnel key, which BPF_PROG_RUN cannot give, so
//! here it shows only that a packet without one is nobody's.

use super::*;

fn onto_overlay(lab: &mut Lab, packet: &Packet, context: Context) -> Ran {
    lab.send(Hook::ToOverlay, &packet.bytes(), context)
}

#[test]
fn the_hosts_own_packets_are_encapsulated_and_not_policed() {
    story(|lab| {
        lab.put_set(A.egress_set(), &[DENY]);
        let context = Context::on(lab.links.overlay);
        for src in [NODE_IP, Ipv4Addr::new(10, 244, 1, 0), A.ip] {
            encapsulated(&onto_overlay(lab, &Packet::udp((src, 1), (REMOTE, 53)), context));
        }
        assert_eq!(lab.new_flows(), []);
    });
}

#[test]
fn a_forwarded_pods_packet_is_policed_and_its_answers_go_up() {
    story(|lab| {
        let context = Context::on(lab.links.overlay).came_by(A.from(lab).ifindex);
        lab.put_set(A.egress_set(), &[DENY]);
        dropped(&onto_overlay(lab, &Packet::udp(A.at(1), (REMOTE, 53)), context), Reason::PolicyEgress);
        lab.put_set(A.egress_set(), &[ALLOW]);
        encapsulated(&onto_overlay(lab, &Packet::udp(A.at(1), (REMOTE, 53)), context));
        passes(&arrive(lab, &Packet::udp((REMOTE, 53), A.at(1))), NEXT, Reason::Fallback);
    });
}

#[test]
fn without_a_lease_for_the_destination_there_is_no_way() {
    story(|lab| {
        let context = Context::on(lab.links.overlay);
        for dst in [WORLD, Ipv4Addr::new(10, 244, 3, 1), A.ip] {
            dropped(&onto_overlay(lab, &Packet::udp((NODE_IP, 1), (dst, 53)), context), Reason::NoRoute);
        }
        lab.set_node(REMOTE_INDEX, Node { flags: 0, ..remote_node() });
        dropped(&onto_overlay(lab, &Packet::udp((NODE_IP, 1), (REMOTE, 53)), context), Reason::NoRoute);
    });
}

#[test]
fn only_sound_ipv4_is_encapsulated() {
    story(|lab| {
        let context = Context::on(lab.links.overlay);
        let good = Packet::udp((NODE_IP, 1), (REMOTE, 53)).bytes();
        let mut ipv6 = Packet::udp((NODE_IP, 1), (REMOTE, 53)).payload(&[0; 40]).bytes();
        ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
        dropped(&lab.send(Hook::ToOverlay, &ipv6, context), Reason::NotIpv4);
        for len in [34, 37] {
            dropped(&lab.send(Hook::ToOverlay, &good[..len], context), Reason::Malformed);
        }
    });
}

#[test]
fn what_the_helper_declines_is_addressed_for_the_kernels_device() {
    story(|lab| {
        // An aggregate of no known type.
        let context = Context::on(lab.links.overlay).segments_of(100);
        let packet = Packet::udp((NODE_IP, 1), (REMOTE, 53)).payload(&[0; 400]);
        let ran = onto_overlay(lab, &packet, context);
        passes(&ran, NEXT, Reason::Fallback);
        assert_eq!(ran.frame, packet.macs(VTEP_MAC, REMOTE_VTEP).bytes());
    });
}

#[test]
fn a_packet_without_a_tunnel_key_came_from_nobody() {
    story(|lab| {
        let context = Context::on(lab.links.overlay);
        let frame = Packet::udp((REMOTE, 1), A.at(53)).macs(REMOTE_VTEP, VTEP_MAC).bytes();
        dropped(&lab.send(Hook::FromOverlay, &frame, context), Reason::UnknownNode);
    });
}
