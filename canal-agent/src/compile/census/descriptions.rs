//! What is known of the owners of addresses. Most look like many others: what they say of themselves is kept once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasher, RandomState},
};

use ipnet::Ipv4Net;

use super::asks::{Ask, Asks};
use crate::model::{Cluster, Labels, endpoint::NamedPort};

/// What an object says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Said<'a> {
    pub(super) labels: &'a Labels,
    pub(super) profiles: &'a [String],
    pub(super) ports: &'a [NamedPort],
}

#[derive(Debug)]
pub(super) struct Description {
    own: Labels,
    profiles: Vec<String>,
    pub(super) ports: Vec<NamedPort>,
    /// Own and inherited.
    pub(super) labels: Labels,
    /// What is asked and holds, ascending.
    pub(super) held: Vec<Ask>,
    objects: usize,
    /// Sites and CIDRs that it describes an owner of.
    pub(super) sites: BTreeSet<u32>,
    pub(super) nets: BTreeSet<Ipv4Net>,
}

impl Description {
    fn said(&self) -> Said<'_> {
        Said { labels: &self.own, profiles: &self.profiles, ports: &self.ports }
    }
}

#[derive(Debug, Default)]
pub(super) struct Descriptions {
    slots: Vec<Option<Description>>,
    free: Vec<u32>,
    by_hash: HashMap<u64, Vec<u32>>,
    hasher: RandomState,
    /// What a port name stands for, to anyone: (protocol, port) and how many say so.
    port_names: BTreeMap<String, BTreeMap<(u8, u16), usize>>,
    /// Port names that got another meaning, or lost one.
    pub(super) changed_names: BTreeSet<String>,
}

impl Descriptions {
    pub(super) fn get(&self, id: u32) -> &Description {
        self.slots[id as usize].as_ref().expect("a description lives as long as some object has it")
    }

    pub(super) fn get_mut(&mut self, id: u32) -> &mut Description {
        self.slots[id as usize].as_mut().expect("a description lives as long as some object has it")
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Description)> {
        (0..).zip(&mut self.slots).filter_map(|(id, slot)| Some((id, slot.as_mut()?)))
    }

    /// (protocol, port) pairs that some object calls by this name.
    pub(super) fn ports_named(&self, name: &str) -> impl Iterator<Item = (u8, u16)> {
        self.port_names.get(name).into_iter().flat_map(|meanings| meanings.keys().copied())
    }

    /// One object more is described so.
    pub(super) fn acquire(&mut self, said: Said<'_>, cluster: &Cluster, asks: &Asks) -> u32 {
        let hash = self.hasher.hash_one(said);
        let known = self.by_hash.get(&hash).into_iter().flatten().copied();
        if let Some(id) = known.into_iter().find(|id| self.get(*id).said() == said) {
            self.get_mut(id).objects += 1;
            return id;
        }
        for port in said.ports {
            let meanings = self.port_names.entry(port.name.clone()).or_default();
            let users = meanings.entry((port.protocol, port.port)).or_default();
            *users += 1;
            if *users == 1 {
                self.changed_names.insert(port.name.clone());
            }
        }
        let labels = cluster.inherited(said.labels, said.profiles);
        let description = Description {
            own: said.labels.clone(),
            profiles: said.profiles.to_vec(),
            ports: said.ports.to_vec(),
            held: asks.held(&labels, said.ports),
            labels,
            objects: 1,
            sites: BTreeSet::new(),
            nets: BTreeSet::new(),
        };
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        self.slots[id as usize] = Some(description);
        self.by_hash.entry(hash).or_default().push(id);
        id
    }

    pub(super) fn release(&mut self, id: u32) {
        let description = self.get_mut(id);
        description.objects -= 1;
        if description.objects > 0 {
            return;
        }
        let Some(description) = self.slots[id as usize].take() else { return };
        self.free.push(id);
        let hash = self.hasher.hash_one(description.said());
        if let Some(ids) = self.by_hash.get_mut(&hash) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_hash.remove(&hash);
            }
        }
        for port in description.ports {
            let Some(meanings) = self.port_names.get_mut(&port.name) else { continue };
            if let Some(users) = meanings.get_mut(&(port.protocol, port.port)) {
                *users -= 1;
                if *users == 0 {
                    meanings.remove(&(port.protocol, port.port));
                    self.changed_names.insert(port.name.clone());
                }
            }
            if meanings.is_empty() {
                self.port_names.remove(&port.name);
            }
        }
    }

    /// A profile has changed: the descriptions that have other labels now.
    pub(super) fn inherit_again(&mut self, profile: &str, cluster: &Cluster, asks: &Asks) -> Vec<u32> {
        let mut changed = Vec::new();
        for (id, description) in self.iter_mut() {
            if description.profiles.iter().any(|name| name == profile) {
                let labels = cluster.inherited(&description.own, &description.profiles);
                if labels != description.labels {
                    description.held = asks.held(&labels, &description.ports);
                    description.labels = labels;
                    changed.push(id);
                }
            }
        }
        changed
    }
}
