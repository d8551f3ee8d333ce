//! What etcd and the lease tell the node.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{info, warn};

use super::Node;
use crate::{
    logging,
    store::{Change, LeaseEvent, NetworkConfig, Prefix, RESOURCES, StoreEvent, initial},
};

/// What is known about etcd.
#[derive(Debug, Default)]
pub(super) struct StoreState {
    pub(super) synced: BTreeSet<Prefix>,
    pub(super) disconnected: BTreeMap<Prefix, String>,
    pub(super) revision: i64,
    /// How often all resources were read.
    pub(super) lists: u64,
}

impl StoreState {
    pub(super) fn in_sync(&self) -> bool {
        self.synced.len() == 2
    }
}

impl Node {
    pub(super) fn store_event(&mut self, event: StoreEvent) -> bool {
        match event {
            StoreEvent::Connected { prefix } => {
                if self.store.disconnected.remove(&prefix).is_some() {
                    info!(?prefix, "etcd is back");
                }
                false
            }
            StoreEvent::Disconnected { prefix, error } => {
                warn!(?prefix, error, "etcd is away; going on with what is known");
                self.store.disconnected.insert(prefix, error);
                false
            }
            StoreEvent::Snapshot { prefix, entries, revision } => {
                self.store.revision = revision;
                self.all_is_due = true;
                match prefix {
                    Prefix::Network => {
                        let entries: Vec<_> = entries.into_iter().map(|e| (e.key, e.value)).collect();
                        let config = self.prefix().config();
                        match entries.iter().find(|(key, _)| *key == config) {
                            Some((_, value)) => self.check_drift(value),
                            None => self.config_is_gone(),
                        }
                        self.peers.replace_all(entries.into_iter());
                    }
                    Prefix::Resources => {
                        self.store.lists += 1;
                        if initial::vital().any(|vital| entries.iter().all(|entry| entry.key != vital)) {
                            self.initial.request.send();
                        }
                        let taken = self.steering.take_snapshot(entries, &mut self.cluster);
                        self.follow_parameters();
                        // What etcd lost, it gets again.
                        self.publish();
                        if !taken {
                            return true;
                        }
                    }
                }
                self.has_listed(prefix);
                true
            }
            StoreEvent::Changes { prefix, changes, revision } => {
                self.store.revision = revision;
                for change in changes {
                    match prefix {
                        Prefix::Network => self.network_change(change),
                        Prefix::Resources => self.resource_change(&change),
                    }
                }
                true
            }
        }
    }

    /// Those that need no look at the kernel.
    pub(super) fn follow_parameters(&self) {
        let parameters = self.steering.parameters();
        logging::follow(parameters.log_severity);
        self.ports.follow(parameters);
    }

    fn network_change(&mut self, change: Change) {
        self.all_is_due = true;
        match change {
            Change::Put(entry) if entry.key == self.prefix().config() => self.check_drift(&entry.value),
            Change::Put(entry) => self.peers.put(&entry.key, &entry.value),
            Change::Delete { key, .. } if key == self.prefix().config() => self.config_is_gone(),
            Change::Delete { key, .. } => self.peers.delete(&key),
        }
    }

    fn has_listed(&mut self, prefix: Prefix) {
        if self.store.synced.insert(prefix) {
            info!(?prefix, revision = self.store.revision, "first complete list");
        }
    }

    fn resource_change(&mut self, change: &Change) {
        let complete = self.steering.take_change(change, &mut self.cluster);
        self.follow_parameters();
        self.all_is_due |= self.steering.take_turn();
        if complete {
            self.has_listed(Prefix::Resources);
        }
        match change {
            Change::Put(_) => {}
            Change::Delete { key, .. } if initial::is_vital(key) => {
                warn!(key, "somebody deleted what Calico's tools cannot do without; it is made again");
                self.initial.request.send();
            }
            Change::Delete { key, .. } => {
                let ours = key.starts_with(RESOURCES)
                    && self
                        .registry
                        .records()
                        .iter()
                        .any(|(k, record)| !record.leaving && k.store_key() == *key);
                if ours {
                    warn!(key, "somebody deleted an endpoint of ours from etcd; publishing it again");
                    self.publish();
                }
            }
        }
    }

    /// The configuration is read at the start; a later change is told, not followed.
    fn check_drift(&mut self, value: &[u8]) {
        let drift = match NetworkConfig::parse(value) {
            // What was merely spelt in another way is no change.
            Ok(config) if config.agrees_with(&self.network) => None,
            Ok(_) => Some(
                "the network configuration in etcd has changed; restart canal-agent to use it".to_owned(),
            ),
            Err(error) => Some(format!(
                "the network configuration in etcd is unusable now: {error}; going on with the old one"
            )),
        };
        self.drift = drift;
    }

    fn config_is_gone(&mut self) {
        let text = "the network configuration is gone from etcd; going on with the old one, put it back";
        self.drift = Some(text.to_owned());
    }

    pub(super) fn lease_event(&mut self, event: LeaseEvent) -> bool {
        self.all_is_due = true;
        match event {
            LeaseEvent::Held(lease) => {
                self.lease = lease;
                self.lease_problem = None;
            }
            LeaseEvent::Lost { reason } => {
                self.lease_problem = Some(format!("the subnet lease is lost: {reason}"));
            }
            LeaseEvent::Moved(lease) => {
                warn!(old = %self.lease.subnet, new = %lease.subnet, "this node has another subnet now; pods keep their old addresses until they are made anew");
                self.lease = lease;
                self.lease_problem = None;
                self.masquerade_due = true;
            }
        }
        true
    }
}
