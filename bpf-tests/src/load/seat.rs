//! Where a generator runs: in one namespace, on one processor, ahead of whatever else the machine does.

use std::thread::{Scope, ScopedJoinHandle};

use anyhow::{Context, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use crate::netns::Netns;

/// One of the two processors that a measurement uses. With only one in the machine both are that one.
#[derive(Clone, Copy)]
pub(super) enum Seat {
    First,
    Second,
}

/// Generators go before every ordinary process, so that those disturb less. Packets are worked on in the generators'
/// own system calls, so nothing that they need waits behind them.
const PRIORITY: libc::c_int = 1;

/// Runs `work` in the namespace and on the seat.
pub(super) fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    seat: Seat,
    netns: &'scope Netns,
    work: impl FnOnce() -> Result<T> + Send + 'scope,
) -> ScopedJoinHandle<'scope, Result<T>> {
    scope.spawn(move || {
        netns.run(move || {
            sit(seat)?;
            work()
        })?
    })
}

/// The result of a generator, with its panic if it had one.
pub(super) fn join<T>(handle: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

pub(super) fn sit(seat: Seat) -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).context("which processors may be used")?;
    let usable: Vec<_> =
        (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).take(2).collect();
    let cpu = match seat {
        Seat::First => usable.first(),
        Seat::Second => usable.last(),
    };
    let mut one = CpuSet::new();
    one.set(*cpu.context("no processor may be used")?).context("the processor's number")?;
    sched_setaffinity(this, &one).context("cannot stay on one processor")?;
    go_first()
}

/// Has this thread, and those that it starts, run before every ordinary process.
pub fn go_first() -> Result<()> {
    let turn = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: the parameters outlive the call; 0 means the calling thread.
    nix::errno::Errno::result(unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const turn) })
        .context("cannot go before other processes: root is needed")
        .map(drop)
}
