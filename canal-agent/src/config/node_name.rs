//! What this node is called: part of every key of its own, so it must be what Calico's programs on this host arrive at.

use std::path::Path;

use super::{
    ConfigError,
    environment::{Environment, Value},
};
use crate::store::initial::read_nodename;

pub(super) struct NodeName {
    pub(super) name: String,
    /// The stored name, if it is another.
    pub(super) other: Option<String>,
    /// Without the stored name the node would be called something else.
    pub(super) is_stored: bool,
}

/// Flag and environment beat the stored name, which beats Felix's own and then the host's, lower-cased.
pub(super) fn resolve(
    given: Option<String>,
    environment: &Environment,
    file: &Path,
) -> Result<NodeName, ConfigError> {
    let stored = read_nodename(file);
    let lower = |value: Value| Value { text: value.text.trim().to_lowercase(), ..value };
    let told = environment.find("node-name", given);
    let hosts = environment
        .variable("FELIX_FELIXHOSTNAME")
        .or_else(|| environment.variable("HOSTNAME").or_else(|| environment.hostname()).map(lower));
    let is_stored = told.is_none() && hosts.as_ref().map(|host| &host.text) != stored.as_ref();
    let value = told
        .or_else(|| stored.clone().map(|text| Value { text, origin: file.display().to_string() }))
        .or(hosts)
        .ok_or_else(|| ConfigError::new("--node-name", "this host has no name; give one"))?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let edges = |c: char| !c.is_ascii_alphanumeric();
    if value.text.len() > 253 || !value.text.chars().all(legal) {
        return Err(value.wrong("is no node name; use letters, digits, dots and dashes (--node-name)"));
    }
    if value.text.starts_with(edges) || value.text.ends_with(edges) {
        return Err(value.wrong("must begin and end with a letter or digit (--node-name)"));
    }
    let is_stored = is_stored && stored.is_some();
    let other = stored.filter(|stored| *stored != value.text);
    Ok(NodeName { name: value.text, other, is_stored })
}
