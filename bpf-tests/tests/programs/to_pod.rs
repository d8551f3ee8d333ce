//! What the host stack delivers to a pod.

use super::*;

#[test]
fn the_host_itself_is_never_policed_and_everybody_else_is() {
    story(|lab| {
        lab.put_set(A.ingress_set(), &[DENY]);
        for src in [NODE_IP, WORLD] {
            let packet = Packet::tcp((src, 1), A.at(80), SYN);
            dropped(&enter(lab, A, &packet), Reason::PolicyIngress);
            let ran = from_host(lab, A, &packet);
            passes(&ran, NEXT, Reason::Delivered);
            assert_eq!(ran.frame, packet.bytes());
        }
    });
}

#[test]
fn answers_to_the_host_come_back_by_the_stack() {
    story(|lab| {
        lab.put_set(A.ingress_set(), &[DENY]);
        lab.put_set(A.egress_set(), &[DENY]);
        passes(&from_host(lab, A, &Packet::tcp((NODE_IP, 1), A.at(80), SYN)), NEXT, Reason::Delivered);
        to_stack(&leave(lab, A, &Packet::tcp(A.at(80), (NODE_IP, 1), SYN | ACK)));
        passes(&from_host(lab, A, &Packet::tcp((NODE_IP, 1), A.at(80), ACK)), NEXT, Reason::Delivered);
        // A new connection of the pod's is its own.
        dropped(&leave(lab, A, &Packet::tcp(A.at(81), (NODE_IP, 1), SYN)), Reason::PolicyEgress);
    });
}

#[test]
fn forwarded_packets_of_local_pods_meet_both_policies() {
    story(|lab| {
        lab.put_set(A.egress_set(), &[DENY]);
        dropped(&enter(lab, B, &Packet::udp(A.at(1), B.at(53))), Reason::PolicyEgress);
        lab.put_set(A.egress_set(), &[ALLOW]);
        passes(&enter(lab, B, &Packet::udp(A.at(1), B.at(53))), NEXT, Reason::Delivered);
        lab.put_set(B.ingress_set(), &[DENY]);
        dropped(&enter(lab, B, &Packet::udp(A.at(2), B.at(53))), Reason::PolicyIngress);
    });
}

#[test]
fn a_pods_address_comes_only_by_the_way_that_leads_to_the_pod() {
    story(|lab| {
        let (uplink, overlay, of_a) = (lab.links.uplink, lab.links.overlay, lab.links.pods[A.number]);
        for (src, ways) in [(B.ip, [uplink, overlay, of_a]), (REMOTE, [uplink, uplink, of_a])] {
            for way in ways {
                dropped(&enter_by(lab, A, &Packet::udp((src, 1), A.at(53)), way), Reason::SpoofedIp);
            }
        }
        // Nor does a live flow open another way.
        passes(&enter(lab, A, &Packet::udp((REMOTE, 1), A.at(53))), NEXT, Reason::Delivered);
        dropped(&enter_by(lab, A, &Packet::udp((REMOTE, 1), A.at(53)), uplink), Reason::SpoofedIp);
    });
}

#[test]
fn a_flow_that_the_stack_forwards_is_answered_by_the_stack() {
    story(|lab| {
        passes(&enter(lab, A, &Packet::udp((REMOTE, 1), A.at(53))), NEXT, Reason::Delivered);
        assert_eq!(only_flow(lab).0.flags & Flow::VIA_STACK, Flow::VIA_STACK);
        // REMOTE would be encapsulated otherwise, and the stack's translation be missed.
        to_stack(&leave(lab, A, &Packet::udp(A.at(53), (REMOTE, 1))));
        to_stack(&leave(lab, A, &Packet::udp(A.at(53), (REMOTE, 1))));
        // By the wire it came for the stack to translate, too.
        passes(&arrive(lab, &Packet::udp((REMOTE, 1), A.at(53))), NEXT, Reason::Fallback);
        // And so is the packet that is judged again.
        lab.bump(A.id);
        to_stack(&leave(lab, A, &Packet::udp(A.at(53), (REMOTE, 1))));
        lab.bump(A.id);
        passes(&arrive(lab, &Packet::udp((REMOTE, 1), A.at(53))), NEXT, Reason::Fallback);
    });
}

#[test]
fn an_address_that_is_not_this_interfaces_is_nobodys() {
    story(|lab| {
        for dst in [B.ip, WORLD, REMOTE, NODE_IP] {
            let packet = Packet::udp((WORLD, 1), (dst, 53));
            dropped(&enter(lab, A, &packet), Reason::UnknownEndpoint);
            dropped(&from_host(lab, A, &packet), Reason::UnknownEndpoint);
        }
        lab.delete_endpoint(A.ip);
        dropped(&from_host(lab, A, &Packet::udp((NODE_IP, 1), A.at(53))), Reason::UnknownEndpoint);
    });
}

#[test]
fn an_address_of_the_pod_network_that_nobody_holds_does_not_come_from_the_underlay() {
    story(|lab| {
        let nobody = Packet::udp((Ipv4Addr::new(10, 244, 9, 9), 1), A.at(53));
        let (uplink, elsewhere) = (lab.links.uplink, lab.links.pods[B.number]);
        dropped(&enter_by(lab, A, &nobody, uplink), Reason::SpoofedIp);
        // It may be a container of another kind on this node.
        passes(&enter_by(lab, A, &nobody, elsewhere), NEXT, Reason::Delivered);
        dropped(&enter_by(lab, A, &nobody, uplink), Reason::SpoofedIp);
    });
}

#[test]
fn only_sound_ipv4_is_delivered() {
    story(|lab| {
        let context = A.from(lab);
        let good = Packet::tcp((WORLD, 1), A.at(80), SYN).bytes();
        let mut ipv6 = Packet::tcp((WORLD, 1), A.at(80), SYN).payload(&[0; 40]).bytes();
        ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
        dropped(&lab.send(Hook::ToPod, &ipv6, context), Reason::NotIpv4);
        for len in [34, 37, 47] {
            dropped(&lab.send(Hook::ToPod, &good[..len], context), Reason::Malformed);
        }
    });
}

#[test]
fn a_flow_from_before_the_pod_was_there_is_judged_when_it_is() {
    story(|lab| {
        lab.delete_endpoint(B.ip);
        let packet = Packet::udp(A.at(1), B.at(53));
        no_pod(&leave(lab, A, &packet));
        add_pod(lab, B);
        lab.put_set(B.ingress_set(), &[DENY]);
        // The sender goes on by what it knew; the receiver decides.
        no_pod(&leave(lab, A, &packet));
        dropped(&enter(lab, B, &packet), Reason::PolicyIngress);
        lab.forget_flows();
        lab.put_set(B.ingress_set(), &[ALLOW]);
        passes(&enter(lab, B, &packet), NEXT, Reason::Delivered);
        to_stack(&leave(lab, B, &Packet::udp(B.at(53), A.at(1))));
    });
}

#[test]
fn a_new_pod_may_speak_first_on_a_flow_from_before_it_was_there() {
    story(|lab| {
        lab.delete_endpoint(B.ip);
        no_pod(&leave(lab, A, &Packet::udp(A.at(1), B.at(53))));
        add_pod(lab, B);
        let ran = leave(lab, B, &Packet::udp(B.at(53), A.at(1)));
        assert_ne!(ran.action, DROP, "{:?}", ran.reason);
    });
}
