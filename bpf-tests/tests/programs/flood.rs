//! A flood of flows that nobody answers does not push out those that have been answered.

use super::*;

/// Size of `FLOWS_NEW`, and some more.
const FLOOD: u32 = 65_536 + 8_192;

/// Packets in both directions of A's flows with REMOTE.
fn flows() -> [(Packet, Packet); 3] {
    [
        (Packet::tcp(A.at(40000), (REMOTE, 80), ACK), Packet::tcp((REMOTE, 80), A.at(40000), ACK)),
        (Packet::udp(A.at(40000), (REMOTE, 53)), Packet::udp((REMOTE, 53), A.at(40000))),
        (Packet::echo(A.ip, REMOTE, 7), Packet::echo_reply(REMOTE, A.ip, 7)),
    ]
}

/// Has them answered, and everything new to or from A denied.
fn settle(lab: &mut Lab) {
    for (to, from) in flows() {
        encapsulated(&leave(lab, A, &to));
        delivered(&arrive(lab, &from));
    }
    for set in [A.ingress_set(), A.egress_set()] {
        lab.put_set(set, &[DENY]);
    }
}

fn all_live(lab: &mut Lab) {
    assert_eq!(lab.flows().len(), flows().len());
    for (to, from) in flows() {
        delivered(&arrive(lab, &from));
        encapsulated(&leave(lab, A, &to));
    }
}

/// Ports that differ from those of every other number.
fn ends(number: u32) -> (End, End) {
    (B.at(1 + (number % 30_000) as u16), (REMOTE, 1 + (number / 30_000) as u16))
}

fn send(lab: &mut Lab, hook: Hook, frame: &[u8], ifindex: u32) {
    let (action, _) = lab.try_send(hook, frame, Context::on(ifindex)).unwrap();
    assert_eq!(action, REDIRECT);
}

#[test]
fn more_unanswered_flows_than_there_is_room_for_leave_the_answered_ones_alone() {
    story(|lab| {
        settle(lab);
        let of_b = lab.links.pods[B.number];
        for number in 0..FLOOD {
            let (src, dst) = ends(number);
            send(lab, Hook::FromPod, &Packet::udp(src, dst).macs(B.mac, HOST_MAC).bytes(), of_b);
        }
        let left = lab.new_flows().len();
        assert!(
            left < FLOOD as usize && left > FLOOD as usize / 2,
            "{left} unanswered flows: some were pushed out"
        );
        all_live(lab);
    });
}

#[test]
fn answering_forged_requests_does_not_make_them_connections() {
    story(|lab| {
        settle(lab);
        let (of_b, uplink) = (lab.links.pods[B.number], lab.links.uplink);
        for number in 0..10_000 {
            let (server, client) = ends(number);
            let request = Packet::tcp(client, server, SYN).macs(REMOTE_VTEP, VTEP_MAC);
            send(lab, Hook::FromWire, &request.in_vxlan(&outer()), uplink);
            let flags = if number % 2 == 0 { SYN | ACK } else { RST | ACK };
            let answer = Packet::tcp(server, client, flags).macs(B.mac, HOST_MAC);
            send(lab, Hook::FromPod, &answer.bytes(), of_b);
        }
        assert!(lab.new_flows().len() > 5_000);
        all_live(lab);
    });
}
