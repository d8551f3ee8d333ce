//! The daemon's configuration: flags and environment in, one validated [`Config`] out. Nothing else in the agent
//! reads the environment.
//!
//! For a flag `--etcd-cafile` the value is that of the flag, else of `CANAL_ETCD_CAFILE`, else of flannel's
//! `FLANNELD_ETCD_CAFILE`, else of what else the field knows it by (here `ETCD_CA_CERT_FILE`). An empty variable
//! is an unset one: manifests rely on it. A truth value or a number of flanneld's that makes no sense is an error, but in
//! `FLANNELD_…` as if it were not set.

mod args;
mod calico_node;
mod duration;
mod environment;
mod etcd;
mod flanneld;
mod flows;
mod gear;
mod health;
mod masquerade;
mod node_name;
pub mod parameters;
mod sizes;
mod uplink;

use std::path::{Path, PathBuf};

use serde::Serialize;

use self::{
    environment::{Environment, Value},
    node_name::NodeName,
};
use crate::{api::port::Address, model::felix::Source, store::EtcdOptions};

pub use args::{CommandLine, RunArgs, command_line};
pub use flanneld::FlanneldArgs;
pub use flows::{Established, FlowTimeouts};
pub use gear::Gear;
pub use masquerade::MasqueradeRules;
pub use parameters::Parameters;
pub use sizes::TableSizes;
pub use uplink::{Pattern, UplinkRules};

/// Everything the daemon was told. Prints and serialises without its secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    pub etcd: EtcdOptions,
    pub uplink: UplinkRules,
    /// Where /healthz and /readyz are served.
    pub health: Option<Address>,
    pub subnet_file: PathBuf,
    pub ip_masq: Option<MasqueradeRules>,
    pub node_name: String,
    /// Tells Calico's CNI plugin the node's name.
    pub nodename_file: PathBuf,
    /// Nothing but that file says the node's name.
    pub name_is_stored: bool,
    /// This node's name in Kubernetes, if it was told one.
    pub kubernetes_node: Option<String>,
    /// Members of the cluster's type beside our own.
    pub cluster_type: Vec<String>,
    pub state_dir: PathBuf,
    pub socket: PathBuf,
    pub bpffs: PathBuf,
    pub gear: Gear,
    /// Envelopes carry a UDP checksum.
    pub outer_checksum: bool,
    pub established: Established,
    pub flow_timeouts: FlowTimeouts,
    pub sizes: TableSizes,
    /// Felix's parameters as they are set on this machine, what beats the rest first.
    pub felix: Vec<Source>,
    /// What was said in vain, or may surprise; one line each.
    #[serde(skip)]
    pub notices: Vec<String>,
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

impl RunArgs {
    /// Nothing is asked for but the version.
    pub fn wants_version(&self) -> Result<bool, ConfigError> {
        let value = self.show_version.clone().map(|text| Value { text, origin: "--version".to_owned() });
        Ok(value.as_ref().map(boolean).transpose()?.unwrap_or(false))
    }
}

impl Config {
    /// Completes the flags from the process's environment and checks the whole.
    pub fn from_args(args: RunArgs) -> Result<Self, ConfigError> {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        // Every kernel tells; if one did not, it would be a small one.
        Self::resolve(args, Environment::of_process(), sizes::mem_total(&meminfo).unwrap_or(512 << 20))
    }

    /// `memory`: that of the machine, in bytes.
    fn resolve(args: RunArgs, mut environment: Environment, memory: u64) -> Result<Self, ConfigError> {
        let file = environment.find("felix-config-file", args.felix_config_file.clone());
        let file = file.map_or_else(|| "/etc/calico/felix.cfg".to_owned(), |value| value.text);
        environment.read_felix_file(Path::new(&file))?;
        let environment = &environment;
        calico_node::check_datastore(environment)?;

        let find = |flag: &'static str, given: Option<String>| environment.find(flag, given);
        let path = |flag, given: Option<String>, default: &str| {
            find(flag, given).map_or_else(|| PathBuf::from(default), |value| PathBuf::from(value.text))
        };
        let nodename_file = path("nodename-file", args.nodename_file.clone(), "/var/lib/calico/nodename");
        let NodeName { name: node_name, other, is_stored: name_is_stored } =
            node_name::resolve(args.node_name.clone(), environment, &nodename_file)?;
        let mut notices = flanneld::notices(&args.flanneld, environment)?;
        notices.extend(calico_node::notice(environment));
        notices.extend(other.map(|other| {
            format!(
                "{} said {other}, and this node is called {node_name} now: endpoints that Calico's plugin made under the \
                 other name are not this node's any more",
                nodename_file.display()
            )
        }));
        Ok(Self {
            etcd: etcd::options(&args, environment)?,
            uplink: uplink::rules(&args, environment)?,
            health: health::address(&args, environment, &mut notices)?,
            ip_masq: masquerade::rules(&args, environment, &mut notices)?,
            subnet_file: path("subnet-file", args.subnet_file, "/run/flannel/subnet.env"),
            node_name,
            nodename_file,
            name_is_stored,
            kubernetes_node: environment.variable("CALICO_K8S_NODE_REF").map(|value| value.text),
            cluster_type: calico_node::cluster_type(environment),
            state_dir: path("state-dir", args.state_dir, "/var/lib/canal"),
            socket: path("socket", args.socket, "/run/canal/agent.sock"),
            bpffs: path("bpffs", args.bpffs, "/sys/fs/bpf"),
            outer_checksum: find("outer-udp-checksum", args.outer_udp_checksum)
                .as_ref()
                .map(boolean)
                .transpose()?
                .unwrap_or(false),
            gear: find("decap-gear", args.decap_gear)
                .as_ref()
                .map(gear::gear)
                .transpose()?
                .unwrap_or_default(),
            established: find("established", args.established)
                .as_ref()
                .map(flows::established)
                .transpose()?
                .unwrap_or_default(),
            flow_timeouts: find("flow-timeouts", args.flow_timeouts)
                .as_ref()
                .map(flows::timeouts)
                .transpose()?
                .unwrap_or_default(),
            sizes: sizes::resolve(memory, |flag| {
                let given = match flag {
                    "max-flows" => &args.max_flows,
                    "max-new-flows" => &args.max_new_flows,
                    "max-peers" => &args.max_peers,
                    "max-nets" => &args.max_nets,
                    _ => &args.max_rows,
                };
                find(flag, given.clone())
            })?,
            felix: environment.felix(),
            notices,
        })
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

#[cfg(test)]
mod tests;
