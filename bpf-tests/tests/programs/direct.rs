//! Nodes that are reached without an envelope.

use super::*;

/// A node that is reached through the tunnel all the same, and a pod of its.
const FAR: Ipv4Addr = Ipv4Addr::new(10, 244, 3, 1);
const FAR_INDEX: u32 = 4;

fn direct_story(tell: impl FnOnce(&mut Lab) + Send) {
    story_with(Settings::DIRECT_NODES | Settings::DEFRAGMENTS, |lab| {
        let flags = Node::ALIVE | Node::ON_LINK | Node::DIRECT;
        lab.put_node(REMOTE_INDEX, REMOTE_NET, Node { flags, mtu: 1500, ..remote_node() });
        let far = Node { ip: Ipv4Addr::new(192, 168, 50, 3).into(), ..remote_node() };
        lab.put_node(FAR_INDEX, "10.244.3.0/24", far);
        tell(lab);
    });
}

fn routed(ran: &Ran) {
    passes(ran, REDIRECT, Reason::Routed);
}

#[test]
fn packets_go_there_as_they_are_one_hop_older_and_come_back_into_the_pod() {
    direct_story(|lab| {
        let (out, back) = (Packet::udp(A.at(9), (REMOTE, 53)), Packet::udp((REMOTE, 53), A.at(9)));
        let ran = leave(lab, A, &out);
        routed(&ran);
        let ttl = out.ttl - 1;
        assert_eq!(ran.frame[IP..], out.ttl(ttl).bytes()[IP..]);
        let ran = wire(lab, &back.bytes());
        delivered(&ran);
        assert_eq!(ran.frame, back.clone().ttl(back.ttl - 1).macs(HOST_MAC, A.mac).bytes());
        encapsulated(&leave(lab, A, &Packet::udp(A.at(9), (FAR, 53))));
        // A node that has not heard of it yet may still use an envelope.
        delivered(&arrive(lab, &Packet::udp((REMOTE, 7), A.at(9))));
    });
}

#[test]
fn what_a_direct_node_brings_is_policed_and_it_may_begin() {
    direct_story(|lab| {
        let ask = Packet::tcp((REMOTE, 1000), A.at(80), SYN);
        delivered(&wire(lab, &ask.bytes()));
        revise(lab, A, A.ingress_set(), DENY);
        dropped(&wire(lab, &ask.bytes()), Reason::PolicyIngress);
        dropped(&wire(lab, &Packet::tcp((REMOTE, 1000), A.at(80), ACK).bytes()), Reason::PolicyIngress);
    });
}

#[test]
fn what_the_stack_forwards_from_a_direct_node_may_have_come_by_the_uplink_and_from_no_other_node() {
    direct_story(|lab| {
        let uplink = lab.links.uplink;
        let ask = |src| Packet::udp((src, 1), A.at(53));
        passes(&enter_by(lab, A, &ask(REMOTE), uplink), NEXT, Reason::Delivered);
        dropped(&enter_by(lab, A, &ask(FAR), uplink), Reason::SpoofedIp);
        dropped(&enter_by(lab, A, &ask(B.ip), uplink), Reason::SpoofedIp);
    });
}

#[test]
fn whatever_else_comes_by_the_uplink_is_left_alone() {
    direct_story(|lab| {
        let untouched_packets = [
            // Of the world, of nodes that have a tunnel, for the node, for nobody.
            Packet::udp((WORLD, 1), A.at(53)),
            Packet::udp((FAR, 1), A.at(53)),
            Packet::udp((B.ip, 1), A.at(53)),
            Packet::udp((REMOTE, 1), (NODE_IP, 53)),
            Packet::udp((REMOTE, 1), (Ipv4Addr::new(10, 244, 1, 99), 53)),
            Packet::udp((REMOTE, 1), A.at(53)).ttl(1),
            Packet::ip(REMOTE, A.ip, 6, vec![0; 4]),
            // A router on the way; `to_pod` knows whether it may.
            Packet::error(REMOTE_NODE, (11, 0), &Packet::udp(A.at(9), (REMOTE, 53))),
        ];
        for packet in untouched_packets {
            let frame = packet.bytes();
            let ran = wire(lab, &frame);
            assert_eq!((ran.action, &ran.frame), (NEXT, &frame), "{packet:?}");
        }
    });
}

#[test]
fn errors_of_a_direct_node_belong_to_its_flows_only() {
    direct_story(|lab| {
        let out = Packet::udp(A.at(9), (REMOTE, 53));
        routed(&leave(lab, A, &out));
        delivered(&wire(lab, &Packet::error(REMOTE, (3, 3), &out).bytes()));
        dropped(
            &wire(lab, &Packet::error(REMOTE, (3, 3), &Packet::udp(A.at(9), (REMOTE, 54))).bytes()),
            Reason::IcmpUnrelated,
        );
        let elsewhere = Packet::udp(A.at(9), (FAR, 53));
        encapsulated(&leave(lab, A, &elsewhere));
        let frame = Packet::error(REMOTE, (3, 3), &elsewhere).bytes();
        untouched(&wire(lab, &frame), &frame);
    });
}

#[test]
fn what_does_not_fit_and_what_is_too_old_is_the_stacks() {
    direct_story(|lab| {
        let sized = |len: usize| Packet::ip(A.ip, REMOTE, 47, vec![0; len - 20]);
        routed(&leave(lab, A, &sized(1500)));
        to_stack(&leave(lab, A, &sized(1501)));
        to_stack(&leave(lab, A, &Packet::udp(A.at(1), (REMOTE, 53)).ttl(1)));
    });
}

#[test]
fn without_such_nodes_plain_packets_are_not_even_looked_at() {
    story(|lab| {
        let direct = Node { flags: Node::ALIVE | Node::DIRECT, ..remote_node() };
        lab.put_node(REMOTE_INDEX, REMOTE_NET, direct);
        encapsulated(&leave(lab, A, &Packet::udp(A.at(9), (REMOTE, 53))));
        let frame = Packet::udp((REMOTE, 53), A.at(9)).bytes();
        untouched(&wire(lab, &frame), &frame);
    });
}
