//! Addresses by the real `host-local`: finding it, running it, reading what it says.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use ipnet::Ipv4Net;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    config::Config,
    error::{CniError, Code},
    request::{Attachment, Environment},
};

const PLUGIN: &str = "host-local";
/// Spoken by every `host-local` since 2019, whatever version the runtime asked us for.
const VERSION: &str = "0.4.0";
/// It reads and writes a few small files under a lock.
const PATIENCE: Duration = Duration::from_secs(20);
/// `host-local` wants a range even to release an address, and looks only at the container then.
const ANY_RANGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(192, 0, 2, 0), 24);

/// `host-local` for one attachment.
#[derive(Debug)]
pub(super) struct Ipam<'a> {
    config: &'a Config,
    attachment: &'a Attachment,
    environment: &'a Environment,
}

/// What the pod gets.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Allocation {
    pub(super) ip: Ipv4Addr,
    /// Resolver settings to pass on, where the IPAM configuration asks for them.
    pub(super) dns: Option<Value>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    ips: Vec<Ip>,
    dns: Option<Value>,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
}

/// The error object of the CNI specification.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    msg: String,
    details: String,
}

impl<'a> Ipam<'a> {
    pub(super) fn new(config: &'a Config, attachment: &'a Attachment, environment: &'a Environment) -> Self {
        Self { config, attachment, environment }
    }

    /// Takes an address of the node's subnet.
    pub(super) fn add(&self, subnet: Ipv4Net) -> Result<Allocation, CniError> {
        let stdout = self.call("ADD", subnet)?;
        read_answer(&stdout, subnet).inspect_err(|_| {
            // An address was taken, even if it is one that we cannot use.
            self.del(Some(subnet)).ok();
        })
    }

    /// Gives back what the attachment has; nothing is as good.
    pub(super) fn del(&self, subnet: Option<Ipv4Net>) -> Result<(), CniError> {
        self.call("DEL", subnet.unwrap_or(ANY_RANGE)).map(drop)
    }

    fn call(&self, verb: &str, subnet: Ipv4Net) -> Result<Vec<u8>, CniError> {
        let program = find(&self.attachment.path)?;
        let environment: BTreeMap<_, _> = self
            .environment
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .chain([("CNI_COMMAND", verb)])
            .collect();
        let stdin = stdin(self.config, subnet).to_string();
        let output = run(&program, &environment, stdin).map_err(|source| {
            let code =
                if source.kind() == io::ErrorKind::TimedOut { Code::IpamFailed } else { Code::IpamMissing };
            CniError::new(code, format!("cannot run {}", program.display()), source.to_string())
        })?;
        if output.status.success() { Ok(output.stdout) } else { Err(refused(verb, &output)) }
    }
}

/// The configuration that `host-local` sees.
fn stdin(config: &Config, subnet: Ipv4Net) -> Value {
    let mut ipam = config.ipam.clone();
    ipam.insert("ranges".to_owned(), json!([[{"subnet": subnet}]]));
    json!({"cniVersion": VERSION, "name": config.network, "ipam": ipam})
}

fn find(path: &[PathBuf]) -> Result<PathBuf, CniError> {
    path.iter().map(|folder| folder.join(PLUGIN)).find(|p| p.is_file()).ok_or_else(|| {
        let folders: Vec<_> = path.iter().map(|p| p.display().to_string()).collect();
        let details = format!(
            "looked in CNI_PATH ({}): install the standard CNI plugins there (Debian: \
             containernetworking-plugins)",
            folders.join(":")
        );
        CniError::new(Code::IpamMissing, format!("there is no {PLUGIN}"), details)
    })
}

/// Runs to the end, or kills it when patience ends.
fn run(program: &Path, environment: &BTreeMap<&str, &str>, stdin: String) -> io::Result<Output> {
    let mut child = Command::new(program)
        .env_clear()
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let pid = Pid::from_raw(child.id().cast_signed());
    let (done, finished) = mpsc::channel();
    thread::spawn(move || {
        if let Some(mut pipe) = child.stdin.take() {
            // If it ends without reading, its answer says why.
            pipe.write_all(stdin.as_bytes()).ok();
        }
        done.send(child.wait_with_output()).ok();
    });
    finished.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        kill(pid, Signal::SIGKILL).ok();
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("it did not end within {PATIENCE:?}")))
    })
}

fn refused(verb: &str, output: &Output) -> CniError {
    let refusal: Refusal = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let said = [refusal.msg, refusal.details, String::from_utf8_lossy(&output.stderr).trim().to_owned()];
    let said = said.iter().filter(|s| !s.is_empty()).map(String::as_str).collect::<Vec<_>>().join(": ");
    // All its errors have one code, so its words are all that tells a full pool from a broken one.
    if said.contains("no IP addresses available") {
        let hint = format!(
            "every address of this node's subnet is in use; delete pods, or give nodes larger subnets ({said})"
        );
        return CniError::new(Code::PoolFull, "no free address", hint);
    }
    let said = if said.is_empty() { output.status.to_string() } else { said };
    CniError::new(Code::IpamFailed, format!("{PLUGIN} failed ({verb})"), said)
}

fn read_answer(stdout: &[u8], subnet: Ipv4Net) -> Result<Allocation, CniError> {
    let failed = |details: String| {
        CniError::new(Code::IpamFailed, format!("{PLUGIN} gave no usable address"), details)
    };
    let answer: Answer = serde_json::from_slice(stdout).map_err(|e| failed(e.to_string()))?;
    let [ip] = answer.ips.as_slice() else {
        return Err(failed(format!("want one address, got {}", answer.ips.len())));
    };
    let net: Ipv4Net = ip.address.parse().map_err(|_| failed(format!("{:?} is not IPv4", ip.address)))?;
    if !subnet.contains(&net.addr()) {
        return Err(failed(format!("{} is outside {subnet}", net.addr())));
    }
    let dns = answer.dns.filter(|d| d.as_object().is_some_and(|o| !o.is_empty()));
    Ok(Allocation { ip: net.addr(), dns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_old_and_new_versions_are_read_and_nonsense_is_refused() {
        let subnet: Ipv4Net = "10.100.7.0/24".parse().unwrap();
        let ip = |a: &str| Ok(Allocation { ip: a.parse().unwrap(), dns: None });
        for (answer, wanted) in [
            (
                r#"{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.100.7.2/24","gateway":"10.100.7.1"}],"dns":{}}"#,
                ip("10.100.7.2"),
            ),
            (r#"{"ips":[{"address":"10.100.7.3/24"}]}"#, ip("10.100.7.3")),
            (r#"{"ips":[]}"#, Err("want one address, got 0")),
            (
                r#"{"ips":[{"address":"10.100.7.3/24"},{"address":"10.100.7.4/24"}]}"#,
                Err("want one address, got 2"),
            ),
            (r#"{"ips":[{"address":"fd00::1/64"}]}"#, Err(r#""fd00::1/64" is not IPv4"#)),
            (r#"{"ips":[{"address":"10.99.7.3/24"}]}"#, Err("10.99.7.3 is outside 10.100.7.0/24")),
            ("", Err("EOF while parsing a value at line 1 column 0")),
        ] {
            let got = read_answer(answer.as_bytes(), subnet).map_err(|e| e.details);
            assert_eq!(got, wanted.map_err(str::to_owned), "{answer}");
        }
    }
}
