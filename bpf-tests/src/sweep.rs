//! Removing what a world made, knowing only its prefix.

use std::{
    cell::Cell,
    collections::BTreeSet,
    fs,
    os::fd::AsRawFd,
    path::PathBuf,
    process,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};
use nix::{
    fcntl::OFlag,
    mount::{MntFlags, umount2},
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
    unistd::{pipe2, read},
};

use crate::netns;

/// Worlds without a chosen prefix are called `cn<process id>-<number>-`.
const AUTOMATIC: &str = "cn";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A prefix that nothing else has, and that tells whose it is.
pub(crate) fn automatic_prefix() -> String {
    format!("{AUTOMATIC}{}-{}-", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Held while something is made that only a sweep would remove; see [`clean_up_on_interrupt`].
static MAKING: Mutex<()> = Mutex::new(());

thread_local! {
    static MINE: Cell<bool> = const { Cell::new(false) };
}

/// Keeps a sweep from starting before the thing that is being made is complete.
pub(crate) struct Making(Option<MutexGuard<'static, ()>>);

/// To be held while making a namespace, a mount, a folder or a process. A thread may hold it several times.
pub(crate) fn making() -> Making {
    if MINE.replace(true) {
        return Making(None);
    }
    Making(Some(MAKING.lock().unwrap_or_else(PoisonError::into_inner)))
}

impl Drop for Making {
    fn drop(&mut self) {
        if self.0.is_some() {
            MINE.set(false);
        }
    }
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
    let mut prefixes: Vec<String> = netns::list(AUTOMATIC)
        .iter()
        .filter_map(|name| {
            let mut parts = name.splitn(3, '-');
            let (owner, number) = (parts.next()?, parts.next()?);
            let pid: u32 = owner.strip_prefix(AUTOMATIC)?.parse().ok()?;
            number.parse::<u32>().ok()?;
            let dead = !PathBuf::from(format!("/proc/{pid}")).exists();
            dead.then(|| format!("{owner}-{number}-"))
        })
        .collect();
    prefixes.dedup();
    for prefix in prefixes {
        sweep(&prefix);
    }
}

/// The prefixes `<stem><number>-` of worlds that have a namespace or a folder, whoever made them.
pub fn worlds(stem: &str) -> BTreeSet<String> {
    let folders = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    let folders = folders.filter_map(|entry| entry.file_name().into_string().ok());
    let prefix = |name: String| {
        let (number, _) = name.strip_prefix(stem)?.split_once('-')?;
        let number: u32 = number.parse().ok()?;
        Some(format!("{stem}{number}-"))
    };
    netns::list(stem)
        .into_iter()
        .chain(folders.filter(|name| name.starts_with(stem) && name.ends_with("-world")))
        .filter_map(prefix)
        .collect()
}

/// Where the handler writes to.
static HANDLER_PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_interrupt(_signal: libc::c_int) {
    let byte = 1_u8;
    // SAFETY: write(2) may be called in a signal handler; the byte outlives the call.
    unsafe { libc::write(HANDLER_PIPE.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Never returns once [`clean_up_on_interrupt`] is at work: what fails from then on fails because of that, and is
/// nothing to tell about.
pub fn stop_if_interrupted() {
    while INTERRUPTED.load(Ordering::Relaxed) {
        thread::park();
    }
}

/// On Ctrl-C, SIGTERM or SIGHUP: sweeps and exits with status 130.
///
/// A handler and not a blocked signal: programs started from here would inherit the mask, and could then not be
/// interrupted themselves.
pub fn clean_up_on_interrupt(prefix: &str) -> Result<()> {
    let prefix = prefix.to_owned();
    clean_up_by(move || sweep(&prefix))
}

/// The same for the worlds of this process that have no chosen prefix.
pub fn clean_up_own_on_interrupt() -> Result<()> {
    clean_up_by(|| worlds(&format!("{AUTOMATIC}{}-", process::id())).iter().for_each(|prefix| sweep(prefix)))
}

fn clean_up_by(clean_up: impl Fn() + Send + 'static) -> Result<()> {
    let (wait, tell) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
    HANDLER_PIPE.store(tell.as_raw_fd(), Ordering::Relaxed);
    // Open for as long as the handler may write.
    std::mem::forget(tell);
    let action = SigAction::new(SigHandler::Handler(on_interrupt), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does nothing but write(2).
        unsafe { sigaction(signal, &action) }.with_context(|| format!("cannot handle {signal}"))?;
    }
    thread::Builder::new()
        .name("interrupt".into())
        .spawn(move || {
            if read(&wait, &mut [0]).is_ok_and(|size| size == 1) {
                INTERRUPTED.store(true, Ordering::Relaxed);
                // For ever: what the rest of the process is about to make waits until there is no process.
                let _making = making();
                eprintln!("\ninterrupted: cleaning up");
                clean_up();
                // Once more: a program that was just starting may not have been in its namespace yet.
                clean_up();
                process::exit(130);
            }
        })
        .context("cannot start the thread that waits for Ctrl-C")?;
    Ok(())
}
