//! Endpoints and their policies, once the sets and columns that they are to have stand.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    sync::Arc,
};

use canal_common::endpoint::{Endpoint, EndpointPolicy};

use super::{Desired, PolicyTables, Problem, Problems, Programmed};
use crate::{
    compile::{Census, PolicySet},
    dataplane::tables::Tables,
};

/// An endpoint as it is to be.
pub(super) struct Target<'a> {
    desired: &'a Desired,
    policy: EndpointPolicy,
}

pub(super) type Targets<'a> = BTreeMap<Ipv4Addr, Target<'a>>;

impl<T: Tables> PolicyTables<T> {
    /// No endpoint that is there gets other sets.
    pub(super) fn keeps_policies(&self, census: &Census, desired: &BTreeMap<Ipv4Addr, Desired>) -> bool {
        let mut by_net = HashMap::new();
        let mut keeps = |want, programmed: &Programmed| {
            self.policy_of(want, census, &mut by_net) == Some(programmed.policy)
        };
        self.endpoints
            .iter()
            .all(|(addr, programmed)| desired.get(addr).is_none_or(|want| keeps(want, programmed)))
    }

    /// Every set stands by now.
    pub(super) fn targets<'a>(
        &self,
        census: &Census,
        desired: &'a BTreeMap<Ipv4Addr, Desired>,
    ) -> Targets<'a> {
        let mut by_net = HashMap::new();
        desired
            .iter()
            .filter_map(|(addr, desired)| {
                let policy = self.policy_of(desired, census, &mut by_net)?;
                Some((*addr, Target { desired, policy }))
            })
            .collect()
    }

    /// `None`: some set of it is not in the kernel. `by_net`: what was asked before.
    fn policy_of<'a>(
        &self,
        desired: &'a Desired,
        census: &Census,
        by_net: &mut HashMap<&'a Arc<PolicySet>, bool>,
    ) -> Option<EndpointPolicy> {
        let (ingress, egress) = (&desired.ingress, &desired.egress);
        let mut asks_by_net = |set| *by_net.entry(set).or_insert_with(|| census.asks_by_net(set));
        let uses_nets = asks_by_net(ingress) | asks_by_net(egress);
        Some(EndpointPolicy {
            ingress_set: self.sets.id(ingress)?,
            egress_set: self.sets.id(egress)?,
            flags: if uses_nets { EndpointPolicy::USES_NETS } else { 0 },
        })
    }

    /// Takes out the endpoints that are not to be.
    pub(super) fn close(&mut self, targets: &Targets<'_>) -> Result<(), T::Error> {
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
            // Its flows are over. The policy goes last: by it a fresh process would know that this is still to be done.
            self.tables.bump_generation(id)?;
            self.tables.delete_policy(id)?;
            self.endpoint_ids.give_back(id);
            self.orphans.pop();
        }
        Ok(())
    }

    /// Points the endpoints that are there at their sets. Who looked into `NETS` goes on to do so until the columns
    /// are right; the answer is whose sets changed.
    pub(super) fn flip(&mut self, targets: &Targets<'_>) -> Result<BTreeSet<Ipv4Addr>, T::Error> {
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
    pub(super) fn settle(
        &mut self,
        targets: &Targets<'_>,
        dirty: &BTreeSet<u32>,
        flipped: &BTreeSet<Ipv4Addr>,
    ) -> Result<Problems, T::Error> {
        let mut unplaced = Problems::new();
        for (addr, Target { desired, policy }) in targets {
            let old = self.endpoints.get(addr).copied();
            let Some(id) = old.map(|old| old.endpoint.id).or_else(|| self.endpoint_ids.take()) else {
                let reason = format!("all {} endpoints of this node are in use", self.limits.endpoints - 1);
                unplaced.insert(*addr, Problem { reason, keeps_last: false });
                continue;
            };
            let endpoint = Endpoint {
                ifindex: desired.ifindex,
                id,
                pod_mac: desired.pod_mac,
                host_mac: desired.host_mac,
                flags: if desired.shaped { Endpoint::SHAPED } else { 0 },
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
                if old.is_some() {
                    // Programs read the generation after the element: with the new one they must not have the old other.
                    self.tables.note_programs()?;
                    self.tables.wait_for_programs()?;
                }
            }
            let is_dirty = dirty.contains(&policy.ingress_set) || dirty.contains(&policy.egress_set);
            if is_other || is_dirty || flipped.contains(addr) {
                self.tables.bump_generation(id)?;
            }
        }
        Ok(unplaced)
    }

    /// Frees what nothing points at any more.
    pub(super) fn retire(&mut self) -> Result<(), T::Error> {
        self.drop_orphans()?;
        let policies = self.endpoints.values().map(|p| p.policy);
        let used = policies.flat_map(|p| [p.ingress_set, p.egress_set]).collect();
        self.sets.retire(&mut self.tables, &used)?;
        let addresses = &self.addresses;
        let unused: Vec<u32> =
            self.classes.iter().map(|(id, _)| id).filter(|id| addresses.population(*id) == 0).collect();
        for id in &unused {
            self.classes.remove(*id);
        }
        let freed: BTreeSet<u32> = unused.into_iter().chain(std::mem::take(&mut self.freed)).collect();
        self.sets.drop_columns(&freed);
        Ok(())
    }
}
