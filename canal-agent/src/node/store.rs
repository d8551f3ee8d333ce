//! What etcd and the lease tell the node.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use tracing::{info, warn};

use super::Node;
use crate::{
    logging,
    store::{Change, LeaseEvent, NetworkConfig, Prefix, StoreEvent, SubnetKey, initial},
};

/// What is known about etcd.
#[derive(Debug, Default)]
pub(super) struct StoreState {
    pub(super) synced: BTreeSet<Prefix>,
    pub(super) disconnected: BTreeMap<Prefix, String>,
    pub(super) revision: i64,
    /// How often all resources were read.
    pub(super) lists: u64,
    /// When etcd was found to have lost its past.
    pub(super) forgot: Option<Instant>,
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
            StoreEvent::Snapshot { prefix, entries, past, forgetful } => {
                self.store.revision = past.revision;
                self.all_is_due = true;
                match prefix {
                    Prefix::Network => {
                        let config = self.prefix().config();
                        match entries.iter().find(|entry| entry.key == config) {
                            Some(entry) => self.follow_config(&entry.value),
                            None => self.config_is_gone(),
                        }
                        self.recall(forgetful);
                        self.memory.note(past);
                        if forgetful {
                            warn!(
                                "etcd has lost its past; peers stay as they were until they write their leases again"
                            );
                            self.store.forgot = Some(Instant::now());
                            self.peers.begin_again(entries.into_iter());
                        } else {
                            self.peers.replace_all(entries.into_iter());
                        }
                    }
                    Prefix::Resources => {
                        self.store.lists += 1;
                        if initial::vital().any(|vital| entries.iter().all(|entry| entry.key != vital)) {
                            self.initial.request.send();
                        }
                        if forgetful {
                            warn!("etcd has lost its past; what it does not hold any more stays in force");
                        }
                        let taken = self.steering.take_snapshot(entries, forgetful, &mut self.cluster);
                        self.follow_parameters();
                        self.hear_said();
                        // What etcd lost, it gets again.
                        self.publishing.doubt();
                        self.publishing.now();
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
                if prefix == Prefix::Network {
                    self.memory.note_changes(revision);
                }
                for change in changes {
                    match prefix {
                        Prefix::Network => self.network_change(change),
                        Prefix::Resources => self.resource_change(&change),
                    }
                }
                self.hear_said();
                true
            }
        }
    }

    /// Whoever is alive has written its lease within a day: flanneld's node does it every 23 hours.
    pub(super) fn forget_the_lost(&mut self) {
        const LONGEST: Duration = Duration::from_hours(24);
        if self.store.forgot.is_some_and(|forgot| forgot.elapsed() > LONGEST) {
            self.store.forgot = None;
            self.peers.forget();
            self.cluster.forget_endpoints();
            self.memory.note_change();
        }
    }

    /// Peers that only we remember, if there are any.
    pub(super) fn remembered(&self) -> Option<String> {
        let subnets = self.peers.remembered(self.own());
        let some: Vec<String> = subnets.iter().take(10).map(ToString::to_string).collect();
        (!subnets.is_empty()).then(|| {
            format!(
                "etcd has lost its past, and {} peers have not written their leases again: they are reached as before for a \
                 day; restart flanneld on nodes that are alive ({}{})",
                subnets.len(),
                some.join(", "),
                if subnets.len() > some.len() { ", …" } else { "" }
            )
        })
    }

    /// Leases that claim what another has.
    pub(super) fn claims(&self) -> Vec<String> {
        let (own, terms) = (self.own(), self.terms.borrow());
        let mut claims = self.peers.conflicts(own, &terms);
        claims.extend(self.peers.namesakes(own, terms.attributes.owner()));
        claims.extend(self.peers.collisions(own));
        claims
    }

    /// Objects that are in force though etcd has lost them, if there are any.
    pub(super) fn lost(&self) -> Option<String> {
        let lost = self.cluster.remembered();
        let some: Vec<String> = lost.iter().take(10).map(ToString::to_string).collect();
        (!lost.is_empty()).then(|| {
            format!(
                "etcd has lost its past and {} objects with it, which stay in force as they were: write them again, from a backup \
                 or with calicoctl, or restart canal-agent on every node to go on without them ({}{})",
                lost.len(),
                some.join(", "),
                if lost.len() > some.len() { ", …" } else { "" }
            )
        })
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
            Change::Put(entry) if entry.key == self.prefix().config() => self.follow_config(&entry.value),
            Change::Put(entry) => self.peers.put(&entry),
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
            Change::Delete { key, .. } => self.hear_deleted(key),
        }
    }

    /// What can be followed under way is; the rest is told, with what to do.
    fn follow_config(&mut self, value: &[u8]) {
        self.drift = match NetworkConfig::parse(value) {
            // What was merely spelt in another way is no change.
            Ok(config) if config.agrees_with(&self.network) => self.misfit(),
            Ok(config) => self.take_up(config),
            Err(error) => Some(format!(
                "the network configuration in etcd is unusable now: {error}; going on with the old one"
            )),
        };
    }

    fn take_up(&mut self, config: NetworkConfig) -> Option<String> {
        let fixed = self.network.needs_restart(&config);
        if !fixed.is_empty() {
            return Some(format!(
                "the network configuration in etcd has changed: {}; restart canal-agent on every node to use it",
                fixed.join(", ")
            ));
        }
        info!(?config, "the network configuration has changed; following it");
        config.notes.iter().for_each(|note| warn!("{}: {note}", self.prefix().config()));
        self.network = config;
        self.peers.set_means(self.means());
        self.misfit()
    }

    /// Our subnet is none that a node would be given now.
    fn misfit(&self) -> Option<String> {
        let fits = self.network.accepts(&SubnetKey::v4(self.lease.subnet));
        (!fits).then(|| {
            let NetworkConfig { subnet_min, subnet_max, .. } = self.network;
            format!(
                "subnets are {subnet_min} to {subnet_max} now, and this node's {} is none of them; drain the node and \
                 restart canal-agent to get another",
                self.lease.subnet
            )
        })
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
