//! Connection tracking. [`known`] is the fast path: one hash lookup and a generation check. [`admit`] is the slow
//! one: policy, then a table entry.

use aya_ebpf::{bindings::BPF_ANY, helpers::generated::bpf_ktime_get_coarse_ns, programs::TcContext};
use canal_common::{
    Ip4,
    event::Kind,
    flow::{FRAG_LIMIT, Flow, FlowKey, FlowLimits, FragPorts, Leg, flow_key},
    policy::Verdict,
    reason::{Hook, Reason},
    wire::{PROTO_ICMP, PROTO_SCTP, PROTO_TCP, PROTO_UDP},
};

use crate::{
    maps::{FLOWS, FLOWS_NEW, FRAGS, setting},
    packet::{self, Packet, Part, TCP_FIN, TCP_RST},
    step::{
        leg,
        policy::{Direction, judge},
    },
    verdict::{Stop, report},
};

/// Ticks of 2^30 ns since boot.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: a helper without arguments. The shift makes a tick of about 1.07 s, without a division.
    (unsafe { bpf_ktime_get_coarse_ns() } >> 30) as u32
}

/// How long a flow may be idle, in ticks.
#[inline(always)]
fn idle_limit(state: u8, proto: u8) -> u32 {
    match (state, proto) {
        (Flow::DENIED, _) => FlowLimits::DENIED,
        (Flow::ESTABLISHED, PROTO_TCP) => setting!(limits.tcp_established),
        (Flow::NEW, PROTO_TCP) => setting!(limits.tcp_new),
        (Flow::CLOSING, _) => setting!(limits.closing),
        (_, PROTO_UDP) => setting!(limits.udp),
        (_, PROTO_ICMP) => setting!(limits.icmp),
        (Flow::ESTABLISHED, PROTO_SCTP) => setting!(limits.sctp_established),
        (_, PROTO_SCTP) => setting!(limits.sctp_new),
        _ => setting!(limits.other),
    }
}

/// What the table says about a packet.
pub enum Known {
    /// Approved: where it goes.
    Live { to: &'static Leg, via_stack: bool },
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
        return Err(Cut);
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

/// What the policies of both ends say; one that was not asked allows.
#[derive(Clone, Copy)]
struct Judged {
    egress: Verdict,
    ingress: Verdict,
}

impl Judged {
    const UNASKED: Verdict = Verdict::new(Verdict::ALLOW, 0);

    #[inline(always)]
    fn allows(self) -> bool {
        self.egress.allows() && self.ingress.allows()
    }

    /// For the way back from a global function.
    #[inline(always)]
    fn to_bits(self) -> u64 {
        u64::from(self.egress.bits) << 32 | u64::from(self.ingress.bits)
    }

    #[inline(always)]
    fn from_bits(bits: u64) -> Self {
        Self { egress: Verdict::from_bits((bits >> 32) as u32), ingress: Verdict::from_bits(bits as u32) }
    }
}

/// Judges a packet whose two ends are known (the hook has checked that the sender may claim its address) and
/// remembers the flow.
#[inline(always)]
pub fn admit(
    ctx: &TcContext,
    hook: Hook,
    packet: &Packet,
    from: &Leg,
    to: &Leg,
    via_stack: bool,
) -> Result<(), Stop> {
    // Without ports and types there is nothing to judge by: its first part was, and should have left a flow.
    if packet.part == Part::LaterFragment {
        return Err(Reason::FragUnknown.into());
    }
    let bits = admit_slow(&raw const *packet, &raw const *from, &raw const *to, u32::from(via_stack));
    let judged = Judged::from_bits(bits);
    if judged.egress.logs() || judged.ingress.logs() {
        log(ctx, hook as u8, bits);
    }
    if !judged.egress.allows() {
        return Err(Stop { reason: Reason::PolicyEgress, verdict: judged.egress });
    }
    if !judged.ingress.allows() {
        return Err(Stop { reason: Reason::PolicyIngress, verdict: judged.ingress });
    }
    remember_fragment(packet);
    Ok(())
}

/// Tells of the Log rules that the verdicts met. A verdict that denies is told of with the drop.
#[inline(never)]
fn log(ctx: &TcContext, hook: u8, judged: u64) {
    let Judged { egress, ingress } = Judged::from_bits(judged);
    if egress.logs() && egress.allows() {
        report(ctx, hook, Kind::LoggedAllowed, 0, egress.id());
    }
    if ingress.logs() && ingress.allows() {
        report(ctx, hook, Kind::LoggedAllowed, 0, ingress.id());
    }
}

/// [`Judged`], as bits. A global function, so that the verifier walks it once per program.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn admit_slow(packet: *const Packet, from: *const Leg, to: *const Leg, via_stack: u32) -> u64 {
    // SAFETY: the verifier knows the pointers as readable memory of their types' sizes, or null.
    let (Some(packet), Some(from), Some(to)) = (unsafe { (packet.as_ref(), from.as_ref(), to.as_ref()) })
    else {
        return 0;
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
        let judged = judge_both(packet, from, to, by_sender);
        if !judged.allows() {
            // Remembered, so that nothing in mid-stream brings it back.
            flow.state = Flow::DENIED;
        } else if flow.state == Flow::DENIED {
            flow.state = if is_new { Flow::NEW } else { Flow::ESTABLISHED };
        }
        // The packet that is judged again may be the first answer.
        if is_new && (by_sender || !judged.allows()) {
            let _ = FLOWS_NEW.insert(&key, &flow, BPF_ANY.into());
        } else {
            promote(&key, &flow);
        }
        return judged.to_bits();
    }

    let (judged, by_sender) = judge_unknown(packet, from, to);
    if !judged.allows() {
        return judged.to_bits();
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
    judged.to_bits()
}

/// First port of those that clients take by themselves (the kernel's default range begins here).
const EPHEMERAL: u16 = 32768;

/// A packet without a live entry: the verdicts, and whether its sender is the one that began.
///
/// A TCP packet in mid-stream belongs to a connection whose entry was lost. Who began it is told by the ports, and only
/// that direction's permission counts; where they do not tell, both must allow it. Anything laxer would let a connection
/// that policy has cut come back from its other end.
#[inline(always)]
fn judge_unknown(packet: &Packet, from: &Leg, to: &Leg) -> (Judged, bool) {
    let midstream = packet.proto == PROTO_TCP && !packet.opens_tcp();
    let (from_client, to_client) = (packet.src_port >= EPHEMERAL, packet.dst_port >= EPHEMERAL);
    let answers = midstream && to_client && !from_client;
    let unclear = midstream && to_client == from_client;
    let judged = judge_both(packet, from, to, !answers);
    if unclear && judged.allows() {
        let other_way = judge_both(packet, from, to, false);
        if !other_way.allows() {
            return (other_way, !answers);
        }
    }
    (judged, !answers)
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
fn judge_both(packet: &Packet, from: &Leg, to: &Leg, by_sender: bool) -> Judged {
    let (initiator, responder, initiator_ip, responder_ip, key, src_port) = if by_sender {
        (from, to, packet.src, packet.dst, packet.policy_key(packet.dst_port), packet.src_port)
    } else {
        (to, from, packet.dst, packet.src, packet.policy_key(packet.src_port), packet.dst_port)
    };
    let mut judged = Judged { egress: Judged::UNASKED, ingress: Judged::UNASKED };
    if initiator.kind == Leg::POD {
        judged.egress = judge(initiator.endpoint, Direction::Egress, responder_ip, key, src_port);
        if !judged.egress.allows() {
            return judged;
        }
    }
    // What this host sends to its own pods is never policed.
    if responder.kind == Leg::POD && initiator.kind != Leg::HOST {
        judged.ingress = judge(responder.endpoint, Direction::Ingress, initiator_ip, key, src_port);
    }
    judged
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
