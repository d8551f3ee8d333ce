//! Protocols besides TCP, UDP and ICMP: which packets make one flow, and what policy sees of them.

use canal_common::wire::{PROTO_SCTP, PROTO_UDPLITE};

use super::*;

/// A row that allows this key and denies everything else.
fn only(lab: &mut Lab, allowed: u32) {
    let (allow, deny) = (Verdict::new(Verdict::ALLOW, ALLOW), Verdict::new(Verdict::DENY, DENY));
    lab.put_row(10, &row(&[(0, deny), (allowed, allow), (allowed + 1, deny)]));
}

#[test]
fn sctp_is_judged_by_its_ports() {
    story(|lab| {
        only(lab, key(PROTO_SCTP, 9));
        lab.put_set(A.egress_set(), &[10]);
        encapsulated(&leave(lab, A, &Packet::sctp(A.at(1), (REMOTE, 9), 0)));
        dropped(&leave(lab, A, &Packet::sctp(A.at(9), (REMOTE, 10), 0)), Reason::PolicyEgress);
        dropped(&leave(lab, A, &Packet::udp(A.at(1), (REMOTE, 9))), Reason::PolicyEgress);
    });
}

#[test]
fn an_association_is_judged_once_and_a_fresh_init_again() {
    story(|lab| {
        lab.put_set(A.ingress_set(), &[DENY]);
        encapsulated(&leave(lab, A, &Packet::sctp(A.at(1), (REMOTE, 9), 0)));
        // The first answer may be a refusal.
        delivered(&arrive(lab, &Packet::sctp((REMOTE, 9), A.at(1), 7)));
        assert_eq!((only_flow(lab).0.state, only_flow(lab).1), (Flow::NEW, false));
        encapsulated(&leave(lab, A, &Packet::sctp(A.at(1), (REMOTE, 9), 8)));
        assert_eq!((only_flow(lab).0.state, only_flow(lab).1), (Flow::ESTABLISHED, true));
        // Without a new generation: what is known goes on, an INIT does not, whoever sends it.
        lab.put_set(A.egress_set(), &[DENY]);
        encapsulated(&leave(lab, A, &Packet::sctp(A.at(1), (REMOTE, 9), 8)));
        dropped(&leave(lab, A, &Packet::sctp(A.at(1), (REMOTE, 9), 0)), Reason::PolicyEgress);
        dropped(&arrive(lab, &Packet::sctp((REMOTE, 9), A.at(1), 0)), Reason::PolicyIngress);
        delivered(&arrive(lab, &Packet::sctp((REMOTE, 9), A.at(1), 7)));
    });
}

#[test]
fn policy_sees_no_ports_of_udp_lite_and_each_stream_is_a_flow() {
    story(|lab| {
        only(lab, key(PROTO_UDPLITE, 0));
        lab.put_set(A.egress_set(), &[10]);
        lab.put_set(A.ingress_set(), &[DENY]);
        for port in [1, 2] {
            encapsulated(&leave(lab, A, &Packet::udplite(A.at(port), (REMOTE, 9))));
            delivered(&arrive(lab, &Packet::udplite((REMOTE, 9), A.at(port))));
        }
        assert_eq!(lab.flows().len(), 2);
        // The other side's streams are not answers.
        dropped(&arrive(lab, &Packet::udplite((REMOTE, 9), A.at(3))), Reason::PolicyIngress);
        dropped(&arrive(lab, &Packet::udplite((REMOTE, 8), A.at(1))), Reason::PolicyIngress);
        let about = Packet::udplite(A.at(1), (REMOTE, 9));
        delivered(&arrive(lab, &Packet::error(REMOTE, (3, 3), &about)));
    });
}

#[test]
fn the_parts_of_an_sctp_or_udp_lite_packet_follow_the_first() {
    story(|lab| {
        for packet in [Packet::sctp(A.at(1), (REMOTE, 9), 7), Packet::udplite(A.at(1), (REMOTE, 9))] {
            let [first, later] = packet.payload(&[0; 40]).split(16);
            encapsulated(&leave(lab, A, &first));
            encapsulated(&leave(lab, A, &later));
        }
    });
}

#[test]
fn a_protocol_without_ports_has_one_flow_between_two_addresses() {
    story(|lab| {
        let gre = |src, dst| Packet::ip(src, dst, 47, vec![0; 8]);
        let esp = |src, dst| Packet::ip(src, dst, 50, vec![0; 8]);
        only(lab, key(47, 0));
        lab.put_set(A.egress_set(), &[10]);
        lab.put_set(A.ingress_set(), &[DENY]);
        dropped(&arrive(lab, &gre(REMOTE, A.ip)), Reason::PolicyIngress);
        encapsulated(&leave(lab, A, &gre(A.ip, REMOTE)));
        delivered(&arrive(lab, &gre(REMOTE, A.ip)));
        dropped(&leave(lab, A, &esp(A.ip, REMOTE)), Reason::PolicyEgress);
        dropped(&arrive(lab, &esp(REMOTE, A.ip)), Reason::PolicyIngress);
        // Nothing behind the IP header is needed.
        encapsulated(&leave(lab, A, &Packet::ip(A.ip, REMOTE, 47, vec![])));
    });
}

#[test]
fn a_transport_header_that_is_cut_short_is_malformed() {
    story(|lab| {
        for (proto, len) in [(PROTO_SCTP, 11), (PROTO_UDPLITE, 7)] {
            dropped(&leave(lab, A, &Packet::ip(A.ip, B.ip, proto, vec![1; len])), Reason::Malformed);
            delivered(&leave(lab, A, &Packet::ip(A.ip, B.ip, proto, vec![1; len + 1])));
        }
    });
}
