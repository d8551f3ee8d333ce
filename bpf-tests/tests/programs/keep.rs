//! `established=keep`: a change of policy alone does not end a live, answered flow.

use super::*;

const OUT: (End, End) = ((A.ip, 40000), (REMOTE, 80));

fn out(flags: u8) -> Packet {
    Packet::tcp(OUT.0, OUT.1, flags)
}

fn back(flags: u8) -> Packet {
    Packet::tcp(OUT.1, OUT.0, flags)
}

fn connect(lab: &mut Lab) {
    encapsulated(&leave(lab, A, &out(SYN)));
    delivered(&arrive(lab, &back(SYN | ACK)));
    encapsulated(&leave(lab, A, &out(ACK)));
}

fn kept(tell: impl FnOnce(&mut Lab) + Send) {
    story_with(Settings::KEEP_ESTABLISHED, tell);
}

fn judgements(lab: &mut Lab) -> u64 {
    lab.hits(ALLOW) + lab.hits(DENY) + lab.hits(0)
}

/// Nothing is allowed to or from `pod` any more.
fn deny(lab: &mut Lab, pod: Pod) {
    revise(lab, pod, pod.egress_set(), DENY);
    revise(lab, pod, pod.ingress_set(), DENY);
}

#[test]
fn an_answered_flow_outlives_its_permission_and_is_judged_no_more() {
    kept(|lab| {
        connect(lab);
        deny(lab, A);
        let before = judgements(lab);
        delivered(&arrive(lab, &back(ACK)));
        encapsulated(&leave(lab, A, &out(ACK)));
        assert_eq!(judgements(lab), before);
        assert_eq!((only_flow(lab).0.state, only_flow(lab).1), (Flow::ESTABLISHED, true));
        // The refreshed flow is as good as any: the next change finds it the same.
        lab.bump(A.id);
        encapsulated(&leave(lab, A, &out(ACK)));
        assert_eq!(judgements(lab), before);
        // Others are judged.
        dropped(&leave(lab, A, &Packet::tcp(A.at(40001), OUT.1, SYN)), Reason::PolicyEgress);
    });
}

#[test]
fn a_datagram_flow_between_two_pods_and_one_with_the_world_are_kept_as_well() {
    kept(|lab| {
        let (ask, answer) = (Packet::udp(A.at(1), B.at(53)), Packet::udp(B.at(53), A.at(1)));
        delivered(&leave(lab, A, &ask));
        delivered(&leave(lab, B, &answer));
        let (out, back) = (Packet::udp(A.at(1), (WORLD, 53)), Packet::udp((WORLD, 53), A.at(1)));
        to_stack(&leave(lab, A, &out));
        passes(&enter(lab, A, &back), NEXT, Reason::Delivered);
        deny(lab, A);
        deny(lab, B);
        delivered(&leave(lab, A, &ask));
        delivered(&leave(lab, B, &answer));
        passes(&enter(lab, A, &back), NEXT, Reason::Delivered);
        to_stack(&leave(lab, A, &out));
        dropped(&leave(lab, B, &Packet::udp(B.at(1), A.at(53))), Reason::PolicyEgress);
    });
}

#[test]
fn an_unanswered_flow_and_a_fresh_request_are_judged() {
    kept(|lab| {
        let packet = Packet::udp(A.at(1), (REMOTE, 53));
        encapsulated(&leave(lab, A, &packet));
        connect(lab);
        deny(lab, A);
        dropped(&leave(lab, A, &packet), Reason::PolicyEgress);
        dropped(&leave(lab, A, &out(SYN)), Reason::PolicyEgress);
        encapsulated(&leave(lab, A, &out(ACK)));
    });
}

#[test]
fn an_unanswered_flow_that_was_reset_is_judged() {
    kept(|lab| {
        encapsulated(&leave(lab, A, &out(SYN)));
        encapsulated(&leave(lab, A, &out(RST)));
        deny(lab, A);
        dropped(&leave(lab, A, &out(ACK)), Reason::PolicyEgress);
    });
}

#[test]
fn a_closing_flow_is_kept_and_an_expired_one_is_not() {
    kept(|lab| {
        connect(lab);
        encapsulated(&leave(lab, A, &out(FIN | ACK)));
        deny(lab, A);
        // The other side's FIN is the first packet after the change.
        delivered(&arrive(lab, &back(FIN | ACK)));
        assert_eq!(only_flow(lab).0.state, Flow::CLOSING);
        lab.bump(A.id);
        encapsulated(&leave(lab, A, &out(ACK)));
        assert_eq!(only_flow(lab).0.state, Flow::CLOSING);
        lab.age(29);
        dropped(&leave(lab, A, &out(ACK)), Reason::PolicyEgress);
    });
}

#[test]
fn a_pod_that_went_away_or_moved_or_was_closed_ends_its_flows() {
    let (ask, answer) = (Packet::udp(A.at(1), B.at(53)), Packet::udp(B.at(53), A.at(1)));
    let changes: [fn(&mut Lab); 4] = [
        // Another pod has the address now.
        |lab| add_pod(lab, Pod { id: B.id + 7, ..B }),
        |lab| add_pod(lab, Pod { number: 2, ..B }),
        |lab| lab.delete_endpoint(B.ip),
        |lab| lab.delete_policy(B.id),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        kept(|lab| {
            delivered(&leave(lab, A, &ask));
            delivered(&leave(lab, B, &answer));
            deny(lab, A);
            change(lab);
            lab.bump(B.id);
            dropped(&leave(lab, A, &ask), Reason::PolicyEgress);
            let ran = leave(lab, B, &answer);
            assert_eq!(ran.action, DROP, "change {number}: {:?}", ran.reason);
        });
    }
}

#[test]
fn a_spoofed_packet_refreshes_nothing() {
    kept(|lab| {
        connect(lab);
        deny(lab, A);
        dropped(&leave(lab, B, &out(ACK)), Reason::SpoofedIp);
        dropped(&leave(lab, Pod { mac: B.mac, ..A }, &out(ACK)), Reason::SpoofedMac);
        encapsulated(&leave(lab, A, &out(ACK)));
    });
}

#[test]
fn without_the_flag_the_same_flow_is_cut() {
    story(|lab| {
        connect(lab);
        deny(lab, A);
        dropped(&leave(lab, A, &out(ACK)), Reason::PolicyEgress);
    });
}
