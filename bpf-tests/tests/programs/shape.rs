//! Pods with somebody's queueing discipline on their interface: the stack forwards what they send and what they get.

use super::*;

/// Puts a queueing discipline on the pod's interface, or takes it off, as the agent does: the element, then the generation.
fn shape(lab: &mut Lab, pod: Pod, flags: u32) {
    let ifindex = lab.links.pods[pod.number];
    let endpoint = Endpoint { ifindex, id: pod.id, pod_mac: pod.mac, host_mac: HOST_MAC, flags };
    lab.put_endpoint(pod.ip, endpoint);
    lab.bump(pod.id);
}

fn shaped(tell: impl FnOnce(&mut Lab) + Send) {
    story(|lab| {
        shape(lab, A, Endpoint::SHAPED);
        tell(lab);
    });
}

/// As the stack forwards what `pod` has sent to another node.
fn onto_overlay(lab: &mut Lab, pod: Pod, packet: &Packet) -> Ran {
    let context = Context::on(lab.links.overlay).came_by(pod.from(lab).ifindex);
    lab.send(Hook::ToOverlay, &packet.bytes(), context)
}

fn up(ran: &Ran) {
    passes(ran, NEXT, Reason::Fallback);
}

fn enters(ran: &Ran) {
    passes(ran, NEXT, Reason::Delivered);
}

fn out(flags: u8) -> Packet {
    Packet::tcp(A.at(40000), (REMOTE, 80), flags)
}

fn back(flags: u8) -> Packet {
    Packet::tcp((REMOTE, 80), A.at(40000), flags)
}

#[test]
fn a_connection_to_another_node_goes_by_the_stack_both_ways_and_is_judged_once() {
    shaped(|lab| {
        for flags in [SYN, SYN] {
            to_stack(&leave(lab, A, &out(flags)));
            encapsulated(&onto_overlay(lab, A, &out(flags)));
        }
        assert_eq!(lab.hits(ALLOW), 2, "once for each request");
        up(&arrive(lab, &back(SYN | ACK)));
        enters(&enter(lab, A, &back(SYN | ACK)));
        for _ in 0..3 {
            to_stack(&leave(lab, A, &out(ACK)));
            encapsulated(&onto_overlay(lab, A, &out(ACK)));
            up(&arrive(lab, &back(ACK)));
            enters(&enter(lab, A, &back(ACK)));
        }
        assert_eq!(lab.hits(ALLOW), 2);
        let (flow, answered) = only_flow(lab);
        assert_eq!(
            (flow.state, answered, flow.flags & Flow::BY_STACK),
            (Flow::ESTABLISHED, true, Flow::SHAPED)
        );
    });
}

#[test]
fn a_connection_from_another_node_is_judged_where_it_arrives_and_once() {
    shaped(|lab| {
        for packet in [Packet::tcp((REMOTE, 40000), A.at(80), SYN), Packet::udp((REMOTE, 40000), A.at(53))] {
            let before = lab.hits(ALLOW);
            up(&arrive(lab, &packet));
            enters(&enter(lab, A, &packet));
            assert_eq!(lab.hits(ALLOW), before + 1);
        }
        let answer = Packet::tcp(A.at(80), (REMOTE, 40000), SYN | ACK);
        to_stack(&leave(lab, A, &answer));
        encapsulated(&onto_overlay(lab, A, &answer));
        // The other node itself has no address of the pod network.
        let from_node = Packet::tcp((REMOTE_NODE, 40000), A.at(80), SYN);
        up(&arrive(lab, &from_node));
        let overlay = lab.links.overlay;
        enters(&enter_by(lab, A, &from_node, overlay));
        revise(lab, A, A.ingress_set(), DENY);
        dropped(&arrive(lab, &Packet::tcp((REMOTE, 40001), A.at(80), SYN)), Reason::PolicyIngress);
    });
}

#[test]
fn pods_of_one_node_meet_by_the_stack_if_either_is_shaped() {
    shaped(|lab| {
        for (from, to, port) in [(A, B, 1), (B, A, 2)] {
            let before = lab.hits(ALLOW);
            let (ask, answer) = (
                Packet::tcp(from.at(port), to.at(80), SYN),
                Packet::tcp(to.at(80), from.at(port), SYN | ACK),
            );
            to_stack(&leave(lab, from, &ask));
            enters(&enter(lab, to, &ask));
            to_stack(&leave(lab, to, &answer));
            enters(&enter(lab, from, &answer));
            assert_eq!(lab.hits(ALLOW), before + 2, "egress of one and ingress of the other");
        }
        encapsulated(&leave(lab, B, &Packet::udp(B.at(1), (REMOTE, 53))));
        delivered(&arrive(lab, &Packet::udp((REMOTE, 53), B.at(1))));
    });
}

#[test]
fn live_connections_follow_what_comes_and_goes() {
    for flags in [0, Settings::KEEP_ESTABLISHED] {
        story_with(flags, |lab| {
            encapsulated(&leave(lab, A, &out(SYN)));
            delivered(&arrive(lab, &back(SYN | ACK)));
            encapsulated(&leave(lab, A, &out(ACK)));
            for _ in 0..2 {
                shape(lab, A, Endpoint::SHAPED);
                to_stack(&leave(lab, A, &out(ACK)));
                encapsulated(&onto_overlay(lab, A, &out(ACK)));
                up(&arrive(lab, &back(ACK)));
                enters(&enter(lab, A, &back(ACK)));
                shape(lab, A, 0);
                delivered(&arrive(lab, &back(ACK)));
                encapsulated(&leave(lab, A, &out(ACK)));
            }
        });
    }
}

#[test]
fn what_the_stack_translates_stays_with_it_when_the_queue_is_gone() {
    shaped(|lab| {
        // First seen behind the stack: who knows what it did.
        enters(&enter(lab, A, &Packet::udp((REMOTE, 1), A.at(53))));
        shape(lab, A, 0);
        to_stack(&leave(lab, A, &Packet::udp(A.at(53), (REMOTE, 1))));
        up(&arrive(lab, &Packet::udp((REMOTE, 1), A.at(53))));
    });
}

#[test]
fn policy_denies_and_cuts_as_ever_and_nobody_spoofs() {
    shaped(|lab| {
        dropped(&leave(lab, A, &Packet::tcp(B.at(1), (REMOTE, 80), SYN)), Reason::SpoofedIp);
        to_stack(&leave(lab, A, &out(SYN)));
        up(&arrive(lab, &back(SYN | ACK)));
        to_stack(&leave(lab, A, &out(ACK)));
        revise(lab, A, A.egress_set(), DENY);
        dropped(&leave(lab, A, &out(ACK)), Reason::PolicyEgress);
        dropped(&arrive(lab, &back(ACK)), Reason::FlowDenied);
        dropped(&enter(lab, A, &back(ACK)), Reason::FlowDenied);
        dropped(&onto_overlay(lab, A, &out(ACK)), Reason::FlowDenied);
        dropped(&leave(lab, A, &Packet::udp(A.at(1), B.at(53))), Reason::PolicyEgress);
        dropped(&leave(lab, A, &Packet::udp(A.at(1), (WORLD, 53))), Reason::PolicyEgress);
    });
}

/// What the later hooks take for judged is what was judged: the same request, by the policy of now.
#[test]
fn a_request_that_no_earlier_hook_has_judged_is_judged_by_the_later_ones() {
    shaped(|lab| {
        let (ask, across) = (Packet::tcp(A.at(7), B.at(7), SYN), Packet::tcp(B.at(7), A.at(7), SYN));
        to_stack(&leave(lab, A, &ask));
        lab.put_set(A.ingress_set(), &[DENY]);
        dropped(&enter(lab, A, &across), Reason::PolicyIngress);
        enters(&enter(lab, B, &ask));
        revise(lab, B, B.ingress_set(), DENY);
        dropped(&enter(lab, B, &ask), Reason::PolicyIngress);
        lab.forget_flows();
        dropped(&enter(lab, B, &ask), Reason::PolicyIngress);
        lab.put_set(A.egress_set(), &[DENY]);
        dropped(&onto_overlay(lab, A, &out(SYN)), Reason::PolicyEgress);
        // The host's own are the host's.
        lab.put_set(A.ingress_set(), &[DENY]);
        let own = Packet::tcp((NODE_IP, 7), A.at(7), SYN);
        enters(&from_host(lab, A, &own));
        dropped(&enter(lab, A, &own), Reason::PolicyIngress);
    });
}

#[test]
fn a_request_that_comes_by_two_hooks_proves_nothing() {
    shaped(|lab| {
        let ask = Packet::tcp((REMOTE, 40000), A.at(80), SYN);
        up(&arrive(lab, &ask));
        to_stack(&leave(lab, A, &Packet::tcp(A.at(80), (REMOTE, 40000), SYN | ACK)));
        for _ in 0..2 {
            enters(&enter(lab, A, &ask));
            up(&arrive(lab, &ask));
        }
        assert!(!only_flow(lab).1, "a flood of forged requests stays in its own table");
    });
}

#[test]
fn errors_and_fragments_go_the_way_of_their_connection() {
    shaped(|lab| {
        let asked = Packet::udp(A.at(9), (REMOTE, 53));
        to_stack(&leave(lab, A, &asked));
        let refused = Packet::error(REMOTE, (3, 3), &asked);
        up(&arrive(lab, &refused));
        enters(&enter(lab, A, &refused));
        for part in Packet::udp(A.at(9), (REMOTE, 54)).payload(&[7; 64]).split(24) {
            to_stack(&leave(lab, A, &part));
            encapsulated(&onto_overlay(lab, A, &part));
        }
        for part in Packet::udp((REMOTE, 54), A.at(9)).payload(&[7; 64]).split(24) {
            up(&arrive(lab, &part));
            enters(&enter(lab, A, &part));
        }
    });
}

#[test]
fn from_and_to_a_direct_node_the_stack_routes() {
    story_with(Settings::DIRECT_NODES | Settings::DEFRAGMENTS, |lab| {
        let flags = Node::ALIVE | Node::ON_LINK | Node::DIRECT;
        lab.put_node(REMOTE_INDEX, REMOTE_NET, Node { flags, mtu: 1500, ..remote_node() });
        shape(lab, A, Endpoint::SHAPED);
        let uplink = lab.links.uplink;
        to_stack(&leave(lab, A, &out(SYN)));
        let ask = Packet::tcp((REMOTE, 40001), A.at(80), SYN);
        for packet in [back(SYN | ACK), ask.clone(), back(ACK)] {
            let ran = wire(lab, &packet.bytes());
            untouched(&ran, &packet.bytes());
            enters(&enter_by(lab, A, &packet, uplink));
        }
        assert_eq!(lab.hits(ALLOW), 2);
        revise(lab, A, A.ingress_set(), DENY);
        dropped(&wire(lab, &ask.bytes()), Reason::PolicyIngress);
    });
}
