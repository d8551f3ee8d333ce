//! The real `canal-agent` of a node.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    env, fs,
    io::{Read, Write},
    net::Ipv4Addr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    cmd::{Cmd, Proc},
    etcd, until,
    world::AGENT_READY,
};

/// A polite stop may take this long.
const STOP: Duration = Duration::from_secs(10);
/// An answer on the local socket.
const ANSWER: Duration = Duration::from_secs(5);

thread_local! {
    static FOLDER: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// What `work` starts on this thread comes from `folder`: two builds side by side.
pub fn with_binaries<T>(folder: &Path, work: impl FnOnce() -> T) -> T {
    let before = FOLDER.replace(Some(folder.to_owned()));
    let result = work();
    FOLDER.set(before);
    result
}

/// From the folder of [`with_binaries`], else `$CANAL_BIN_DIR/<name>`, else the workspace's release build.
pub fn binary(name: &str) -> Result<PathBuf> {
    let chosen = FOLDER.with_borrow(|folder| folder.clone().map(PathBuf::into_os_string));
    let folder = chosen.or_else(|| env::var_os("CANAL_BIN_DIR")).map_or_else(
        || {
            let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
            let target =
                env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
            target.join("release")
        },
        PathBuf::from,
    );
    let path = folder.join(name);
    ensure!(path.is_file(), "{} is not built: run `cargo xtask build`, or set CANAL_BIN_DIR", path.display());
    Ok(path)
}

/// Starts, stops and asks one node's agent.
#[derive(Debug)]
pub struct Agent {
    netns: String,
    folder: PathBuf,
    args: Mutex<Vec<String>>,
    env: Mutex<BTreeMap<String, String>>,
    process: Mutex<Option<Proc>>,
}

impl Agent {
    pub(crate) fn new(number: u8, netns: &str, folder: &Path) -> Self {
        let file = |name: &str| folder.join(name).display().to_string();
        let args = [
            ("--etcd-endpoints", etcd::ENDPOINT.to_owned()),
            ("--iface", "up0".to_owned()),
            ("--public-ip", format!("192.168.50.{number}")),
            ("--node-name", format!("node{number}")),
            ("--subnet-file", file("subnet.env")),
            ("--state-dir", file("state")),
            ("--socket", file("agent.sock")),
            ("--bpffs", file("bpffs")),
            // What Calico's programs share a machine by is each node's own here.
            ("--nodename-file", file("calico/nodename")),
            ("--felix-config-file", file("felix.cfg")),
        ];
        let args = args.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        Self {
            netns: netns.to_owned(),
            folder: folder.to_owned(),
            args: Mutex::new(args),
            env: Mutex::default(),
            process: Mutex::default(),
        }
    }

    /// Sets a flag for the next start, in the place of an earlier value.
    pub fn set_flag(&self, flag: &str, value: &str) {
        let mut args = self.args.lock().unwrap_or_else(PoisonError::into_inner);
        match args.iter().position(|a| a == flag) {
            Some(at) => value.clone_into(&mut args[at + 1]),
            None => args.extend([flag.to_owned(), value.to_owned()]),
        }
    }

    /// Adds a flag that holds its value, or has none, to the next start: `--ip-masq=true`.
    pub fn add_switch(&self, switch: &str) {
        self.args.lock().unwrap_or_else(PoisonError::into_inner).push(switch.to_owned());
    }

    /// Leaves a flag out of the next start.
    pub fn unset_flag(&self, flag: &str) {
        let mut args = self.args.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = args.iter().position(|a| a == flag) {
            args.drain(at..at + 2);
        }
    }

    /// Sets a variable for the next start.
    pub fn set_env(&self, name: &str, value: &str) {
        self.env.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), value.to_owned());
    }

    /// The flags of the next start, to run the agent in another way.
    pub fn flags(&self) -> Vec<String> {
        self.args.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs `canal-agent cleanup` and returns what it said.
    pub fn clean_up(&self) -> Result<String> {
        Cmd::new(binary("canal-agent")?).arg("cleanup").args(self.flags()).in_netns(&self.netns).run()
    }

    /// Runs `canal-agent cleanup --for-flannel` and returns what it said.
    pub fn hand_over_to_flannel(&self) -> Result<String> {
        let command = Cmd::new(binary("canal-agent")?).args(["cleanup", "--for-flannel"]);
        command.args(self.flags()).in_netns(&self.netns).run()
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("agent.sock")
    }

    pub fn subnet_file(&self) -> PathBuf {
        self.folder.join("subnet.env")
    }

    /// The folder of the files that tell of enforced endpoints.
    pub fn endpoint_status(&self) -> PathBuf {
        self.folder.join("calico/endpoint-status")
    }

    pub fn nodename_file(&self) -> PathBuf {
        self.folder.join("calico/nodename")
    }

    pub fn log_file(&self) -> PathBuf {
        self.folder.join("agent.log")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Whether its log comes to hold all these words in one line.
    pub fn says(&self, words: &[&str], deadline: Duration) -> bool {
        until(deadline, || self.log().lines().any(|line| words.iter().all(|word| line.contains(word))))
    }

    /// Starts it and waits until it serves.
    pub fn start(&self) -> Result<()> {
        self.spawn()?;
        self.wait_ready(AGENT_READY)
    }

    /// Starts it.
    pub fn spawn(&self) -> Result<()> {
        let mut command =
            Cmd::new(binary("canal-agent")?).arg("run").args(self.flags()).in_netns(&self.netns);
        for (name, value) in self.env.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            command = command.env(name, value);
        }
        *self.process() = Some(command.start(&self.log_file())?);
        Ok(())
    }

    /// Waits until it has its subnet, has read the store, and takes requests. A subnet file alone may be that of
    /// an earlier life.
    pub fn wait_ready(&self, deadline: Duration) -> Result<()> {
        let in_sync = |status: Value| status["store"]["in_sync"] == true && !status["lease"].is_null();
        let serves = || self.subnet_file().exists() && self.status().is_ok_and(in_sync);
        let mut ended = false;
        let ready = until(deadline, || {
            ended = !self.is_running();
            ended || serves()
        });
        if ended {
            bail!("the agent in {} ended; the end of its log:\n{}", self.netns, self.log_tail());
        }
        ensure!(ready, "no agent serves in {} after {deadline:?}; its log:\n{}", self.netns, self.log_tail());
        Ok(())
    }

    pub fn is_running(&self) -> bool {
        self.process().as_mut().is_some_and(Proc::is_running)
    }

    /// As a crash, or the kernel short of memory, would end it.
    pub fn kill_9(&self) {
        if let Some(mut process) = self.process().take() {
            process.kill();
        }
    }

    /// As systemd stops it; an error if it does not go.
    pub fn terminate(&self) -> Result<()> {
        match self.process().take() {
            Some(mut process) => {
                process.signal(Signal::SIGTERM)?;
                process.wait(STOP).map(drop)
            }
            None => Ok(()),
        }
    }

    /// Kills it without warning and starts a new one.
    pub fn crash_and_restart(&self) -> Result<()> {
        self.kill_9();
        self.start()
    }

    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(Proc::pid)
    }

    /// What `canalctl status` shows, as JSON.
    pub fn status(&self) -> Result<Value> {
        let body = self.get("/v1/status")?;
        serde_json::from_str(&body).with_context(|| format!("the status is not JSON: {body}"))
    }

    /// Packets that a hook counted for a reason; 0 if it never did.
    pub fn count(&self, hook: &str, reason: &str) -> Result<u64> {
        let status = self.status()?;
        let counters = status["counters"].as_array().context("the status has no counters")?;
        let found = counters.iter().find(|c| c["hook"] == hook && c["reason"] == reason);
        Ok(found.and_then(|c| c["packets"].as_u64()).unwrap_or_default())
    }

    /// What the status says of the endpoint with this address: `ready`, `waiting`, `closed`; `None`: unknown.
    pub fn endpoint_state(&self, address: Ipv4Addr) -> Result<Option<String>> {
        let (status, address) = (self.status()?, address.to_string());
        let endpoints = status["endpoints"].as_array().context("the status has no endpoints")?;
        let found = endpoints.iter().find(|e| e["address"] == address.as_str());
        Ok(found.and_then(|e| e["state"].as_str()).map(str::to_owned))
    }

    /// Body of a GET on the local socket.
    pub fn get(&self, path: &str) -> Result<String> {
        let mut stream = UnixStream::connect(self.socket()).context("no agent listens")?;
        stream.set_read_timeout(Some(ANSWER))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: canal\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("no answer from the agent")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
        let status = head.lines().next().unwrap_or_default();
        ensure!(status.contains(" 200 "), "GET {path}: {status}: {body}");
        Ok(body.to_owned())
    }

    fn process(&self) -> MutexGuard<'_, Option<Proc>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}
