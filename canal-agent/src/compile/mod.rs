//! What the cluster means for this node.
//!
//! Owns: the order of evaluation, and who is judged by what. Promises: the result depends on the cluster's content
//! alone, not on how it came about; equal content is shared; an update costs what it changes. Does not: allocate kernel
//! ids, write tables ([`crate::dataplane`]).
//!
//! The way: [`Compiler::update`] finds the policies of each local endpoint and turns them into a [`PolicySet`] for each
//! direction, with every question about the endpoint's own address answered; the [`Census`] puts peers with the same
//! answers to the remaining questions into one [`Class`]; [`PolicySet::row`] is the verdicts for a class;
//! [`pages::encode`] is a row as the kernel reads it.

mod area;
mod budget;
pub mod census;
mod fold;
mod index;
mod local;
pub mod pages;
mod predicate;
pub mod reference;
mod rules;
mod set;
mod sources;
#[cfg(test)]
pub(crate) mod tests;
mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
};

use ipnet::Ipv4Net;

pub use budget::OverBudget;
pub use census::{Census, Delta, Place};
pub use predicate::{Class, NamedPort, Predicate};
pub use set::{Aspect, PolicySet};
pub use verdict::{Decision, Final, Row, RuleId};

use self::{
    census::Object,
    local::Locals,
    sources::{Source, Sources},
};
use crate::model::{
    Cluster, EndpointKey,
    cluster::set_profiles,
    resource::{Kind, Resource},
};

/// How an address of a local endpoint is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    pub ingress: Arc<PolicySet>,
    pub egress: Arc<PolicySet>,
}

/// The policy of every address of this node's endpoints, and who is at the other end.
#[derive(Debug)]
pub struct Compiler {
    node: String,
    sources: Sources,
    locals: Locals,
    census: Census,
}

impl Compiler {
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            sources: Sources::default(),
            locals: Locals::default(),
            census: Census::default(),
        }
    }

    /// From nothing.
    pub fn of(cluster: &Cluster, node: &str) -> Self {
        let mut compiler = Self::new(node);
        compiler.update(cluster, &cluster.objects());
        compiler
    }

    /// Takes in what has changed in the cluster since the last time: [`Cluster::take_changes`].
    pub fn update(&mut self, cluster: &Cluster, changed: &[Resource]) {
        // Labels are inherited from profiles, so these come first; policies last, when it is known whom they select.
        let rank = |resource: &Resource| match resource.kind {
            Kind::Profile => 0,
            Kind::NetworkPolicy | Kind::GlobalNetworkPolicy => 2,
            _ => 1,
        };
        let mut changed: Vec<&Resource> = changed.iter().collect();
        changed.sort_by_key(|resource| rank(resource));
        for resource in changed {
            self.take_in(cluster, resource);
        }
        let names = self.census.take_changed_names();
        for source in self.sources.forget_names(&names) {
            self.locals.source_changed(&source);
        }
        self.locals.addresses_changed(|address| self.census.is_touched(address));
        self.census.forget_touched();
        self.census.refresh();
        self.locals.judge(cluster, &mut self.sources, &self.census);
    }

    /// By endpoint and address.
    pub fn endpoints(&self) -> &BTreeMap<(EndpointKey, Ipv4Addr), Judgement> {
        self.locals.judgements()
    }

    /// Endpoints of this node, also those without an address.
    pub fn local_endpoints(&self) -> impl Iterator<Item = &EndpointKey> {
        self.locals.keys()
    }

    /// Every set in use, once.
    pub fn sets(&self) -> Vec<&Arc<PolicySet>> {
        let mut seen = BTreeSet::new();
        let all = self.endpoints().values().flat_map(|judgement| [&judgement.ingress, &judgement.egress]);
        all.filter(|set| seen.insert(Arc::as_ptr(set))).collect()
    }

    pub fn census(&mut self) -> &mut Census {
        &mut self.census
    }

    fn take_in(&mut self, cluster: &Cluster, resource: &Resource) {
        match resource.kind {
            Kind::Profile => {
                self.sources.forget(&Source::Profile(resource.name.clone()));
                self.census.profile_changed(&resource.name, cluster);
                self.locals.profile_changed(&resource.name);
            }
            Kind::NetworkPolicy | Kind::GlobalNetworkPolicy => {
                let policy = cluster.policy(resource);
                let (old, new) = self.sources.set_policy(resource, policy);
                self.locals.policy_changed(old, new.map(|id| (id, self.sources.applies_to(id))));
            }
            Kind::Tier => {
                let sources = &self.sources;
                self.locals.tier_changed(|policy| sources.policy(policy).tier == resource.name);
            }
            Kind::WorkloadEndpoint => {
                let key = EndpointKey::new(&resource.namespace, &resource.name);
                let endpoint = cluster.endpoint(&key);
                let object = endpoint.map(|endpoint| Object {
                    labels: &endpoint.labels,
                    profiles: &endpoint.profiles,
                    ports: &endpoint.ports,
                    addresses: &endpoint.addresses,
                    nets: &[],
                });
                self.census.set(resource, object, cluster);
                let here = endpoint.is_some_and(|endpoint| endpoint.node == self.node);
                self.locals.endpoint_changed(key, here);
            }
            Kind::HostEndpoint => {
                let object = cluster.host_endpoint(resource).map(|host| Object {
                    labels: &host.labels,
                    profiles: &host.profiles,
                    ports: &host.ports,
                    addresses: &host.addresses,
                    nets: &[],
                });
                self.census.set(resource, object, cluster);
            }
            Kind::NetworkSet | Kind::GlobalNetworkSet => {
                let set = cluster.network_set(resource);
                let nets: Vec<Ipv4Net> = set.iter().flat_map(|set| set.ipv4_nets()).collect();
                let profiles = set_profiles(resource);
                let object = set.map(|set| Object {
                    labels: &set.labels,
                    profiles: &profiles,
                    ports: &[],
                    addresses: &[],
                    nets: &nets,
                });
                self.census.set(resource, object, cluster);
            }
        }
    }
}
