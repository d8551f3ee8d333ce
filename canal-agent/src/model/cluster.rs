//! Everything the cluster says, as of the last change.
//!
//! Owns: which version of each object is in force, and the list of objects that cannot be used. Promises: what is
//! in force depends on the last good value of each key and on nothing else. Does not: decide what any of it means
//! for this node.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt,
    net::Ipv4Addr,
    sync::Arc,
};

use super::{
    Labels,
    endpoint::{EndpointKey, WorkloadEndpoint},
    host::HostEndpoint,
    labels,
    netset::NetworkSet,
    policy::Policy,
    profile::{self, Profile},
    reading::Reading,
    resource::{Kind, Resource},
    tier::Tier,
};

/// What an [`Cluster::apply`] did to what is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    None,
    Object(Kind),
}

/// How many objects have a version in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub policies: usize,
    pub profiles: usize,
    pub tiers: usize,
    pub host_endpoints: usize,
    pub workload_endpoints: usize,
}

#[derive(Debug, Clone)]
pub struct Cluster {
    policies: Store<Policy>,
    profiles: Store<Profile>,
    tiers: Store<Tier>,
    sets: Store<NetworkSet>,
    hosts: Store<HostEndpoint>,
    endpoints: BTreeMap<EndpointKey, Slot>,
    /// Who has which address, of the endpoints in force.
    holders: BTreeSet<(Ipv4Addr, EndpointKey)>,
    /// Keys that the store holds, of the kinds that count.
    keys: BTreeSet<Resource>,
    /// In force, and not in the store since it lost its past.
    remembered: BTreeSet<Resource>,
    invalid: BTreeMap<String, String>,
    /// Objects whose version in force changed since [`Cluster::take_changes`], perhaps more than once.
    changed: Vec<Resource>,
    /// What the store has said of endpoints that are this node's since [`Cluster::take_said`].
    said: Vec<(EndpointKey, Vec<u8>)>,
    allow_all: Arc<Profile>,
}

type Store<T> = BTreeMap<Resource, Held<T>>;

#[derive(Debug, Clone)]
struct Held<T> {
    value: Arc<T>,
    /// Takes the place of an object that never had a good version.
    stand_in: bool,
}

/// What etcd says about an endpoint, and what the pod's own node knows.
#[derive(Debug, Clone, Default)]
struct Slot {
    stored: Option<Held<WorkloadEndpoint>>,
    local: Option<Arc<WorkloadEndpoint>>,
    /// The container whose end the store has yet to hear of: what it says of it counts no more.
    retired: Option<String>,
}

impl Slot {
    fn in_force(&self) -> Option<&Arc<WorkloadEndpoint>> {
        self.local.as_ref().or_else(|| self.stored_in_force())
    }

    fn stored_in_force(&self) -> Option<&Arc<WorkloadEndpoint>> {
        let stored = &self.stored.as_ref()?.value;
        (self.retired.as_ref() != Some(&stored.container_id)).then_some(stored)
    }
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            policies: BTreeMap::new(),
            profiles: BTreeMap::new(),
            tiers: BTreeMap::new(),
            sets: BTreeMap::new(),
            hosts: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            holders: BTreeSet::new(),
            keys: BTreeSet::new(),
            remembered: BTreeSet::new(),
            invalid: BTreeMap::new(),
            changed: Vec::new(),
            said: Vec::new(),
            allow_all: Arc::new(Profile::allow_all()),
        }
    }
}

impl Cluster {
    /// A key got a value, or (`None`) is gone. Keys that mean nothing here are ignored.
    pub fn apply(&mut self, key: &str, value: Option<&[u8]>) -> Change {
        let Some(resource) = Resource::parse(key) else { return Change::None };
        if resource.kind == Kind::Profile && resource.name == profile::ALLOW_ALL {
            return Change::None;
        }
        if value.is_some() {
            self.keys.insert(resource.clone());
        } else {
            self.keys.remove(&resource);
        }
        self.remembered.remove(&resource);
        let (reason, changed) = match resource.kind {
            Kind::NetworkPolicy | Kind::GlobalNetworkPolicy => {
                install(&mut self.policies, &resource, value.map(|value| Policy::read(&resource, value)))
            }
            Kind::Profile => install(&mut self.profiles, &resource, value.map(Profile::read)),
            Kind::Tier => {
                install(&mut self.tiers, &resource, value.map(|value| Tier::read(&resource, value)))
            }
            Kind::NetworkSet | Kind::GlobalNetworkSet => {
                install(&mut self.sets, &resource, value.map(|value| NetworkSet::read(&resource, value)))
            }
            Kind::HostEndpoint => install(&mut self.hosts, &resource, value.map(HostEndpoint::read)),
            Kind::WorkloadEndpoint => self.apply_endpoint(&resource, value),
        };
        match reason {
            Some(reason) => self.invalid.insert(key.to_owned(), reason),
            None => self.invalid.remove(key),
        };
        if !changed {
            return Change::None;
        }
        let kind = resource.kind;
        self.changed.push(resource);
        Change::Object(kind)
    }

    /// The complete content of the store: keys that are not in it are gone.
    pub fn replace_all(&mut self, entries: impl Iterator<Item = (String, Vec<u8>)>) {
        let mut vanished = self.keys.clone();
        for (key, value) in entries {
            if let Some(resource) = Resource::parse(&key) {
                vanished.remove(&resource);
            }
            self.apply(&key, Some(&value));
        }
        for resource in vanished {
            self.apply(&resource.key(), None);
        }
    }

    /// The complete content of a store that has lost its past, as after a loss of data, or with a backup in its place. Nobody has
    /// decided that what is missing there is not to be any more, and with it pods would be opened or cut: what was in
    /// force stays so, until the store holds something under its key again, or (an endpoint) for its address.
    pub fn begin_again(&mut self, entries: impl Iterator<Item = (String, Vec<u8>)>) {
        let entries: Vec<_> = entries.collect();
        let mut lost = self.keys.clone();
        for resource in entries.iter().filter_map(|(key, _)| Resource::parse(key)) {
            lost.remove(&resource);
        }
        for resource in lost {
            let key = resource.key();
            if self.hangs_on_the_store(&resource) {
                self.keys.remove(&resource);
                self.invalid.remove(&key);
                self.remembered.insert(resource);
            } else {
                self.apply(&key, None);
            }
        }
        for (key, value) in entries {
            self.apply(&key, Some(&value));
        }
    }

    /// What is in force though the store has lost it.
    pub fn remembered(&self) -> &BTreeSet<Resource> {
        &self.remembered
    }

    /// Endpoints that nobody has written again by now are gone: what pods may do hangs on their addresses' labels. The rest is
    /// what somebody decided, and stays.
    pub fn forget_endpoints(&mut self) {
        let is_endpoint = |resource: &&Resource| resource.kind == Kind::WorkloadEndpoint;
        let gone: Vec<Resource> = self.remembered.iter().filter(is_endpoint).cloned().collect();
        for resource in gone {
            self.apply(&resource.key(), None);
        }
    }

    /// Without its key there would be nothing in force in its place.
    fn hangs_on_the_store(&self, resource: &Resource) -> bool {
        match resource.kind {
            Kind::NetworkPolicy | Kind::GlobalNetworkPolicy => self.policies.contains_key(resource),
            Kind::Profile => self.profiles.contains_key(resource),
            Kind::Tier => self.tiers.contains_key(resource),
            Kind::NetworkSet | Kind::GlobalNetworkSet => self.sets.contains_key(resource),
            Kind::HostEndpoint => self.hosts.contains_key(resource),
            Kind::WorkloadEndpoint => {
                let key = EndpointKey::new(&resource.namespace, &resource.name);
                self.endpoints
                    .get(&key)
                    .is_some_and(|slot| slot.stored_in_force().is_some() && slot.local.is_none())
            }
        }
    }

    /// What this node itself knows about an endpoint of its own stands before what the store says.
    pub fn set_local_endpoint(&mut self, key: EndpointKey, endpoint: Option<WorkloadEndpoint>) -> Change {
        let endpoint = endpoint.map(|endpoint| Arc::new(endpoint.normalised(&key)));
        let resource = key.resource();
        let change = self.update_slot(key, |slot| {
            slot.local = endpoint;
            slot.retired = None;
        });
        self.has_changed_here(change, resource)
    }

    /// The endpoint's container is gone from this node; until the store has heard of it, what it says counts no more.
    pub fn retire_endpoint(&mut self, key: EndpointKey, container_id: &str) -> Change {
        let resource = key.resource();
        let change = self.update_slot(key, |slot| {
            slot.local = None;
            slot.retired = Some(container_id.to_owned());
        });
        self.has_changed_here(change, resource)
    }

    /// The store was told a while ago: if it does not have the endpoint by now, it never will again. False: it still has.
    pub fn forget_retired(&mut self, key: &EndpointKey) -> bool {
        let Some(slot) = self.endpoints.get(key) else { return true };
        if slot.stored.is_some() {
            return slot.retired.is_none();
        }
        self.update_slot(key.clone(), |slot| slot.retired = None);
        true
    }

    fn has_changed_here(&mut self, change: Change, resource: Resource) -> Change {
        if change != Change::None {
            self.take_the_place_of_remembered(&resource);
            self.changed.push(resource);
        }
        change
    }

    /// Whose version in force has changed since the last call, each once.
    pub fn take_changes(&mut self) -> Vec<Resource> {
        let mut changed = std::mem::take(&mut self.changed);
        changed.sort_unstable();
        changed.dedup();
        changed
    }

    /// What the store has said of this node's own endpoints since the last call: others change labels, profiles and ports
    /// of pods that live.
    pub fn take_said(&mut self) -> Vec<(EndpointKey, Vec<u8>)> {
        std::mem::take(&mut self.said)
    }

    /// Something has changed since [`Cluster::take_changes`].
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Every object that has a version in force.
    pub fn objects(&self) -> Vec<Resource> {
        let named = [self.policies.keys().collect::<Vec<_>>(), self.profiles.keys().collect()]
            .into_iter()
            .chain([self.tiers.keys().collect(), self.sets.keys().collect(), self.hosts.keys().collect()]);
        named.flatten().cloned().chain(self.endpoints().map(|(key, _)| key.resource())).collect()
    }

    pub fn counts(&self) -> Counts {
        Counts {
            policies: self.policies.len(),
            profiles: self.profiles.len(),
            tiers: self.tiers.len(),
            host_endpoints: self.hosts.len(),
            workload_endpoints: self.endpoints.len(),
        }
    }

    /// Objects that cannot be used, wholly or in part: key → reason, one line.
    pub fn invalid(&self) -> &BTreeMap<String, String> {
        &self.invalid
    }

    pub fn policies(&self) -> impl Iterator<Item = (&Resource, &Arc<Policy>)> {
        in_force(&self.policies)
    }

    pub fn policy(&self, resource: &Resource) -> Option<&Arc<Policy>> {
        self.policies.get(resource).map(|held| &held.value)
    }

    pub fn network_set(&self, resource: &Resource) -> Option<&Arc<NetworkSet>> {
        self.sets.get(resource).map(|held| &held.value)
    }

    pub fn host_endpoint(&self, resource: &Resource) -> Option<&Arc<HostEndpoint>> {
        self.hosts.get(resource).map(|held| &held.value)
    }

    /// `None`: missing, which denies everything.
    pub fn profile(&self, name: &str) -> Option<&Arc<Profile>> {
        if name == profile::ALLOW_ALL {
            return Some(&self.allow_all);
        }
        self.profiles.get(&Resource::new(Kind::Profile, "", name)).map(|held| &held.value)
    }

    pub fn tier(&self, name: &str) -> Option<Tier> {
        self.tiers.get(&Resource::new(Kind::Tier, "", name)).map(|held| *held.value)
    }

    pub fn network_sets(&self) -> impl Iterator<Item = (&Resource, &Arc<NetworkSet>)> {
        in_force(&self.sets)
    }

    pub fn host_endpoints(&self) -> impl Iterator<Item = (&Resource, &Arc<HostEndpoint>)> {
        in_force(&self.hosts)
    }

    /// Every node's.
    pub fn endpoints(&self) -> impl Iterator<Item = (&EndpointKey, &WorkloadEndpoint)> {
        self.endpoints.iter().filter_map(|(key, slot)| Some((key, &**slot.in_force()?)))
    }

    /// Whether the store holds this endpoint (and not only the node that it lives on knows it).
    pub fn is_stored(&self, key: &EndpointKey) -> bool {
        let stored = self.endpoints.get(key).is_some_and(|slot| slot.stored.is_some());
        stored && !self.remembered.contains(&key.resource())
    }

    pub fn endpoint(&self, key: &EndpointKey) -> Option<&WorkloadEndpoint> {
        self.endpoints.get(key)?.in_force().map(|endpoint| &**endpoint)
    }

    /// The endpoints that have this address.
    pub fn endpoints_at(&self, address: Ipv4Addr) -> impl Iterator<Item = (&EndpointKey, &WorkloadEndpoint)> {
        let first = (address, EndpointKey { namespace: String::new(), name: String::new() });
        let held = self.holders.range(first..).take_while(move |(held, _)| *held == address);
        held.filter_map(|(_, key)| Some((key, self.endpoint(key)?)))
    }

    pub fn endpoints_of(&self, node: &str) -> impl Iterator<Item = (&EndpointKey, &WorkloadEndpoint)> {
        self.endpoints().filter(move |(_, endpoint)| endpoint.node == node)
    }

    /// Own labels and those of the profiles, as selectors see them.
    pub fn inherited(&self, own: &Labels, profiles: &[String]) -> Labels {
        let parents = profiles.iter().filter_map(|name| self.profile(name));
        labels::inherit(own, parents.map(|profile| &profile.labels))
    }

    pub fn set_labels(&self, resource: &Resource, set: &NetworkSet) -> Labels {
        self.inherited(&set.labels, &set_profiles(resource))
    }

    fn apply_endpoint(&mut self, resource: &Resource, value: Option<&[u8]>) -> (Option<String>, bool) {
        let key = EndpointKey::new(&resource.namespace, &resource.name);
        let reading = value.map(|value| WorkloadEndpoint::read(&key, value));
        let slot = self.endpoints.get(&key);
        if let (Some(value), true) = (value, slot.is_some_and(|slot| slot.local.is_some())) {
            self.said.push((key.clone(), value.to_owned()));
        }
        let previous = slot.and_then(|slot| slot.stored.clone());
        let (stored, reason) = next(previous, reading);
        let change = self.update_slot(key, |slot| {
            let container = slot.stored.as_ref().map(|held| held.value.container_id.clone());
            // The end has been heard of, or the name is another's.
            let is_over = match &stored {
                None => container.is_some() && container == slot.retired,
                Some(held) => slot.retired.as_ref() != Some(&held.value.container_id),
            };
            if is_over {
                slot.retired = None;
            }
            slot.stored = stored;
        });
        self.take_the_place_of_remembered(resource);
        (reason, change != Change::None)
    }

    /// Who is known to have an address now has it instead of who is only remembered.
    fn take_the_place_of_remembered(&mut self, endpoint: &Resource) {
        if self.remembered.is_empty() {
            return;
        }
        let key = EndpointKey::new(&endpoint.namespace, &endpoint.name);
        let Some(endpoint) = self.endpoint(&key) else { return };
        let holders = endpoint.addresses.iter().flat_map(|address| self.endpoints_at(*address));
        let others = holders.filter(|(other, _)| **other != key).map(|(other, _)| other.resource());
        let gone: Vec<Resource> = others.filter(|other| self.remembered.contains(other)).collect();
        for resource in gone {
            self.apply(&resource.key(), None);
        }
    }

    fn update_slot(&mut self, key: EndpointKey, update: impl FnOnce(&mut Slot)) -> Change {
        let mut slot = match self.endpoints.entry(key) {
            Entry::Occupied(slot) => slot,
            Entry::Vacant(free) => free.insert_entry(Slot::default()),
        };
        let before = slot.get().in_force().cloned();
        update(slot.get_mut());
        let after = slot.get().in_force().cloned();
        let key = slot.key().clone();
        let Slot { stored, local, retired, .. } = slot.get();
        if local.is_none() && stored.is_none() && retired.is_none() {
            slot.remove();
        }
        if before == after {
            return Change::None;
        }
        for address in before.iter().flat_map(|endpoint| &endpoint.addresses) {
            self.holders.remove(&(*address, key.clone()));
        }
        for address in after.iter().flat_map(|endpoint| &endpoint.addresses) {
            self.holders.insert((*address, key.clone()));
        }
        Change::Object(Kind::WorkloadEndpoint)
    }
}

/// A network set inherits from the profile of its namespace.
pub fn set_profiles(set: &Resource) -> Vec<String> {
    if set.kind.namespaced() { vec![format!("kns.{}", set.namespace)] } else { Vec::new() }
}

fn in_force<T>(store: &Store<T>) -> impl Iterator<Item = (&Resource, &Arc<T>)> {
    store.iter().map(|(resource, held)| (resource, &held.value))
}

/// Puts a reading in force; returns what is wrong with it, and whether anything changed.
fn install<T: PartialEq>(
    store: &mut Store<T>,
    resource: &Resource,
    reading: Option<Reading<T>>,
) -> (Option<String>, bool) {
    let before = store.get(resource).map(|held| held.value.clone());
    let (held, reason) = next(store.remove(resource), reading);
    let after = held.as_ref().map(|held| held.value.clone());
    if let Some(held) = held {
        store.insert(resource.clone(), held);
    }
    (reason, before != after)
}

/// What is in force after a reading, and what is wrong with that reading.
fn next<T>(previous: Option<Held<T>>, reading: Option<Reading<T>>) -> (Option<Held<T>>, Option<String>) {
    let held = |value, stand_in| Some(Held { value: Arc::new(value), stand_in });
    match reading {
        None => (None, None),
        Some(Reading::Good(value)) => (held(value, false), None),
        Some(Reading::Partly(value, reason)) => (held(value, false), Some(reason)),
        Some(Reading::Bad { reason, stand_in }) => match previous {
            Some(previous) if !previous.stand_in => {
                (Some(previous), Some(format!("{reason}; the last good version stays in force")))
            }
            _ => (stand_in.and_then(|value| held(value, true)), Some(reason)),
        },
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("nothing"),
            Self::Object(kind) => f.write_str(kind.name()),
        }
    }
}
