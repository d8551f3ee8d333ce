//! ARP on a pod's interface.

use etherparse::ArpOperation;

use super::*;

const NOBODY: Mac = Mac::new([0; 6]);
const SENDER_IP: usize = 14 + 14;
const SENDER_MAC: usize = 14 + 8;

fn ask(lab: &mut Lab, target: Ipv4Addr) -> Ran {
    let context = A.from(lab);
    lab.send(Hook::FromPod, &arp(ArpOperation::REQUEST, (A.mac, A.ip), (NOBODY, target)), context)
}

#[test]
fn any_address_but_its_own_is_answered_with_the_hosts_end() {
    story(|lab| {
        for target in [Ipv4Addr::new(169, 254, 1, 1), B.ip, REMOTE, WORLD, NODE_IP, Ipv4Addr::BROADCAST] {
            let ran = ask(lab, target);
            passes(&ran, REDIRECT, Reason::ArpAnswered);
            let mut answer = arp(ArpOperation::REPLY, (HOST_MAC, target), (A.mac, A.ip));
            answer[..6].copy_from_slice(&A.mac.octets);
            assert_eq!(ran.frame, answer, "{target}");
        }
    });
}

#[test]
fn a_question_about_its_own_address_is_not_answered() {
    story(|lab| {
        let gratuitous = ask(lab, A.ip);
        to_stack(&gratuitous);
    });
}

#[test]
fn an_answer_to_the_host_goes_up() {
    story(|lab| {
        let context = A.from(lab);
        let frame = arp(ArpOperation::REPLY, (A.mac, A.ip), (HOST_MAC, NODE_IP));
        to_stack(&lab.send(Hook::FromPod, &frame, context));
    });
}

#[test]
fn nobody_speaks_for_an_address_or_mac_that_is_not_its_own() {
    story(|lab| {
        let context = A.from(lab);
        for operation in [ArpOperation::REQUEST, ArpOperation::REPLY] {
            let frame = arp(operation, (A.mac, A.ip), (NOBODY, REMOTE));
            // B's address on A's interface, and an address of nobody's.
            for ip in [B.ip, WORLD, Ipv4Addr::UNSPECIFIED] {
                let mut frame = frame.clone();
                frame[SENDER_IP..SENDER_IP + 4].copy_from_slice(&ip.octets());
                dropped(&lab.send(Hook::FromPod, &frame, context), Reason::SpoofedIp);
            }
            for place in [6, SENDER_MAC] {
                let mut frame = frame.clone();
                frame[place..place + 6].copy_from_slice(&B.mac.octets);
                dropped(&lab.send(Hook::FromPod, &frame, context), Reason::SpoofedMac);
            }
        }
    });
}

#[test]
fn other_kinds_and_operations_and_cut_ones_are_malformed() {
    story(|lab| {
        let context = A.from(lab);
        let frame = arp(ArpOperation::REQUEST, (A.mac, A.ip), (NOBODY, REMOTE));
        for (byte, value) in [(14 + 1, 6), (14 + 2, 9), (14 + 4, 8), (14 + 5, 16), (14 + 7, 3)] {
            let mut frame = frame.clone();
            frame[byte] = value;
            dropped(&lab.send(Hook::FromPod, &frame, context), Reason::Malformed);
        }
        for len in [14, 15, 41] {
            dropped(&lab.send(Hook::FromPod, &frame[..len], context), Reason::Malformed);
        }
    });
}

#[test]
fn the_hosts_own_arp_reaches_the_pod() {
    story(|lab| {
        let context = A.from(lab);
        let frame = arp(ArpOperation::REQUEST, (HOST_MAC, NODE_IP), (NOBODY, A.ip));
        let ran = lab.send(Hook::ToPod, &frame, context);
        passes(&ran, NEXT, Reason::Delivered);
        assert_eq!(ran.frame, frame);
    });
}
