//! A real etcd in the hub, spoken to with `etcdctl`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::{
    cmd::{Cmd, Proc},
    eventually,
    netns::Netns,
};

/// As agents reach it.
pub const ENDPOINT: &str = "http://192.168.60.254:2379";
const START: Duration = Duration::from_secs(15);

/// The store of a world.
#[derive(Debug)]
pub struct Etcd {
    netns: String,
    folder: PathBuf,
    process: Mutex<Option<Proc>>,
}

impl Etcd {
    pub(crate) fn start(hub: &Netns, folder: &Path) -> Result<Self> {
        let etcd =
            Self { netns: hub.name().to_owned(), folder: folder.to_owned(), process: Mutex::default() };
        etcd.restart()?;
        Ok(etcd)
    }

    /// Starts it again with the data it had, and waits until it answers.
    pub fn restart(&self) -> Result<()> {
        self.kill();
        let command = Cmd::new("etcd")
            .args(["--data-dir", &self.folder.join("etcd").display().to_string()])
            .args(["--listen-client-urls", ENDPOINT, "--advertise-client-urls", ENDPOINT])
            .args(["--listen-peer-urls", "http://127.0.0.1:2380"])
            .in_netns(&self.netns);
        *self.process() = Some(command.start(&self.log_file())?);
        eventually("etcd answers", START, || {
            self.ctl(&["endpoint", "health", "--command-timeout", "1s"]).map(drop)
        })
        .with_context(|| format!("see {}", self.log_file().display()))
    }

    pub fn kill(&self) {
        if let Some(mut process) = self.process().take() {
            process.kill();
        }
    }

    /// Stops answering, and keeps every connection open.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    pub fn log_file(&self) -> PathBuf {
        self.folder.join("etcd.log")
    }

    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        // By standard input, which has no limit and no meaning for a leading dash.
        self.command(&["put", "--", key]).stdin(value).run().map(drop)
    }

    /// Puts a key that goes away with its etcd lease.
    pub fn put_leased(&self, key: &str, value: &str, ttl: Duration) -> Result<()> {
        let answer = self.ctl(&["lease", "grant", &ttl.as_secs().to_string()])?;
        let lease = answer.split(' ').nth(1).with_context(|| format!("no lease in {answer:?}"))?;
        self.command(&["put", "--lease", lease, "--", key]).stdin(value).run().map(drop)
    }

    pub fn get(&self, key: &str) -> Result<Option<String>> {
        let text = self.ctl(&["get", "--print-value-only", "--", key])?;
        Ok((!text.is_empty()).then(|| text.strip_suffix('\n').unwrap_or(&text).to_owned()))
    }

    /// Every key and value below a prefix. Values must be text without line ends, as flannel's and Calico's are.
    pub fn list(&self, prefix: &str) -> Result<BTreeMap<String, String>> {
        let text = self.ctl(&["get", "--prefix", "--", prefix])?;
        let lines: Vec<_> = text.lines().collect();
        ensure!(lines.len().is_multiple_of(2), "a value below {prefix} has several lines");
        Ok(lines.chunks_exact(2).map(|kv| (kv[0].to_owned(), kv[1].to_owned())).collect())
    }

    pub fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let text = self.ctl(&["get", "--prefix", "--keys-only", "--", prefix])?;
        Ok(text.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect())
    }

    pub fn del(&self, key: &str) -> Result<()> {
        self.ctl(&["del", "--", key]).map(drop)
    }

    pub fn del_prefix(&self, prefix: &str) -> Result<()> {
        self.ctl(&["del", "--prefix", "--", prefix]).map(drop)
    }

    /// Throws away history: watches that are behind must list again.
    pub fn compact(&self) -> Result<()> {
        let status = self.ctl(&["endpoint", "status", "-w", "json"])?;
        let status: serde_json::Value = serde_json::from_str(&status).context("etcdctl's status")?;
        let revision = &status[0]["Status"]["header"]["revision"];
        self.ctl(&["compact", &revision.to_string()]).map(drop)
    }

    /// Any other `etcdctl` command.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        self.command(args).run()
    }

    fn command(&self, args: &[&str]) -> Cmd {
        Cmd::line("etcdctl --endpoints")
            .arg(ENDPOINT)
            .args(args)
            .env("ETCDCTL_API", "3")
            .in_netns(&self.netns)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.process().as_ref().context("etcd is not running")?.signal(signal)
    }

    fn process(&self) -> MutexGuard<'_, Option<Proc>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
