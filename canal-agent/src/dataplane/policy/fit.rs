//! What to do where a table has no room: the endpoints concerned keep the policy that they had, or are closed; all
//! others get theirs.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use canal_common::names;

use super::{Desired, PolicyTables, Problem, Problems, distinct_sets, sets::Refusals};
use crate::{
    compile::{Census, Place, PolicySet},
    dataplane::tables::Tables,
};

impl<T: Tables> PolicyTables<T> {
    /// Leaves out what needs more addresses than there is room for, and has the census want the rest.
    pub(super) fn fit_addresses(
        &self,
        census: &mut Census,
        desired: &mut BTreeMap<Ipv4Addr, Desired>,
        problems: &mut Problems,
    ) {
        loop {
            let refused = {
                let sets = distinct_sets(desired);
                census.want(sets.iter().copied());
                match self.overflow(census) {
                    None => return,
                    Some(_) => self.overflowing(census, sets),
                }
            };
            self.make_do(desired, &refused, problems);
        }
    }

    /// What was refused and is still asked for. Once something has gone, all of it may be tried again.
    pub(super) fn still_refused(&mut self, desired: &BTreeMap<Ipv4Addr, Desired>) -> Refusals {
        let refused = std::mem::take(&mut self.refused);
        if refused.is_empty() || self.sets.take_relief() {
            return Refusals::new();
        }
        let asked = distinct_sets(desired);
        let asked: std::collections::HashSet<&Arc<PolicySet>> = asked.into_iter().collect();
        refused.into_iter().filter(|(set, _)| asked.contains(set)).collect()
    }

    /// The endpoints of refused sets make do with the policy that they have; those without one are closed.
    pub(super) fn make_do(
        &self,
        desired: &mut BTreeMap<Ipv4Addr, Desired>,
        refused: &Refusals,
        problems: &mut Problems,
    ) {
        desired.retain(|addr, desired| {
            let Some(reason) = refused.get(&desired.ingress).or_else(|| refused.get(&desired.egress)) else {
                return true;
            };
            let last =
                self.last_policy(*addr).filter(|last| last.iter().all(|set| !refused.contains_key(set)));
            let problem = Problem { reason: reason.clone(), keeps_last: last.is_some() };
            problems.insert(*addr, problem);
            if let Some([ingress, egress]) = last {
                (desired.ingress, desired.egress) = (ingress, egress);
                return true;
            }
            false
        });
    }

    /// Ingress and egress of an endpoint as they are in the kernel.
    fn last_policy(&self, addr: Ipv4Addr) -> Option<[Arc<PolicySet>; 2]> {
        let policy = self.endpoints.get(&addr)?.policy;
        Some([self.sets.policy(policy.ingress_set)?.clone(), self.sets.policy(policy.egress_set)?.clone()])
    }

    /// Sets that do not fit beside those before them. Those in the kernel come first, then the smallest.
    fn overflowing(&self, census: &mut Census, sets: Vec<&Arc<PolicySet>>) -> Refusals {
        let mut sets = sets;
        sets.sort_by_key(|set| (self.sets.id(set).is_none(), set.predicates().len()));
        let (mut fitting, mut refused) = (Vec::new(), Refusals::new());
        for set in sets {
            fitting.push(set);
            census.want(fitting.iter().copied());
            if let Some(reason) = self.overflow(census) {
                fitting.pop();
                refused.insert(set.clone(), format!("{}: {reason}", set.policies().join(", ")));
            }
        }
        refused
    }

    /// Why what the census wants does not fit. An entry that goes is removed behind those that come.
    fn overflow(&self, census: &Census) -> Option<String> {
        let limits = &self.limits;
        // So many go at the most; who they are is only asked where that might be too many.
        let may_leave = |present: usize| if self.settled { present.min(census.moving()) } else { present };
        let leaving = |is_net: bool| {
            let places = self.addresses.places().filter(|place| matches!(place, Place::Net(_)) == is_net);
            places.filter(|place| census.at(*place).is_none()).count()
        };
        let full = |(table, flag), wanted: usize, present: usize, limit: u32, is_net| {
            let limit_of_entries = usize::try_from(limit).unwrap_or(usize::MAX);
            let over = wanted > limit_of_entries
                || wanted + may_leave(present) > limit_of_entries
                    && wanted + leaving(is_net) > limit_of_entries;
            over.then(|| {
                format!(
                    "{table} has room for {limit} entries, {wanted} are needed; \
                     raise {flag} or select fewer addresses"
                )
            })
        };
        full((names::PEERS, "--max-peers"), census.peers(), self.addresses.peers(), limits.peers, false)
            .or_else(|| {
                full((names::NETS, "--max-nets"), census.prefixes(), self.addresses.nets(), limits.nets, true)
            })
    }
}
