//! What the cluster says about how its daemons run: ClusterInformation, the FelixConfigurations, and the labels of this
//! node's Node object, by which some of those are meant for it.
//!
//! Owns: the last good version of each. Promises: a bad value changes nothing and is named. Does not: know what any
//! parameter means.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{
    Labels,
    felix::{FelixConfiguration, Source},
    reading::{Envelope, Reading},
    resource::PREFIX,
};

#[derive(Debug, Clone)]
pub struct Controls {
    node: String,
    felix: BTreeMap<String, FelixConfiguration>,
    ready: bool,
    node_labels: Labels,
    invalid: BTreeMap<String, String>,
    /// Keys that the store does not hold since it lost its past, and that stand as they were.
    remembered: BTreeSet<String>,
}

/// The keys that are looked at.
enum Key<'a> {
    ClusterInformation,
    Felix(&'a str),
    Node,
}

impl Controls {
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            felix: BTreeMap::new(),
            ready: true,
            node_labels: Labels::new(),
            invalid: BTreeMap::new(),
            remembered: BTreeSet::new(),
        }
    }

    /// A key got a value, or (`None`) is gone. Keys of other things are ignored; tells whether anything changed.
    pub fn apply(&mut self, key: &str, value: Option<&[u8]>) -> bool {
        let Some(kind) = self.kind(key) else { return false };
        self.remembered.remove(key);
        let outcome = match kind {
            Key::ClusterInformation => {
                read_ready(value).map(|ready| std::mem::replace(&mut self.ready, ready) != ready)
            }
            Key::Felix(name) => match value.map(FelixConfiguration::read) {
                None => Ok(self.felix.remove(name).is_some()),
                Some(Reading::Good(read) | Reading::Partly(read, _)) => {
                    let before = self.felix.insert(name.to_owned(), read);
                    Ok(before.as_ref() != self.felix.get(name))
                }
                Some(Reading::Bad { reason, .. }) => Err(reason),
            },
            Key::Node => read_labels(value).map(|labels| {
                let before = std::mem::replace(&mut self.node_labels, labels);
                before != self.node_labels
            }),
        };
        match outcome {
            Ok(changed) => {
                self.invalid.remove(key);
                changed
            }
            Err(reason) => {
                self.invalid.insert(key.to_owned(), format!("{reason}; what was read before stays in force"));
                false
            }
        }
    }

    /// The complete content of the store: keys that are not in it are gone.
    pub fn replace_all<'a>(&mut self, entries: impl Iterator<Item = (&'a str, &'a [u8])>) -> bool {
        let entries: Vec<_> = entries.filter(|(key, _)| self.kind(key).is_some()).collect();
        let mut changed = false;
        for gone in self.missing(&entries) {
            changed |= self.apply(&gone, None);
        }
        for (key, value) in entries {
            changed |= self.apply(key, Some(value));
        }
        changed
    }

    /// The complete content of a store that has lost its past: what is missing there stays as it was.
    pub fn begin_again<'a>(&mut self, entries: impl Iterator<Item = (&'a str, &'a [u8])>) -> bool {
        let entries: Vec<_> = entries.filter(|(key, _)| self.kind(key).is_some()).collect();
        let missing = self.missing(&entries);
        self.remembered.extend(missing);
        self.replace_all(entries.into_iter())
    }

    /// Keys of which something is known, and that are neither there nor remembered.
    fn missing(&self, entries: &[(&str, &[u8])]) -> Vec<String> {
        let mut known: Vec<String> = self.felix.keys().map(|name| felix_key(name)).collect();
        known.extend(self.invalid.keys().cloned());
        known
            .extend([format!("{PREFIX}clusterinformations/default"), format!("{PREFIX}nodes/{}", self.node)]);
        known.retain(|known| {
            !self.remembered.contains(known) && !entries.iter().any(|(key, _)| *key == known.as_str())
        });
        known
    }

    /// False only while ClusterInformation says so: somebody migrates or repairs the datastore.
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// FelixConfigurations that are meant for this node, the one that beats all others first: its own, those that
    /// select it (the older first), the cluster's.
    pub fn sources(&self) -> Vec<Source> {
        let own = own_name(&self.node);
        let by_name = |name: &str| self.felix.get_key_value(name);
        let mut selecting: Vec<_> = self
            .felix
            .iter()
            .filter(|(name, felix)| {
                let selects = felix.node_selector.as_ref().is_some_and(|s| s.matches(&self.node_labels));
                **name != own && *name != CLUSTER && selects
            })
            .collect();
        selecting.sort_by_key(|(name, felix)| (&felix.created, *name));
        let ordered = by_name(&own).into_iter().chain(selecting).chain(by_name(CLUSTER));
        ordered
            .map(|(name, felix)| Source {
                origin: format!("FelixConfiguration {name}"),
                values: felix.values.clone(),
            })
            .collect()
    }

    /// Objects that cannot be used: key → reason, one line.
    pub fn invalid(&self) -> &BTreeMap<String, String> {
        &self.invalid
    }

    fn kind<'a>(&self, key: &'a str) -> Option<Key<'a>> {
        let (plural, name) = key.strip_prefix(PREFIX)?.split_once('/')?;
        match plural {
            "clusterinformations" if name == "default" => Some(Key::ClusterInformation),
            "nodes" if name == self.node => Some(Key::Node),
            // Those of other nodes are theirs to find fault with.
            "felixconfigurations" if !name.starts_with("node.") || name == own_name(&self.node) => {
                Some(Key::Felix(name))
            }
            _ => None,
        }
    }
}

/// The FelixConfiguration of the whole cluster.
const CLUSTER: &str = "default";

fn own_name(node: &str) -> String {
    format!("node.{node}")
}

fn felix_key(name: &str) -> String {
    format!("{PREFIX}felixconfigurations/{name}")
}

fn read_ready(value: Option<&[u8]>) -> Result<bool, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Raw {
        datastore_ready: Option<bool>,
    }
    let Some(value) = value else { return Ok(true) };
    Ok(Envelope::parse(value)?.spec::<Raw>()?.datastore_ready.unwrap_or(true))
}

fn read_labels(value: Option<&[u8]>) -> Result<Labels, String> {
    let Some(value) = value else { return Ok(Labels::new()) };
    Envelope::parse(value)?.labels()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn key(rest: &str) -> String {
        format!("{PREFIX}{rest}")
    }

    fn put(controls: &mut Controls, rest: &str, value: &serde_json::Value) -> bool {
        controls.apply(&key(rest), Some(value.to_string().as_bytes()))
    }

    #[test]
    fn only_an_explicit_no_is_a_no() {
        let mut controls = Controls::new("a");
        assert!(controls.ready(), "a datastore that nobody initialised");
        let information = |controls: &mut Controls, value: &str| {
            controls.apply(&key("clusterinformations/default"), Some(value.as_bytes()))
        };
        for (value, ready) in [
            (r#"{"spec":{}}"#, true),
            (r#"{"spec":{"datastoreReady":false}}"#, false),
            (r#"{"spec":{"datastoreReady":null}}"#, true),
            (r#"{"spec":{"datastoreReady":true}}"#, true),
        ] {
            information(&mut controls, value);
            assert_eq!(controls.ready(), ready, "{value}");
        }
        assert!(information(&mut controls, r#"{"spec":{"datastoreReady":false}}"#));
        for bad in ["{", r#"{"spec":{"datastoreReady":"yes"}}"#, "[]"] {
            assert!(!information(&mut controls, bad));
            assert!(!controls.ready() && controls.invalid().len() == 1, "{bad}");
        }
        controls.apply(&key("clusterinformations/default"), None);
        assert!(controls.ready() && controls.invalid().is_empty());
    }

    #[test]
    fn the_nodes_own_beats_those_that_select_it_beat_the_clusters() {
        let mut controls = Controls::new("a");
        let felix = |name: &str, created: &str, selector: Option<&str>| {
            json!({ "metadata": { "creationTimestamp": created },
                    "spec": { "nodeSelector": selector, "logPrefix": name } })
        };
        for (name, created, selector) in [
            ("default", "2026-01-01T00:00:00Z", Some("has(never)")),
            ("young", "2026-03-01T00:00:00Z", Some("rack == 'r1'")),
            ("old-b", "2026-02-01T00:00:00Z", Some("rack == 'r1'")),
            ("old-a", "2026-02-01T00:00:00Z", Some("all()")),
            ("elsewhere", "2025-01-01T00:00:00Z", Some("rack == 'r2'")),
            ("nobodys", "2025-01-01T00:00:00Z", None),
            ("node.a", "2026-05-01T00:00:00Z", None),
            ("node.b", "2024-01-01T00:00:00Z", Some("all()")),
        ] {
            put(&mut controls, &format!("felixconfigurations/{name}"), &felix(name, created, selector));
        }
        let names = |controls: &Controls| -> Vec<String> {
            controls.sources().into_iter().map(|source| source.values[0].1.clone()).collect()
        };
        assert_eq!(names(&controls), ["node.a", "old-a", "default"]);
        assert!(put(
            &mut controls,
            "nodes/a",
            &json!({ "metadata": { "labels": { "rack": "r1" } }, "spec": {} })
        ));
        assert!(!put(
            &mut controls,
            "nodes/b",
            &json!({ "metadata": { "labels": { "rack": "r2" } }, "spec": {} })
        ));
        assert_eq!(names(&controls), ["node.a", "old-a", "old-b", "young", "default"]);
        assert!(controls.apply(&key("felixconfigurations/node.a"), None));
        assert_eq!(names(&controls)[0], "old-a");
    }

    #[test]
    fn values_are_text_whatever_their_type_and_an_annotation_beats_its_field() {
        let mut controls = Controls::new("a");
        put(
            &mut controls,
            "felixconfigurations/default",
            &json!({
                "metadata": { "annotations": { "config.projectcalico.org/VXLANPort": "8472", "other": "x" } },
                "spec": { "vxlanPort": 4789, "bpfEnabled": true, "logPrefix": "p", "gone": null,
                          "failsafeInboundHostPorts": [{ "protocol": "tcp", "port": 22 }] },
            }),
        );
        let values = controls.sources().remove(0).values;
        let text = |name: &str| values.iter().find(|(n, _)| n == name).map(|(_, text)| text.as_str());
        assert_eq!(text("VXLANPort"), Some("8472"));
        assert_eq!((text("vxlanPort"), text("gone"), text("other")), (None, None, None));
        assert_eq!((text("bpfEnabled"), text("logPrefix")), (Some("true"), Some("p")));
        assert_eq!(text("failsafeInboundHostPorts"), Some(r#"[{"port":22,"protocol":"tcp"}]"#));
    }

    #[test]
    fn a_bad_object_keeps_what_was_read_before_and_a_complete_list_forgets_what_is_gone() {
        let mut controls = Controls::new("a");
        let felix = "felixconfigurations/default";
        put(&mut controls, felix, &json!({ "spec": { "logPrefix": "p" } }));
        for bad in ["{", r#"{"spec":[]}"#, r#"{"spec":{"nodeSelector":"a = b"}}"#] {
            assert!(!controls.apply(&key(felix), Some(bad.as_bytes())));
            assert_eq!(controls.sources()[0].values[0].1, "p");
            assert!(controls.invalid()[&key(felix)].ends_with("stays in force"));
        }
        controls.apply(&key("felixconfigurations/x"), Some(b"bad"));
        put(&mut controls, "clusterinformations/default", &json!({ "spec": { "datastoreReady": false } }));
        let tier = key("tiers/default");
        assert!(controls.replace_all([(tier.as_str(), &b"{}"[..])].into_iter()));
        assert!(controls.sources().is_empty() && controls.ready() && controls.invalid().is_empty());
    }
}
