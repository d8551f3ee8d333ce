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
    maps::{FLOWS, FLOWS_NEW, POLICY, setting},
    packet::{Packet, Part},
    step::{
        flow::{ends, idle_limit, initiated_by_hi, key_of, note_end, now, put_live},
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
        let reason = if judged.egress.is_to_host() { Reason::ToHost } else { Reason::PolicyEgress };
        return Err(Stop { reason, verdict: judged.egress });
    }
    if !judged.ingress.allows() {
        return Err(Stop { reason: Reason::PolicyIngress, verdict: judged.ingress });
    }
    fragment::remember(packet);
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
        if !is_new && is_kept(known, &flow) {
            note_end(&mut flow, packet, from_hi);
            put_live(&key, &flow);
            return Judged::UNASKED.to_bits();
        }
        let (from, to) = ends(&flow, from_hi);
        let judged = judge_both(packet, from, to, by_sender);
        if !judged.allows() {
            // Remembered, so that nothing in mid-stream brings it back.
            flow.state = Flow::DENIED;
        } else {
            if flow.state == Flow::DENIED {
                flow.state = if is_new { Flow::NEW } else { Flow::ESTABLISHED };
            }
            note_end(&mut flow, packet, from_hi);
        }
        // The packet that is judged again may be the first answer.
        if is_new && (by_sender || !judged.allows()) {
            let _ = FLOWS_NEW.insert(&key, &flow, BPF_ANY.into());
        } else {
            if flow.state == Flow::NEW && !by_sender {
                flow.state = Flow::ESTABLISHED;
            }
            put_live(&key, &flow);
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
