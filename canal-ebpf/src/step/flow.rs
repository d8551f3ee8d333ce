//! The fast path of connection tracking: one hash lookup and a generation check. The slow one is [`crate::step::admit`].

use aya_ebpf::{bindings::BPF_ANY, helpers::generated::bpf_ktime_get_coarse_ns};
use canal_common::{
    flow::{Flow, FlowKey, FlowLimits, Leg},
    reason::Reason,
    wire::{PROTO_ICMP, PROTO_SCTP, PROTO_TCP, PROTO_UDP, PROTO_UDPLITE},
};

use crate::{
    BARE,
    maps::{FLOWS, FLOWS_NEW, setting},
    packet::{Packet, TCP_FIN, TCP_RST, TCP_SYN},
    step::{fragment, leg},
    verdict::Stop,
};

/// Ticks of 2^30 ns since boot.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: a helper without arguments. The shift makes a tick of about 1.07 s, without a division.
    (unsafe { bpf_ktime_get_coarse_ns() } >> 30) as u32
}

/// How long a flow may be idle, in ticks.
#[inline(always)]
pub fn idle_limit(state: u8, proto: u8) -> u32 {
    match (state, proto) {
        (Flow::DENIED, _) => FlowLimits::DENIED,
        (Flow::ESTABLISHED, PROTO_TCP) => setting!(limits.tcp_established),
        (Flow::NEW, PROTO_TCP) => setting!(limits.tcp_new),
        (Flow::CLOSING, _) => setting!(limits.closing),
        (_, PROTO_UDP | PROTO_UDPLITE) => setting!(limits.udp),
        (_, PROTO_ICMP) => setting!(limits.icmp),
        (Flow::ESTABLISHED, PROTO_SCTP) => setting!(limits.sctp_established),
        (_, PROTO_SCTP) => setting!(limits.sctp_new),
        _ => setting!(limits.other),
    }
}

/// What the table says about a packet.
pub enum Known {
    /// Approved: where it goes. `by_stack`: the stack is to forward it.
    Live { to: &'static Leg, by_stack: bool },
    /// To be judged: new, changed, expired, or a fresh connection request.
    Judge,
}

/// The packet's flow is one that policy has cut. A type of its own: a [`Stop`] would share its bytes with the pointer in
/// [`Known`], which the compiler then stores in two halves, and no verifier takes half a pointer.
pub struct Cut;

impl From<Cut> for Stop {
    #[inline(always)]
    fn from(_: Cut) -> Self {
        Reason::FlowDenied.into()
    }
}

/// Looks the packet's flow up and moves its state on. `may_send`: whether the packet can have come from this leg;
/// nothing is changed for one that cannot, and it is judged with its sender established anew.
#[inline(always)]
pub fn known(packet: &Packet, may_send: impl FnOnce(&Leg) -> bool) -> Result<Known, Cut> {
    let (key, from_hi) = packet.flow_key();
    if packet.opens || BARE {
        return Ok(Known::Judge);
    }
    let now = now();
    let (mut found, mut is_new) = (FLOWS.get_ptr_mut(&key), false);
    if found.is_none() {
        (found, is_new) = (FLOWS_NEW.get_ptr_mut(&key), true);
    }
    let Some(flow) = found else { return Ok(Known::Judge) };
    // SAFETY: a table element stays readable while the program runs. Another CPU may write it at the same time;
    // every field that is written in place is one aligned store whose loss is harmless.
    let mut flow = unsafe { &mut *flow };
    let (from, to) = ends(flow, from_hi);
    if now.wrapping_sub(flow.last_seen) > idle_limit(flow.state, packet.proto)
        || !may_send(from)
        || !leg::is_current(from)
        || !leg::is_current(to)
    {
        return Ok(Known::Judge);
    }
    if flow.last_seen != now {
        flow.last_seen = now;
    }
    if flow.state == Flow::DENIED {
        return Err(Cut);
    }
    if is_new {
        if grow(&raw const key, &raw mut *flow, packet.proto.into(), packet.tcp_flags.into(), from_hi.into())
            != 0
        {
            // Not the old element: it may serve another flow by now.
            let Some(live) = FLOWS.get_ptr_mut(&key) else { return Ok(Known::Judge) };
            // SAFETY: as above.
            flow = unsafe { &mut *live };
        }
    } else if flow.state == Flow::NEW && from_hi != initiated_by_hi(flow) {
        flow.state = Flow::ESTABLISHED;
    }
    note_end(flow, packet, from_hi);
    fragment::remember(packet);
    let (_, to) = ends(flow, from_hi);
    Ok(Known::Live { to, by_stack: flow.flags & Flow::BY_STACK != 0 })
}

/// A reset, or a FIN from either side, closes the flow.
#[inline(always)]
pub fn note_end(flow: &mut Flow, packet: &Packet, from_hi: bool) {
    if packet.proto == PROTO_TCP && packet.tcp_flags & (TCP_FIN | TCP_RST) != 0 {
        flow.fins |= if from_hi { 2 } else { 1 };
        if packet.tcp_flags & TCP_RST != 0 || flow.fins == 3 {
            flow.state = Flow::CLOSING;
        }
    }
}

/// Sender's leg, receiver's leg.
#[inline(always)]
pub fn ends(flow: &Flow, from_hi: bool) -> (&Leg, &Leg) {
    if from_hi { (&flow.hi, &flow.lo) } else { (&flow.lo, &flow.hi) }
}

#[inline(always)]
pub fn initiated_by_hi(flow: &Flow) -> bool {
    flow.flags & Flow::HI_INITIATED != 0
}

/// Whether this packet of an unanswered flow shows that both sides mean it: an answer, but of TCP's answers neither a
/// reset, nor the one to a request, which everybody who forges addresses gets as well: then it is what follows. Of SCTP's
/// answers the first may be a refusal: there, too, it is what follows.
#[inline(always)]
pub fn proves_itself(flow: &mut Flow, proto: u8, tcp_flags: u8, from_hi: bool) -> bool {
    let answers = from_hi != initiated_by_hi(flow);
    if proto != PROTO_TCP && proto != PROTO_SCTP {
        return answers;
    }
    if proto == PROTO_TCP && tcp_flags & TCP_RST != 0 {
        return false;
    }
    if !answers {
        return flow.flags & Flow::HALF_OPEN != 0;
    }
    if proto == PROTO_TCP && tcp_flags & TCP_SYN == 0 {
        return true;
    }
    flow.flags |= Flow::HALF_OPEN;
    false
}

/// A packet of an unanswered flow: not 0 if that moves it out of reach of a flood. A global function, so that the verifier
/// walks it once per program, and of scalars, so that the packet need not be in memory.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn grow(key: *const FlowKey, flow: *mut Flow, proto: u32, tcp_flags: u32, from_hi: u32) -> u32 {
    // SAFETY: the verifier knows the pointers as memory of their types' sizes, or null.
    let (Some(key), Some(flow)) = (unsafe { (key.as_ref(), flow.as_mut()) }) else { return 0 };
    if !proves_itself(flow, proto as u8, tcp_flags as u8, from_hi != 0) {
        return 0;
    }
    let mut live = *flow;
    if live.state == Flow::NEW {
        live.state = Flow::ESTABLISHED;
    }
    put_live(key, &live);
    1
}

/// Puts a flow among those that have been answered.
#[inline(always)]
pub fn put_live(key: &FlowKey, flow: &Flow) {
    if FLOWS.insert(key, flow, BPF_ANY.into()).is_ok() {
        let _ = FLOWS_NEW.remove(key);
    }
}
