//! Fragments: the first one has the ports, the later ones get them from a table.

use super::*;

fn datagram(src: End, dst: End) -> [Packet; 2] {
    Packet::udp(src, dst).payload(&[0; 40]).split(16)
}

#[test]
fn both_parts_go_the_way_of_the_whole() {
    story(|lab| {
        for (dst, action) in [(B.ip, Reason::Delivered), (REMOTE, Reason::Encapsulated)] {
            for part in datagram(A.at(1), (dst, 53)) {
                passes(&leave(lab, A, &part), REDIRECT, action);
            }
        }
        for part in datagram(A.at(1), (WORLD, 53)) {
            to_stack(&leave(lab, A, &part));
        }
        for part in datagram((REMOTE, 5), A.at(53)) {
            delivered(&arrive(lab, &part));
        }
        for part in datagram((WORLD, 5), A.at(53)) {
            passes(&enter(lab, A, &part), NEXT, Reason::Delivered);
        }
    });
}

#[test]
fn the_first_part_is_judged_and_the_later_one_follows_its_flow_or_goes_nowhere() {
    story(|lab| {
        lab.put_set(A.egress_set(), &[DENY]);
        lab.put_set(A.ingress_set(), &[DENY]);
        let [first, later] = datagram(A.at(1), (REMOTE, 53));
        dropped(&leave(lab, A, &first), Reason::PolicyEgress);
        to_stack(&leave(lab, A, &later));
        let [first, later] = datagram(A.at(1), (WORLD, 53));
        dropped(&leave(lab, A, &first), Reason::PolicyEgress);
        dropped(&leave(lab, A, &later), Reason::FragUnknown);
        let [first, later] = datagram((REMOTE, 5), A.at(53));
        dropped(&arrive(lab, &first), Reason::PolicyIngress);
        passes(&arrive(lab, &later), NEXT, Reason::Fallback);
        let [first, later] = datagram((WORLD, 5), A.at(53));
        dropped(&enter(lab, A, &first), Reason::PolicyIngress);
        dropped(&enter(lab, A, &later), Reason::FragUnknown);
    });
}

#[test]
fn a_later_part_whose_first_was_not_seen_is_the_stacks_or_nobodys() {
    story(|lab| {
        let unknown = |src, dst| datagram(src, dst)[1].clone();
        to_stack(&leave(lab, A, &unknown(A.at(1), (REMOTE, 53))));
        dropped(&leave(lab, A, &unknown(A.at(1), (WORLD, 53))), Reason::FragUnknown);
        passes(&arrive(lab, &unknown((REMOTE, 1), A.at(53))), NEXT, Reason::Fallback);
        dropped(&enter(lab, A, &unknown((WORLD, 1), A.at(53))), Reason::FragUnknown);
        passes(&from_host(lab, A, &unknown((NODE_IP, 1), A.at(53))), NEXT, Reason::Delivered);
        let overlay = Context::on(lab.links.overlay);
        let frame = unknown(A.at(1), (REMOTE, 53)).bytes();
        let forwarded = overlay.came_by(A.from(lab).ifindex);
        dropped(&lab.send(Hook::ToOverlay, &frame, forwarded), Reason::FragUnknown);
        encapsulated(&lab.send(Hook::ToOverlay, &unknown((NODE_IP, 1), (REMOTE, 53)).bytes(), overlay));
    });
}

/// The stack holds fragments until it has the whole datagram.
fn gathering(tell: impl FnOnce(&mut Lab) + Send) {
    story_with(Settings::DEFRAGMENTS, tell);
}

#[test]
fn where_a_later_part_comes_first_all_go_to_the_stack_which_puts_them_together() {
    gathering(|lab| {
        for dst in [B.ip, REMOTE, WORLD] {
            let [first, later] = datagram(A.at(1), (dst, 53));
            to_stack(&leave(lab, A, &later));
            to_stack(&leave(lab, A, &first));
            to_stack(&leave(lab, A, &later));
        }
        let [first, later] = datagram((REMOTE, 5), A.at(53));
        for part in [&later, &first, &later] {
            passes(&arrive(lab, part), NEXT, Reason::Fallback);
        }
        // In their order again, as the stack sends them on.
        for part in [&first, &later] {
            passes(&enter(lab, A, part), NEXT, Reason::Delivered);
        }
        // The next datagram of that flow goes the short way.
        let next = |part: &Packet| Packet { id: 0x4321, ..part.clone() };
        for part in [&first, &later] {
            delivered(&arrive(lab, &next(part)));
        }
    });
}

#[test]
fn a_first_part_that_policy_denies_never_reaches_the_stack_that_waits_for_it() {
    gathering(|lab| {
        lab.put_set(A.egress_set(), &[DENY]);
        let [first, later] = datagram(A.at(1), (WORLD, 53));
        to_stack(&leave(lab, A, &later));
        dropped(&leave(lab, A, &first), Reason::PolicyEgress);
        let spoofed = Packet { src: B.ip, ..later };
        dropped(&leave(lab, A, &spoofed), Reason::SpoofedIp);
    });
}

#[test]
fn a_first_part_is_remembered_for_its_own_datagram_and_not_for_ever() {
    story(|lab| {
        let [first, later] = datagram(A.at(1), (REMOTE, 53));
        encapsulated(&leave(lab, A, &first));
        for other in [
            Packet { id: 0x4321, ..later.clone() },
            Packet { dst: Ipv4Addr::new(10, 244, 2, 21), ..later.clone() },
            Packet { proto: 6, ..later.clone() },
        ] {
            to_stack(&leave(lab, A, &other));
        }
        encapsulated(&leave(lab, A, &later));
        lab.age(29);
        to_stack(&leave(lab, A, &later));
    });
}

#[test]
fn a_first_part_without_a_whole_transport_header_is_malformed() {
    story(|lab| {
        let packet = Packet::tcp(A.at(1), B.at(80), SYN).payload(&[0; 40]);
        let [first, later] = packet.split(8);
        dropped(&leave(lab, A, &first), Reason::Malformed);
        // Nor may what follows overwrite what was judged.
        to_stack(&leave(lab, A, &later));
    });
}

#[test]
fn a_later_part_opens_no_connection() {
    story(|lab| {
        let packet = Packet::tcp(A.at(1), B.at(80), SYN).payload(&[0; 40]);
        let [first, later] = packet.split(24);
        delivered(&leave(lab, A, &first));
        let before = lab.hits(ALLOW);
        delivered(&leave(lab, A, &later));
        assert_eq!(lab.hits(ALLOW), before, "it belongs to the flow of the first part");
    });
}
