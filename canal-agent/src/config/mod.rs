//! The daemon's configuration: flags and environment in, one validated [`Config`] out. Nothing else in the agent
//! reads the environment.
//!
//! For a flag `--etcd-cafile` the value is that of the flag, else of `CANAL_ETCD_CAFILE`, else of flannel's
//! `FLANNELD_ETCD_CAFILE`, else of what else the field knows it by (here `ETCD_CA_CERT_FILE`). An empty variable
//! is an unset one: manifests rely on it.

mod args;
mod environment;
mod etcd;

use std::{net::Ipv4Addr, path::PathBuf};

use serde::Serialize;

use self::environment::{Environment, Value};
use crate::store::EtcdOptions;

pub use args::{RunArgs, go_flags};

/// Everything the daemon was told. Prints and serialises without its secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    pub etcd: EtcdOptions,
    /// Name or address of the uplink; `None` means that of the default route.
    pub iface: Option<String>,
    /// The address that peers send to; `None` means that of the uplink.
    pub public_ip: Option<Ipv4Addr>,
    pub subnet_file: PathBuf,
    pub ip_masq: bool,
    pub node_name: String,
    pub state_dir: PathBuf,
    pub socket: PathBuf,
    pub bpffs: PathBuf,
}

/// One wrong setting: where it comes from, what is wrong, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct ConfigError {
    /// A flag, or the variable that stands for it.
    pub setting: String,
    pub problem: String,
}

impl ConfigError {
    fn new(setting: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { setting: setting.into(), problem: problem.into() }
    }
}

impl Config {
    /// Completes the flags from the process's environment and checks the whole.
    pub fn from_args(args: RunArgs) -> Result<Self, ConfigError> {
        Self::resolve(args, &Environment::of_process())
    }

    fn resolve(args: RunArgs, environment: &Environment) -> Result<Self, ConfigError> {
        let find = |flag: &'static str, given: Option<String>| environment.find(flag, given);
        let path = |flag, given: Option<String>, default: &str| {
            find(flag, given).map_or_else(|| PathBuf::from(default), |value| PathBuf::from(value.text))
        };
        Ok(Self {
            etcd: etcd::options(&args, environment)?,
            public_ip: find("public-ip", args.public_ip).as_ref().map(public_ip).transpose()?,
            ip_masq: find("ip-masq", args.ip_masq).as_ref().map(boolean).transpose()?.unwrap_or(false),
            iface: find("iface", args.iface).map(|value| value.text),
            subnet_file: path("subnet-file", args.subnet_file, "/run/flannel/subnet.env"),
            node_name: node_name(args.node_name, environment)?,
            state_dir: path("state-dir", args.state_dir, "/var/lib/canal"),
            socket: path("socket", args.socket, "/run/canal/agent.sock"),
            bpffs: path("bpffs", args.bpffs, "/sys/fs/bpf"),
        })
    }
}

fn public_ip(value: &Value) -> Result<Ipv4Addr, ConfigError> {
    match value.text.parse::<Ipv4Addr>() {
        Ok(ip) if ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() => {
            Err(value.wrong("is not an address that peers can send to; use one of this node's"))
        }
        Ok(ip) => Ok(ip),
        Err(_) => Err(value.wrong("is not an IPv4 address; write it as 192.0.2.11")),
    }
}

/// The forms that Go's `flag` package takes.
fn boolean(value: &Value) -> Result<bool, ConfigError> {
    match value.text.as_str() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(value.wrong("is not a truth value; write true or false")),
    }
}

/// The name that is part of every key of this node: the same as Calico's programs on this host arrive at.
fn node_name(given: Option<String>, environment: &Environment) -> Result<String, ConfigError> {
    let lower = |value: Value| Value { text: value.text.trim().to_lowercase(), ..value };
    let value = environment
        .find("node-name", given)
        .or_else(|| environment.variable("FELIX_FELIXHOSTNAME"))
        .or_else(|| environment.variable("HOSTNAME").map(lower))
        .or_else(|| environment.hostname().map(lower))
        .ok_or_else(|| ConfigError::new("--node-name", "this host has no name; give one"))?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let edges = |c: char| !c.is_ascii_alphanumeric();
    if value.text.len() > 253 || !value.text.chars().all(legal) {
        return Err(value.wrong("is no node name; use letters, digits, dots and dashes (--node-name)"));
    }
    if value.text.starts_with(edges) || value.text.ends_with(edges) {
        return Err(value.wrong("must begin and end with a letter or digit (--node-name)"));
    }
    Ok(value.text)
}

#[cfg(test)]
mod tests;
