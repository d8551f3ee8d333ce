//! Connection tracking.

use super::*;

const OUT: (End, End) = ((A.ip, 40000), (REMOTE, 80));

fn out(flags: u8) -> Packet {
    Packet::tcp(OUT.0, OUT.1, flags)
}

fn back(flags: u8) -> Packet {
    Packet::tcp(OUT.1, OUT.0, flags)
}

/// A's connection to REMOTE, established.
fn connect(lab: &mut Lab) {
    encapsulated(&leave(lab, A, &out(SYN)));
    delivered(&arrive(lab, &back(SYN | ACK)));
    encapsulated(&leave(lab, A, &out(ACK)));
}

/// Everything on the way has been judged this often.
fn judgements(lab: &mut Lab) -> u64 {
    lab.hits(ALLOW) + lab.hits(DENY) + lab.hits(0)
}

fn state(lab: &mut Lab) -> (u8, bool) {
    let (flow, answered) = only_flow(lab);
    (flow.state, answered)
}

#[test]
fn a_datagram_flow_is_new_until_it_is_answered_and_judged_once() {
    story(|lab| {
        let before = judgements(lab);
        let (to, from) = (Packet::udp(A.at(1), (REMOTE, 53)), Packet::udp((REMOTE, 53), A.at(1)));
        for _ in 0..2 {
            encapsulated(&leave(lab, A, &to));
            assert_eq!(state(lab), (Flow::NEW, false));
        }
        for _ in 0..3 {
            delivered(&arrive(lab, &from));
            assert_eq!(state(lab), (Flow::ESTABLISHED, true));
            encapsulated(&leave(lab, A, &to));
        }
        assert_eq!(judgements(lab), before + 1, "no rule is read for what is known");
    });
}

#[test]
fn a_connection_is_new_until_who_began_it_takes_the_answer_up_and_judged_once() {
    story(|lab| {
        let before = judgements(lab);
        encapsulated(&leave(lab, A, &out(SYN)));
        for _ in 0..2 {
            delivered(&arrive(lab, &back(SYN | ACK)));
            assert_eq!(state(lab), (Flow::NEW, false), "everybody who forges addresses gets that far");
        }
        for _ in 0..3 {
            encapsulated(&leave(lab, A, &out(ACK)));
            assert_eq!(state(lab), (Flow::ESTABLISHED, true));
            delivered(&arrive(lab, &back(ACK)));
        }
        assert_eq!(judgements(lab), before + 1, "no rule is read for what is known");
    });
}

#[test]
fn a_request_that_is_refused_or_given_up_never_counts_as_a_connection() {
    story(|lab| {
        encapsulated(&leave(lab, A, &out(SYN)));
        delivered(&arrive(lab, &back(RST | ACK)));
        assert_eq!(state(lab), (Flow::CLOSING, false));
        lab.forget_flows();
        // What a scanner does: it resets as soon as it knows.
        encapsulated(&leave(lab, A, &out(SYN)));
        delivered(&arrive(lab, &back(SYN | ACK)));
        encapsulated(&leave(lab, A, &out(RST)));
        assert_eq!(state(lab), (Flow::CLOSING, false));
    });
}

#[test]
fn a_half_open_connection_that_meets_a_new_generation_goes_on_where_it_was() {
    story(|lab| {
        lab.put_set(A.ingress_set(), &[DENY]);
        encapsulated(&leave(lab, A, &out(SYN)));
        lab.bump(A.id);
        delivered(&arrive(lab, &back(SYN | ACK)));
        assert_eq!(state(lab), (Flow::NEW, false));
        lab.bump(A.id);
        encapsulated(&leave(lab, A, &out(ACK)));
        assert_eq!(state(lab), (Flow::ESTABLISHED, true));
    });
}

#[test]
fn between_two_local_pods_both_are_asked_once() {
    story(|lab| {
        let before = judgements(lab);
        delivered(&leave(lab, A, &Packet::tcp(A.at(1), B.at(80), SYN)));
        delivered(&leave(lab, B, &Packet::tcp(B.at(80), A.at(1), SYN | ACK)));
        delivered(&leave(lab, A, &Packet::tcp(A.at(1), B.at(80), ACK)));
        assert_eq!(judgements(lab), before + 2);
        assert_eq!(only_flow(lab).0.state, Flow::ESTABLISHED);
    });
}

#[test]
fn the_answer_needs_no_permission_and_a_new_connection_back_does() {
    story(|lab| {
        lab.put_set(A.ingress_set(), &[DENY]);
        connect(lab);
        delivered(&arrive(lab, &back(ACK)));
        dropped(&arrive(lab, &Packet::tcp((REMOTE, 81), A.at(40000), SYN)), Reason::PolicyIngress);
        // Not even on the same ports.
        dropped(&arrive(lab, &back(SYN)), Reason::PolicyIngress);
    });
}

#[test]
fn a_new_generation_has_the_flow_judged_again_once_in_its_own_direction() {
    story(|lab| {
        lab.put_set(A.ingress_set(), &[DENY]);
        connect(lab);
        let before = judgements(lab);
        lab.bump(A.id);
        // The answer comes first: it was A that began.
        delivered(&arrive(lab, &back(ACK)));
        assert_eq!(judgements(lab), before + 1);
        encapsulated(&leave(lab, A, &out(ACK)));
        assert_eq!(judgements(lab), before + 1);
        // Another endpoint's generation is no business of this flow.
        lab.bump(B.id);
        encapsulated(&leave(lab, A, &out(ACK)));
        assert_eq!(judgements(lab), before + 1);
    });
}

#[test]
fn a_revoked_permission_cuts_the_flow_in_both_directions_until_it_is_given_again() {
    story(|lab| {
        connect(lab);
        revise(lab, A, A.egress_set(), DENY);
        dropped(&leave(lab, A, &out(ACK)), Reason::PolicyEgress);
        assert_eq!(only_flow(lab).0.state, Flow::DENIED);
        let before = judgements(lab);
        for _ in 0..2 {
            dropped(&leave(lab, A, &out(ACK)), Reason::FlowDenied);
            dropped(&arrive(lab, &back(ACK)), Reason::FlowDenied);
            dropped(&arrive(lab, &back(RST)), Reason::FlowDenied);
        }
        assert_eq!(judgements(lab), before, "a tombstone is not judged");
        // A new attempt is, and is refused.
        dropped(&leave(lab, A, &out(SYN)), Reason::PolicyEgress);
        revise(lab, A, A.egress_set(), ALLOW);
        encapsulated(&leave(lab, A, &out(ACK)));
        delivered(&arrive(lab, &back(ACK)));
        assert_eq!(only_flow(lab).0.state, Flow::ESTABLISHED);
    });
}

#[test]
fn the_answering_side_notices_a_cut_as_well() {
    story(|lab| {
        connect(lab);
        revise(lab, A, A.egress_set(), DENY);
        dropped(&arrive(lab, &back(ACK)), Reason::PolicyEgress);
        dropped(&arrive(lab, &back(ACK)), Reason::FlowDenied);
        dropped(&leave(lab, A, &out(ACK)), Reason::FlowDenied);
    });
}

#[test]
fn a_tombstone_is_not_overcome_by_the_other_directions_permission() {
    story(|lab| {
        // REMOTE may connect to A; A may not connect to REMOTE any more.
        connect(lab);
        revise(lab, A, A.egress_set(), DENY);
        dropped(&leave(lab, A, &out(ACK)), Reason::PolicyEgress);
        dropped(&arrive(lab, &back(ACK)), Reason::FlowDenied);
        // A connection of REMOTE's on the same ports is another one.
        delivered(&arrive(lab, &back(SYN)));
        encapsulated(&leave(lab, A, &out(SYN | ACK)));
        delivered(&arrive(lab, &back(ACK)));
    });
}

#[test]
fn an_unanswered_flow_that_is_denied_stays_denied_until_policy_changes() {
    story(|lab| {
        let packet = Packet::udp(A.at(1), (REMOTE, 53));
        encapsulated(&leave(lab, A, &packet));
        revise(lab, A, A.egress_set(), DENY);
        dropped(&leave(lab, A, &packet), Reason::PolicyEgress);
        assert_eq!((only_flow(lab).0.state, only_flow(lab).1), (Flow::DENIED, false));
        dropped(&leave(lab, A, &packet), Reason::FlowDenied);
        dropped(&arrive(lab, &Packet::udp((REMOTE, 53), A.at(1))), Reason::FlowDenied);
        revise(lab, A, A.egress_set(), ALLOW);
        encapsulated(&leave(lab, A, &packet));
    });
}

#[test]
fn a_refused_packet_leaves_no_flow() {
    story(|lab| {
        lab.put_set(A.egress_set(), &[DENY]);
        for packet in [out(SYN), out(ACK), Packet::udp(A.at(1), (REMOTE, 53)), Packet::echo(A.ip, REMOTE, 1)]
        {
            lab.put_set(A.ingress_set(), &[DENY]);
            dropped(&leave(lab, A, &packet), Reason::PolicyEgress);
        }
        assert_eq!((lab.flows(), lab.new_flows()), (vec![], vec![]));
    });
}

#[test]
fn a_connection_request_is_judged_even_on_a_live_tuple() {
    story(|lab| {
        connect(lab);
        lab.put_set(A.egress_set(), &[DENY]);
        // The generation is still the old one: what is known goes on, a request does not.
        encapsulated(&leave(lab, A, &out(ACK)));
        dropped(&leave(lab, A, &out(SYN)), Reason::PolicyEgress);
        encapsulated(&leave(lab, A, &out(ACK)));
        lab.put_set(A.egress_set(), &[ALLOW]);
        encapsulated(&leave(lab, A, &out(SYN)));
        assert_eq!(
            (only_flow(lab).0.state, only_flow(lab).1),
            (Flow::NEW, true),
            "a reused tuple begins anew, in its old place"
        );
    });
}

#[test]
fn a_reset_or_two_fins_close_and_one_does_not() {
    story(|lab| {
        connect(lab);
        encapsulated(&leave(lab, A, &out(FIN | ACK)));
        assert_eq!(only_flow(lab).0.state, Flow::ESTABLISHED, "half closed may last");
        delivered(&arrive(lab, &back(FIN | ACK)));
        assert_eq!(only_flow(lab).0.state, Flow::CLOSING);
        encapsulated(&leave(lab, A, &out(ACK)));
        connect(lab);
        assert_eq!(only_flow(lab).0.state, Flow::ESTABLISHED);
        delivered(&arrive(lab, &back(RST)));
        assert_eq!(only_flow(lab).0.state, Flow::CLOSING);
    });
}

#[test]
fn an_idle_flow_is_forgotten_after_the_time_of_its_kind() {
    let udp = (Packet::udp(A.at(1), (REMOTE, 53)), Packet::udp((REMOTE, 53), A.at(1)));
    let icmp = (Packet::echo(A.ip, REMOTE, 1), Packet::echo_reply(REMOTE, A.ip, 1));
    let gre = (Packet::ip(A.ip, REMOTE, 47, vec![0; 8]), Packet::ip(REMOTE, A.ip, 47, vec![0; 8]));
    let sctp = (Packet::sctp(A.at(1), (REMOTE, 9), 7), Packet::sctp((REMOTE, 9), A.at(1), 8));
    let udplite = (Packet::udplite(A.at(1), (REMOTE, 9)), Packet::udplite((REMOTE, 9), A.at(1)));
    // The ports of a TCP packet in mid-stream tell that it answers; a datagram without a flow begins one.
    for (what, (to, from), limit, late) in [
        ("TCP", (out(ACK), back(ACK)), 3353, Reason::PolicyEgress),
        ("UDP", udp, 56, Reason::PolicyIngress),
        ("ICMP", icmp, 5, Reason::PolicyIngress),
        ("GRE", gre, 559, Reason::PolicyIngress),
        ("SCTP", sctp, 559, Reason::PolicyIngress),
        ("UDP-Lite", udplite, 56, Reason::PolicyIngress),
    ] {
        story(|lab| {
            let before = judgements(lab);
            encapsulated(&leave(lab, A, &to));
            delivered(&arrive(lab, &from));
            encapsulated(&leave(lab, A, &to));
            lab.put_set(A.egress_set(), &[DENY]);
            lab.put_set(A.ingress_set(), &[DENY]);
            // One tick less, for one may pass meanwhile.
            lab.age(limit - 1);
            delivered(&arrive(lab, &from));
            assert_eq!(judgements(lab), before + 1, "{what}");
            lab.age(limit + 1);
            dropped(&arrive(lab, &from), late);
            dropped(&leave(lab, A, &to), Reason::PolicyEgress);
        });
    }
}

#[test]
fn ports_used_again_after_their_flow_was_forgotten_make_a_flow_of_their_own() {
    let (to, from) = (Packet::udp(A.at(1), (REMOTE, 53)), Packet::udp((REMOTE, 53), A.at(1)));
    story(|lab| {
        encapsulated(&leave(lab, A, &to));
        delivered(&arrive(lab, &from));
        lab.put_set(A.ingress_set(), &[DENY]);
        lab.age(57);
        encapsulated(&leave(lab, A, &to));
        let before = judgements(lab);
        encapsulated(&leave(lab, A, &to));
        delivered(&arrive(lab, &from));
        assert_eq!(judgements(lab), before, "neither the second packet nor the answer is judged");
    });
}

#[test]
fn an_unanswered_request_and_a_closed_connection_are_forgotten_soon() {
    story(|lab| {
        let init = Packet::sctp(A.at(1), (REMOTE, 9), 0);
        encapsulated(&leave(lab, A, &out(SYN)));
        encapsulated(&leave(lab, A, &init));
        lab.put_set(A.ingress_set(), &[DENY]);
        lab.put_set(A.egress_set(), &[DENY]);
        lab.age(20);
        dropped(&arrive(lab, &back(SYN | ACK)), Reason::PolicyEgress);
        dropped(&arrive(lab, &Packet::sctp((REMOTE, 9), A.at(1), 7)), Reason::PolicyIngress);
        lab.put_set(A.egress_set(), &[ALLOW]);
        connect(lab);
        delivered(&arrive(lab, &back(RST)));
        lab.put_set(A.egress_set(), &[DENY]);
        lab.age(29);
        dropped(&arrive(lab, &back(ACK)), Reason::PolicyEgress);
    });
}

#[test]
fn in_the_middle_of_a_connection_the_ports_tell_who_began() {
    story(|lab| {
        // A may connect to others, nobody to A.
        lab.put_set(A.ingress_set(), &[DENY]);
        encapsulated(&leave(lab, A, &out(ACK)));
        assert_eq!((only_flow(lab).0.state, only_flow(lab).1), (Flow::NEW, false), "as good as a flood's");
        delivered(&arrive(lab, &back(ACK)));
        assert_eq!((only_flow(lab).0.state, only_flow(lab).1), (Flow::ESTABLISHED, true), "both have spoken");
        lab.forget_flows();
        delivered(&arrive(lab, &back(ACK)));
        encapsulated(&leave(lab, A, &out(ACK)));
        // And when it changes, it is judged in the direction that was found.
        revise(lab, A, A.egress_set(), DENY);
        dropped(&arrive(lab, &back(ACK)), Reason::PolicyEgress);
        lab.forget_flows();
        dropped(&arrive(lab, &back(ACK)), Reason::PolicyEgress);
        dropped(&leave(lab, A, &out(ACK)), Reason::PolicyEgress);
        // The answer to a request, a lone reset, and UDP.
        lab.put_set(A.egress_set(), &[ALLOW]);
        delivered(&arrive(lab, &back(SYN | ACK)));
        lab.forget_flows();
        delivered(&arrive(lab, &back(RST)));
        assert!(lab.flows().is_empty(), "a reset is no connection");
        dropped(&arrive(lab, &Packet::udp((REMOTE, 53), A.at(1))), Reason::PolicyIngress);
    });
}

#[test]
fn a_cut_connection_whose_entry_is_lost_comes_back_from_neither_end() {
    story(|lab| {
        // REMOTE was connected to A's port 80; nobody may connect to A any more, A may to all.
        lab.put_set(A.ingress_set(), &[DENY]);
        dropped(&arrive(lab, &Packet::tcp((REMOTE, 40000), A.at(80), ACK)), Reason::PolicyIngress);
        dropped(&leave(lab, A, &Packet::tcp(A.at(80), (REMOTE, 40000), ACK)), Reason::PolicyIngress);
        // Where the ports do not tell, both directions must be allowed.
        for (mine, theirs) in [(40000, 50000), (80, 90)] {
            dropped(&arrive(lab, &Packet::tcp((REMOTE, theirs), A.at(mine), ACK)), Reason::PolicyIngress);
            dropped(&leave(lab, A, &Packet::tcp(A.at(mine), (REMOTE, theirs), ACK)), Reason::PolicyIngress);
        }
        lab.put_set(A.ingress_set(), &[ALLOW]);
        delivered(&arrive(lab, &Packet::tcp((REMOTE, 50000), A.at(40000), ACK)));
    });
}

#[test]
fn an_unanswered_flow_whose_answer_meets_a_new_generation_is_judged_as_its_senders() {
    story(|lab| {
        lab.put_set(A.ingress_set(), &[DENY]);
        encapsulated(&leave(lab, A, &Packet::udp(A.at(1), (REMOTE, 53))));
        lab.bump(A.id);
        delivered(&arrive(lab, &Packet::udp((REMOTE, 53), A.at(1))));
        assert_eq!((only_flow(lab).0.state, only_flow(lab).1), (Flow::ESTABLISHED, true));
        encapsulated(&leave(lab, A, &Packet::udp(A.at(1), (REMOTE, 53))));
    });
}

#[test]
fn a_pod_that_is_gone_takes_its_flows_along() {
    story(|lab| {
        delivered(&leave(lab, A, &Packet::udp(A.at(1), B.at(53))));
        delivered(&leave(lab, B, &Packet::udp(B.at(53), A.at(1))));
        lab.delete_endpoint(B.ip);
        lab.delete_policy(B.id);
        lab.bump(B.id);
        no_pod(&leave(lab, A, &Packet::udp(A.at(1), B.at(53))));
        dropped(&leave(lab, B, &Packet::udp(B.at(53), A.at(1))), Reason::SpoofedIp);
    });
}

#[test]
fn a_pod_that_moved_to_another_interface_is_followed() {
    story(|lab| {
        delivered(&leave(lab, A, &Packet::udp(A.at(1), B.at(53))));
        let moved = Pod { number: 2, ..B };
        add_pod(lab, moved);
        lab.bump(B.id);
        dropped(&leave(lab, B, &Packet::udp(B.at(53), A.at(1))), Reason::SpoofedIp);
        delivered(&leave(lab, moved, &Packet::udp(B.at(53), A.at(1))));
    });
}

#[test]
fn a_pod_may_talk_to_itself_through_the_host() {
    story(|lab| {
        delivered(&leave(lab, A, &Packet::udp(A.at(1), A.at(2))));
        delivered(&leave(lab, A, &Packet::udp(A.at(2), A.at(1))));
        assert_eq!(only_flow(lab).0.state, Flow::ESTABLISHED);
        delivered(&leave(lab, A, &Packet::udp(A.at(3), A.at(3))));
    });
}

#[test]
fn what_a_pod_began_is_not_its_successors() {
    let (ask, answer) = (Packet::udp(A.at(5000), B.at(53)), Packet::udp(B.at(53), A.at(5000)));
    for is_answered in [false, true] {
        story(|lab| {
            delivered(&leave(lab, A, &ask));
            if is_answered {
                delivered(&leave(lab, B, &answer));
            }
            // Another pod takes the address; it may ask everybody, and nobody may ask it.
            let successor = Pod { id: A.id + 7, ..A };
            add_pod(lab, successor);
            lab.put_set(successor.egress_set(), &[ALLOW]);
            lab.put_set(successor.ingress_set(), &[DENY]);
            lab.bump(A.id);
            dropped(&leave(lab, B, &answer), Reason::PolicyIngress);
            delivered(&leave(lab, successor, &ask));
            delivered(&leave(lab, B, &answer));
        });
    }
}
