//! Workload to host: with `DROP_TO_HOST`, pods begin nothing with their node.

use std::collections::BTreeSet;

use canal_agent::dataplane::host::{HostAddresses, HostError};
use canal_common::{event::Kind, host::MAX_LOCAL_IPS};

use super::*;

/// Another address of this node.
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 0);

fn guarded(tell: impl FnOnce(&mut Lab) + Send) {
    story_with(Settings::DROP_TO_HOST, |lab| {
        lab.put_local_ip(NODE_IP);
        lab.put_local_ip(SECOND);
        tell(lab);
    });
}

fn requests(dst: Ipv4Addr) -> [Packet; 4] {
    [
        Packet::tcp(A.at(1), (dst, 22), SYN),
        Packet::udp(A.at(1), (dst, 53)),
        Packet::echo(A.ip, dst, 1),
        Packet::ip(A.ip, dst, 47, vec![0; 8]),
    ]
}

#[test]
fn a_pod_begins_nothing_with_any_address_of_its_node() {
    guarded(|lab| {
        for dst in [NODE_IP, SECOND, Ipv4Addr::new(224, 0, 0, 1), Ipv4Addr::BROADCAST] {
            for packet in requests(dst) {
                dropped(&leave(lab, A, &packet), Reason::ToHost);
            }
        }
        assert_eq!((lab.flows(), lab.new_flows()), (vec![], vec![]));
        // Egress policy comes first.
        lab.put_set(A.egress_set(), &[DENY]);
        dropped(&leave(lab, A, &Packet::udp(A.at(1), (NODE_IP, 53))), Reason::PolicyEgress);
    });
}

#[test]
fn others_are_reached_as_before() {
    guarded(|lab| {
        for packet in requests(WORLD) {
            to_stack(&leave(lab, A, &packet));
        }
        // Another node is the world.
        to_stack(&leave(lab, A, &Packet::udp(A.at(1), (REMOTE_NODE, 53))));
        delivered(&leave(lab, A, &Packet::udp(A.at(1), B.at(53))));
        encapsulated(&leave(lab, A, &Packet::udp(A.at(1), (REMOTE, 53))));
    });
}

#[test]
fn what_the_host_began_is_answered() {
    guarded(|lab| {
        let pairs = [
            (
                Packet::tcp((NODE_IP, 40000), A.at(80), SYN),
                Packet::tcp(A.at(80), (NODE_IP, 40000), SYN | ACK),
            ),
            (Packet::udp((NODE_IP, 40000), A.at(53)), Packet::udp(A.at(53), (NODE_IP, 40000))),
            (Packet::echo(NODE_IP, A.ip, 7), Packet::echo_reply(A.ip, NODE_IP, 7)),
        ];
        for (ask, answer) in pairs {
            passes(&from_host(lab, A, &ask), NEXT, Reason::Delivered);
            to_stack(&leave(lab, A, &answer));
            // Judged again, by the answer.
            lab.bump(A.id);
            to_stack(&leave(lab, A, &answer));
        }
        dropped(&leave(lab, A, &Packet::tcp(A.at(80), (NODE_IP, 40000), SYN)), Reason::ToHost);
    });
}

#[test]
fn an_unasked_answer_does_not_open_the_host() {
    guarded(|lab| {
        lab.put_set(A.ingress_set(), &[DENY]);
        // The ports say that the host began: the pod would have had to admit it.
        dropped(&leave(lab, A, &Packet::tcp(A.at(80), (NODE_IP, 40000), ACK)), Reason::PolicyIngress);
        dropped(&leave(lab, A, &Packet::tcp(A.at(40000), (NODE_IP, 22), ACK)), Reason::ToHost);
    });
}

#[test]
fn the_drop_is_told_of_with_the_decision_that_would_have_allowed_it() {
    guarded(|lab| {
        lab.put_row(11, &row(&[(0, Verdict::new(Verdict::ALLOW, 11).with_log())]));
        for (set, kind, decision) in [(ALLOW, Kind::Dropped, ALLOW), (11, Kind::LoggedDenied, 11)] {
            lab.put_set(A.egress_set(), &[set]);
            dropped(&leave(lab, A, &Packet::udp(A.at(1), (NODE_IP, 53))), Reason::ToHost);
            let told: Vec<_> = lab.events().iter().map(|e| (e.kind, e.reason, e.decision)).collect();
            assert_eq!(told, [(kind as u8, Reason::ToHost as u8, decision)]);
        }
    });
}

#[test]
fn without_the_flag_the_host_is_reached() {
    story(|lab| {
        lab.put_local_ip(NODE_IP);
        for packet in requests(NODE_IP) {
            to_stack(&leave(lab, A, &packet));
        }
    });
}

#[test]
fn the_agent_keeps_the_table_as_the_host_is() {
    let mut lab = Lab::open_with(Settings::DROP_TO_HOST).unwrap();
    lab.visit(|lab| {
        add_pods(lab);
        let ask = |lab: &mut Lab, dst| leave(lab, A, &Packet::tcp(A.at(1), (dst, 22), SYN));
        let mut host = HostAddresses::adopt(&mut lab.object.ebpf).unwrap();
        to_stack(&ask(lab, NODE_IP));
        host.apply(&BTreeSet::from([NODE_IP, SECOND])).unwrap();
        dropped(&ask(lab, NODE_IP), Reason::ToHost);
        dropped(&ask(lab, SECOND), Reason::ToHost);
        host.apply(&BTreeSet::from([SECOND])).unwrap();
        to_stack(&ask(lab, NODE_IP));
        dropped(&ask(lab, SECOND), Reason::ToHost);
        // More than fit: what fits is guarded, and the agent says so.
        let many: BTreeSet<Ipv4Addr> =
            (0..=MAX_LOCAL_IPS).map(|n| Ipv4Addr::from(u32::from(SECOND) + n)).collect();
        let refused = host.apply(&many);
        assert!(matches!(refused, Err(HostError::Full(n)) if n == many.len()), "{refused:?}");
        dropped(&ask(lab, SECOND), Reason::ToHost);
        host.apply(&BTreeSet::from([NODE_IP])).unwrap();
        dropped(&ask(lab, NODE_IP), Reason::ToHost);
        no_pod(&ask(lab, SECOND));
    });
}
