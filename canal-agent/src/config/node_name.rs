//! What this node is called: part of every key of its own, so it must be what Calico's programs on this host arrive at.

use std::path::Path;

use super::{
    ConfigError,
    environment::{Environment, Value},
};
use crate::store::initial::read_nodename;

/// Flag and environment beat the stored name, which beats the host's, lower-cased. The second part is the stored name
/// if it is another.
pub(super) fn resolve(
    given: Option<String>,
    environment: &Environment,
    file: &Path,
) -> Result<(String, Option<String>), ConfigError> {
    let stored = read_nodename(file);
    let lower = |value: Value| Value { text: value.text.trim().to_lowercase(), ..value };
    let value = environment
        .find("node-name", given)
        .or_else(|| stored.clone().map(|text| Value { text, origin: file.display().to_string() }))
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
    let other = stored.filter(|stored| *stored != value.text);
    Ok((value.text, other))
}
