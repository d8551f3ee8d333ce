//! How this node is told to run: Felix's parameters from the machine and from etcd, and the datastore's word that it may
//! be used.
//!
//! While ClusterInformation says `datastoreReady: false`, somebody migrates or repairs the datastore, and what it holds
//! may be half of something: what is enforced stays, and what etcd says meanwhile is held back ([`HeldBack`]) until the
//! word is taken back. A process that starts in such a time does not know what stands, and leaves the kernel as it is.
//! A ClusterInformation that is missing says nothing.

use std::collections::BTreeMap;

use tracing::{info, warn};

use crate::{
    config::parameters::{self, Merged, Parameters},
    model::{Cluster, Controls, felix::Source},
    store::{Change, Entry},
};

#[derive(Debug)]
pub(super) struct Steering {
    controls: Controls,
    /// What is set on this machine, which beats what is in etcd.
    local: Vec<Source>,
    merged: Merged,
    held: Option<HeldBack>,
    /// Parameters have changed since [`Steering::take_turn`].
    turned: bool,
}

impl Steering {
    pub(super) fn new(node: &str, local: Vec<Source>) -> Self {
        let merged = parameters::merge(&local, &Parameters::default());
        Self { controls: Controls::new(node), local, merged, held: None, turned: false }
    }

    pub(super) fn parameters(&self) -> &Parameters {
        &self.merged.parameters
    }

    pub(super) fn merged(&self) -> &Merged {
        &self.merged
    }

    /// Whether parameters have changed since the last call.
    pub(super) fn take_turn(&mut self) -> bool {
        std::mem::take(&mut self.turned)
    }

    /// Objects about how to run that cannot be used.
    pub(super) fn invalid(&self) -> impl Iterator<Item = (&String, &String)> {
        let texts = self.merged.invalid.iter().map(|(place, reason)| (place, reason));
        self.controls.invalid().iter().chain(texts)
    }

    /// How many keys wait for the datastore to be ready again; `None`: nothing is held back.
    pub(super) fn waiting(&self) -> Option<usize> {
        self.held.as_ref().map(HeldBack::len)
    }

    /// A complete list goes to the cluster, or is held back; tells whether it went there. `forgetful`: the store has lost its
    /// past, and what is missing in it stays in force.
    pub(super) fn take_snapshot(
        &mut self,
        entries: Vec<Entry>,
        forgetful: bool,
        cluster: &mut Cluster,
    ) -> bool {
        let pairs = entries.iter().map(|entry| (entry.key.as_str(), entry.value.as_slice()));
        let changed =
            if forgetful { self.controls.begin_again(pairs) } else { self.controls.replace_all(pairs) };
        if changed {
            self.merge();
        }
        let entries = entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
        let before = self.held.take().and_then(|held| held.complete);
        let forgetful = forgetful || before.is_some_and(|before| before.forgetful);
        let complete = Complete { entries, forgetful };
        if self.controls.ready() {
            complete.release(cluster);
            true
        } else {
            warn!("the datastore is not ready: what it says is held back, what is enforced stays");
            self.held = Some(HeldBack { complete: Some(complete), changes: BTreeMap::new() });
            false
        }
    }

    /// A change goes to the cluster, or is held back; tells whether a complete list went there with it.
    pub(super) fn take_change(&mut self, change: &Change, cluster: &mut Cluster) -> bool {
        let (key, value) = match change {
            Change::Put(entry) => (&entry.key, Some(entry.value.as_slice())),
            Change::Delete { key, .. } => (key, None),
        };
        if self.controls.apply(key, value) {
            self.merge();
        }
        if !self.controls.ready() {
            self.held
                .get_or_insert_with(|| {
                    warn!("the datastore is not ready any more: what it says is held back, what is enforced stays");
                    HeldBack::default()
                })
                .change(key, value);
            return false;
        }
        let released = self.held.take().map(|held| {
            info!(keys = held.len(), "the datastore is ready again: what was held back counts");
            held.release(cluster)
        });
        cluster.apply(key, value);
        released == Some(true)
    }

    fn merge(&mut self) {
        let sources: Vec<Source> = self.local.iter().cloned().chain(self.controls.sources()).collect();
        let merged = parameters::merge(&sources, &self.merged.parameters);
        if merged.parameters != self.merged.parameters {
            info!(parameters = ?merged.parameters, "Felix's parameters have changed");
            self.turned = true;
        }
        self.merged = merged;
    }
}

/// What etcd has said since it asked not to be followed: the last word on each key.
#[derive(Debug, Default)]
struct HeldBack {
    /// A complete list, which came after whatever else was said before.
    complete: Option<Complete>,
    changes: BTreeMap<String, Option<Vec<u8>>>,
}

#[derive(Debug)]
struct Complete {
    entries: BTreeMap<String, Vec<u8>>,
    /// Of a store that had lost its past.
    forgetful: bool,
}

impl Complete {
    fn release(self, cluster: &mut Cluster) {
        let entries = self.entries.into_iter();
        if self.forgetful { cluster.begin_again(entries) } else { cluster.replace_all(entries) }
    }
}

impl HeldBack {
    fn len(&self) -> usize {
        self.complete.as_ref().map_or(0, |complete| complete.entries.len()) + self.changes.len()
    }

    fn change(&mut self, key: &str, value: Option<&[u8]>) {
        match (&mut self.complete, value) {
            (Some(complete), Some(value)) => drop(complete.entries.insert(key.to_owned(), value.to_owned())),
            (Some(complete), None) => drop(complete.entries.remove(key)),
            (None, value) => drop(self.changes.insert(key.to_owned(), value.map(<[u8]>::to_owned))),
        }
    }

    /// Hands it all over; tells whether there was a complete list.
    fn release(self, cluster: &mut Cluster) -> bool {
        let is_complete = self.complete.is_some();
        if let Some(complete) = self.complete {
            complete.release(cluster);
        }
        for (key, value) in &self.changes {
            cluster.apply(key, value.as_deref());
        }
        is_complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::resource::PREFIX;

    const INFORMATION: &str = "clusterinformations/default";
    const READY: &str = r#"{"spec":{"datastoreReady":true}}"#;
    const NOT_READY: &str = r#"{"spec":{"datastoreReady":false}}"#;

    fn entry(rest: &str, value: &str) -> Entry {
        Entry { key: format!("{PREFIX}{rest}"), value: value.as_bytes().to_vec(), mod_revision: 1, lease: 0 }
    }

    fn put(rest: &str, value: &str) -> Change {
        Change::Put(entry(rest, value))
    }

    fn delete(rest: &str) -> Change {
        Change::Delete { key: format!("{PREFIX}{rest}"), mod_revision: 1 }
    }

    fn tiers(cluster: &Cluster) -> String {
        ["a", "b", "c"].into_iter().filter(|name| cluster.tier(name).is_some()).collect()
    }

    fn start() -> (Steering, Cluster) {
        (Steering::new("n", Vec::new()), Cluster::default())
    }

    #[test]
    fn what_is_said_while_not_ready_counts_all_at_once_when_ready_again() {
        let (mut steering, mut cluster) = start();
        let first = vec![entry(INFORMATION, READY), entry("tiers/a", r#"{"spec":{}}"#)];
        assert!(steering.take_snapshot(first, false, &mut cluster));
        assert_eq!((tiers(&cluster).as_str(), steering.waiting()), ("a", None));
        for change in [
            put(INFORMATION, NOT_READY),
            put("tiers/b", r#"{"spec":{}}"#),
            delete("tiers/a"),
            put("tiers/c", "{}"),
            delete("tiers/c"),
        ] {
            assert!(!steering.take_change(&change, &mut cluster));
            assert_eq!(tiers(&cluster), "a");
        }
        assert_eq!(steering.waiting(), Some(4), "each key once");
        assert!(!steering.take_change(&put(INFORMATION, READY), &mut cluster));
        assert_eq!((tiers(&cluster).as_str(), steering.waiting()), ("b", None));
        assert!(!steering.take_change(&put("tiers/c", r#"{"spec":{}}"#), &mut cluster));
        assert_eq!(tiers(&cluster), "bc");
    }

    #[test]
    fn a_list_that_comes_while_not_ready_replaces_everything_later() {
        let (mut steering, mut cluster) = start();
        let tier = r#"{"spec":{}}"#;
        steering.take_snapshot(vec![entry("tiers/a", tier)], false, &mut cluster);
        steering.take_change(&put(INFORMATION, NOT_READY), &mut cluster);
        steering.take_change(&put("tiers/c", tier), &mut cluster);
        let list = vec![entry(INFORMATION, NOT_READY), entry("tiers/b", tier)];
        assert!(!steering.take_snapshot(list, false, &mut cluster));
        steering.take_change(&put("tiers/c", tier), &mut cluster);
        steering.take_change(&delete("tiers/b"), &mut cluster);
        assert_eq!(tiers(&cluster), "a");
        assert!(steering.take_change(&delete(INFORMATION), &mut cluster));
        assert_eq!(tiers(&cluster), "c");
    }

    #[test]
    fn a_store_that_lost_its_past_takes_nothing_away_also_when_it_is_not_ready_meanwhile() {
        let tier = r#"{"spec":{}}"#;
        for (information, later) in [(READY, false), (NOT_READY, true)] {
            let (mut steering, mut cluster) = start();
            let felix = entry("felixconfigurations/default", r#"{"spec":{"logPrefix":"known"}}"#);
            steering.take_snapshot(vec![entry("tiers/a", tier), felix], false, &mut cluster);
            let list = vec![entry(INFORMATION, information), entry("tiers/b", tier)];
            assert_eq!(steering.take_snapshot(list, true, &mut cluster), !later);
            if later {
                // Listed once more, after a compaction, before it is ready.
                let list = vec![entry(INFORMATION, information), entry("tiers/c", tier)];
                steering.take_snapshot(list, false, &mut cluster);
                steering.take_change(&put(INFORMATION, READY), &mut cluster);
            }
            assert_eq!(tiers(&cluster), if later { "ac" } else { "ab" });
            assert_eq!(cluster.remembered().len(), 1);
            assert_eq!(steering.parameters().log_prefix, "known");
            steering.take_change(&delete("felixconfigurations/default"), &mut cluster);
            assert_ne!(steering.parameters().log_prefix, "known");
        }
    }

    #[test]
    fn parameters_are_followed_also_while_not_ready_and_the_machines_beat_etcds() {
        let local = Source {
            origin: "environment".to_owned(),
            values: vec![("LOGPREFIX".to_owned(), "here".to_owned())],
        };
        let mut steering = Steering::new("n", vec![local]);
        let mut cluster = Cluster::default();
        assert_eq!(steering.parameters().log_prefix, "here");
        let felix = "felixconfigurations/default";
        steering.take_change(&put(INFORMATION, NOT_READY), &mut cluster);
        steering.take_change(&put(felix, r#"{"spec":{"vxlanPort":8472,"logPrefix":"etcd"}}"#), &mut cluster);
        assert_eq!(
            (steering.parameters().vxlan_port, steering.parameters().log_prefix.as_str()),
            (8472, "here")
        );
        steering.take_change(&put(felix, r#"{"spec":{"vxlanPort":0}}"#), &mut cluster);
        assert_eq!(steering.parameters().vxlan_port, 8472, "what makes no sense changes nothing");
        assert_eq!(steering.invalid().count(), 1);
        steering.take_change(&delete(felix), &mut cluster);
        assert_eq!((steering.parameters().vxlan_port, steering.invalid().count()), (4789, 0));
    }
}
