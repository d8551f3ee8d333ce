//! Every reason at every hook where it can occur, and events about the drops.

use std::collections::BTreeSet;

use super::*;

type Case = (Hook, Reason, fn(&mut Lab) -> Ran);

fn udp(src: Ipv4Addr, dst: Ipv4Addr) -> Packet {
    Packet::udp((src, 1), (dst, 53))
}

fn later(src: Ipv4Addr, dst: Ipv4Addr) -> Packet {
    udp(src, dst).split(8)[1].clone()
}

fn ipv6(packet: &Packet) -> Vec<u8> {
    let mut frame = packet.clone().payload(&[0; 40]).bytes();
    frame[12..14].copy_from_slice(&[0x86, 0xdd]);
    frame
}

fn error(src: Ipv4Addr, dst: Ipv4Addr) -> Packet {
    Packet::error(src, (3, 3), &udp(dst, src))
}

/// On the overlay, forwarded from A's interface.
fn onto_overlay(lab: &mut Lab, frame: &[u8]) -> Ran {
    let context = Context::on(lab.links.overlay).came_by(A.from(lab).ifindex);
    lab.send(Hook::ToOverlay, frame, context)
}

fn deny(lab: &mut Lab) {
    for set in [A.ingress_set(), A.egress_set()] {
        revise(lab, A, set, DENY);
    }
}

/// Has a flow between A and REMOTE cut.
fn cut(lab: &mut Lab) {
    leave(lab, A, &udp(A.ip, REMOTE));
    arrive(lab, &Packet::udp((REMOTE, 53), A.at(1)));
    deny(lab);
    leave(lab, A, &udp(A.ip, REMOTE));
}

const CASES: &[Case] = &[
    (Hook::FromPod, Reason::Delivered, |lab| leave(lab, A, &udp(A.ip, B.ip))),
    (Hook::FromPod, Reason::Encapsulated, |lab| leave(lab, A, &udp(A.ip, REMOTE))),
    (Hook::FromPod, Reason::ToStack, |lab| leave(lab, A, &udp(A.ip, WORLD))),
    (Hook::FromPod, Reason::ArpAnswered, |lab| {
        let context = A.from(lab);
        let question = arp(etherparse::ArpOperation::REQUEST, (A.mac, A.ip), (HOST_MAC, WORLD));
        lab.send(Hook::FromPod, &question, context)
    }),
    (Hook::FromPod, Reason::PolicyIngress, |lab| {
        deny(lab);
        leave(lab, B, &udp(B.ip, A.ip))
    }),
    (Hook::FromPod, Reason::NoPod, |lab| leave(lab, A, &udp(A.ip, Ipv4Addr::new(10, 244, 1, 99)))),
    (Hook::FromPod, Reason::Routed, |lab| {
        let flags = Node::ALIVE | Node::DIRECT;
        lab.put_node(REMOTE_INDEX, REMOTE_NET, Node { flags, ..remote_node() });
        leave(lab, A, &udp(A.ip, REMOTE))
    }),
    (Hook::FromPod, Reason::PolicyEgress, |lab| {
        deny(lab);
        leave(lab, A, &udp(A.ip, WORLD))
    }),
    (Hook::FromPod, Reason::FlowDenied, |lab| {
        cut(lab);
        leave(lab, A, &udp(A.ip, REMOTE))
    }),
    (Hook::FromPod, Reason::SpoofedIp, |lab| leave(lab, A, &udp(B.ip, REMOTE))),
    (Hook::FromPod, Reason::SpoofedMac, |lab| leave(lab, Pod { mac: B.mac, ..A }, &udp(A.ip, REMOTE))),
    (Hook::FromPod, Reason::PodTunnel, |lab| leave(lab, A, &Packet::udp(A.at(1), (REMOTE, VXLAN_PORT)))),
    (Hook::FromPod, Reason::NotIpv4, |lab| {
        let context = A.from(lab);
        lab.send(Hook::FromPod, &ipv6(&udp(A.ip, B.ip)), context)
    }),
    (Hook::FromPod, Reason::Malformed, |lab| leave(lab, A, &Packet::ip(A.ip, B.ip, 6, vec![0; 4]))),
    (Hook::FromPod, Reason::NoRoute, |lab| {
        lab.set_node(REMOTE_INDEX, Node::default());
        leave(lab, A, &udp(A.ip, REMOTE))
    }),
    (Hook::FromPod, Reason::FragUnknown, |lab| leave(lab, A, &later(A.ip, WORLD))),
    (Hook::FromPod, Reason::IcmpUnrelated, |lab| leave(lab, A, &error(A.ip, REMOTE))),
    (Hook::FromPod, Reason::ToHost, |lab| leave(lab, A, &udp(A.ip, Ipv4Addr::BROADCAST))),
    (Hook::ToPod, Reason::Delivered, |lab| enter(lab, A, &udp(WORLD, A.ip))),
    (Hook::ToPod, Reason::PolicyIngress, |lab| {
        deny(lab);
        enter(lab, A, &udp(WORLD, A.ip))
    }),
    (Hook::ToPod, Reason::PolicyEgress, |lab| {
        deny(lab);
        enter(lab, B, &udp(A.ip, B.ip))
    }),
    (Hook::ToPod, Reason::FlowDenied, |lab| {
        cut(lab);
        enter(lab, A, &Packet::udp((REMOTE, 53), A.at(1)))
    }),
    (Hook::ToPod, Reason::SpoofedIp, |lab| {
        let uplink = lab.links.uplink;
        enter_by(lab, A, &udp(B.ip, A.ip), uplink)
    }),
    (Hook::ToPod, Reason::NotIpv4, |lab| {
        let context = A.from(lab);
        lab.send(Hook::ToPod, &ipv6(&udp(WORLD, A.ip)), context)
    }),
    (Hook::ToPod, Reason::Malformed, |lab| enter(lab, A, &Packet::ip(WORLD, A.ip, 6, vec![0; 4]))),
    (Hook::ToPod, Reason::UnknownEndpoint, |lab| enter(lab, A, &udp(WORLD, B.ip))),
    (Hook::ToPod, Reason::FragUnknown, |lab| enter(lab, A, &later(WORLD, A.ip))),
    (Hook::ToPod, Reason::IcmpUnrelated, |lab| enter(lab, A, &error(WORLD, A.ip))),
    (Hook::FromWire, Reason::Delivered, |lab| arrive(lab, &udp(REMOTE, A.ip))),
    (Hook::FromWire, Reason::Fallback, |lab| arrive(lab, &udp(REMOTE, NODE_IP))),
    (Hook::FromWire, Reason::PolicyIngress, |lab| {
        deny(lab);
        arrive(lab, &udp(REMOTE, A.ip))
    }),
    (Hook::FromWire, Reason::PolicyEgress, |lab| {
        leave(lab, A, &udp(A.ip, REMOTE));
        deny(lab);
        arrive(lab, &Packet::udp((REMOTE, 53), A.at(1)))
    }),
    (Hook::FromWire, Reason::FlowDenied, |lab| {
        cut(lab);
        arrive(lab, &Packet::udp((REMOTE, 53), A.at(1)))
    }),
    (Hook::FromWire, Reason::NotIpv4, |lab| {
        let frame = ipv6(&udp(REMOTE, A.ip).macs(REMOTE_VTEP, VTEP_MAC));
        wire(lab, &outer().around(&frame))
    }),
    (Hook::FromWire, Reason::Malformed, |lab| arrive(lab, &Packet::ip(REMOTE, A.ip, 6, vec![0; 4]))),
    (Hook::FromWire, Reason::UnknownNode, |lab| {
        let packet = udp(REMOTE, A.ip).macs(REMOTE_VTEP, VTEP_MAC);
        wire(lab, &packet.in_vxlan(&Outer { src: WORLD, ..outer() }))
    }),
    (Hook::FromWire, Reason::WrongSource, |lab| arrive(lab, &udp(WORLD, A.ip))),
    (Hook::FromWire, Reason::FragUnknown, |lab| {
        let [first, later] = udp(REMOTE, A.ip).split(8);
        arrive(lab, &first);
        deny(lab);
        arrive(lab, &later)
    }),
    (Hook::FromWire, Reason::IcmpUnrelated, |lab| arrive(lab, &error(REMOTE, A.ip))),
    (Hook::FromWire, Reason::EcnUnaware, |lab| {
        let packet = udp(REMOTE, A.ip).macs(REMOTE_VTEP, VTEP_MAC);
        wire(lab, &packet.in_vxlan(&Outer { tos: 3, ..outer() }))
    }),
    (Hook::FromWire, Reason::WrongVtep, |lab| {
        wire(lab, &udp(REMOTE, A.ip).macs(REMOTE_VTEP, A.mac).in_vxlan(&outer()))
    }),
    (Hook::ToOverlay, Reason::Encapsulated, |lab| onto_overlay(lab, &udp(A.ip, REMOTE).bytes())),
    (Hook::ToOverlay, Reason::Fallback, |lab| {
        let context = Context::on(lab.links.overlay).segments_of(100);
        lab.send(Hook::ToOverlay, &udp(NODE_IP, REMOTE).payload(&[0; 400]).bytes(), context)
    }),
    (Hook::ToOverlay, Reason::PolicyEgress, |lab| {
        deny(lab);
        onto_overlay(lab, &udp(A.ip, REMOTE).bytes())
    }),
    (Hook::ToOverlay, Reason::PolicyIngress, |lab| {
        arrive(lab, &udp(REMOTE, A.ip));
        deny(lab);
        onto_overlay(lab, &Packet::udp(A.at(53), (REMOTE, 1)).bytes())
    }),
    (Hook::ToOverlay, Reason::FlowDenied, |lab| {
        cut(lab);
        onto_overlay(lab, &udp(A.ip, REMOTE).bytes())
    }),
    (Hook::ToOverlay, Reason::SpoofedIp, |lab| {
        let context = Context::on(lab.links.overlay).came_by(lab.links.uplink);
        lab.send(Hook::ToOverlay, &udp(A.ip, REMOTE).bytes(), context)
    }),
    (Hook::ToOverlay, Reason::NotIpv4, |lab| onto_overlay(lab, &ipv6(&udp(A.ip, REMOTE)))),
    (Hook::ToOverlay, Reason::Malformed, |lab| {
        onto_overlay(lab, &Packet::ip(A.ip, REMOTE, 6, vec![0; 4]).bytes())
    }),
    (Hook::ToOverlay, Reason::NoRoute, |lab| onto_overlay(lab, &udp(A.ip, WORLD).bytes())),
    (Hook::ToOverlay, Reason::FragUnknown, |lab| onto_overlay(lab, &later(A.ip, REMOTE).bytes())),
    (Hook::ToOverlay, Reason::IcmpUnrelated, |lab| onto_overlay(lab, &error(A.ip, REMOTE).bytes())),
    (Hook::FromOverlay, Reason::UnknownNode, |lab| {
        let context = Context::on(lab.links.overlay);
        lab.send(Hook::FromOverlay, &udp(REMOTE, A.ip).macs(REMOTE_VTEP, VTEP_MAC).bytes(), context)
    }),
];

/// The kernel refuses neither to make nor to remove an envelope, nor to set a tunnel key, for a packet that came as far
/// as that; the code that says so is for kernels that do.
const UNREACHABLE: &[Reason] = &[Reason::EncapFailed];

#[test]
fn every_reason_is_reached_and_counted_with_its_bytes() {
    for (hook, reason, provoke) in CASES {
        // What changes nothing for the others.
        story_with(Settings::DROP_TO_HOST | Settings::DIRECT_NODES, |lab| {
            let ran = provoke(lab);
            assert_eq!(ran.reason, Some(*reason), "{}: {}", hook.slug(), reason.slug());
            assert_eq!(ran.action == DROP, reason.is_drop(), "{}: {}", hook.slug(), reason.slug());
        });
    }
}

#[test]
fn no_reason_is_without_a_case() {
    let reached: BTreeSet<Reason> =
        CASES.iter().map(|(_, reason, _)| *reason).chain(UNREACHABLE.iter().copied()).collect();
    let all: BTreeSet<Reason> = Reason::ALL.iter().copied().collect();
    assert_eq!(reached, all);
    let hooks: BTreeSet<Hook> = CASES.iter().map(|(hook, ..)| *hook).collect();
    assert_eq!(hooks, Hook::ALL.iter().copied().collect());
}

#[test]
fn counters_count_packets_and_the_bytes_of_the_frame_as_it_leaves() {
    story(|lab| {
        let of = |lab: &mut Lab, reason| {
            let counters = lab.counters();
            counters
                .into_iter()
                .find(|(hook, r, _)| (*hook, *r) == (Hook::FromPod, reason))
                .expect("it is there")
                .2
        };
        for (packet, reason, extra) in [
            (udp(A.ip, B.ip), Reason::Delivered, 0),
            (udp(A.ip, REMOTE), Reason::Encapsulated, 50),
            (udp(B.ip, REMOTE), Reason::SpoofedIp, 0),
        ] {
            let before = of(lab, reason);
            let sent = packet.bytes().len();
            leave(lab, A, &packet);
            let after = of(lab, reason);
            assert_eq!(
                (after.packets, after.bytes),
                (before.packets + 1, before.bytes + sent as u64 + extra)
            );
        }
    });
}
