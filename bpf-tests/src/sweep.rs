//! Removing what a world made, knowing only its prefix.

use std::{
    fs,
    path::PathBuf,
    process,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context, Result};
use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{SigSet, Signal},
};

use crate::netns;

/// Worlds without a chosen prefix are called `cn<process id>-<number>-`.
const AUTOMATIC: &str = "cn";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A prefix that nothing else has, and that tells whose it is.
pub(crate) fn automatic_prefix() -> String {
    format!("{AUTOMATIC}{}-{}-", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// The folder of the world with this prefix.
pub fn folder(prefix: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{prefix}world"))
}

/// Removes namespaces, processes in them, mounts and the folder. Harmless if there is nothing.
pub fn sweep(prefix: &str) {
    for name in netns::list(prefix) {
        netns::remove(&name);
    }
    let folder = folder(prefix);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for mount in mounts.lines().filter_map(|l| l.split(' ').nth(4)).filter(|m| folder_holds(&folder, m)) {
        umount2(mount, MntFlags::MNT_DETACH).ok();
    }
    // Only a folder that holds no mount any more is deleted.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if !mounts.lines().filter_map(|l| l.split(' ').nth(4)).any(|m| folder_holds(&folder, m)) {
        drop(fs::remove_dir_all(&folder));
    }
}

fn folder_holds(folder: &std::path::Path, mount: &str) -> bool {
    std::path::Path::new(mount).starts_with(folder)
}

/// Removes the automatic worlds of processes that ended without cleaning up.
pub(crate) fn sweep_dead() {
    sweep_automatic(|pid| !PathBuf::from(format!("/proc/{pid}")).exists());
}

/// Removes the automatic worlds of this process.
pub fn sweep_own() {
    sweep_automatic(|pid| pid == process::id());
}

fn sweep_automatic(whose: impl Fn(u32) -> bool) {
    let mut prefixes: Vec<String> = netns::list(AUTOMATIC)
        .iter()
        .filter_map(|name| {
            let mut parts = name.splitn(3, '-');
            let (owner, number) = (parts.next()?, parts.next()?);
            let pid: u32 = owner.strip_prefix(AUTOMATIC)?.parse().ok()?;
            number.parse::<u32>().ok()?;
            whose(pid).then(|| format!("{owner}-{number}-"))
        })
        .collect();
    prefixes.dedup();
    for prefix in prefixes {
        sweep(&prefix);
    }
}

/// On Ctrl-C, SIGTERM or SIGHUP: sweeps and exits with status 130. Call it before the first thread starts.
pub fn clean_up_on_interrupt(prefix: &str) -> Result<()> {
    let prefix = prefix.to_owned();
    on_interrupt(move || sweep(&prefix))
}

/// The same for worlds without a chosen prefix.
pub fn clean_up_own_on_interrupt() -> Result<()> {
    on_interrupt(sweep_own)
}

fn on_interrupt(clean_up: impl Fn() + Send + 'static) -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    // Threads started from here on inherit the mask, so that only the waiting thread gets these signals.
    signals.thread_block().context("cannot block signals")?;
    thread::Builder::new()
        .name("interrupt".into())
        .spawn(move || {
            if signals.wait().is_ok() {
                eprintln!("\ninterrupted: cleaning up");
                clean_up();
                // What the rest of the process made in the meantime.
                clean_up();
                process::exit(130);
            }
        })
        .context("cannot start the thread that waits for Ctrl-C")?;
    Ok(())
}
