//! The network configuration on standard input, in any of three dialects: our own, flannel's and Calico's.
//!
//! Owns: every key that one of the three plugins knows. Each is honoured, or answered by a note where it has no effect
//! here, or refused by name where ignoring it would give a pod something else than was asked for.
//! Does not: read the subnet file, ask Kubernetes, or touch anything.

mod calico;
mod canal;
mod fields;
mod flannel;
mod host_local;
mod node_name;
mod notebook;
mod policy;
mod range;
mod routes;
mod runtime;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, ffi::OsStr, path::PathBuf, time::Duration};

use serde_json::{Map, Value};

use self::{
    fields::{Fields, Notes, decode},
    host_local::HostLocal,
    runtime::Runtime,
};
pub use self::{
    node_name::NodeName,
    notebook::{Before, Notebook, Stored},
    policy::{Access, Policy, Token},
    range::Range,
    routes::Routes,
    runtime::Wishes,
};
use super::{
    error::{CniError, Code},
    request::{Arguments, is_identifier},
    subnet::{MTU_MAX, MTU_MIN, Subnet},
};
use crate::api::client::SOCKET;

/// Oldest to newest: those that results are written for.
pub const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
pub const LATEST: &str = "1.1.0";
/// What flannel's and Calico's configurations speak when they do not say it.
const UNSAID: &str = "0.2.0";
/// Where flannel, and Canal in its place, writes the node's subnet.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// Whose configuration it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Canal,
    Flannel,
    Calico,
}

/// A checked configuration, the same for all dialects.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub dialect: Dialect,
    /// One of [`VERSIONS`].
    pub version: &'static str,
    /// The network's name, and the name of its endpoints' profile.
    pub network: String,
    pub socket: PathBuf,
    pub subnet_file: PathBuf,
    /// Everything for `host-local` but ranges and routes.
    pub ipam: Map<String, Value>,
    pub range: Range,
    pub routes: Routes,
    pub labels: BTreeMap<String, String>,
    /// For the pod's interface, in place of the subnet file's.
    pub mtu: Option<u32>,
    pub wishes: Wishes,
    /// Whether the pod may forward packets.
    pub ip_forwarding: bool,
    pub node_name: NodeName,
    pub policy: Policy,
    /// What the plugins before this one in the list have made.
    pub prev_result: Option<Value>,
    /// Of GC: all that may stay. `None`: the runtime does not say.
    pub valid_attachments: Option<Vec<ValidAttachment>>,
    /// URLs that must answer before a pod is attached.
    pub readiness_gates: Vec<String>,
    /// How long Calico's plugin would wait for the policy; ours always waits.
    pub policy_setup_timeout: Duration,
    /// Where flannel's plugin keeps its notes. `None`: this is not flannel's configuration.
    pub notebook: Option<Notebook>,
    /// One line each, for standard error: keys that have no effect, and why.
    pub notes: Vec<String>,
}

/// An interface that a runtime still has in its books.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ValidAttachment {
    pub container_id: String,
    pub interface: String,
}

/// What the dialects have different words for.
#[derive(Debug)]
struct Settings {
    ipam: HostLocal,
    routes: Routes,
    mtu: Option<u32>,
    ip_forwarding: bool,
    node_name: NodeName,
    policy: Policy,
    readiness_gates: Vec<String>,
    policy_setup_timeout: Duration,
    flannel_folder: Option<PathBuf>,
}

impl Settings {
    fn new(ipam: HostLocal, routes: Routes) -> Self {
        Self {
            ipam,
            routes,
            mtu: None,
            ip_forwarding: false,
            node_name: NodeName::default(),
            policy: Policy::default(),
            readiness_gates: Vec::new(),
            policy_setup_timeout: Duration::ZERO,
            flannel_folder: None,
        }
    }
}

impl Dialect {
    /// Of a plugin of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "canal-cni" => Some(Self::Canal),
            "flannel" => Some(Self::Flannel),
            "calico" => Some(Self::Calico),
            _ => None,
        }
    }

    /// Of a program that was called by this name, which may be a path.
    pub fn of_program(name: &OsStr) -> Self {
        let file = std::path::Path::new(name).file_name().and_then(OsStr::to_str);
        file.and_then(Self::named).unwrap_or(Self::Canal)
    }

    /// Of a configuration that this program was given.
    fn of(configuration: &Map<String, Value>, program: Self) -> Self {
        configuration.get("type").and_then(Value::as_str).and_then(Self::named).unwrap_or(program)
    }

    /// Those that a configuration of this kind may ask for. The oldest are only for those that were written then.
    pub fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Canal => &VERSIONS[3..],
            Self::Flannel | Self::Calico => &VERSIONS,
        }
    }
}

impl Config {
    /// `program` is what the program was called as, which counts where the configuration's type is none of ours.
    pub fn read(program: Dialect, stdin: &[u8], arguments: &Arguments) -> Result<Self, CniError> {
        let raw = parse(stdin)?;
        let dialect = Dialect::of(&raw, program);
        let version = version(&raw, dialect)?;
        let mut fields = Fields::new("", raw.clone());
        // Of every list: for the runtime, or read above.
        fields.accept(&["type", "cniVersion", "capabilities", "disableCheck", "disableGC"]);
        let mut notes = Notes::default();
        let network = network(&mut fields)?;
        let runtime = Runtime::read(&mut fields, arguments, &mut notes)?;
        let socket = fields.text("socket")?.unwrap_or_else(|| SOCKET.into());
        let subnet_file = fields.text("subnetFile")?.unwrap_or_else(|| SUBNET_FILE.into());
        let prev_result = match fields.take("prevResult") {
            Some(result) if !result.is_object() => {
                return Err(fields.wrong_type("prevResult", &result, "an object"));
            }
            result => result,
        };
        let valid_attachments = valid_attachments(&mut fields)?;
        fields.no_effect(&["dns"], "name servers come from `ipam.resolvConf`", &mut notes);
        let settings = match dialect {
            Dialect::Canal => canal::read(&mut fields, &mut notes)?,
            Dialect::Flannel => flannel::read(&mut fields, &mut notes)?,
            Dialect::Calico => calico::read(&mut fields, &mut notes)?,
        };
        fields.finish(&mut notes);
        let HostLocal { settings: ipam, range, .. } = settings.ipam;
        Ok(Self {
            dialect,
            version,
            network,
            socket: socket.into(),
            subnet_file: subnet_file.into(),
            ipam,
            range: if runtime.range.is_all() { range } else { runtime.range },
            routes: settings.routes,
            labels: runtime.labels,
            mtu: settings.mtu,
            wishes: runtime.wishes,
            ip_forwarding: settings.ip_forwarding,
            node_name: settings.node_name,
            policy: settings.policy,
            prev_result,
            valid_attachments,
            readiness_gates: settings.readiness_gates,
            policy_setup_timeout: settings.policy_setup_timeout,
            notebook: settings.flannel_folder.map(|folder| Notebook::new(folder, &raw)),
            notes: notes.0,
        })
    }

    /// What it takes to detach, of a configuration that is not to be used otherwise. `None`: not even that is there.
    pub(super) fn for_del(stdin: &[u8]) -> Option<Self> {
        let mut raw = parse(stdin).ok()?;
        let mut kept = Map::from_iter([("cniVersion".to_owned(), LATEST.into())]);
        for key in ["name", "socket", "subnetFile"] {
            kept.extend(raw.remove(key).filter(Value::is_string).map(|value| (key.to_owned(), value)));
        }
        let data_dir = raw.get("ipam").and_then(|ipam| ipam.get("dataDir")).filter(|dir| dir.is_string());
        kept.extend(data_dir.map(|dir| ("ipam".to_owned(), serde_json::json!({"dataDir": dir}))));
        let folder = raw.get("dataDir").and_then(Value::as_str).unwrap_or(flannel::DATA_DIR).into();
        let is_flannel = raw.get("type").and_then(Value::as_str) == Some("flannel");
        let text = Value::Object(kept).to_string();
        let config = Self::read(Dialect::Canal, text.as_bytes(), &Arguments::default()).ok()?;
        let notebook = is_flannel.then_some(Notebook { folder, delegate: None });
        Some(Self { notebook, ..config })
    }

    /// Where `host-local` keeps its leases, one folder below for each network.
    pub fn ipam_data_dir(&self) -> PathBuf {
        host_local::data_dir(&self.ipam)
    }

    /// The MTU of a pod's interface on a node with this subnet.
    pub fn mtu_on(&self, subnet: &Subnet) -> Result<u32, CniError> {
        match self.mtu {
            None => Ok(subnet.mtu),
            Some(mtu) if mtu <= subnet.mtu => Ok(mtu),
            Some(mtu) => {
                let msg = format!("`mtu` is {mtu}, and the pod network carries {} at most", subnet.mtu);
                let hint = "what is longer would be lost on the way to other nodes: leave `mtu` out to use what the \
                            subnet file says";
                Err(CniError::new(Code::InvalidConfig, msg, hint))
            }
        }
    }
}

/// The version to use in an answer to a call that may be broken in any way.
pub(super) fn answer_version(program: Dialect, stdin: &[u8]) -> &'static str {
    let known = parse(stdin).and_then(|raw| version(&raw, Dialect::of(&raw, program)));
    known.unwrap_or(LATEST)
}

/// The answer to VERSION. The call carries at most a version.
pub(super) fn versions(program: Dialect, stdin: &[u8]) -> Result<String, CniError> {
    let raw = if stdin.trim_ascii().is_empty() { Map::new() } else { parse(stdin)? };
    let asked = raw.get("cniVersion").and_then(Value::as_str).unwrap_or(LATEST);
    let supported = Dialect::of(&raw, program).versions();
    Ok(serde_json::json!({"cniVersion": asked, "supportedVersions": supported}).to_string())
}

fn parse(stdin: &[u8]) -> Result<Map<String, Value>, CniError> {
    if stdin.trim_ascii().is_empty() {
        let hint = "the runtime gives the network configuration as JSON on standard input";
        return Err(CniError::new(Code::Decode, "standard input is empty", hint));
    }
    match serde_json::from_slice(stdin) {
        Ok(Value::Object(configuration)) => Ok(configuration),
        Ok(_) => Err(decode("it is JSON, but not an object")),
        Err(e) => Err(decode(e.to_string())),
    }
}

fn version(raw: &Map<String, Value>, dialect: Dialect) -> Result<&'static str, CniError> {
    let asked = match raw.get("cniVersion") {
        None | Some(Value::Null) if dialect != Dialect::Canal => UNSAID,
        Some(Value::String(said)) if said.is_empty() && dialect != Dialect::Canal => UNSAID,
        said => said.and_then(Value::as_str).unwrap_or_default(),
    };
    if let Some(known) = dialect.versions().iter().find(|v| **v == asked) {
        return Ok(known);
    }
    let msg = match asked {
        "" => "the configuration has no `cniVersion`".to_owned(),
        asked => format!("CNI version {asked:?} is not supported"),
    };
    let hint = format!("supported are {}", dialect.versions().join(", "));
    Err(CniError::new(Code::IncompatibleVersion, msg, hint))
}

fn network(fields: &mut Fields) -> Result<String, CniError> {
    let name = fields.text("name")?.unwrap_or_default();
    if is_identifier(&name) {
        return Ok(name);
    }
    let rule = "a network has a name: a letter or digit, then letters, digits, `_`, `.` and `-`";
    Err(fields.invalid("name", name, rule))
}

/// An MTU of zero means that none is said.
fn mtu(fields: &mut Fields) -> Result<Option<u32>, CniError> {
    match fields.number("mtu")? {
        None | Some(0) => Ok(None),
        Some(mtu) if (MTU_MIN..=MTU_MAX).contains(&mtu) => Ok(Some(mtu)),
        Some(mtu) => Err(fields.invalid(
            "mtu",
            mtu,
            format!("want {MTU_MIN} to {MTU_MAX}, or 0 for the subnet file's"),
        )),
    }
}

fn valid_attachments(fields: &mut Fields) -> Result<Option<Vec<ValidAttachment>>, CniError> {
    const KEY: &str = "cni.dev/valid-attachments";
    // The name of a draft, which runtimes give beside the other.
    fields.accept(&["cni.dev/attachments"]);
    // Runtimes in Go write an empty list so.
    if fields.has_null(KEY) {
        return Ok(Some(Vec::new()));
    }
    let Some(list) = fields.take(KEY) else { return Ok(None) };
    let Value::Array(list) = list else { return Err(fields.wrong_type(KEY, &list, "a list")) };
    let attachment = |value: Value| {
        let text = |key| value.get(key).and_then(Value::as_str).map(str::to_owned);
        match (text("containerID"), text("ifname")) {
            (Some(container_id), Some(interface)) => Ok(ValidAttachment { container_id, interface }),
            _ => Err(fields.wrong_type(KEY, &value, "`containerID` and `ifname` in each")),
        }
    };
    list.into_iter().map(attachment).collect::<Result<_, _>>().map(Some)
}
