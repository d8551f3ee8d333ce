//! What a pod sends: ARP answer, spoof check, policy of both ends, then the shortest way there.

use aya_ebpf::programs::TcContext;
use canal_common::{
    flow::Leg,
    reason::{Hook, Reason},
    settings::Settings,
    wire::{ETHERTYPE_ARP, ETHERTYPE_IPV4, IPV4_LEN, PROTO_IPIP, PROTO_UDP},
};

use crate::{
    maps::setting,
    packet::{self, EthHeader, OUTER, Packet, Part},
    step::{
        admit, arp,
        deliver::{self, Hop},
        flow::{self, Known},
        fragment, leg, related,
    },
    verdict::{Go, Outcome, Stop},
};

/// Enough for the headers that are read in place: Ethernet, IPv4 without options, TCP without options.
const HEADERS: usize = OUTER + IPV4_LEN + 20;

#[inline(always)]
pub fn run(ctx: &TcContext) -> Outcome {
    // The tag would travel on with the envelope: a pod does not choose the VLAN of this node's packets.
    if packet::is_tagged(ctx) {
        return Err(Reason::NotIpv4.into());
    }
    packet::make_linear(ctx, HEADERS);
    let eth: EthHeader = packet::read(ctx, 0).ok_or(Reason::Malformed)?;
    match u16::from_be(eth.ethertype) {
        ETHERTYPE_IPV4 => {}
        ETHERTYPE_ARP => return arp::from_pod(ctx),
        _ => return Err(Reason::NotIpv4.into()),
    }
    let mut packet = packet::parse(ctx, OUTER)?;
    if !fragment::gather(&mut packet) {
        owner(ctx, &packet, &eth)?;
        fragment::scatter(&packet);
        // The stack puts it together with a first part that was judged, or what it forwards is judged at the next hook. On
        // other ways there is none.
        return if fragment::stack_gathers() || is_judged_later(&packet) {
            Ok(Go::next(Reason::ToStack))
        } else {
            Err(Reason::FragUnknown.into())
        };
    }
    if packet.is_icmp_error() {
        owner(ctx, &packet, &eth)?;
        let related = related::related(ctx, OUTER, &packet)?;
        // A pod is no router: it speaks about packets that were sent to it.
        if related.about != packet.src {
            return Err(Reason::IcmpUnrelated.into());
        }
        return forward(ctx, &packet, related.to, related.by_stack);
    }
    // The flow's own leg is the spoof check.
    let ifindex = packet::ifindex(ctx);
    let own = |from: &Leg| from.kind == Leg::POD && from.target == ifindex && from.mac == eth.src;
    match flow::known(&packet, own)? {
        Known::Live { to, by_stack } => forward(ctx, &packet, to, by_stack),
        Known::Judge => {
            // An answer may happen to go to such a port.
            if is_forbidden_tunnel(&packet) {
                return Err(Reason::PodTunnel.into());
            }
            let from = owner(ctx, &packet, &eth)?;
            let to = leg::anyone(packet.dst);
            let by_stack = admit::admit(ctx, Hook::FromPod, &packet, &from, &to, false)?;
            forward(ctx, &packet, &to, by_stack)
        }
    }
}

/// Whether what the stack forwards there meets another of our programs.
#[inline(always)]
fn is_judged_later(packet: &Packet) -> bool {
    let to = leg::anyone(packet.dst);
    match to.kind {
        Leg::POD => true,
        Leg::NODE => leg::direct_node(to.target).is_none(),
        _ => false,
    }
}

/// As Felix does, whatever the destination: a pod has no business in the overlay.
#[inline(always)]
fn is_forbidden_tunnel(packet: &Packet) -> bool {
    match packet.proto {
        PROTO_UDP if packet.dst_port == setting!(vxlan_port) => {
            setting!(flags) & Settings::ALLOW_POD_VXLAN == 0 || leg::anyone(packet.dst).kind == Leg::STACK
        }
        PROTO_UDP if packet.dst_port == setting!(calico_vxlan_port) => {
            setting!(flags) & Settings::ALLOW_POD_VXLAN == 0
        }
        PROTO_IPIP => setting!(flags) & Settings::ALLOW_POD_IPIP == 0,
        _ => false,
    }
}

/// The pod behind this interface, if address and MAC are its own, or the address is one that it may borrow.
#[inline(always)]
fn owner(ctx: &TcContext, packet: &Packet, eth: &EthHeader) -> Result<Leg, Stop> {
    let ifindex = packet::ifindex(ctx);
    let from = leg::pod(packet.src)
        .filter(|from| from.target == ifindex)
        .or_else(|| leg::borrower(packet.src, ifindex).filter(|from| from.target == ifindex))
        .ok_or(Reason::SpoofedIp)?;
    if from.mac != eth.src {
        return Err(Reason::SpoofedMac.into());
    }
    Ok(from)
}

#[inline(always)]
fn forward(ctx: &TcContext, packet: &Packet, to: &Leg, by_stack: bool) -> Outcome {
    // The stack owns translation, queues, and the ICMP errors for a spent TTL and a packet too large.
    if by_stack || packet.ttl <= 1 || packet.part == Part::Scattered {
        return Ok(Go::next(Reason::ToStack));
    }
    match to.kind {
        Leg::POD => deliver::to_pod(ctx, to),
        Leg::NODE => {
            let Some(node) = leg::node(to.target) else { return Err(Reason::NoRoute.into()) };
            if !deliver::fits(ctx, packet, node) {
                return Ok(Go::next(Reason::ToStack));
            }
            if leg::is_direct(node) {
                packet::decrement_ttl(ctx, OUTER).ok_or(Reason::Malformed)?;
                return Ok(deliver::plainly_to_node(node));
            }
            if setting!(flags) & Settings::OUTER_CHECKSUM != 0 {
                packet::decrement_ttl(ctx, OUTER).ok_or(Reason::Malformed)?;
                return Ok(deliver::to_device(ctx));
            }
            deliver::to_node(ctx, packet, node, Hop::Here).unwrap_or(Ok(Go::next(Reason::ToStack)))
        }
        Leg::STACK if leg::is_in_network(packet.dst) && !leg::is_this_node(packet.dst) => {
            Ok(Go::next(Reason::NoPod))
        }
        _ => Ok(Go::next(Reason::ToStack)),
    }
}
