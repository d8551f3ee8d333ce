//! The single exit: every packet leaves a hook as [`Go`] or [`Stop`], is counted, and becomes an action.

use aya_ebpf::{
    bindings::{
        __sk_buff,
        tcx_action_base::{TCX_DROP, TCX_NEXT},
    },
    helpers::bpf_ktime_get_ns,
    programs::TcContext,
};
use canal_common::{
    event::{EVENTS_PER_CPU, Event, Kind},
    policy::Verdict,
    reason::{Hook, REASONS, Reason},
};

use crate::{
    maps::{COUNTERS, EVENT_BUDGET, EVENTS, hits_of, setting},
    packet::{self, Flow4},
    step::flow::now,
};

/// The packet goes on.
pub struct Go {
    action: i32,
    reason: Option<Reason>,
}

impl Go {
    /// Not ours: leave it untouched and uncounted.
    pub const UNTOUCHED: Self = Self { action: TCX_NEXT, reason: None };

    /// Let the stack (or whoever is next on this hook) have it.
    #[inline(always)]
    pub const fn next(reason: Reason) -> Self {
        Self { action: TCX_NEXT, reason: Some(reason) }
    }

    /// What a redirect helper returned.
    #[inline(always)]
    pub const fn redirected(action: i32, reason: Reason) -> Self {
        Self { action, reason: Some(reason) }
    }
}

/// The packet is dropped.
pub struct Stop {
    pub reason: Reason,
    /// Of the policy that refused it; zeros when none did.
    pub verdict: Verdict,
}

impl From<Reason> for Stop {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self { reason, verdict: Verdict::from_bits(0) }
    }
}

pub type Outcome = Result<Go, Stop>;

#[inline(always)]
pub fn conclude(ctx: &TcContext, hook: Hook, outcome: Outcome) -> i32 {
    match outcome {
        Ok(Go { action, reason: None }) => action,
        Ok(Go { action, reason: Some(reason) }) => {
            count(hook, reason, ctx.len());
            action
        }
        Err(stop) => {
            count(hook, stop.reason, ctx.len());
            let kind = if stop.verdict.logs() { Kind::LoggedDenied } else { Kind::Dropped };
            report(ctx, hook, kind, stop.reason as u8, stop.verdict.id());
            TCX_DROP
        }
    }
}

#[inline(always)]
fn count(hook: Hook, reason: Reason, bytes: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(hook as u32 * REASONS + reason as u32) {
        // SAFETY: a per-CPU element, and programs on one hook do not interrupt each other.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(bytes);
        }
    }
}

/// Tells user space about a packet, within the limits of its decision and of this CPU. `reason`: a [`Reason`], or 0.
#[inline(always)]
pub fn report(ctx: &TcContext, hook: Hook, kind: Kind, reason: u8, decision: u32) {
    tell(ctx.skb.skb, hook as u32, kind as u32, reason.into(), decision);
}

/// A global function, so that the verifier walks it once per program and not once per path that leads here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell(skb: *mut __sk_buff, hook: u32, kind: u32, reason: u32, decision: u32) -> u32 {
    let Some(budget) = EVENT_BUDGET.get_ptr_mut(0) else { return 0 };
    // SAFETY: a per-CPU element, as above.
    let budget = unsafe { &mut *budget };
    let tick = now();
    if budget.tick != tick {
        (budget.tick, budget.sent) = (tick, 0);
    }
    let mut within = budget.sent < EVENTS_PER_CPU;
    let mut lost = &raw mut budget.lost;
    if decision != 0
        && let Some(hits) = hits_of(decision)
    {
        // SAFETY: as above.
        let hits = unsafe { &mut *hits };
        if hits.tick != tick {
            (hits.tick, hits.sent) = (tick, 0);
        }
        within &= hits.sent < setting!(events_per_tick);
        hits.sent += u32::from(within);
        lost = &raw mut hits.lost;
    }
    let (hook, kind, reason) = (hook as u8, kind as u8, reason as u8);
    if within && send(&TcContext::new(skb), hook, kind, reason, decision) {
        budget.sent += 1;
    } else {
        // SAFETY: a field of either element.
        unsafe { *lost += 1 };
    }
    0
}

/// `false`: the ring is full.
#[inline(always)]
fn send(ctx: &TcContext, hook: u8, kind: u8, reason: u8, decision: u32) -> bool {
    let inner = if hook == Hook::FromWire as u8 { packet::INNER } else { packet::OUTER };
    let about = if reason == Reason::NotIpv4 as u8 { Flow4::default() } else { packet::peek(ctx, inner) };
    let Flow4 { src, dst, src_port, dst_port, proto } = about;
    let Some(mut entry) = EVENTS.reserve(0) else { return false };
    entry.write(Event {
        // SAFETY: a helper without arguments.
        time_ns: unsafe { bpf_ktime_get_ns() },
        src,
        dst,
        src_port,
        dst_port,
        proto,
        hook,
        reason,
        kind,
        ifindex: packet::ifindex(ctx),
        decision,
        len: ctx.len(),
        _reserved: 0,
    });
    entry.submit(0);
    true
}
