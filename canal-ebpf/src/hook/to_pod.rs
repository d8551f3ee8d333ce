//! What the host stack delivers to a pod: answers from outside, forwarded traffic (policed), and the host itself
//! (never policed).

use aya_ebpf::programs::TcContext;
use canal_common::{
    flow::Leg,
    reason::{Hook, Reason},
    wire::{ETHERTYPE_ARP, ETHERTYPE_IPV4, IPV4_LEN},
};

use crate::{
    packet::{self, EthHeader, FROM_HOST, OUTER, Packet},
    step::{
        admit,
        flow::{self, Known},
        fragment, leg, related,
    },
    verdict::{Go, Outcome, Stop},
};

const HEADERS: usize = OUTER + IPV4_LEN + 20;

#[inline(always)]
pub fn run(ctx: &TcContext) -> Outcome {
    packet::make_linear(ctx, HEADERS);
    let eth: EthHeader = packet::read(ctx, 0).ok_or(Reason::Malformed)?;
    match u16::from_be(eth.ethertype) {
        ETHERTYPE_IPV4 => {}
        // Our own answers, and the host's questions. What looks like one on a device without Ethernet headers is none.
        ETHERTYPE_ARP if packet::is_arp(ctx) => return Ok(Go::next(Reason::Delivered)),
        _ => return Err(Reason::NotIpv4.into()),
    }
    let mut packet = packet::parse(ctx, OUTER)?;
    let to = leg::pod(packet.dst).ok_or(Reason::UnknownEndpoint)?;
    if to.target != packet::ifindex(ctx) {
        return Err(Reason::UnknownEndpoint.into());
    }
    let came_by = packet::ingress_ifindex(ctx);
    let from_host = came_by == FROM_HOST;
    if !fragment::settle(&mut packet) {
        return if from_host { Ok(Go::next(Reason::Delivered)) } else { Err(Reason::FragUnknown.into()) };
    }
    if packet.is_icmp_error() {
        // The host's own errors need no flow: it may have made one for a packet that never got as far.
        if !from_host {
            related::related(ctx, OUTER, &packet)?;
        }
        return Ok(Go::next(Reason::Delivered));
    }
    // A flow from before the pod was there has not met its policy.
    let known = flow::known(&packet, |from| leg::may_come_by(from, packet.src, came_by))?;
    if !matches!(known, Known::Live { to: receiver, .. } if receiver.endpoint == to.endpoint) {
        let from = if from_host { leg::other(Leg::HOST) } else { forwarded(&packet, came_by)? };
        admit::admit(ctx, Hook::ToPod, &packet, &from, &to, true)?;
    }
    Ok(Go::next(Reason::Delivered))
}

/// Whoever it is, its packets came through the stack and the answers must go there, too; but a pod's address comes
/// only by the way that leads to that pod.
#[inline(always)]
fn forwarded(packet: &Packet, came_by: u32) -> Result<Leg, Stop> {
    let from = leg::anyone(packet.src);
    if !leg::may_come_by(&from, packet.src, came_by) {
        return Err(Reason::SpoofedIp.into());
    }
    Ok(from)
}
