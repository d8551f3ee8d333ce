//! ICMP errors: they belong to the flow that they are about.

use aya_ebpf::programs::TcContext;
use canal_common::{
    Ip4,
    flow::{Flow, Leg},
    reason::Reason,
};

use crate::{
    maps::{FLOWS, FLOWS_NEW},
    packet::{self, Packet},
    step::{
        flow::{ends, idle_limit, now},
        leg,
    },
    verdict::Stop,
};

/// Where an ICMP error goes.
pub struct Related {
    /// Who the packet that it is about was sent to.
    pub about: Ip4,
    /// The leg of that one.
    pub peer: &'static Leg,
    pub to: &'static Leg,
    /// The stack is to forward it.
    pub by_stack: bool,
}

/// An ICMP error may pass when the packet that it is about belongs to a live flow: it goes to that packet's sender.
#[inline(always)]
pub fn related(ctx: &TcContext, offset: usize, packet: &Packet) -> Result<Related, Stop> {
    let about = packet::embedded(ctx, offset).ok_or(Reason::Malformed)?;
    if about.src != packet.dst {
        return Err(Reason::IcmpUnrelated.into());
    }
    // SAFETY: as in `known`.
    let flow = unsafe { FLOWS.get(&about.key) }
        .or_else(|| unsafe { FLOWS_NEW.get(&about.key) })
        .ok_or(Reason::IcmpUnrelated)?;
    let (to, peer) = ends(flow, about.from_hi);
    if flow.state == Flow::DENIED
        || now().wrapping_sub(flow.last_seen) > idle_limit(flow.state, about.key.proto)
        || !leg::is_current(to)
        || !leg::is_current(peer)
    {
        return Err(Reason::IcmpUnrelated.into());
    }
    Ok(Related { about: about.dst, peer, to, by_stack: flow.flags & Flow::BY_STACK != 0 })
}
