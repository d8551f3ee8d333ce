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
