//! Connection tracking. [`known`] is the fast path: one hash lookup and a generation check. [`admit`] is the slow
//! one: policy, then a table entry.

use aya_ebpf::{bindings::BPF_ANY, helpers::generated::bpf_ktime_get_coarse_ns, programs::TcContext};
use canal_common::{
    Ip4,
    flow::{FRAG_LIMIT, Flow, FlowKey, FragPorts, Leg, flow_key, idle_limit},
    policy::Verdict,
    reason::Reason,
    wire::PROTO_TCP,
};

use crate::{
    maps::{FLOWS, FLOWS_NEW, FRAGS},
    packet::{self, Packet, Part, TCP_FIN, TCP_RST},
    step::{
        leg,
        policy::{Direction, judge},
    },
    verdict::Stop,
};

/// Ticks of 2^30 ns since boot.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: a helper without arguments. The shift makes a tick of about 1.07 s, without a division.
    (unsafe { bpf_ktime_get_coarse_ns() } >> 30) as u32
}

/// What the table says about a packet.
pub enum Known {
    /// Approved: where it goes.
    Live { to: &'static Leg, via_stack: bool },
    /// To be judged: new, changed, expired, or a fresh connection request.
    Judge,
}

/// Looks the packet's flow up and moves its state on. `may_send`: whether the packet can have come from this leg;
/// nothing is changed for one that cannot, and it is judged with its sender established anew.
#[inline(always)]
pub fn known(packet: &Packet, may_send: impl FnOnce(&Leg) -> bool) -> Result<Known, Stop> {
    let (key, from_hi) = key_of(packet);
    if packet.opens_tcp() {
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
    if is_new && from_hi != initiated_by_hi(flow) {
        promote(&key, flow);
        // Not the old element: it may serve another flow by now.
        let Some(live) = FLOWS.get_ptr_mut(&key) else { return Ok(Known::Judge) };
        // SAFETY: as above.
        flow = unsafe { &mut *live };
    } else if flow.state == Flow::NEW && from_hi != initiated_by_hi(flow) {
        flow.state = Flow::ESTABLISHED;
    }
    if flow.last_seen != now {
        flow.last_seen = now;
    }
    if flow.state == Flow::DENIED {
        return Err(Reason::FlowDenied.into());
    }
    if packet.proto == PROTO_TCP && packet.tcp_flags & (TCP_FIN | TCP_RST) != 0 {
        flow.fins |= if from_hi { 2 } else { 1 };
        if packet.tcp_flags & TCP_RST != 0 || flow.fins == 3 {
            flow.state = Flow::CLOSING;
        }
    }
    remember_fragment(packet);
    let (_, to) = ends(flow, from_hi);
    Ok(Known::Live { to, via_stack: flow.flags & Flow::VIA_STACK != 0 })
}

/// Sender's leg, receiver's leg.
#[inline(always)]
fn ends(flow: &Flow, from_hi: bool) -> (&Leg, &Leg) {
    if from_hi { (&flow.hi, &flow.lo) } else { (&flow.lo, &flow.hi) }
}

#[inline(always)]
fn initiated_by_hi(flow: &Flow) -> bool {
    flow.flags & Flow::HI_INITIATED != 0
}

#[inline(always)]
fn key_of(packet: &Packet) -> (FlowKey, bool) {
    flow_key(packet.src, packet.dst, packet.src_port, packet.dst_port, packet.proto)
}

/// The first answer moves a flow out of reach of a flood.
#[inline(never)]
fn promote(key: &FlowKey, flow: &Flow) {
    let mut live = *flow;
    if live.state == Flow::NEW {
        live.state = Flow::ESTABLISHED;
    }
    if FLOWS.insert(key, &live, BPF_ANY.into()).is_ok() {
        let _ = FLOWS_NEW.remove(key);
    }
}

/// Judges a packet whose two ends are known (the hook has checked that the sender may claim its address) and
/// remembers the flow.
#[inline(always)]
pub fn admit(packet: &Packet, from: &Leg, to: &Leg, via_stack: bool) -> Result<(), Stop> {
    // Without ports and types there is nothing to judge by: its first part was, and should have left a flow.
    if packet.part == Part::LaterFragment {
        return Err(Reason::FragUnknown.into());
    }
    let refusal = admit_slow(&raw const *packet, &raw const *from, &raw const *to, u32::from(via_stack));
    if refusal == 0 {
        remember_fragment(packet);
        return Ok(());
    }
    let reason = if refusal & REFUSED_INGRESS == REFUSED_INGRESS {
        Reason::PolicyIngress
    } else {
        Reason::PolicyEgress
    };
    Err(Stop { reason, rule: refusal as u32 })
}

/// In the upper half, above the deciding rule.
const REFUSED: u64 = 1 << 32;
const REFUSED_INGRESS: u64 = REFUSED | 1 << 33;

/// 0, or `REFUSED…` and the deciding rule. A global function, so that the verifier walks it once per program.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn admit_slow(packet: *const Packet, from: *const Leg, to: *const Leg, via_stack: u32) -> u64 {
    // SAFETY: the verifier knows the pointers as readable memory of their types' sizes, or null.
    let (Some(packet), Some(from), Some(to)) = (unsafe { (packet.as_ref(), from.as_ref(), to.as_ref()) })
    else {
        return REFUSED;
    };
    let (key, from_hi) = key_of(packet);
    let now = now();
    let mut flow = Flow {
        last_seen: now,
        state: Flow::NEW,
        flags: if via_stack != 0 { Flow::VIA_STACK } else { 0 },
        fins: 0,
        _pad: 0,
        lo: if from_hi { *to } else { *from },
        hi: if from_hi { *from } else { *to },
    };
    let Remembered { live, in_the_way } = remembered(packet, &key, now);
    if let Some((known, is_new)) = live {
        // Judged again because something changed: in the direction in which it began.
        let by_sender = initiated_by_hi(known) == from_hi;
        (flow.state, flow.flags, flow.fins) = (known.state, known.flags, known.fins);
        // The host stays the host, whichever side speaks first after the change.
        if ends(known, from_hi).1.kind == Leg::HOST && to.kind == Leg::STACK {
            *(if from_hi { &mut flow.lo } else { &mut flow.hi }) = leg::other(Leg::HOST);
        }
        let (from, to) = ends(&flow, from_hi);
        let refusal = refuse(packet, from, to, by_sender);
        if refusal != 0 {
            // Remembered, so that nothing in mid-stream brings it back.
            flow.state = Flow::DENIED;
        } else if flow.state == Flow::DENIED {
            flow.state = if is_new { Flow::NEW } else { Flow::ESTABLISHED };
        }
        // The packet that is judged again may be the first answer.
        if is_new && (by_sender || refusal != 0) {
            let _ = FLOWS_NEW.insert(&key, &flow, BPF_ANY.into());
        } else {
            promote(&key, &flow);
        }
        return refusal;
    }

    let (refusal, by_sender) = judge_unknown(packet, from, to);
    if refusal != 0 {
        return refusal;
    }
    if from_hi == by_sender {
        flow.flags |= Flow::HI_INITIATED;
    }
    match in_the_way {
        // Its place is taken over: nothing is evicted, and the costs of two tables are saved (a client that reuses its
        // ports). Whoever reads it half written reads two approved halves.
        // SAFETY: as in `known`.
        Some(place) => unsafe { *place = flow },
        // In mid-stream, too: until the other side has spoken it is one of a flood, for all we know.
        None => {
            let _ = FLOWS_NEW.insert(&key, &flow, BPF_ANY.into());
        }
    }
    0
}

/// First port of those that clients take by themselves (the kernel's default range begins here).
const EPHEMERAL: u16 = 32768;

/// A packet without a live entry: the refusal, and whether its sender is the one that began.
///
/// A TCP packet in mid-stream belongs to a connection whose entry was lost. Who began it is told by the ports, and only
/// that direction's permission counts; where they do not tell, both must allow it. Anything laxer would let a connection
/// that policy has cut come back from its other end.
#[inline(always)]
fn judge_unknown(packet: &Packet, from: &Leg, to: &Leg) -> (u64, bool) {
    let midstream = packet.proto == PROTO_TCP && !packet.opens_tcp();
    let (from_client, to_client) = (packet.src_port >= EPHEMERAL, packet.dst_port >= EPHEMERAL);
    let answers = midstream && to_client && !from_client;
    let unclear = midstream && to_client == from_client;
    let mut refusal = refuse(packet, from, to, !answers);
    if unclear && refusal == 0 {
        refusal = refuse(packet, from, to, false);
    }
    (refusal, !answers)
}

/// What the tables remember of a packet's flow.
struct Remembered {
    /// The live entry, and whether it is unanswered.
    live: Option<(&'static Flow, bool)>,
    /// An entry in `FLOWS` that a new flow of the same ports must not find before its own.
    in_the_way: Option<*mut Flow>,
}

/// An entry is live unless it is too old, or the packet opens a new connection.
#[inline(always)]
fn remembered(packet: &Packet, key: &FlowKey, now: u32) -> Remembered {
    let opens = packet.opens_tcp();
    let is_live =
        |flow: &Flow| !opens && now.wrapping_sub(flow.last_seen) <= idle_limit(flow.state, packet.proto);
    let answered = FLOWS.get_ptr_mut(key);
    if let Some(flow) = answered {
        // SAFETY: as in `known`.
        let flow = unsafe { &*flow };
        if is_live(flow) {
            return Remembered { live: Some((flow, false)), in_the_way: None };
        }
    }
    // SAFETY: as in `known`.
    let live = unsafe { FLOWS_NEW.get(key) }.filter(|flow| is_live(flow)).map(|flow| (flow, true));
    Remembered { live, in_the_way: answered }
}

/// Asks the policy of both local ends, the initiator's for egress and the responder's for ingress.
#[inline(always)]
fn refuse(packet: &Packet, from: &Leg, to: &Leg, by_sender: bool) -> u64 {
    let (initiator, responder, initiator_ip, responder_ip, key, src_port) = if by_sender {
        (from, to, packet.src, packet.dst, packet.policy_key(packet.dst_port), packet.src_port)
    } else {
        (to, from, packet.dst, packet.src, packet.policy_key(packet.src_port), packet.dst_port)
    };
    if initiator.kind == Leg::POD {
        let verdict = judge(initiator.endpoint, Direction::Egress, responder_ip, key, src_port);
        if verdict.kind() != Verdict::ALLOW {
            return REFUSED | u64::from(verdict.id());
        }
    }
    // What this host sends to its own pods is never policed.
    if responder.kind == Leg::POD && initiator.kind != Leg::HOST {
        let verdict = judge(responder.endpoint, Direction::Ingress, initiator_ip, key, src_port);
        if verdict.kind() != Verdict::ALLOW {
            return REFUSED_INGRESS | u64::from(verdict.id());
        }
    }
    0
}

/// Fills in the ports of a later fragment. `false`: its first part was not seen, or not approved.
#[inline(always)]
pub fn settle_fragment(packet: &mut Packet) -> bool {
    if packet.part != Part::LaterFragment {
        return true;
    }
    // SAFETY: copied out at once.
    match unsafe { FRAGS.get(packet.frag_key()) } {
        Some(ports) if now().wrapping_sub(ports.seen) <= FRAG_LIMIT => {
            let ports = *ports;
            packet.set_ports(ports);
            true
        }
        _ => false,
    }
}

/// Remembers the ports of an approved datagram's first part.
#[inline(always)]
fn remember_fragment(packet: &Packet) {
    if packet.part == Part::FirstFragment {
        remember_ports(packet);
    }
}

/// Not inlined: key and value would count against the stack of the whole hook.
#[inline(never)]
fn remember_ports(packet: &Packet) {
    let ports = FragPorts { src_port: packet.src_port, dst_port: packet.dst_port, seen: now() };
    let _ = FRAGS.insert(packet.frag_key(), ports, BPF_ANY.into());
}

/// Where an ICMP error goes.
pub struct Related {
    /// Who the packet that it is about was sent to.
    pub about: Ip4,
    /// The leg of that one.
    pub peer: &'static Leg,
    pub to: &'static Leg,
    pub via_stack: bool,
}

/// An ICMP error may pass when the packet that it is about belongs to a live flow: it goes to that packet's sender.
#[inline(always)]
pub fn related(ctx: &TcContext, offset: usize, packet: &Packet) -> Result<Related, Stop> {
    let about = packet::embedded(ctx, offset).ok_or(Reason::Malformed)?;
    if about.src != packet.dst {
        return Err(Reason::IcmpUnrelated.into());
    }
    let (key, from_hi) = flow_key(about.src, about.dst, about.src_port, about.dst_port, about.proto);
    // SAFETY: as in `known`.
    let flow =
        unsafe { FLOWS.get(&key) }.or_else(|| unsafe { FLOWS_NEW.get(&key) }).ok_or(Reason::IcmpUnrelated)?;
    let (to, peer) = ends(flow, from_hi);
    if flow.state == Flow::DENIED
        || now().wrapping_sub(flow.last_seen) > idle_limit(flow.state, about.proto)
        || !leg::is_current(to)
        || !leg::is_current(peer)
    {
        return Err(Reason::IcmpUnrelated.into());
    }
    Ok(Related { about: about.dst, peer, to, via_stack: flow.flags & Flow::VIA_STACK != 0 })
}
