//! ICMP: queries have flows, errors belong to the flow that they are about.

use super::*;

const UNREACHABLE: (u8, u8) = (3, 3);

#[test]
fn an_echo_is_judged_by_type_and_code_and_its_answer_is_not() {
    story(|lab| {
        let echo = key(1, icmp_port(8, 0));
        lab.put_row(
            5,
            &row(&[
                (0, Verdict::new(Verdict::DENY, 9)),
                (echo, Verdict::new(Verdict::ALLOW, 8)),
                (echo + 1, Verdict::new(Verdict::DENY, 9)),
            ]),
        );
        lab.put_set(B.ingress_set(), &[5]);
        lab.put_set(A.ingress_set(), &[DENY]);
        delivered(&leave(lab, A, &Packet::echo(A.ip, B.ip, 7)));
        delivered(&leave(lab, B, &Packet::echo_reply(B.ip, A.ip, 7)));
        delivered(&leave(lab, A, &Packet::echo(A.ip, B.ip, 7)));
        // Another identifier is another flow.
        dropped(&leave(lab, B, &Packet::echo_reply(B.ip, A.ip, 8)), Reason::PolicyIngress);
        dropped(&leave(lab, A, &Packet::icmp(A.ip, B.ip, (13, 0), [0, 9, 0, 0])), Reason::PolicyIngress);
    });
}

/// A query and its answer, with an identifier.
fn query(src: Ipv4Addr, dst: Ipv4Addr, kind: u8, id: u8) -> Packet {
    Packet::icmp(src, dst, (kind, 0), [0, id, 0, 1])
}

const QUERIES: [(u8, u8); 4] = [(8, 0), (13, 14), (15, 16), (17, 18)];

#[test]
fn every_kind_of_query_has_a_flow_that_its_answer_belongs_to() {
    story(|lab| {
        lab.put_set(A.ingress_set(), &[DENY]);
        for (ask, answer) in QUERIES {
            encapsulated(&leave(lab, A, &query(A.ip, REMOTE, ask, 7)));
            delivered(&arrive(lab, &query(REMOTE, A.ip, answer, 7)));
            for (_, other) in QUERIES.iter().filter(|(_, other)| *other != answer) {
                dropped(&arrive(lab, &query(REMOTE, A.ip, *other, 7)), Reason::PolicyIngress);
            }
            lab.forget_flows();
        }
    });
}

#[test]
fn a_query_lets_neither_the_other_side_ask_nor_other_questions_through() {
    story(|lab| {
        // A may ask and nothing else.
        encapsulated(&leave(lab, A, &query(A.ip, REMOTE, 8, 7)));
        delivered(&arrive(lab, &query(REMOTE, A.ip, 0, 7)));
        lab.put_set(A.ingress_set(), &[DENY]);
        lab.put_set(A.egress_set(), &[DENY]);
        dropped(&arrive(lab, &query(REMOTE, A.ip, 8, 7)), Reason::PolicyIngress);
        dropped(&leave(lab, A, &query(A.ip, REMOTE, 0, 7)), Reason::PolicyEgress);
        dropped(&leave(lab, A, &query(A.ip, REMOTE, 13, 7)), Reason::PolicyEgress);
        dropped(&leave(lab, A, &Packet::icmp(A.ip, REMOTE, (8, 1), [0, 7, 0, 1])), Reason::PolicyEgress);
        // Its own goes on.
        encapsulated(&leave(lab, A, &query(A.ip, REMOTE, 8, 7)));
        delivered(&arrive(lab, &query(REMOTE, A.ip, 0, 7)));
        // Both may ask with one identifier at the same time.
        lab.put_set(A.ingress_set(), &[ALLOW]);
        delivered(&arrive(lab, &query(REMOTE, A.ip, 8, 7)));
        encapsulated(&leave(lab, A, &query(A.ip, REMOTE, 0, 7)));
        assert_eq!(lab.flows().len(), 2);
    });
}

#[test]
fn what_has_no_answer_is_judged_packet_by_packet_and_leaves_no_flow() {
    story(|lab| {
        // Answers that nobody asked for, queries with a code, announcements, types that nobody knows.
        for kind in [(0, 0), (14, 0), (8, 1), (0, 3), (9, 0), (10, 0), (42, 0), (255, 255)] {
            let out = Packet::icmp(A.ip, REMOTE, kind, [0, 7, 0, 1]);
            let back = Packet::icmp(REMOTE, A.ip, kind, [0, 7, 0, 1]);
            lab.put_set(A.egress_set(), &[ALLOW]);
            lab.put_set(A.ingress_set(), &[DENY]);
            let before = lab.hits(ALLOW);
            encapsulated(&leave(lab, A, &out));
            encapsulated(&leave(lab, A, &out));
            assert_eq!(lab.hits(ALLOW), before + 2, "{kind:?}");
            dropped(&arrive(lab, &back), Reason::PolicyIngress);
            // Without a new generation: there is no flow that could go on.
            lab.put_set(A.egress_set(), &[DENY]);
            dropped(&leave(lab, A, &out), Reason::PolicyEgress);
        }
        assert_eq!((lab.flows(), lab.new_flows()), (vec![], vec![]));
    });
}

#[test]
fn a_flow_that_is_judged_again_by_an_answer_is_judged_as_the_query() {
    story(|lab| {
        let echo = key(1, icmp_port(8, 0));
        let (allow, deny) = (Verdict::new(Verdict::ALLOW, 8), Verdict::new(Verdict::DENY, 9));
        lab.put_row(5, &row(&[(0, deny), (echo, allow), (echo + 1, deny)]));
        lab.put_set(A.egress_set(), &[5]);
        lab.put_set(A.ingress_set(), &[DENY]);
        encapsulated(&leave(lab, A, &Packet::echo(A.ip, REMOTE, 7)));
        lab.bump(A.id);
        delivered(&arrive(lab, &Packet::echo_reply(REMOTE, A.ip, 7)));
        revise(lab, A, A.egress_set(), DENY);
        dropped(&arrive(lab, &Packet::echo_reply(REMOTE, A.ip, 7)), Reason::PolicyEgress);
        dropped(&leave(lab, A, &Packet::echo(A.ip, REMOTE, 7)), Reason::FlowDenied);
    });
}

#[test]
fn the_parts_of_a_large_query_and_of_its_answer_belong_to_its_flow() {
    story(|lab| {
        lab.put_set(A.ingress_set(), &[DENY]);
        for part in Packet::echo(A.ip, REMOTE, 7).payload(&[0; 40]).split(16) {
            encapsulated(&leave(lab, A, &part));
        }
        for part in Packet::echo_reply(REMOTE, A.ip, 7).payload(&[0; 40]).split(16) {
            delivered(&arrive(lab, &part));
        }
        // The other side's question is not made of them.
        let [first, later] = Packet { id: 9, ..Packet::echo(REMOTE, A.ip, 7) }.payload(&[0; 40]).split(16);
        dropped(&arrive(lab, &first), Reason::PolicyIngress);
        passes(&arrive(lab, &later), NEXT, Reason::Fallback);
    });
}

#[test]
fn an_error_about_a_query_or_an_answer_belongs_to_its_flow_and_to_no_other() {
    story(|lab| {
        for (ask, answer) in QUERIES {
            encapsulated(&leave(lab, A, &query(A.ip, REMOTE, ask, 7)));
            delivered(&arrive(lab, &Packet::error(REMOTE, UNREACHABLE, &query(A.ip, REMOTE, ask, 7))));
            for other in
                [query(A.ip, REMOTE, ask, 8), query(A.ip, REMOTE, answer, 7), query(A.ip, REMOTE, 42, 7)]
            {
                let ran = arrive(lab, &Packet::error(REMOTE, UNREACHABLE, &other));
                assert_eq!(ran.action, DROP, "{ask}: {:?}", ran.reason);
            }
            // The answer found nobody any more.
            let answer = query(REMOTE, A.ip, answer, 7);
            delivered(&arrive(lab, &answer));
            encapsulated(&leave(lab, A, &Packet::error(A.ip, UNREACHABLE, &answer)));
            lab.forget_flows();
        }
    });
}

#[test]
fn an_error_about_a_live_flow_goes_to_the_sender_whatever_policy_says() {
    story(|lab| {
        for (number, about) in (1..).zip([
            Packet::udp(A.at(1), (REMOTE, 53)),
            Packet::tcp(A.at(2), (REMOTE, 80), SYN),
            Packet::echo(A.ip, REMOTE, 7),
        ]) {
            lab.put_set(A.ingress_set(), &[ALLOW]);
            encapsulated(&leave(lab, A, &about));
            lab.put_set(A.ingress_set(), &[DENY]);
            for kind in [UNREACHABLE, (3, 4), (11, 0), (12, 0), (4, 0)] {
                // From the pod itself, and from its node.
                for src in [REMOTE, REMOTE_NODE] {
                    let error = Packet::error(src, kind, &about);
                    let ran = arrive(lab, &error);
                    delivered(&ran);
                    assert_eq!(ran.frame, error.ttl(63).macs(HOST_MAC, A.mac).bytes());
                }
            }
            assert_eq!(lab.new_flows().len(), number, "errors leave no flows");
        }
    });
}

#[test]
fn a_local_pods_error_finds_the_way_back() {
    story(|lab| {
        lab.put_set(A.egress_set(), &[ALLOW]);
        let from_remote = Packet::udp((REMOTE, 1), A.at(53));
        delivered(&arrive(lab, &from_remote));
        lab.put_set(A.egress_set(), &[DENY]);
        encapsulated(&leave(lab, A, &Packet::error(A.ip, UNREACHABLE, &from_remote)));
        let from_b = Packet::udp(B.at(1), A.at(53));
        delivered(&leave(lab, B, &from_b));
        delivered(&leave(lab, A, &Packet::error(A.ip, UNREACHABLE, &from_b)));
        let from_world = Packet::udp((WORLD, 1), A.at(53));
        passes(&enter(lab, A, &from_world), NEXT, Reason::Delivered);
        to_stack(&leave(lab, A, &Packet::error(A.ip, UNREACHABLE, &from_world)));
    });
}

#[test]
fn an_error_about_no_flow_is_dropped_at_every_hook() {
    story(|lab| {
        let about = Packet::udp(A.at(1), (REMOTE, 53));
        dropped(&arrive(lab, &Packet::error(REMOTE, UNREACHABLE, &about)), Reason::IcmpUnrelated);
        dropped(&enter(lab, A, &Packet::error(WORLD, UNREACHABLE, &about)), Reason::IcmpUnrelated);
        let about = Packet::udp((REMOTE, 53), A.at(1));
        let error = Packet::error(A.ip, UNREACHABLE, &about);
        dropped(&leave(lab, A, &error), Reason::IcmpUnrelated);
        let context = Context::on(lab.links.overlay).came_by(A.from(lab).ifindex);
        dropped(&lab.send(Hook::ToOverlay, &error.bytes(), context), Reason::IcmpUnrelated);
        // The host may have made a flow that never got as far as here.
        let about = Packet::udp(A.at(1), (NODE_IP, 53));
        passes(&from_host(lab, A, &Packet::error(NODE_IP, UNREACHABLE, &about)), NEXT, Reason::Delivered);
    });
}

#[test]
fn an_error_must_be_for_the_sender_of_what_it_is_about() {
    story(|lab| {
        let about = Packet::udp(A.at(1), (REMOTE, 53));
        encapsulated(&leave(lab, A, &about));
        // A's flow, but sent to B.
        let error = Packet { dst: B.ip, ..Packet::error(REMOTE, UNREACHABLE, &about) };
        dropped(&arrive(lab, &error), Reason::IcmpUnrelated);
        // B tells A about A's flow with REMOTE: a router might, a pod is none, but it may not claim to be one either.
        let forged = Packet::error(B.ip, UNREACHABLE, &Packet::udp(A.at(9), B.at(9)));
        dropped(&leave(lab, B, &forged), Reason::IcmpUnrelated);
    });
}

#[test]
fn an_error_about_a_flow_that_is_denied_or_old_or_revised_is_unrelated() {
    story(|lab| {
        let about = Packet::udp(A.at(1), (REMOTE, 53));
        let error = Packet::error(REMOTE, UNREACHABLE, &about);
        encapsulated(&leave(lab, A, &about));
        lab.age(57);
        dropped(&arrive(lab, &error), Reason::IcmpUnrelated);
        encapsulated(&leave(lab, A, &about));
        delivered(&arrive(lab, &error));
        lab.bump(A.id);
        dropped(&arrive(lab, &error), Reason::IcmpUnrelated);
    });
}

#[test]
fn an_error_with_a_cut_packet_in_it_is_malformed() {
    story(|lab| {
        let about = Packet::udp(A.at(1), (REMOTE, 53));
        encapsulated(&leave(lab, A, &about));
        let error = Packet::error(REMOTE, UNREACHABLE, &about);
        for len in [8, 12, 27, 28, 35] {
            let mut cut = error.clone();
            cut.body.truncate(len);
            dropped(&arrive(lab, &cut), Reason::Malformed);
        }
    });
}

#[test]
fn options_in_either_header_do_not_hide_the_flow() {
    story(|lab| {
        let about = Packet::udp(A.at(1), (REMOTE, 53)).options(12);
        encapsulated(&leave(lab, A, &about));
        delivered(&arrive(lab, &Packet::error(REMOTE, UNREACHABLE, &about).options(8)));
    });
}
