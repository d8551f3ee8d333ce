//! Policy updates, so that a packet is judged by the old policy or by the new one, never by a mix.
//!
//! Owns: the policy tables, through [`Tables`], and every id in them. Promises: after each single write the verdict on
//! any packet of any endpoint is what it was before the update or what it is after; an endpoint's generation is bumped
//! behind the last write that changed its verdicts; an update costs what it changes. Does not: compute policy
//! ([`crate::compile`]).
//!
//! Classes are groups of addresses that all sets judge alike; a set is an array, class → row. There are two ways:
//!
//! - *direct*, when no endpoint gets another set: new classes get their columns, then each address moves into its new
//!   class by one write, which is the flip for this address. A class whose addresses all become something else together
//!   is rewritten where it stands, a set's column at a time.
//! - *staged*, when sets change, and in a process that does not know what an earlier one meant:
//!   1. refine: addresses move into classes whose members agree in both their old class and their new content; the
//!      old sets get copies of the old columns there, so nothing changes for anyone;
//!   2. flip: each endpoint's element in `POLICY` is replaced, each column of a set that stays with its endpoints is
//!      rewritten; one that endpoints come to or go from is written anew, beside the old one;
//!   3. coarsen: addresses of equal content move together, which no set in use tells apart any more.
//!
//! After an error the tables are half way, and the next update takes the staged way from where they are, with every
//! address there is.

mod addresses;
mod fit;
mod ids;
mod rows;
mod sets;
mod settle;
#[cfg(test)]
mod tests;
mod update;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use canal_common::{
    Mac,
    endpoint::{Endpoint, EndpointPolicy, MAX_ENDPOINTS},
    policy::{MAX_ROWS, MAX_SETS},
};

use self::{
    addresses::{Addresses, Move},
    ids::{Ids, Pool, Prefer},
    sets::Sets,
    update::Update,
};
use super::tables::{Leftovers, Tables};
use crate::compile::{Census, Class, Final, PolicySet};

/// A local endpoint address, as it stands on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    pub ifindex: u32,
    pub pod_mac: Mac,
    pub host_mac: Mac,
    /// [`Endpoint::SHAPED`].
    pub shaped: bool,
    pub ingress: Arc<PolicySet>,
    pub egress: Arc<PolicySet>,
}

/// What became of an endpoint address for which there is no room, or no row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub reason: String,
    /// It goes on with the policy that it had; otherwise it is closed.
    pub keeps_last: bool,
}

/// By endpoint address.
pub type Problems = BTreeMap<Ipv4Addr, Problem>;

/// How many there may be, the number 0 included where there is one, which is never given to anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bounds the memory of a set: four bytes for each class.
    pub classes: u32,
    pub rows: u32,
    pub sets: u32,
    pub endpoints: u32,
    /// Entries in `PEERS` and `NETS`.
    pub peers: u32,
    pub nets: u32,
}

impl Default for Limits {
    /// The sizes that the object comes with.
    fn default() -> Self {
        Self {
            classes: 1 << 20,
            rows: MAX_ROWS,
            sets: MAX_SETS,
            endpoints: MAX_ENDPOINTS,
            peers: 262_144,
            nets: 131_072,
        }
    }
}

impl Limits {
    /// Whether the policy that an earlier process left can be replaced where it stands: until the last endpoint has left
    /// its sets and rows, both are there.
    pub fn hold_twice(&self, leftovers: &Leftovers) -> bool {
        let policies = leftovers.policies.values();
        let sets: BTreeSet<u32> =
            policies.flat_map(|policy| [policy.ingress_set, policy.egress_set]).collect();
        let fits = |present: usize, limit: u32| 2 * present < limit as usize;
        fits(leftovers.rows.len(), self.rows) && fits(sets.len(), self.sets)
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
    /// Sets that found no room, and have not become less since: an attempt with one of them is one in vain, and costs all
    /// others a look at everything.
    refused: sets::Refusals,
    /// Classes that an update has freed, of which there still are columns.
    freed: Vec<u32>,
    /// The last update came to its end.
    settled: bool,
    /// No program can use what it gave up.
    is_quiet: bool,
}

/// An endpoint in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Programmed {
    endpoint: Endpoint,
    policy: EndpointPolicy,
}

impl<T: Tables> PolicyTables<T> {
    pub fn new(tables: T, leftovers: Leftovers, limits: Limits) -> Self {
        let Leftovers { peers, nets, endpoints, policies, sets, rows } = leftovers;
        let addresses = Addresses::new(peers, nets);
        let unnamed: BTreeSet<u32> =
            addresses.classes().filter(|class| (1..limits.classes).contains(class)).collect();
        let ids = endpoints.values().map(|e| e.id).chain(policies.keys().copied());
        let endpoint_ids = Pool::new(limits.endpoints, Prefer::Fresh, ids);
        let owned: BTreeSet<u32> = endpoints.values().map(|e| e.id).collect();
        let programmed = endpoints.into_iter().map(|(addr, endpoint)| {
            // Without an element in POLICY it is closed, as it is with sets that do not exist.
            let policy = policies.get(&endpoint.id).copied().unwrap_or_default();
            (addr, Programmed { endpoint, policy })
        });
        let used = policies.values().flat_map(|policy| [policy.ingress_set, policy.egress_set]).collect();
        Self {
            tables,
            addresses,
            classes: Ids::new(Pool::new(limits.classes, Prefer::Freed, unnamed.iter().copied())),
            unnamed,
            sets: Sets::new(&limits, sets, &used, rows),
            endpoint_ids,
            endpoints: programmed.collect(),
            orphans: policies.keys().filter(|id| !owned.contains(id)).copied().collect(),
            refused: sets::Refusals::new(),
            freed: Vec::new(),
            settled: false,
            is_quiet: false,
            limits,
        }
    }

    #[cfg(test)]
    fn tables(&self) -> &T {
        &self.tables
    }

    /// Has every flow of the endpoint judged anew at its next packet.
    pub fn judge_again(&mut self, addr: Ipv4Addr) -> Result<(), T::Error> {
        match self.endpoints.get(&addr) {
            Some(Programmed { endpoint, .. }) => self.tables.bump_generation(endpoint.id),
            None => Ok(()),
        }
    }

    /// Has every live flow judged again: something that is not policy decides otherwise now.
    pub fn judge_all_again(&mut self) -> Result<(), T::Error> {
        let ids: Vec<u32> = self.endpoints.values().map(|programmed| programmed.endpoint.id).collect();
        ids.into_iter().try_for_each(|id| self.tables.bump_generation(id))
    }

    /// How a decision's id in events, hit counters and verdicts reads.
    pub fn decided(&self, id: u32) -> Option<&Arc<Final>> {
        self.sets.rows().decided(id)
    }

    /// Every decision that the tables name, with its id.
    pub fn decisions(&self) -> impl Iterator<Item = (u32, &Arc<Final>)> {
        self.sets.rows().decisions()
    }

    /// Entries by table, for status.
    pub fn sizes(&self) -> [(&'static str, usize); 5] {
        use canal_common::names;
        [
            (names::ENDPOINTS, self.endpoints.len()),
            (names::PEERS, self.addresses.peers()),
            (names::NETS, self.addresses.nets()),
            (names::SETS, self.sets.len()),
            (names::ROWS, self.sets.rows().len()),
        ]
    }

    /// Makes the kernel judge as `desired` says, for exactly these endpoints. What finds no room keeps the policy that it
    /// had, or is closed.
    pub fn apply(
        &mut self,
        census: &mut Census,
        desired: &BTreeMap<Ipv4Addr, Desired>,
    ) -> Result<Problems, T::Error> {
        self.wait_for_programs()?;
        self.is_quiet = false;
        let mut problems = Problems::new();
        let mut desired = desired.clone();
        let refused = self.still_refused(&desired);
        self.make_do(&mut desired, &refused, &mut problems);
        self.refused = refused;
        self.fit_addresses(census, &mut desired, &mut problems);
        loop {
            match self.update(census, &desired)? {
                Outcome::Done(unplaced) => {
                    problems.extend(unplaced);
                    break;
                }
                Outcome::Refused(refused) => {
                    self.make_do(&mut desired, &refused, &mut problems);
                    self.refused.extend(refused);
                }
            }
            self.fit_addresses(census, &mut desired, &mut problems);
        }
        self.retire()?;
        self.settled = true;
        self.is_quiet = !(self.classes.rests() || self.sets.rest() || self.endpoint_ids.rests());
        if !self.is_quiet {
            self.tables.note_programs()?;
        }
        Ok(problems)
    }

    /// Waits until no program uses what the last update gave up: sets that are not brought up to date any more, and ids
    /// that will stand for something else. Before that no other update begins.
    pub fn wait_for_programs(&mut self) -> Result<(), T::Error> {
        if !self.is_quiet {
            self.tables.wait_for_programs()?;
            self.is_quiet = true;
        }
        Ok(())
    }

    /// One attempt.
    fn update(
        &mut self,
        census: &mut Census,
        desired: &BTreeMap<Ipv4Addr, Desired>,
    ) -> Result<Outcome, T::Error> {
        self.classes.pool().begin();
        self.sets.begin();
        self.endpoint_ids.begin();
        let settled = std::mem::replace(&mut self.settled, false);
        let update = Update::new(self, census, settled);
        if settled && self.keeps_policies(census, desired) && update.is_simple(self) {
            self.direct(census, &update, desired)
        } else {
            // Who was changed and not bumped is not known after an error.
            let unbumped = if settled { BTreeSet::new() } else { self.endpoints.keys().copied().collect() };
            self.staged(census, &update, desired, unbumped)
        }
    }
}

/// How an attempt ended.
enum Outcome {
    /// Before anything was flipped: there is no room for these sets, and it has to be made again without them.
    Refused(sets::Refusals),
    /// But for these endpoints.
    Done(Problems),
}

/// Every set that some endpoint is to have, once, in the order of the addresses.
fn distinct_sets(desired: &BTreeMap<Ipv4Addr, Desired>) -> Vec<&Arc<PolicySet>> {
    let mut seen = std::collections::HashSet::new();
    desired.values().flat_map(|d| [&d.ingress, &d.egress]).filter(|set| seen.insert(*set)).collect()
}
