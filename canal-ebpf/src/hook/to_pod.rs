//! What the host stack delivers to a pod: answers from outside, forwarded traffic (policed), and the host itself
//! (never policed).

use aya_ebpf::programs::TcContext;
use canal_common::{
    flow::Leg,
    reason::Reason,
    wire::{ETHERTYPE_ARP, ETHERTYPE_IPV4, IPV4_LEN},
};

use crate::{
    packet::{self, EthHeader, OUTER, Part},
    step::{
        flow::{self, Known},
        leg,
    },
    verdict::{Go, Outcome},
};

const HEADERS: usize = OUTER + IPV4_LEN + 20;

#[inline(always)]
pub fn run(ctx: &TcContext) -> Outcome {
    packet::make_linear(ctx, HEADERS);
    let eth: EthHeader = packet::read(ctx, 0).ok_or(Reason::Malformed)?;
    match u16::from_be(eth.ethertype) {
        ETHERTYPE_IPV4 => {}
        // Our own answers, and the host's questions.
        ETHERTYPE_ARP => return Ok(Go::next(Reason::Delivered)),
        _ => return Err(Reason::NotIpv4.into()),
    }
    let from_host = packet::ingress_ifindex(ctx) == 0;
    let mut packet = packet::parse(ctx, OUTER)?;
    let to = leg::pod(packet.dst).ok_or(Reason::UnknownEndpoint)?;
    if to.target != packet::ifindex(ctx) {
        return Err(Reason::UnknownEndpoint.into());
    }
    if packet.part != Part::Whole && !flow::settle_fragment(&mut packet) {
        return if from_host { Ok(Go::next(Reason::Delivered)) } else { Err(Reason::FragUnknown.into()) };
    }
    if packet.is_icmp_error() {
        // The host's own errors need no flow: it may have made one for a packet that never got as far.
        if !from_host {
            flow::related(ctx, OUTER, &packet)?;
        }
        return Ok(Go::next(Reason::Delivered));
    }
    // A flow from before the pod was there has not met its policy.
    let live = matches!(flow::known(&packet)?, Known::Live { to: known, .. } if known.endpoint == to.endpoint);
    if !live {
        let from = if from_host {
            leg::other(Leg::HOST)
        } else {
            // Whoever it is, its packets came through the stack and the answers must go there, too.
            leg::pod(packet.src).unwrap_or(leg::other(Leg::STACK))
        };
        flow::admit(&packet, &from, &to, true)?;
    }
    Ok(Go::next(Reason::Delivered))
}
