//! What the runtime asks for: verb and attachment from the environment, checked before anything is touched.

use std::{collections::BTreeMap, path::PathBuf};

use super::error::{CniError, Code};

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

impl Attachment {
    /// Of ADD (everything is needed) or DEL (the namespace and `CNI_PATH` may be missing).
    pub fn read(verb: Verb, environment: &Environment) -> Result<Self, CniError> {
        let mut needed = vec!["CNI_CONTAINERID", "CNI_IFNAME"];
        if verb != Verb::Del {
            needed.extend(["CNI_NETNS", "CNI_PATH"]);
        }
        let missing: Vec<_> = needed.into_iter().filter(|n| get(environment, n).is_none()).collect();
        if !missing.is_empty() {
            return Err(invalid(
                format!("not set: {}", missing.join(", ")),
                "the runtime must set these for this verb",
            ));
        }
        let text = |name| get(environment, name).unwrap_or_default();
        let path = std::env::split_paths(text("CNI_PATH")).filter(|p| !p.as_os_str().is_empty()).collect();
        Ok(Self {
            container_id: container_id(text("CNI_CONTAINERID"))?,
            interface: interface(text("CNI_IFNAME"))?,
            netns: get(environment, "CNI_NETNS").map(PathBuf::from),
            path,
        })
    }
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

fn container_id(id: &str) -> Result<String, CniError> {
    if is_identifier(id) {
        return Ok(id.to_owned());
    }
    let rule = "it begins with a letter or digit and goes on with letters, digits, `_`, `.` and `-`";
    Err(invalid(format!("CNI_CONTAINERID is {id:?}"), rule))
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
