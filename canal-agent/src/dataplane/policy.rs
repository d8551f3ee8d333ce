//! Policy updates, so that a packet is judged by the old policy or by the new one, never by a mix.
//!
//! Classes answer questions ("predicates") about an address; sets read the answers. When policy changes, so do the
//! questions. An update therefore goes in three steps:
//!
//! 1. *refine*: addresses move into classes that answer the old questions and the new ones; every set, old or new, has
//!    a column for each of these classes before an address is in it;
//! 2. *flip*: each endpoint's element in `POLICY` is replaced, then its generation is bumped;
//! 3. *coarsen*: addresses move into classes that answer the new questions only, and what is unused is freed.
//!
//! A fresh process does not know what the classes and sets of an earlier one meant. It writes its own under unused ids
//! (with columns for the old classes, found by an address that is in them), flips, then moves the addresses.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    sync::Arc,
};

use canal_common::{
    Mac,
    endpoint::{Endpoint, EndpointPolicy, MAX_ENDPOINTS},
    policy::MAX_SETS,
};
use ipnet::Ipv4Net;

use super::{
    ids::{Ids, Pool},
    rows::Rows,
    tables::{Leftovers, Tables},
};
use crate::compile::{Class, Classification, Compiled, PolicySet, Predicate, RuleId};

/// Classes one set can tell apart: bounds the memory of a set (4 bytes each).
const MAX_CLASSES: u32 = 1 << 20;

/// A local endpoint address, as it stands on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    pub ifindex: u32,
    pub pod_mac: Mac,
    pub host_mac: Mac,
    pub ingress: Arc<PolicySet>,
    pub egress: Arc<PolicySet>,
}

/// What could not be done, by endpoint address; such an endpoint keeps its last good policy or is closed.
pub type Problems = BTreeMap<Ipv4Addr, String>;

pub struct PolicyTables<T> {
    tables: T,
    classes: Ids<Class>,
    rows: Rows,
    sets: HashMap<Arc<PolicySet>, LiveSet>,
    set_ids: Pool,
    endpoint_ids: Pool,
    endpoints: BTreeMap<Ipv4Addr, Programmed>,
    peers: BTreeMap<Ipv4Addr, u32>,
    nets: BTreeMap<Ipv4Net, u32>,
    /// Until the first update.
    leftovers: Option<Leftovers>,
}

/// A set in the kernel.
#[derive(Debug)]
struct LiveSet {
    id: u32,
    /// Class → row.
    columns: BTreeMap<u32, u32>,
    capacity: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Programmed {
    desired: Desired,
    endpoint: Endpoint,
    policy: EndpointPolicy,
}

impl<T: Tables> PolicyTables<T> {
    pub fn new(tables: T, leftovers: Leftovers) -> Self {
        let classes = leftovers.peers.values().chain(leftovers.nets.values()).copied();
        let endpoint_ids =
            leftovers.endpoints.values().map(|e| e.id).chain(leftovers.policies.keys().copied());
        Self {
            classes: Ids::new(Pool::new(MAX_CLASSES, classes)),
            rows: Rows::new(leftovers.rows.iter().copied()),
            sets: HashMap::new(),
            set_ids: Pool::new(MAX_SETS, leftovers.sets.iter().copied()),
            endpoint_ids: Pool::new(MAX_ENDPOINTS, endpoint_ids),
            endpoints: BTreeMap::new(),
            peers: leftovers.peers.clone(),
            nets: leftovers.nets.clone(),
            tables,
            leftovers: Some(leftovers),
        }
    }

    pub fn tables(&self) -> &T {
        &self.tables
    }

    /// The rule behind an id in events and hit counters.
    pub fn rule(&self, id: u32) -> Option<&Arc<RuleId>> {
        self.rows.rule(id)
    }

    /// Entries by table, for status.
    pub fn sizes(&self) -> [(&'static str, usize); 5] {
        use canal_common::names;
        [
            (names::ENDPOINTS, self.endpoints.len()),
            (names::PEERS, self.peers.len()),
            (names::NETS, self.nets.len()),
            (names::SETS, self.sets.len()),
            (names::ROWS, self.rows.len()),
        ]
    }

    /// Makes the kernel judge as `compiled` says, for exactly the endpoints in `desired`.
    pub fn apply(
        &mut self,
        compiled: &Compiled,
        desired: &BTreeMap<Ipv4Addr, Desired>,
    ) -> Result<Problems, T::Error> {
        self.classes.pool().begin();
        self.rows.begin();
        self.set_ids.begin();
        self.endpoint_ids.begin();

        let wanted: BTreeSet<Predicate> = predicates(desired.values().flat_map(|d| [&d.ingress, &d.egress]));
        let asked: BTreeSet<Predicate> = predicates(self.sets.keys());
        let both: BTreeSet<Predicate> = asked.union(&wanted).cloned().collect();

        let mut problems = Problems::new();
        let refined = compiled.classify(&both);
        let classes = self.ensure_classes(&refined);
        self.ensure_columns(&classes, &mut problems)?;
        self.ensure_sets(desired, &refined, &mut problems)?;
        let dirty = if self.leftovers.is_some() {
            // The sets of an earlier process have no columns for our classes: endpoints first.
            self.flip(desired, &refined, &BTreeSet::new(), &mut problems)?;
            self.move_addresses(&refined)?
        } else {
            self.move_addresses(&refined)?
        };
        self.flip(desired, &refined, &dirty, &mut problems)?;

        if both != wanted {
            let coarse = compiled.classify(&wanted);
            let classes = self.ensure_classes(&coarse);
            self.ensure_columns(&classes, &mut problems)?;
            self.move_addresses(&coarse)?;
        }
        self.retire()?;
        Ok(problems)
    }

    fn ensure_classes(&mut self, classification: &Classification) -> BTreeMap<u32, Class> {
        let mut new = BTreeMap::new();
        for class in classification.peers.values().chain(classification.nets.values()) {
            if class.is_empty() {
                continue;
            }
            // Without room the address is known to nothing, which no Allow for known peers matches.
            if let Some((id, true)) = self.classes.ensure(class) {
                new.insert(id, class.clone());
            }
        }
        new
    }

    /// Gives every live set a column for each new class.
    fn ensure_columns(
        &mut self,
        classes: &BTreeMap<u32, Class>,
        problems: &mut Problems,
    ) -> Result<(), T::Error> {
        let Some(last) = classes.keys().last().copied() else { return Ok(()) };
        let sets: Vec<Arc<PolicySet>> = self.sets.keys().cloned().collect();
        for set in sets {
            let mut filled = Vec::with_capacity(classes.len());
            for (id, class) in classes {
                filled.push((*id, self.row_for(&set, class, problems)?));
            }
            let Some(live) = self.sets.get_mut(&set) else { continue };
            live.columns.extend(filled.iter().copied());
            if last >= live.capacity {
                live.capacity = capacity(last);
                let columns = dense(&live.columns, live.capacity);
                self.tables.write_set(live.id, &columns)?;
            } else {
                for (class, row) in filled {
                    self.tables.write_column(live.id, class, row)?;
                }
            }
        }
        Ok(())
    }

    /// Writes the sets that are not in the kernel yet, with a column for every class there is.
    fn ensure_sets(
        &mut self,
        desired: &BTreeMap<Ipv4Addr, Desired>,
        refined: &Classification,
        problems: &mut Problems,
    ) -> Result<(), T::Error> {
        let mut classes: BTreeMap<u32, Class> =
            self.classes.iter().map(|(class, id)| (id, class.clone())).collect();
        classes.insert(0, Class::default());
        if let Some(leftovers) = &self.leftovers {
            let peers = leftovers.peers.iter().map(|(addr, id)| (*id, refined.class_of(*addr)));
            let nets = leftovers.nets.iter().map(|(net, id)| {
                (*id, refined.nets.get(net).cloned().unwrap_or_else(|| refined.class_of(net.network())))
            });
            for (id, class) in nets.chain(peers) {
                classes.entry(id).or_insert(class);
            }
        }
        let last = classes.keys().last().copied().unwrap_or(0);
        for (addr, set) in desired.iter().flat_map(|(a, d)| [(a, &d.ingress), (a, &d.egress)]) {
            if self.sets.contains_key(set) {
                continue;
            }
            let Some(id) = self.set_ids.take() else {
                problems.insert(*addr, format!("all {} policy sets are in use", MAX_SETS - 1));
                continue;
            };
            let mut columns = BTreeMap::new();
            for (class, content) in &classes {
                columns.insert(*class, self.row_for(set, content, problems)?);
            }
            let capacity = capacity(last);
            self.tables.write_set(id, &dense(&columns, capacity))?;
            self.sets.insert(set.clone(), LiveSet { id, columns, capacity });
        }
        Ok(())
    }

    fn row_for(
        &mut self,
        set: &Arc<PolicySet>,
        class: &Class,
        problems: &mut Problems,
    ) -> Result<u32, T::Error> {
        use super::rows::RowError;
        match self.rows.acquire(&mut self.tables, &set.row(class)) {
            Ok(row) => Ok(row),
            Err(RowError::Write(error)) => Err(error),
            Err(error) => {
                // Closed for these peers, and said so: by whom it concerns.
                problems.insert(Ipv4Addr::UNSPECIFIED, format!("{}: {error}", set.policies().join(", ")));
                Ok(0)
            }
        }
    }

    /// Moves every address into its class; the answer is which questions got another answer for some address.
    fn move_addresses(&mut self, classification: &Classification) -> Result<BTreeSet<Predicate>, T::Error> {
        let contents: BTreeMap<u32, Class> =
            self.classes.iter().map(|(class, id)| (id, class.clone())).collect();
        let mut dirty = BTreeSet::new();
        let mut note = |old: Option<u32>, new: Option<&Class>| {
            let old = old.and_then(|id| contents.get(&id)).map_or(&[][..], Class::predicates);
            let new = new.map_or(&[][..], Class::predicates);
            dirty.extend(old.iter().filter(|p| !new.contains(p)).cloned());
            dirty.extend(new.iter().filter(|p| !old.contains(p)).cloned());
        };
        let id_of = |class: &Class| if class.is_empty() { Some(0) } else { self.classes.get(class) };

        for (addr, class) in &classification.peers {
            let (id, old) = (id_of(class).unwrap_or(0), self.peers.get(addr).copied());
            if old != Some(id) {
                note(old, Some(class));
                self.tables.write_peer(*addr, id)?;
                self.peers.insert(*addr, id);
            }
        }
        for (net, class) in &classification.nets {
            let (id, old) = (id_of(class).unwrap_or(0), self.nets.get(net).copied());
            if old != Some(id) {
                note(old, Some(class));
                self.tables.write_net(*net, id)?;
                self.nets.insert(*net, id);
            }
        }
        let gone: Vec<_> =
            self.peers.keys().filter(|a| !classification.peers.contains_key(a)).copied().collect();
        for addr in gone {
            note(self.peers.get(&addr).copied(), None);
            self.tables.delete_peer(addr)?;
            self.peers.remove(&addr);
        }
        let gone: Vec<_> =
            self.nets.keys().filter(|n| !classification.nets.contains_key(n)).copied().collect();
        for net in gone {
            note(self.nets.get(&net).copied(), None);
            self.tables.delete_net(net)?;
            self.nets.remove(&net);
        }
        Ok(dirty)
    }

    /// Points the endpoints at their sets, and has the flows of those judged again whose verdicts may have changed.
    fn flip(
        &mut self,
        desired: &BTreeMap<Ipv4Addr, Desired>,
        classification: &Classification,
        dirty: &BTreeSet<Predicate>,
        problems: &mut Problems,
    ) -> Result<(), T::Error> {
        let by_net: BTreeSet<&Predicate> = classification.nets.values().flat_map(Class::predicates).collect();
        let gone: Vec<Ipv4Addr> =
            self.endpoints.keys().filter(|a| !desired.contains_key(a)).copied().collect();
        for addr in gone {
            if let Some(old) = self.endpoints.remove(&addr) {
                self.remove_endpoint(addr, old.endpoint.id)?;
            }
        }
        for (addr, want) in desired {
            let (Some(ingress), Some(egress)) = (self.sets.get(&want.ingress), self.sets.get(&want.egress))
            else {
                continue; // The problem is noted; the last good policy, if any, stays.
            };
            let uses_nets = [&want.ingress, &want.egress]
                .iter()
                .any(|set| set.predicates().iter().any(|predicate| by_net.contains(predicate)));
            let policy = EndpointPolicy {
                ingress_set: ingress.id,
                egress_set: egress.id,
                flags: if uses_nets { EndpointPolicy::USES_NETS } else { 0 },
            };
            let old = self.endpoints.get(addr);
            let affected = [&want.ingress, &want.egress]
                .iter()
                .any(|set| set.predicates().iter().any(|predicate| dirty.contains(predicate)));
            let id = match old.map(|o| o.endpoint.id).or_else(|| self.leftover_id(*addr)) {
                Some(id) => id,
                None => match self.endpoint_ids.take() {
                    Some(id) => id,
                    None => {
                        problems.insert(
                            *addr,
                            format!("all {} endpoints of this node are in use", MAX_ENDPOINTS - 1),
                        );
                        continue;
                    }
                },
            };
            let endpoint = Endpoint {
                ifindex: want.ifindex,
                id,
                pod_mac: want.pod_mac,
                host_mac: want.host_mac,
                _reserved: 0,
            };
            let programmed = Programmed { desired: want.clone(), endpoint, policy };
            if old == Some(&programmed) && !affected {
                continue;
            }
            if old.is_none_or(|o| o.policy != policy) {
                self.tables.write_policy(id, policy)?;
            }
            // Policy before address: an endpoint is closed until its policy stands.
            if old.is_none_or(|o| o.endpoint != endpoint) {
                self.tables.write_endpoint(*addr, endpoint)?;
            }
            self.tables.bump_generation(id)?;
            self.endpoints.insert(*addr, programmed);
        }
        Ok(())
    }

    fn leftover_id(&self, addr: Ipv4Addr) -> Option<u32> {
        self.leftovers.as_ref()?.endpoints.get(&addr).map(|e| e.id)
    }

    fn remove_endpoint(&mut self, addr: Ipv4Addr, id: u32) -> Result<(), T::Error> {
        self.tables.delete_endpoint(addr)?;
        self.tables.delete_policy(id)?;
        // Its flows are over.
        self.tables.bump_generation(id)?;
        self.endpoint_ids.give_back(id);
        Ok(())
    }

    /// Frees what nothing points at any more.
    fn retire(&mut self) -> Result<(), T::Error> {
        if let Some(leftovers) = self.leftovers.take() {
            let ours: BTreeSet<u32> = self.endpoints.values().map(|p| p.endpoint.id).collect();
            for (addr, endpoint) in &leftovers.endpoints {
                if !self.endpoints.contains_key(addr) {
                    self.tables.delete_endpoint(*addr)?;
                    self.tables.bump_generation(endpoint.id)?;
                }
            }
            for id in leftovers.policies.keys().filter(|id| !ours.contains(id)) {
                self.tables.delete_policy(*id)?;
            }
            for set in &leftovers.sets {
                self.tables.delete_set(*set)?;
            }
            self.classes.pool().release_reserved();
            self.rows.release_reserved();
            self.set_ids.release_reserved();
            // Ids of endpoints that are ours now stay ours.
            self.endpoint_ids.release_reserved_but(&ours);
        }
        let used: BTreeSet<u32> =
            self.endpoints.values().flat_map(|p| [p.policy.ingress_set, p.policy.egress_set]).collect();
        let unused: Vec<Arc<PolicySet>> = self
            .sets
            .iter()
            .filter(|(_, live)| !used.contains(&live.id))
            .map(|(set, _)| set.clone())
            .collect();
        for set in unused {
            if let Some(live) = self.sets.remove(&set) {
                self.tables.delete_set(live.id)?;
                live.columns.into_values().for_each(|row| self.rows.release(row));
                self.set_ids.give_back(live.id);
            }
        }
        let classes: BTreeSet<u32> = self.peers.values().chain(self.nets.values()).copied().collect();
        self.classes.retain(|_, id| classes.contains(&id));
        for live in self.sets.values_mut() {
            let rows = &mut self.rows;
            live.columns.retain(|class, row| {
                let kept = *class == 0 || classes.contains(class);
                if !kept {
                    rows.release(*row);
                }
                kept
            });
        }
        Ok(())
    }
}

fn predicates<'a>(sets: impl Iterator<Item = &'a Arc<PolicySet>>) -> BTreeSet<Predicate> {
    sets.flat_map(|set| set.predicates()).cloned().collect()
}

/// Columns to allocate so that `last` fits, with room to grow.
fn capacity(last: u32) -> u32 {
    (last + 1).next_power_of_two().max(64)
}

fn dense(columns: &BTreeMap<u32, u32>, capacity: u32) -> Vec<u32> {
    (0..capacity).map(|class| columns.get(&class).copied().unwrap_or(0)).collect()
}
