//! The network configuration on standard input.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    error::{CniError, Code},
    request::is_identifier,
};
use crate::api::client::SOCKET;

/// Oldest to newest.
pub const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
pub const LATEST: &str = "1.1.0";
/// Where flannel, and Canal in its place, writes the node's subnet.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";
const HOST_LOCAL: &str = "host-local";

/// A checked configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// One of [`VERSIONS`].
    pub version: &'static str,
    /// The network's name, and the name of its endpoints' profile.
    pub network: String,
    pub socket: PathBuf,
    pub subnet_file: PathBuf,
    /// Everything for `host-local` but the range.
    pub ipam: Map<String, Value>,
    pub labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    name: String,
    socket: Option<PathBuf>,
    subnet_file: Option<PathBuf>,
    #[serde(default)]
    ipam: Map<String, Value>,
    #[serde(default)]
    args: Args,
}

/// `args.cni.labels`, from the conventions of CNI.
#[derive(Default, Deserialize)]
struct Args {
    #[serde(default)]
    cni: CniArgs,
}

#[derive(Default, Deserialize)]
struct CniArgs {
    #[serde(default)]
    labels: Vec<Label>,
}

#[derive(Deserialize)]
struct Label {
    key: String,
    value: String,
}

impl Config {
    pub fn read(stdin: &[u8]) -> Result<Self, CniError> {
        let raw = parse(stdin)?;
        let version = version(&raw)?;
        let raw: Raw = serde_json::from_value(raw).map_err(|e| decode(&e))?;
        if !is_identifier(&raw.name) {
            let rule = "a network has a name: a letter or digit, then letters, digits, `_`, `.` and `-`";
            return Err(CniError::new(Code::InvalidConfig, format!("`name` is {:?}", raw.name), rule));
        }
        let mut labels = BTreeMap::new();
        for Label { key, value } in raw.args.cni.labels {
            if key.is_empty() || labels.insert(key.clone(), value).is_some() {
                let msg = format!("`args.cni.labels` has the key {key:?} more than once, or empty");
                return Err(CniError::new(Code::InvalidConfig, msg, "each label needs a key of its own"));
            }
        }
        Ok(Self {
            version,
            network: raw.name,
            socket: raw.socket.unwrap_or_else(|| SOCKET.into()),
            subnet_file: raw.subnet_file.unwrap_or_else(|| SUBNET_FILE.into()),
            ipam: ipam(raw.ipam)?,
            labels,
        })
    }
}

/// The version to use in an answer to a call that may be broken in any way.
pub(super) fn answer_version(stdin: &[u8]) -> &'static str {
    parse(stdin).ok().and_then(|raw| version(&raw).ok()).unwrap_or(LATEST)
}

/// The answer to VERSION. The call carries at most a version.
pub(super) fn versions(stdin: &[u8]) -> Result<String, CniError> {
    let asked = if stdin.trim_ascii().is_empty() {
        LATEST.to_owned()
    } else {
        let raw = parse(stdin)?;
        raw.get("cniVersion").and_then(Value::as_str).unwrap_or(LATEST).to_owned()
    };
    Ok(serde_json::json!({"cniVersion": asked, "supportedVersions": VERSIONS}).to_string())
}

fn parse(stdin: &[u8]) -> Result<Value, CniError> {
    if stdin.trim_ascii().is_empty() {
        let hint = "the runtime gives the network configuration as JSON on standard input";
        return Err(CniError::new(Code::Decode, "standard input is empty", hint));
    }
    let value: Value = serde_json::from_slice(stdin).map_err(|e| decode(&e))?;
    if value.is_object() {
        return Ok(value);
    }
    Err(CniError::new(Code::Decode, "cannot read the network configuration", "it is JSON, but not an object"))
}

fn decode(error: &serde_json::Error) -> CniError {
    CniError::new(Code::Decode, "cannot read the network configuration", error.to_string())
}

fn version(raw: &Value) -> Result<&'static str, CniError> {
    let asked = raw.get("cniVersion").and_then(Value::as_str);
    if let Some(known) = VERSIONS.iter().find(|v| Some(**v) == asked) {
        return Ok(known);
    }
    let msg = match asked {
        Some(asked) => format!("CNI version {asked:?} is not supported"),
        None => "the configuration has no `cniVersion`".to_owned(),
    };
    Err(CniError::new(Code::IncompatibleVersion, msg, format!("supported are {}", VERSIONS.join(", "))))
}

fn ipam(mut ipam: Map<String, Value>) -> Result<Map<String, Value>, CniError> {
    let kind = ipam.entry("type").or_insert_with(|| HOST_LOCAL.into());
    if kind != HOST_LOCAL {
        let hint = "addresses come from the node's subnet, by `host-local`";
        return Err(CniError::new(Code::InvalidConfig, format!("`ipam.type` is {kind}"), hint));
    }
    for field in ["ranges", "subnet", "rangeStart", "rangeEnd", "gateway"] {
        if ipam.contains_key(field) {
            let hint = "leave it out: the range is the subnet in the subnet file";
            let msg = format!("`ipam.{field}` is not supported");
            return Err(CniError::new(Code::UnsupportedField, msg, hint));
        }
    }
    Ok(ipam)
}
