//! The slow path of connection tracking: policy, then a table entry.

use aya_ebpf::{bindings::BPF_ANY, programs::TcContext};
use canal_common::{
    event::Kind,
    flow::{Flow, FlowKey, Leg},
    policy::Verdict,
    reason::{Hook, Reason},
    settings::Settings,
    wire::PROTO_TCP,
};

use crate::{
    BARE,
    maps::{FLOWS, FLOWS_NEW, POLICY, setting},
    packet::{Packet, Part},
    step::{
        flow::{ends, idle_limit, initiated_by_hi, note_end, now, proves_itself, put_live},
        fragment, leg,
        policy::{Direction, judge},
    },
    verdict::{Stop, report},
};

/// What the policies of both ends say; one that was not asked allows.
#[derive(Clone, Copy)]
struct Judged {
    egress: Verdict,
    ingress: Verdict,
}

impl Judged {
    const UNASKED: Self =
        Self { egress: Verdict::new(Verdict::ALLOW, 0), ingress: Verdict::new(Verdict::ALLOW, 0) };

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
        Self {
            egress: Verdict::from_bits((bits >> 32) as u32),
            ingress: Verdict::from_bits((bits & !BY_STACK) as u32),
        }
    }
}

/// Judges a packet whose two ends are known (the hook has checked that the sender may claim its address) and
/// remembers the flow. The answer is whether the stack is to forward it.
#[inline(always)]
pub fn admit(
    ctx: &TcContext,
    hook: Hook,
    packet: &Packet,
    from: &Leg,
    to: &Leg,
    via_stack: bool,
) -> Result<bool, Stop> {
    let is_shaped = from.is_shaped() || to.is_shaped();
    let mut by_stack = via_stack || is_shaped;
    if BARE {
        return Ok(by_stack);
    }
    // Without ports and types there is nothing to judge by: its first part was, and should have left a flow.
    if packet.part == Part::LaterFragment {
        return Err(Reason::FragUnknown.into());
    }
    let (packet_ptr, from, to) = (&raw const *packet, &raw const *from, &raw const *to);
    // A connection that asks for itself is nowhere else taken for a known one.
    if is_shaped && packet.opens && is_later(hook) && was_admitted(packet_ptr, from, to) != 0 {
        return Ok(true);
    }
    let mut bits = judge_again(packet_ptr, from, to);
    if bits == UNKNOWN || bits == IN_THE_WAY {
        let via_stack = if via_stack { VIA_STACK } else { 0 };
        let over = if bits == IN_THE_WAY { OVER_ANOTHER } else { 0 };
        bits = judge_first(packet_ptr, from, to);
        if Judged::from_bits(bits).allows() && packet.may_begin_flow() {
            begin(packet_ptr, from, to, via_stack | over);
        }
    } else {
        by_stack = bits & BY_STACK != 0;
    }
    let judged = Judged::from_bits(bits);
    for verdict in [judged.egress, judged.ingress] {
        // One that denies is told of with the drop.
        if verdict.logs() && verdict.allows() {
            report(ctx, hook, Kind::LoggedAllowed, 0, verdict.id());
        }
    }
    if !judged.egress.allows() {
        let reason = if judged.egress.is_to_host() { Reason::ToHost } else { Reason::PolicyEgress };
        return Err(Stop { reason, verdict: judged.egress });
    }
    if !judged.ingress.allows() {
        return Err(Stop { reason: Reason::PolicyIngress, verdict: judged.ingress });
    }
    fragment::remember(packet);
    Ok(by_stack)
}

/// A hook that the stack may come to with what an earlier one has let pass.
#[inline(always)]
const fn is_later(hook: Hook) -> bool {
    matches!(hook, Hook::ToPod | Hook::ToOverlay | Hook::FromOverlay)
}

/// Not 0 if the request of a shaped connection was judged on its way here, by the policy of today: it is not judged, counted
/// and told of once more. A global function, as below.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn was_admitted(packet: *const Packet, from: *const Leg, to: *const Leg) -> u32 {
    // SAFETY: as below.
    let (Some(packet), Some(from), Some(to)) = (unsafe { (packet.as_ref(), from.as_ref(), to.as_ref()) })
    else {
        return 0;
    };
    let (key, from_hi) = packet.flow_key();
    // SAFETY: as in `known`.
    let Some(flow) = (unsafe { FLOWS.get(&key).or_else(|| FLOWS_NEW.get(&key)) }) else { return 0 };
    let (known_from, known_to) = ends(flow, from_hi);
    let admitted = flow.state == Flow::NEW
        && flow.flags & Flow::SHAPED != 0
        && initiated_by_hi(flow) == from_hi
        && now().wrapping_sub(flow.last_seen) <= idle_limit(flow.state, packet.proto)
        && is_judged_alike(known_from, from)
        && is_judged_alike(known_to, to);
    u32::from(admitted)
}

/// Whether what was asked of policy for the one leg holds for the other.
#[inline(always)]
fn is_judged_alike(known: &Leg, new: &Leg) -> bool {
    if new.kind != Leg::POD {
        return !matches!(known.kind, Leg::POD | Leg::HOST) && new.kind != Leg::HOST;
    }
    known.kind == Leg::POD && (known.endpoint, known.generation) == (new.endpoint, new.generation)
}

/// Judges the packet of a live flow again, because something changed, and writes the outcome down: [`Judged`] as bits and
/// [`BY_STACK`], or [`UNKNOWN`] or [`IN_THE_WAY`]. A global function, so that the verifier walks it once per program.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_again(packet: *const Packet, from: *const Leg, to: *const Leg) -> u64 {
    // SAFETY: the verifier knows the pointers as readable memory of their types' sizes, or null.
    let (Some(packet), Some(from), Some(to)) = (unsafe { (packet.as_ref(), from.as_ref(), to.as_ref()) })
    else {
        return 0;
    };
    let (key, from_hi) = packet.flow_key();
    let (known, is_new) = match remembered(packet, &key) {
        Remembered::Live(known, is_new) => (known, is_new),
        Remembered::Nothing => return UNKNOWN,
        Remembered::InTheWay => return IN_THE_WAY,
    };
    let mut flow = Flow { last_seen: now(), ..*known };
    (flow.lo, flow.hi) = if from_hi { (*to, *from) } else { (*from, *to) };
    flow = flow.with_shape();
    let by_stack = if flow.flags & Flow::BY_STACK != 0 { BY_STACK } else { 0 };
    // The host stays the host, whichever side speaks first after the change.
    if ends(known, from_hi).1.kind == Leg::HOST && to.kind == Leg::STACK {
        *(if from_hi { &mut flow.lo } else { &mut flow.hi }) = leg::other(Leg::HOST);
    }
    // Somebody else has the address now: what his predecessor began is not his, whichever way he is spoken to.
    if is_succeeded(&known.lo, &flow.lo) || is_succeeded(&known.hi, &flow.hi) {
        return if is_new { UNKNOWN } else { IN_THE_WAY };
    }
    if !is_new && is_kept(known, &flow) {
        note_end(&mut flow, packet, from_hi);
        put_live(&key, &flow);
        return Judged::UNASKED.to_bits() | by_stack;
    }
    // In the direction in which it began.
    let by_sender = initiated_by_hi(&flow) == from_hi;
    let (from, to) = ends(&flow, from_hi);
    let judged = judge_both(packet, from, to, by_sender);
    if !judged.allows() {
        // Remembered, so that nothing in mid-stream brings it back.
        flow.state = Flow::DENIED;
    } else if flow.state == Flow::DENIED {
        flow.state = if is_new { Flow::NEW } else { Flow::ESTABLISHED };
    }
    if judged.allows() {
        note_end(&mut flow, packet, from_hi);
    }
    // The packet that is judged again may be the first answer.
    if is_new && !(judged.allows() && proves_itself(&mut flow, packet.proto, packet.tcp_flags, from_hi)) {
        let _ = FLOWS_NEW.insert(&key, &flow, BPF_ANY.into());
    } else {
        if flow.state == Flow::NEW && (is_new || !by_sender) {
            flow.state = Flow::ESTABLISHED;
        }
        put_live(&key, &flow);
    }
    judged.to_bits() | by_stack
}

/// Judges a packet without a live flow: [`Judged`] as bits. A global function, as above.
///
/// Where it is not clear who began, both directions must allow it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn judge_first(packet: *const Packet, from: *const Leg, to: *const Leg) -> u64 {
    // SAFETY: as above.
    let (Some(packet), Some(from), Some(to)) = (unsafe { (packet.as_ref(), from.as_ref(), to.as_ref()) })
    else {
        return 0;
    };
    let (by_sender, is_clear) = who_began(packet);
    let judged = judge_both(packet, from, to, by_sender);
    if is_clear || !judged.allows() {
        return judged.to_bits();
    }
    let other_way = judge_both(packet, from, to, !by_sender);
    if other_way.allows() { judged.to_bits() } else { other_way.to_bits() }
}

/// Makes the flow of a packet that may have one. A function of its own, for the stack is short; a global one, as above.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn begin(packet: *const Packet, from: *const Leg, to: *const Leg, options: u32) -> u32 {
    // SAFETY: as above.
    let (Some(packet), Some(from), Some(to)) = (unsafe { (packet.as_ref(), from.as_ref(), to.as_ref()) })
    else {
        return 1;
    };
    let (key, from_hi) = packet.flow_key();
    let initiator = if from_hi == who_began(packet).0 { Flow::HI_INITIATED } else { 0 };
    let flow = Flow {
        last_seen: now(),
        state: Flow::NEW,
        flags: initiator | if options & VIA_STACK != 0 { Flow::VIA_STACK } else { 0 },
        fins: 0,
        _pad: 0,
        lo: if from_hi { *to } else { *from },
        hi: if from_hi { *from } else { *to },
    }
    .with_shape();
    if options & OVER_ANOTHER != 0
        && let Some(place) = FLOWS.get_ptr_mut(&key)
    {
        // Its place is taken over: nothing is evicted, and the costs of two tables are saved (a client that reuses its
        // ports). Whoever reads it half written reads two approved halves.
        // SAFETY: as in `known`.
        unsafe { *place = flow };
    } else {
        // In mid-stream, too: until the other side has spoken it is one of a flood, for all we know.
        let _ = FLOWS_NEW.insert(&key, &flow, BPF_ANY.into());
    }
    0
}

/// No verdict looks like these two: pages are no verdicts.
const UNKNOWN: u64 = (Verdict::new(Verdict::PAGE, 0).bits as u64) << 32;
/// Nothing live either, but an entry in `FLOWS` that a new flow of the same ports must not find before its own.
const IN_THE_WAY: u64 = UNKNOWN | 1;

/// Of [`judge_again`], beside [`Judged`]: the stack is to forward the flow. The bit says something in the upper half only.
const BY_STACK: u64 = Verdict::new(Verdict::DENY, 0).to_host().bits as u64;

/// For [`begin`]: the stack has the packet, and shall have the answers.
const VIA_STACK: u32 = 1;
/// For [`begin`]: as [`IN_THE_WAY`] said.
const OVER_ANOTHER: u32 = 2;

/// With [`Settings::KEEP_ESTABLISHED`]: whether the live flow `known` goes on unjudged with the legs of `new`. It has been
/// answered, was approved, and nothing but policy has changed. An endpoint without policy is closed, for this as well.
#[inline(always)]
fn is_kept(known: &Flow, new: &Flow) -> bool {
    setting!(flags) & Settings::KEEP_ESTABLISHED != 0
        && matches!(known.state, Flow::ESTABLISHED | Flow::CLOSING)
        && is_same_end(&known.lo, &new.lo)
        && is_same_end(&known.hi, &new.hi)
}

#[inline(always)]
fn is_same_end(known: &Leg, new: &Leg) -> bool {
    if new.kind != Leg::POD {
        return known.kind == new.kind;
    }
    // SAFETY: only its presence counts.
    known.kind == Leg::POD
        && (known.endpoint, known.target) == (new.endpoint, new.target)
        && unsafe { POLICY.get(new.endpoint) }.is_some()
}

/// The pod of a flow's leg is gone, or another has come.
#[inline(always)]
fn is_succeeded(known: &Leg, new: &Leg) -> bool {
    (known.kind == Leg::POD || new.kind == Leg::POD)
        && (known.kind, known.endpoint, known.target) != (new.kind, new.endpoint, new.target)
}

/// First port of those that clients take by themselves (the kernel's default range begins here).
const EPHEMERAL: u16 = 32768;

/// Of a packet without a live entry: whether its sender began the flow, and whether that is clear.
///
/// A TCP packet in mid-stream belongs to a connection whose entry was lost. Who began it is told by the ports, and only
/// that direction's permission counts; where they do not tell, both must allow it. Anything laxer would let a connection
/// that policy has cut come back from its other end.
#[inline(always)]
fn who_began(packet: &Packet) -> (bool, bool) {
    let midstream = packet.proto == PROTO_TCP && !packet.opens;
    let (from_client, to_client) = (packet.src_port >= EPHEMERAL, packet.dst_port >= EPHEMERAL);
    let answers = midstream && to_client && !from_client;
    (!answers, !midstream || to_client != from_client)
}

/// What the tables remember of a packet's flow.
enum Remembered {
    /// The live entry, and whether it is unanswered.
    Live(&'static Flow, bool),
    /// Nothing live, but an entry in `FLOWS`.
    InTheWay,
    Nothing,
}

/// An entry is live unless it is too old, or the packet opens a new connection.
#[inline(always)]
fn remembered(packet: &Packet, key: &FlowKey) -> Remembered {
    let now = now();
    let is_live = |flow: &Flow| {
        !packet.opens && now.wrapping_sub(flow.last_seen) <= idle_limit(flow.state, packet.proto)
    };
    // SAFETY: as in `known`.
    let answered = unsafe { FLOWS.get(key) };
    if let Some(flow) = answered
        && is_live(flow)
    {
        return Remembered::Live(flow, false);
    }
    // SAFETY: as in `known`.
    match unsafe { FLOWS_NEW.get(key) } {
        Some(flow) if is_live(flow) => Remembered::Live(flow, true),
        _ if answered.is_some() => Remembered::InTheWay,
        _ => Remembered::Nothing,
    }
}

/// Asks the policy of both local ends, the initiator's for egress and the responder's for ingress.
#[inline(always)]
fn judge_both(packet: &Packet, from: &Leg, to: &Leg, by_sender: bool) -> Judged {
    let (initiator, responder, initiator_ip, responder_ip, src_port) = if by_sender {
        (from, to, packet.src, packet.dst, packet.src_port)
    } else {
        (to, from, packet.dst, packet.src, packet.dst_port)
    };
    let key = packet.policy_key(by_sender);
    let mut judged = Judged::UNASKED;
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
