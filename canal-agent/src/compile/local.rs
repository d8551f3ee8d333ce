//! This node's endpoints: which policies select them, and how each of their addresses is judged.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use super::{
    Judgement,
    census::Census,
    sources::{Source, Sources},
};
use crate::model::{Cluster, EndpointKey, Labels, Selector, rule::Direction};

#[derive(Debug, Default)]
pub(super) struct Locals {
    endpoints: BTreeMap<EndpointKey, Endpoint>,
    judgements: BTreeMap<(EndpointKey, Ipv4Addr), Judgement>,
    /// To be judged again.
    due: BTreeSet<EndpointKey>,
}

#[derive(Debug, Default)]
struct Endpoint {
    /// Own and inherited.
    labels: Labels,
    profiles: Vec<String>,
    addresses: Vec<Ipv4Addr>,
    /// Policies that select it.
    policies: BTreeSet<u32>,
    /// Its labels may be others, so that other policies may select it.
    is_new: bool,
}

impl Locals {
    pub(super) fn keys(&self) -> impl Iterator<Item = &EndpointKey> {
        self.endpoints.keys()
    }

    pub(super) fn judgements(&self) -> &BTreeMap<(EndpointKey, Ipv4Addr), Judgement> {
        &self.judgements
    }

    /// `here`: it is there, and of this node.
    pub(super) fn endpoint_changed(&mut self, key: EndpointKey, here: bool) {
        if here {
            self.endpoints.entry(key.clone()).or_default().is_new = true;
            self.due.insert(key);
        } else if let Some(gone) = self.endpoints.remove(&key) {
            self.due.remove(&key);
            for address in gone.addresses {
                self.judgements.remove(&(key.clone(), address));
            }
        }
    }

    pub(super) fn profile_changed(&mut self, name: &str) {
        for (key, endpoint) in &mut self.endpoints {
            if endpoint.profiles.iter().any(|profile| profile == name) {
                endpoint.is_new = true;
                self.due.insert(key.clone());
            }
        }
    }

    /// The policy has another number, with each of which a selector goes; or none.
    pub(super) fn policy_changed(&mut self, old: Option<u32>, new: Option<(u32, &Selector)>) {
        // Of a new one it is not known yet what it looks like; it is asked about all policies then.
        for (key, endpoint) in self.endpoints.iter_mut().filter(|(_, endpoint)| !endpoint.is_new) {
            let was = old.is_some_and(|old| endpoint.policies.remove(&old));
            let is = new.is_some_and(|(id, selector)| {
                selector.matches(&endpoint.labels) && endpoint.policies.insert(id)
            });
            if was || is {
                self.due.insert(key.clone());
            }
        }
    }

    pub(super) fn tier_changed(&mut self, is_in_it: impl Fn(u32) -> bool) {
        self.mark(|endpoint| endpoint.policies.iter().any(|id| is_in_it(*id)));
    }

    /// The rules of a policy or profile mean something else.
    pub(super) fn source_changed(&mut self, source: &Source) {
        self.mark(|endpoint| match source {
            Source::Policy(id) => endpoint.policies.contains(id),
            Source::Profile(name) => endpoint.profiles.contains(name),
        });
    }

    /// Something else may be true of these addresses.
    pub(super) fn addresses_changed(&mut self, is_touched: impl Fn(Ipv4Addr) -> bool) {
        self.mark(|endpoint| endpoint.addresses.iter().any(|address| is_touched(*address)));
    }

    fn mark(&mut self, is_concerned: impl Fn(&Endpoint) -> bool) {
        let concerned = self.endpoints.iter().filter(|(_, endpoint)| is_concerned(endpoint));
        self.due.extend(concerned.map(|(key, _)| key.clone()));
    }

    pub(super) fn judge(&mut self, cluster: &Cluster, sources: &mut Sources, census: &Census) {
        if self.due.is_empty() {
            return;
        }
        for key in std::mem::take(&mut self.due) {
            let (Some(endpoint), Some(workload)) = (self.endpoints.get_mut(&key), cluster.endpoint(&key))
            else {
                continue;
            };
            if endpoint.is_new {
                endpoint.labels = cluster.inherited(&workload.labels, &workload.profiles);
                endpoint.profiles.clone_from(&workload.profiles);
                endpoint.policies = sources.selecting(&endpoint.labels);
                endpoint.is_new = false;
            }
            for gone in endpoint.addresses.iter().filter(|address| !workload.addresses.contains(address)) {
                self.judgements.remove(&(key.clone(), *gone));
            }
            endpoint.addresses.clone_from(&workload.addresses);
            let policies = sources.in_order(cluster, &endpoint.policies);
            for address in &endpoint.addresses {
                let [ingress, egress] = Direction::BOTH.map(|direction| {
                    sources.set(cluster, census, (&policies, &endpoint.profiles), direction, *address)
                });
                self.judgements.insert((key.clone(), *address), Judgement { ingress, egress });
            }
        }
        sources.sweep();
    }
}
