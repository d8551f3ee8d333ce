//! Named network namespaces.

use std::{fs, fs::File, path::PathBuf, process, thread};

use anyhow::{Context, Result};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{cmd::Cmd, sweep};

/// A network namespace with a name under `/run/netns`; it goes, with every process in it, when this is dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    pub fn create(name: &str) -> Result<Self> {
        {
            let _making = sweep::making();
            Cmd::line("ip netns add").arg(name).run()?;
        }
        let netns = Self { name: name.to_owned() };
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// `netns.ip("route add default via 10.0.0.1")`
    pub fn ip(&self, line: &str) -> Result<String> {
        Cmd::line("ip -n").arg(&self.name).args(line.split_whitespace()).run()
    }

    /// A command that will run in here.
    pub fn cmd(&self, line: &str) -> Cmd {
        Cmd::line(line).in_netns(&self.name)
    }

    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.cmd(&format!("sysctl -qw {key}={value}")).run().map(drop)
    }

    /// Runs `visit` in here on a fresh thread. Sockets made there stay in here when they leave the thread.
    pub fn run<T: Send>(&self, visit: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        thread::scope(|scope| {
            let visitor = scope.spawn(|| {
                let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
                setns(file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("cannot enter {}", path.display()))?;
                Ok(visit())
            });
            visitor.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Deletes a namespace and ends what runs in it.
pub(crate) fn remove(name: &str) {
    let pids = Cmd::line("ip netns pids").arg(name).run().unwrap_or_default();
    for pid in pids.split_whitespace().filter_map(|p| p.parse().ok()) {
        if pid != process::id().cast_signed() {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
    drop(Cmd::line("ip netns del").arg(name).run());
}

/// The names that begin with `prefix`.
pub(crate) fn list(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/run/netns") else { return Vec::new() };
    let names = entries.flatten().filter_map(|e| e.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|n| n.starts_with(prefix)).collect();
    names.sort();
    names
}
