//! FelixConfiguration: parameters of the policy daemon for a cluster, a group of nodes or one node, as they are
//! written. What they mean is decided where the node's settings are merged.

use serde::Serialize;

use super::{
    Selector,
    reading::{Envelope, Reading},
};

/// Annotations that begin so hold one parameter each, as text.
const OVERRIDE: &str = "config.projectcalico.org/";

/// A place where parameters are written, and what it says: name and text as the writer spelt them. Names of the
/// environment, of files and of objects differ in case only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Source {
    /// For people: `environment`, `/etc/calico/felix.cfg`, `FelixConfiguration default`.
    pub origin: String,
    pub values: Vec<(String, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FelixConfiguration {
    /// Text of the creation time: RFC 3339 in UTC, so the older one is the lesser.
    pub created: String,
    /// Nodes that it is for; only looked at where the name does not say it.
    pub node_selector: Option<Selector>,
    pub values: Vec<(String, String)>,
}

impl FelixConfiguration {
    pub fn read(value: &[u8]) -> Reading<Self> {
        let envelope = match Envelope::parse(value) {
            Ok(envelope) => envelope,
            Err(reason) => return Reading::bad(reason),
        };
        let members: serde_json::Map<String, serde_json::Value> = match envelope.spec() {
            Ok(members) => members,
            Err(reason) => return Reading::bad(reason),
        };
        let annotations = envelope.annotations();
        let mut values: Vec<(String, String)> = annotations
            .iter()
            .filter_map(|(name, text)| Some((name.strip_prefix(OVERRIDE)?.to_owned(), text.clone())))
            .collect();
        let mut node_selector = None;
        for (name, value) in members {
            let text = match value {
                serde_json::Value::Null => continue,
                serde_json::Value::String(text) => text,
                other => other.to_string(),
            };
            if name == "nodeSelector" {
                match Selector::parse(&text) {
                    Ok(selector) => node_selector = Some(selector),
                    Err(error) => return Reading::bad(format!("nodeSelector: {text:?} {error}")),
                }
            } else if !values.iter().any(|(overridden, _)| overridden.eq_ignore_ascii_case(&name)) {
                values.push((name, text));
            }
        }
        Reading::Good(Self { created: envelope.created(), node_selector, values })
    }
}
