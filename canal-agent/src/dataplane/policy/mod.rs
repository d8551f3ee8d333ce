//! Policy updates, so that a packet is judged by the old policy or by the new one, never by a mix.
//!
//! Owns: the policy tables, through [`Tables`], and every id in them. Promises: after each single write the verdict on
//! any packet of any endpoint is what it was before the update or what it is after; an endpoint's generation is bumped
//! behind the last write that changed its verdicts. Does not: compute policy ([`crate::compile`]).
//!
//! Classes are groups of addresses that all sets judge alike; a set is an array, class → row. There are two ways:
//!
//! - *direct*, when no endpoint gets another set: new classes get their columns, then each address moves into its new
//!   class by one write, which is the flip for this address.
//! - *staged*, when sets change, and in a process that does not know what an earlier one meant:
//!   1. refine: addresses move into classes whose members agree in both their old class and their new content; the
//!      old sets get copies of the old columns there, so nothing changes for anyone;
//!   2. flip: each endpoint's element in `POLICY` is replaced, each column of a set that stays with its endpoints is
//!      rewritten; one that endpoints come to or go from is written anew, beside the old one;
//!   3. coarsen: addresses of equal content move together, which no set in use tells apart any more.
//!
//! After an error the tables are half way, and the next update takes the staged way from where they are.

mod addresses;
mod ids;
mod rows;
mod sets;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    sync::Arc,
};

use canal_common::{
    Mac,
    endpoint::{Endpoint, EndpointPolicy, MAX_ENDPOINTS},
    policy::{MAX_ROWS, MAX_SETS},
};

use self::{
    addresses::{Addresses, Move, in_order},
    ids::{Ids, Pool, Prefer},
    sets::{Refused, Sets},
};
use super::tables::{Leftovers, Tables};
use crate::compile::{Class, Classification, Compiled, PolicySet, Predicate, RuleId};

/// A local endpoint address, as it stands on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    pub ifindex: u32,
    pub pod_mac: Mac,
    pub host_mac: Mac,
    pub ingress: Arc<PolicySet>,
    pub egress: Arc<PolicySet>,
}

/// What could not be done, by endpoint address; such an endpoint is closed.
pub type Problems = BTreeMap<Ipv4Addr, String>;

/// How many ids there are, 0 included, which is never given to anything.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Bounds the memory of a set: four bytes for each class.
    classes: u32,
    rows: u32,
    sets: u32,
    endpoints: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { classes: 1 << 20, rows: MAX_ROWS, sets: MAX_SETS, endpoints: MAX_ENDPOINTS }
    }
}

/// No set has a column for it, so it is denied whatever policy says: for addresses whose class found no room.
const CLOSED: u32 = u32::MAX;

pub struct PolicyTables<T> {
    tables: T,
    limits: Limits,
    addresses: Addresses,
    /// What the classes mean; between updates this is all that are in use.
    classes: Ids<Class>,
    /// Classes that are taken, but whose meaning is unknown: an earlier process's, and those of an update in progress.
    unnamed: BTreeSet<u32>,
    sets: Sets,
    endpoint_ids: Pool,
    endpoints: BTreeMap<Ipv4Addr, Programmed>,
    /// Endpoint ids, and policies under them, that belong to no endpoint: an earlier process's, or in the making.
    orphans: Vec<u32>,
    /// The last update came to its end.
    settled: bool,
}

/// An endpoint in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Programmed {
    endpoint: Endpoint,
    policy: EndpointPolicy,
}

/// An endpoint as it is to be.
struct Target<'a> {
    desired: &'a Desired,
    policy: EndpointPolicy,
}

type Targets<'a> = BTreeMap<Ipv4Addr, Target<'a>>;

impl<T: Tables> PolicyTables<T> {
    pub fn new(tables: T, leftovers: Leftovers) -> Self {
        Self::with_limits(tables, leftovers, Limits::default())
    }

    fn with_limits(tables: T, leftovers: Leftovers, limits: Limits) -> Self {
        let Leftovers { peers, nets, endpoints, policies, sets, rows } = leftovers;
        let addresses = Addresses { peers, nets };
        let unnamed: BTreeSet<u32> =
            addresses.classes().into_iter().filter(|class| (1..limits.classes).contains(class)).collect();
        let ids = endpoints.values().map(|e| e.id).chain(policies.keys().copied());
        let endpoint_ids = Pool::new(limits.endpoints, Prefer::Fresh, ids);
        let owned: BTreeSet<u32> = endpoints.values().map(|e| e.id).collect();
        let programmed = endpoints.into_iter().map(|(addr, endpoint)| {
            // Without an element in POLICY it is closed, as it is with sets that do not exist.
            let policy = policies.get(&endpoint.id).copied().unwrap_or_default();
            (addr, Programmed { endpoint, policy })
        });
        Self {
            tables,
            addresses,
            classes: Ids::new(Pool::new(limits.classes, Prefer::Freed, unnamed.iter().copied())),
            unnamed,
            sets: Sets::new(&limits, sets, rows),
            endpoint_ids,
            endpoints: programmed.collect(),
            orphans: policies.keys().filter(|id| !owned.contains(id)).copied().collect(),
            settled: false,
            limits,
        }
    }

    #[cfg(test)]
    fn tables(&self) -> &T {
        &self.tables
    }

    /// The rule behind an id in events and hit counters.
    pub fn rule(&self, id: u32) -> Option<&Arc<RuleId>> {
        self.sets.rows().rule(id)
    }

    /// Entries by table, for status.
    pub fn sizes(&self) -> [(&'static str, usize); 5] {
        use canal_common::names;
        [
            (names::ENDPOINTS, self.endpoints.len()),
            (names::PEERS, self.addresses.peers.len()),
            (names::NETS, self.addresses.nets.len()),
            (names::SETS, self.sets.len()),
            (names::ROWS, self.sets.rows().len()),
        ]
    }

    /// Makes the kernel judge as `compiled` says, for exactly the endpoints in `desired`.
    pub fn apply(
        &mut self,
        compiled: &Compiled,
        desired: &BTreeMap<Ipv4Addr, Desired>,
    ) -> Result<Problems, T::Error> {
        self.classes.pool().begin();
        self.sets.begin();
        self.endpoint_ids.begin();
        let wanted: BTreeSet<Predicate> = desired
            .values()
            .flat_map(|d| [&d.ingress, &d.egress])
            .flat_map(|set| set.predicates())
            .cloned()
            .collect();
        let goal = compiled.classify(&wanted);
        let settled = std::mem::replace(&mut self.settled, false);
        let problems = if settled && self.keeps_policies(&goal, desired) {
            self.direct(&goal, desired)?
        } else {
            // Who was changed and not bumped is not known after an error.
            let unbumped = if settled { BTreeSet::new() } else { self.endpoints.keys().copied().collect() };
            self.staged(&goal, desired, unbumped)?
        };
        self.retire()?;
        self.settled = true;
        Ok(problems)
    }

    /// No endpoint that is there gets other sets.
    fn keeps_policies(&self, goal: &Classification, desired: &BTreeMap<Ipv4Addr, Desired>) -> bool {
        let by_net = by_net(goal);
        let keeps = |want, programmed: &Programmed| self.policy_of(want, &by_net) == Some(programmed.policy);
        self.endpoints
            .iter()
            .all(|(addr, programmed)| desired.get(addr).is_none_or(|want| keeps(want, programmed)))
    }

    fn direct(
        &mut self,
        goal: &Classification,
        desired: &BTreeMap<Ipv4Addr, Desired>,
    ) -> Result<Problems, T::Error> {
        let mut fresh = BTreeMap::new();
        for class in goal.peers.values().chain(goal.nets.values()) {
            if let Some((id, true)) = self.classes.ensure(class) {
                fresh.insert(id, class.clone());
            }
        }
        let mut all: BTreeMap<u32, Class> =
            self.classes.iter().map(|(id, class)| (id, class.clone())).collect();
        all.insert(0, Class::default());
        let mut refused = HashMap::new();
        for set in distinct_sets(desired) {
            if self.sets.id(set).is_none() {
                if let Err(reason) = self.sets.add(&mut self.tables, set, &all)? {
                    refused.insert(set.clone(), reason);
                }
            } else if !fresh.is_empty() {
                match self.sets.plan(&mut self.tables, set, &fresh)? {
                    Ok(Some(id)) => self.sets.write(&mut self.tables, id)?,
                    Ok(None) => {}
                    Err(reason) => drop(refused.insert(set.clone(), reason)),
                }
            }
        }
        let (targets, mut problems) = self.targets(goal, desired, &refused);
        self.close(&targets)?;

        let mut changed = BTreeSet::new();
        for (place, class) in in_order(goal) {
            let id = self.classes.get(class).unwrap_or(CLOSED);
            changed.insert((self.addresses.at(place).unwrap_or_else(|| self.addresses.fallback(place)), id));
            self.addresses.put(&mut self.tables, place, id)?;
        }
        for place in self.addresses.gone(goal) {
            let old = self.addresses.at(place).unwrap_or(0);
            self.addresses.remove(&mut self.tables, place)?;
            changed.insert((old, self.addresses.fallback(place)));
        }
        let differ = changed.into_iter().filter(|(old, new)| old != new);
        let dirty: BTreeSet<u32> = differ.flat_map(|(old, new)| self.sets.telling_apart(old, new)).collect();
        self.settle(&targets, &dirty, &BTreeSet::new(), &mut problems)?;
        Ok(problems)
    }

    fn staged(
        &mut self,
        goal: &Classification,
        desired: &BTreeMap<Ipv4Addr, Desired>,
        mut flipped: BTreeSet<Ipv4Addr>,
    ) -> Result<Problems, T::Error> {
        let meant = self.classes.forget_meanings();
        self.unnamed.extend(meant.keys());
        let moves = self.addresses.moves(goal);
        let assigned = self.assign(&moves, &meant)?;
        let contents: BTreeMap<u32, Class> = assigned
            .iter()
            .filter(|(_, id)| **id != CLOSED)
            .map(|((_, class), id)| (*id, class.clone()))
            .collect();

        let mut refused = HashMap::new();
        let mut dirty: BTreeSet<u32> = BTreeSet::new();
        for set in distinct_sets(desired) {
            let outcome = if self.sets.id(set).is_none() {
                self.sets.add(&mut self.tables, set, &contents)?
            } else {
                match self.sets.plan(&mut self.tables, set, &contents)? {
                    Ok(Some(id)) if self.changes_hands(set, id, desired) => {
                        // Who comes must not meet the old columns, and who goes must not meet the new ones.
                        self.sets.supersede(id);
                        self.sets.add(&mut self.tables, set, &contents)?
                    }
                    planned => planned.map(|id| dirty.extend(id)),
                }
            };
            if let Err(reason) = outcome {
                refused.insert(set.clone(), reason);
            }
        }
        let (targets, mut problems) = self.targets(goal, desired, &refused);

        // Refine.
        for Move { place, from, to } in &moves {
            self.addresses.put(&mut self.tables, *place, assigned[&(*from, to.clone())])?;
        }
        // Flip.
        self.close(&targets)?;
        flipped.extend(self.flip(&targets)?);
        for set in &dirty {
            self.sets.write(&mut self.tables, *set)?;
        }
        self.settle(&targets, &dirty, &flipped, &mut problems)?;
        // Coarsen.
        let mut common: BTreeMap<&Class, u32> = BTreeMap::new();
        for (id, class) in &contents {
            let slot = common.entry(class).or_insert(*id);
            if meant.get(id) == Some(class) {
                *slot = *id;
            }
        }
        for (place, class) in in_order(goal) {
            self.addresses.put(&mut self.tables, place, common.get(class).copied().unwrap_or(CLOSED))?;
        }
        for place in self.addresses.gone(goal) {
            self.addresses.remove(&mut self.tables, place)?;
        }
        let used = self.addresses.classes();
        for id in std::mem::take(&mut self.unnamed) {
            match contents.get(&id).filter(|_| used.contains(&id)) {
                Some(class) => self.classes.name(class, id),
                None => self.classes.pool().give_back(id),
            }
        }
        Ok(problems)
    }

    /// A class for each pair of old class and new content, judged by the sets in the kernel as the old class is.
    fn assign(
        &mut self,
        moves: &[Move],
        meant: &BTreeMap<u32, Class>,
    ) -> Result<BTreeMap<(u32, Class), u32>, T::Error> {
        let mut groups: BTreeMap<(u32, Class), usize> = [((0, Class::default()), 0)].into();
        for Move { from, to, .. } in moves {
            *groups.entry((*from, to.clone())).or_default() += 1;
        }
        // One content keeps the id: what it meant before, else that of the most addresses.
        let mut keepers: BTreeMap<u32, (bool, usize, &Class)> = BTreeMap::new();
        for ((from, to), size) in groups.iter().filter(|((from, _), _)| self.unnamed.contains(from)) {
            let claim = (meant.get(from) == Some(to), *size, to);
            let best = keepers.entry(*from).or_insert(claim);
            if (claim.0, claim.1) > (best.0, best.1) {
                *best = claim;
            }
        }
        let mut assigned: BTreeMap<(u32, Class), u32> =
            keepers.into_iter().map(|(id, (_, _, class))| ((id, class.clone()), id)).collect();
        assigned.insert((0, Class::default()), 0);
        let mut by_content: BTreeMap<Class, Vec<u32>> = BTreeMap::new();
        for ((_, class), id) in &assigned {
            by_content.entry(class.clone()).or_default().push(*id);
        }
        for (from, to) in groups.into_keys() {
            if assigned.contains_key(&(from, to.clone())) {
                continue;
            }
            let others = by_content.entry(to.clone()).or_default();
            let alike = others.iter().find(|id| self.sets.telling_apart(from, **id).next().is_none());
            let id = if let Some(id) = alike {
                *id
            } else if let Some(id) = self.classes.pool().take() {
                self.unnamed.insert(id);
                self.sets.copy_column(&mut self.tables, from, id)?;
                others.push(id);
                id
            } else {
                CLOSED
            };
            assigned.insert((from, to), id);
        }
        Ok(assigned)
    }

    /// Some endpoint that is there and stays begins or ceases to use the set.
    fn changes_hands(&self, set: &Arc<PolicySet>, id: u32, desired: &BTreeMap<Ipv4Addr, Desired>) -> bool {
        let moves = |want: &Desired, has: &EndpointPolicy| {
            (want.ingress == *set) != (has.ingress_set == id)
                || (want.egress == *set) != (has.egress_set == id)
        };
        self.endpoints
            .iter()
            .any(|(addr, has)| desired.get(addr).is_some_and(|want| moves(want, &has.policy)))
    }

    /// The endpoints that can be, and why others cannot.
    fn targets<'a>(
        &self,
        goal: &Classification,
        desired: &'a BTreeMap<Ipv4Addr, Desired>,
        refused: &HashMap<Arc<PolicySet>, Refused>,
    ) -> (Targets<'a>, Problems) {
        let (mut targets, mut problems) = (Targets::new(), Problems::new());
        let by_net = by_net(goal);
        for (addr, desired) in desired {
            let reason = refused.get(&desired.ingress).or_else(|| refused.get(&desired.egress));
            match (reason, self.policy_of(desired, &by_net)) {
                (None, Some(policy)) => drop(targets.insert(*addr, Target { desired, policy })),
                (reason, _) => drop(problems.insert(*addr, reason.cloned().unwrap_or_default())),
            }
        }
        (targets, problems)
    }

    /// `None`: some set of it is not in the kernel.
    fn policy_of(&self, desired: &Desired, by_net: &BTreeSet<&Predicate>) -> Option<EndpointPolicy> {
        let (ingress, egress) = (&desired.ingress, &desired.egress);
        let asks_by_net = |set: &Arc<PolicySet>| set.predicates().iter().any(|p| by_net.contains(p));
        let uses_nets = asks_by_net(ingress) || asks_by_net(egress);
        Some(EndpointPolicy {
            ingress_set: self.sets.id(ingress)?,
            egress_set: self.sets.id(egress)?,
            flags: if uses_nets { EndpointPolicy::USES_NETS } else { 0 },
        })
    }

    /// Takes out the endpoints that are not to be.
    fn close(&mut self, targets: &Targets<'_>) -> Result<(), T::Error> {
        let gone: Vec<Ipv4Addr> =
            self.endpoints.keys().filter(|addr| !targets.contains_key(addr)).copied().collect();
        for addr in gone {
            let id = self.endpoints[&addr].endpoint.id;
            self.tables.delete_endpoint(addr)?;
            self.endpoints.remove(&addr);
            self.orphans.push(id);
            self.drop_orphans()?;
        }
        Ok(())
    }

    fn drop_orphans(&mut self) -> Result<(), T::Error> {
        while let Some(id) = self.orphans.last().copied() {
            self.tables.delete_policy(id)?;
            // Its flows are over.
            self.tables.bump_generation(id)?;
            self.endpoint_ids.give_back(id);
            self.orphans.pop();
        }
        Ok(())
    }

    /// Points the endpoints that are there at their sets. Who looked into `NETS` goes on to do so until the columns
    /// are right; the answer is whose sets changed.
    fn flip(&mut self, targets: &Targets<'_>) -> Result<BTreeSet<Ipv4Addr>, T::Error> {
        let mut flipped = BTreeSet::new();
        for (addr, programmed) in &mut self.endpoints {
            let Some(target) = targets.get(addr) else { continue };
            let old = programmed.policy;
            let new = EndpointPolicy { flags: target.policy.flags | old.flags, ..target.policy };
            if (old.ingress_set, old.egress_set) != (new.ingress_set, new.egress_set) {
                flipped.insert(*addr);
            }
            if old != new {
                self.tables.write_policy(programmed.endpoint.id, new)?;
                programmed.policy = new;
            }
        }
        Ok(flipped)
    }

    /// Brings the endpoints to what they are to be, and has the flows of those judged again whose verdicts may have
    /// changed: those in `flipped`, and those that use a set in `dirty`.
    fn settle(
        &mut self,
        targets: &Targets<'_>,
        dirty: &BTreeSet<u32>,
        flipped: &BTreeSet<Ipv4Addr>,
        problems: &mut Problems,
    ) -> Result<(), T::Error> {
        for (addr, Target { desired, policy }) in targets {
            let old = self.endpoints.get(addr).copied();
            let Some(id) = old.map(|old| old.endpoint.id).or_else(|| self.endpoint_ids.take()) else {
                problems.insert(
                    *addr,
                    format!("all {} endpoints of this node are in use", self.limits.endpoints - 1),
                );
                continue;
            };
            let endpoint = Endpoint {
                ifindex: desired.ifindex,
                id,
                pod_mac: desired.pod_mac,
                host_mac: desired.host_mac,
                _reserved: 0,
            };
            // Policy before address: an endpoint is closed until its policy stands.
            if let Some(old) = old {
                if old.policy != *policy {
                    self.tables.write_policy(id, *policy)?;
                    self.endpoints.insert(*addr, Programmed { policy: *policy, ..old });
                }
            } else {
                self.orphans.push(id);
                self.tables.write_policy(id, *policy)?;
            }
            let is_other = old.is_none_or(|old| old.endpoint != endpoint);
            if is_other {
                self.tables.write_endpoint(*addr, endpoint)?;
                self.endpoints.insert(*addr, Programmed { endpoint, policy: *policy });
                self.orphans.retain(|orphan| *orphan != id);
            }
            let is_dirty = dirty.contains(&policy.ingress_set) || dirty.contains(&policy.egress_set);
            if is_other || is_dirty || flipped.contains(addr) {
                self.tables.bump_generation(id)?;
            }
        }
        Ok(())
    }

    /// Frees what nothing points at any more.
    fn retire(&mut self) -> Result<(), T::Error> {
        self.drop_orphans()?;
        let policies = self.endpoints.values().map(|p| p.policy);
        let sets = policies.flat_map(|p| [p.ingress_set, p.egress_set]).collect();
        let classes = self.addresses.classes();
        self.sets.retire(&mut self.tables, &sets, &classes)?;
        let unused: Vec<u32> =
            self.classes.iter().map(|(id, _)| id).filter(|id| !classes.contains(id)).collect();
        for id in unused {
            self.classes.remove(id);
        }
        Ok(())
    }
}

/// Every set that some endpoint is to have, once, in the order of the addresses.
fn distinct_sets(desired: &BTreeMap<Ipv4Addr, Desired>) -> Vec<&Arc<PolicySet>> {
    let mut seen = std::collections::HashSet::new();
    desired.values().flat_map(|d| [&d.ingress, &d.egress]).filter(|set| seen.insert(*set)).collect()
}

/// Questions that addresses may answer by a CIDR around them.
fn by_net(goal: &Classification) -> BTreeSet<&Predicate> {
    goal.nets.values().flat_map(Class::predicates).collect()
}
