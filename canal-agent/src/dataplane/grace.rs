//! Waiting for programs that run: until they end, they may use what they have looked up in the tables.
//!
//! A program takes less than a microsecond, but the processor under it may be a virtual one that gets no turn. It cannot
//! be preempted (kernels but for `PREEMPT_RT` run it with soft interrupts off): a thread that has been on every processor
//! has seen all of them end. That takes some ten microseconds a processor. Where this one may not go everywhere, the kernel is
//! asked: it lets a change of an array of maps return only after every program that may hold the old element has ended
//! (Linux 4.20, `maybe_wait_bpf_programs`), a grace period of RCU, some ten milliseconds.

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
};

use aya::util::online_cpus;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use tracing::debug;

use super::batch;

/// The element of `SETS` that no endpoint names.
const UNUSED: u32 = 0;

/// A wait goes on in the background, beside whatever else there is to do.
#[derive(Debug)]
pub(super) struct Grace {
    maps: Arc<Maps>,
    pending: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Debug)]
struct Maps {
    sets: OwnedFd,
    /// Denies, as what is not there does.
    empty: OwnedFd,
}

impl Maps {
    /// From a thread of its own.
    fn wait(&self) -> io::Result<()> {
        if !is_preemptible() {
            match visit_processors() {
                Ok(()) => return Ok(()),
                Err(error) => debug!(%error, "cannot visit every processor; waiting for RCU instead"),
            }
        }
        batch::update_array(&self.sets, &[UNUSED], &[batch::descriptor(&self.empty)])
            .map_err(|interrupted| interrupted.error)
    }
}

impl Grace {
    /// `sets`: `SETS`.
    pub(super) fn new(sets: OwnedFd) -> io::Result<Self> {
        let empty = batch::create_array(1, super::tables::INNER_MAP)?;
        Ok(Self { maps: Arc::new(Maps { sets, empty }), pending: None })
    }

    /// Programs that have begun by now are those to wait for.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        let maps = self.maps.clone();
        // One that goes on already began too early.
        self.pending = Some(thread::Builder::new().name("grace".to_owned()).spawn(move || maps.wait())?);
        Ok(())
    }

    /// Returns once they have ended, or, without a beginning, those that run now.
    pub(super) fn pass(&mut self) -> io::Result<()> {
        if self.pending.is_none() {
            self.begin()?;
        }
        let outcome = self.pending.take().map(JoinHandle::join);
        outcome.unwrap_or(Ok(Ok(()))).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Whether soft interrupts can lose their processor.
fn is_preemptible() -> bool {
    Path::new("/sys/kernel/realtime").exists()
}

fn visit_processors() -> io::Result<()> {
    for cpu in online_cpus().map_err(|(_, error)| error)? {
        let mut one = CpuSet::new();
        one.set(cpu as usize)?;
        // Returns when this thread runs there, and therefore nothing else does.
        sched_setaffinity(Pid::from_raw(0), &one)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_may_go_everywhere_has_been_everywhere() {
        thread::spawn(visit_processors).join().unwrap().unwrap();
    }
}
