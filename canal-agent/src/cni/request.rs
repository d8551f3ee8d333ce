//! What the runtime asks for: verb and attachment from the environment, checked before anything is touched.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf};

use canal_common::Mac;

use super::error::{CniError, Code};

/// The agent's limit for container ids, which become part of an endpoint's name.
const CONTAINER_ID_MAX: usize = 128;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// The container's interface that a call is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    pub container_id: String,
    /// Interface name in the container.
    pub interface: String,
    /// `None` only for DEL, where the namespace may be gone.
    pub netns: Option<PathBuf>,
    /// Where to look for `host-local`.
    pub path: Vec<PathBuf>,
}

/// `CNI_ARGS`: what the caller of the runtime knows about this container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arguments {
    /// The address that the container should have.
    pub ip: Option<Ipv4Addr>,
    pub mac: Option<Mac>,
    /// `None`: not a pod of Kubernetes.
    pub pod: Option<PodName>,
}

/// The pod that a container belongs to. Namespace and name are ones that Kubernetes could have given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName {
    pub namespace: String,
    pub name: String,
    pub uid: Option<String>,
    /// The sandbox; runtimes of Kubernetes give its id as the container's too.
    pub infra_container_id: Option<String>,
}

/// The environment of a call, by name.
pub type Environment = BTreeMap<String, String>;

impl Verb {
    pub fn read(environment: &Environment) -> Result<Self, CniError> {
        let verb = get(environment, "CNI_COMMAND").ok_or_else(|| {
            invalid("CNI_COMMAND is not set", "this program is a CNI plugin: a container runtime calls it")
        })?;
        Ok(match verb {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            other => {
                let known = "known are ADD, DEL, CHECK, GC, STATUS and VERSION, in capitals";
                return Err(invalid(format!("CNI_COMMAND is {other:?}"), known));
            }
        })
    }
}

impl Verb {
    /// Older versions of the specification do not have the newer verbs.
    pub(super) fn is_in(self, version: &str) -> Result<(), CniError> {
        let since = match self {
            Self::Check => "0.4.0",
            Self::Gc | Self::Status => "1.1.0",
            Self::Add | Self::Del | Self::Version => return Ok(()),
        };
        // In lists of versions as short as these, the order of texts is that of numbers.
        if version >= since {
            return Ok(());
        }
        let msg = format!("CNI {version} has no {}", format!("{self:?}").to_uppercase());
        Err(CniError::new(
            Code::IncompatibleVersion,
            msg,
            format!("it came with {since}: raise `cniVersion`"),
        ))
    }
}

impl Attachment {
    /// Of ADD and CHECK (everything is needed) or DEL (the namespace and `CNI_PATH` may be missing).
    pub fn read(verb: Verb, environment: &Environment) -> Result<Self, CniError> {
        let all = ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH"];
        need(environment, if verb == Verb::Del { &all[..2] } else { &all })?;
        let text = |name| get(environment, name).unwrap_or_default();
        Ok(Self {
            container_id: container_id("CNI_CONTAINERID", text("CNI_CONTAINERID"))?,
            interface: interface(text("CNI_IFNAME"))?,
            netns: get(environment, "CNI_NETNS").map(PathBuf::from),
            path: folders(environment),
        })
    }
}

/// `CNI_PATH` of the verbs that are about no container: GC and STATUS.
pub fn search_path(environment: &Environment) -> Result<Vec<PathBuf>, CniError> {
    need(environment, &["CNI_PATH"])?;
    Ok(folders(environment))
}

impl Arguments {
    /// `NAME=value` pairs, with semicolons between them. A name that is not known is an error, unless `IgnoreUnknown`
    /// says otherwise.
    pub fn read(environment: &Environment) -> Result<Self, CniError> {
        let text = get(environment, "CNI_ARGS").unwrap_or_default();
        let mut pairs = BTreeMap::new();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let Some((name, value)) = pair.split_once('=') else {
                let rule = "want NAME=value pairs with semicolons between them";
                return Err(invalid(format!("CNI_ARGS has {pair:?}"), rule));
            };
            pairs.insert(name, value);
        }
        let mut take = |name: &str| pairs.remove(name).filter(|value| !value.is_empty());
        let ip = take("IP").map(address).transpose()?;
        let mac =
            take("MAC").map(|text| mac(text).map_err(|rule| argument("MAC", text, rule))).transpose()?;
        let namespace = take("K8S_POD_NAMESPACE");
        let name = take("K8S_POD_NAME");
        let uid = take("K8S_POD_UID");
        let infra_container_id = take("K8S_POD_INFRA_CONTAINER_ID");
        let ignore_unknown = take("IgnoreUnknown").map(boolean).transpose()?.unwrap_or_default();
        if let (false, Some(unknown)) = (ignore_unknown, pairs.keys().next()) {
            let rule = "known are IP, MAC, K8S_POD_NAMESPACE, K8S_POD_NAME, K8S_POD_UID and \
                        K8S_POD_INFRA_CONTAINER_ID; IgnoreUnknown=1 lets others pass";
            return Err(invalid(format!("CNI_ARGS has the unknown name {unknown:?}"), rule));
        }
        let pod = namespace.zip(name).map(|(namespace, name)| {
            if !is_dns_label(namespace) {
                return Err(argument("K8S_POD_NAMESPACE", namespace, "this is not a possible namespace"));
            }
            if !is_dns_subdomain(name) {
                return Err(argument("K8S_POD_NAME", name, "this is not a possible name of a pod"));
            }
            if let Some(uid) = uid.filter(|uid| uid.len() > 253 || !uid.bytes().all(|b| b.is_ascii_graphic()))
            {
                return Err(argument("K8S_POD_UID", uid, "want at most 253 visible ASCII characters"));
            }
            Ok(PodName {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid: uid.map(str::to_owned),
                infra_container_id: infra_container_id
                    .map(|id| container_id("CNI_ARGS: K8S_POD_INFRA_CONTAINER_ID", id))
                    .transpose()?,
            })
        });
        Ok(Self { ip, mac, pod: pod.transpose()? })
    }
}

fn argument(name: &str, value: &str, rule: &str) -> CniError {
    invalid(format!("CNI_ARGS has {name}={value:?}"), rule)
}

/// `host-local` takes an address with and without a prefix length.
fn address(text: &str) -> Result<Ipv4Addr, CniError> {
    let bare = text.split_once('/').map_or(text, |(address, _)| address);
    bare.parse().map_err(|_| argument("IP", text, "want one IPv4 address: pods have no IPv6 here"))
}

/// The address of one interface, or why it cannot be that.
pub(super) fn mac(text: &str) -> Result<Mac, &'static str> {
    let mac: Mac = text.parse().map_err(|_| "want six hexadecimal bytes, such as 02:00:00:00:00:07")?;
    if mac.octets[0] & 1 != 0 || mac.octets == [0; 6] {
        return Err("want the address of one interface: neither a group's nor all zero");
    }
    Ok(mac)
}

/// As Go and the CNI library write it.
fn boolean(text: &str) -> Result<bool, CniError> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" => Ok(true),
        "0" | "f" | "false" => Ok(false),
        _ => Err(argument("IgnoreUnknown", text, "want true or false")),
    }
}

fn need(environment: &Environment, names: &[&str]) -> Result<(), CniError> {
    let missing: Vec<_> = names.iter().copied().filter(|n| get(environment, n).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(invalid(format!("not set: {}", missing.join(", ")), "the runtime must set these for this verb"))
}

fn folders(environment: &Environment) -> Vec<PathBuf> {
    let text = get(environment, "CNI_PATH").unwrap_or_default();
    std::env::split_paths(text).filter(|p| !p.as_os_str().is_empty()).collect()
}

/// Set and not empty.
fn get<'a>(environment: &'a Environment, name: &str) -> Option<&'a str> {
    environment.get(name).map(String::as_str).filter(|v| !v.is_empty())
}

fn invalid(msg: impl Into<String>, details: &str) -> CniError {
    CniError::new(Code::InvalidEnvironment, msg, details)
}

/// A letter or digit, then letters, digits, `_`, `.` and `-`: also the rule for network names.
pub(super) fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// What Kubernetes takes for the name of a namespace (RFC 1123).
fn is_dns_label(text: &str) -> bool {
    text.len() <= 63 && is_dns_part(text)
}

/// What Kubernetes takes for the name of a pod. Its labels may be longer than those of a host's name.
fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_part)
}

fn is_dns_part(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn container_id(what: &str, id: &str) -> Result<String, CniError> {
    let wrong = if !is_identifier(id) {
        "it begins with a letter or digit and goes on with letters, digits, `_`, `.` and `-`"
    } else if id.len() > CONTAINER_ID_MAX {
        "it has at most 128 characters"
    } else if id.ends_with('-') {
        "it does not end with `-`: no name of an endpoint could contain it"
    } else {
        return Ok(id.to_owned());
    };
    Err(invalid(format!("{what} is {id:?}"), wrong))
}

fn interface(name: &str) -> Result<String, CniError> {
    let wrong = if name.len() > 15 {
        "an interface name has at most 15 bytes"
    } else if name == "." || name == ".." {
        "this is not a possible interface name"
    } else if name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        "an interface name contains no slash, colon or white space"
    } else {
        return Ok(name.to_owned());
    };
    Err(invalid(format!("CNI_IFNAME is {name:?}"), wrong))
}
