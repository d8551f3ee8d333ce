//! The single exit: every packet leaves a hook as [`Go`] or [`Stop`], is counted, and becomes an action.

use aya_ebpf::{
    bindings::tcx_action_base::{TCX_DROP, TCX_NEXT},
    helpers::bpf_ktime_get_ns,
    programs::TcContext,
};
use canal_common::{
    event::{EVENTS_PER_TICK, Event},
    reason::{Hook, REASONS, Reason},
};

use crate::{
    maps::{COUNTERS, EVENT_BUDGET, EVENTS},
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
    /// Deciding rule, or 0.
    pub rule: u32,
}

impl From<Reason> for Stop {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self { reason, rule: 0 }
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
            report(ctx, hook as u8, stop.reason as u8, stop.rule);
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

/// Tells user space about a drop, within this CPU's budget.
#[inline(never)]
fn report(ctx: &TcContext, hook: u8, reason: u8, rule: u32) {
    let Some(budget) = EVENT_BUDGET.get_ptr_mut(0) else { return };
    let tick = now();
    // SAFETY: a per-CPU element, as above.
    let budget = unsafe { &mut *budget };
    if budget.tick != tick {
        budget.tick = tick;
        budget.sent = 0;
    }
    if budget.sent >= EVENTS_PER_TICK {
        budget.lost += 1;
        return;
    }
    budget.sent += 1;

    let inner = if hook == Hook::FromWire as u8 { packet::INNER } else { packet::OUTER };
    let about = if reason == Reason::NotIpv4 as u8 { Flow4::default() } else { packet::peek(ctx, inner) };
    let Flow4 { src, dst, src_port, dst_port, proto } = about;
    let Some(mut entry) = EVENTS.reserve(0) else {
        budget.lost += 1;
        return;
    };
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
        _pad: 0,
        ifindex: packet::ifindex(ctx),
        rule,
        len: ctx.len(),
        _reserved: 0,
    });
    entry.submit(0);
}
