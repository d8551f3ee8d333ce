//! What the cluster means for this node.
//!
//! Owns: the order of evaluation, and who is judged by what. Promises: the result depends on the cluster's content
//! alone; equal content is shared. Does not: allocate kernel ids, write tables ([`crate::dataplane`]).
//!
//! The way: [`compile()`] finds the policies of each local endpoint and turns them into a [`PolicySet`] for each
//! direction, with every question about the endpoint's own address answered; [`Compiled::classify`] puts peers with
//! the same answers to the remaining questions into one [`Class`]; [`PolicySet::row`] is the verdicts for a class;
//! [`pages::encode`] is a row as the kernel reads it.

mod area;
mod fold;
mod index;
mod members;
mod order;
pub mod pages;
mod predicate;
pub mod reference;
mod rules;
mod set;
#[cfg(test)]
pub(crate) mod tests;
mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    sync::Arc,
};

use members::{Classifier, Members};
use order::OrderedTier;
use rules::{Place, Step, Template, Verb};
use set::{Block, End, Stage};

pub use members::Classification;
pub use predicate::{Class, NamedPort, Predicate};
pub use set::PolicySet;
pub use verdict::{Decision, Final, Row, RuleId};

use crate::model::{
    Cluster, EndpointKey, Selector, WorkloadEndpoint,
    policy::Policy,
    resource::{Kind, Resource},
    rule::Direction,
    tier::Tier,
};

/// Policy of every local endpoint address.
#[derive(Debug)]
pub struct Compiled {
    pub endpoints: BTreeMap<(EndpointKey, Ipv4Addr), Judgement>,
    members: Members,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    pub ingress: Arc<PolicySet>,
    pub egress: Arc<PolicySet>,
}

impl Compiled {
    /// All that the sets in use ask about peers.
    pub fn predicates(&self) -> BTreeSet<Predicate> {
        self.sets().iter().flat_map(|set| set.predicates()).cloned().collect()
    }

    /// Every set in use, once.
    pub fn sets(&self) -> Vec<&Arc<PolicySet>> {
        let mut seen = BTreeSet::new();
        let all = self.endpoints.values().flat_map(|judgement| [&judgement.ingress, &judgement.egress]);
        all.filter(|set| seen.insert(Arc::as_ptr(set))).collect()
    }

    /// Classes of all peers, for exactly these predicates.
    pub fn classify(&self, predicates: &BTreeSet<Predicate>) -> Classification {
        self.members.classify(predicates)
    }
}

/// Classes of all peers, for exactly these predicates.
pub fn classify(cluster: &Cluster, predicates: &BTreeSet<Predicate>) -> Classification {
    Members::of(cluster).classify(predicates)
}

pub fn compile(cluster: &Cluster, node: &str) -> Compiled {
    let members = Members::of(cluster);
    let endpoints = Compiler::new(cluster, node, &members).run();
    Compiled { endpoints, members }
}

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

struct Compiler<'a> {
    cluster: &'a Cluster,
    members: &'a Members,
    endpoints: Vec<(&'a EndpointKey, &'a WorkloadEndpoint)>,
    tiers: Vec<Tier>,
    /// In order of evaluation, with the tier's position.
    policies: Vec<(usize, &'a Resource, &'a Arc<Policy>)>,
    templates: HashMap<(Source, Direction), Template>,
    blocks: HashMap<(Source, Direction, Class), Arc<Block>>,
    /// By the addresses of their blocks, which `blocks` keeps alive.
    sets: HashMap<Vec<(End, Vec<*const Block>)>, Arc<PolicySet>>,
}

/// Where the rules of a block come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Source {
    /// Position among the policies.
    Policy(usize),
    Profile(String),
}

impl<'a> Compiler<'a> {
    fn new(cluster: &'a Cluster, node: &'a str, members: &'a Members) -> Self {
        let mut compiler = Self {
            cluster,
            members,
            endpoints: cluster.endpoints_of(node).collect(),
            tiers: Vec::new(),
            policies: Vec::new(),
            templates: HashMap::new(),
            blocks: HashMap::new(),
            sets: HashMap::new(),
        };
        for OrderedTier { tier, policies } in order::tiers(cluster) {
            let at = compiler.tiers.len();
            compiler.tiers.push(tier);
            // Those for host endpoints before connection tracking or DNAT are not the workloads' business.
            let normal = policies.into_iter().filter(|(_, policy)| !policy.do_not_track && !policy.pre_dnat);
            compiler.policies.extend(normal.map(|(resource, policy)| (at, resource, policy)));
        }
        compiler
    }

    fn run(mut self) -> BTreeMap<(EndpointKey, Ipv4Addr), Judgement> {
        let selectors: Vec<Selector> =
            self.policies.iter().map(|(_, resource, policy)| fold::applies_to(resource, policy)).collect();
        let index = index::SelectorIndex::new(&selectors);
        let mut selected_by = HashMap::new();
        let endpoints = std::mem::take(&mut self.endpoints);
        let applied: Vec<Vec<usize>> = endpoints
            .iter()
            .map(|(_, endpoint)| {
                let labels = self.cluster.inherited(&endpoint.labels, &endpoint.profiles);
                selected_by.entry(labels).or_insert_with_key(|labels| index.matches(labels)).clone()
            })
            .collect();
        for ((_, endpoint), policies) in endpoints.iter().zip(&applied) {
            self.make_templates(endpoint, policies);
        }
        let local: BTreeSet<Predicate> =
            self.templates.values().flat_map(Template::local_predicates).cloned().collect();
        let mut classifier = Classifier::new(self.members, &local);
        let mut judgements = BTreeMap::new();
        for ((key, endpoint), policies) in endpoints.into_iter().zip(&applied) {
            for address in &endpoint.addresses {
                let class = classifier.class_of(*address);
                let [ingress, egress] =
                    DIRECTIONS.map(|direction| self.set(endpoint, policies, direction, &class));
                judgements.insert((key.clone(), *address), Judgement { ingress, egress });
            }
        }
        judgements
    }

    fn make_templates(&mut self, endpoint: &WorkloadEndpoint, policies: &[usize]) {
        for direction in DIRECTIONS {
            for at in policies {
                let (_, resource, policy) = self.policies[*at];
                let Some(rules) = policy.rules(direction) else { continue };
                let place = Place { tier: &policy.tier, policy: resource, direction };
                self.templates
                    .entry((Source::Policy(*at), direction))
                    .or_insert_with(|| Template::new(&place, rules, self.members));
            }
            for name in &endpoint.profiles {
                let Some(profile) = self.cluster.profile(name) else { continue };
                let resource = Resource::new(Kind::Profile, "", name);
                let place = Place { tier: "", policy: &resource, direction };
                self.templates
                    .entry((Source::Profile(name.clone()), direction))
                    .or_insert_with(|| Template::new(&place, profile.rules(direction), self.members));
            }
        }
    }

    fn set(
        &mut self,
        endpoint: &WorkloadEndpoint,
        policies: &[usize],
        direction: Direction,
        local: &Class,
    ) -> Arc<PolicySet> {
        let governing = |at: &&usize| self.policies[**at].2.rules(direction).is_some();
        let governing: Vec<usize> = policies.iter().filter(governing).copied().collect();
        let mut stages: Vec<Stage> = Vec::new();
        // Policies come in order of their tiers; a tier none of whose policies governs this direction is not there.
        let same_tier = |a: &usize, b: &usize| self.policies[*a].0 == self.policies[*b].0;
        let tiers: Vec<Vec<usize>> = governing.chunk_by(same_tier).map(<[usize]>::to_vec).collect();
        for tier in tiers {
            let blocks = tier.iter().map(|at| self.block(Source::Policy(*at), direction, local)).collect();
            let end = if self.tiers[self.policies[tier[0]].0].passes { End::Pass } else { End::Deny };
            stages.push(Stage { blocks, end });
        }
        let names = endpoint.profiles.iter();
        let blocks = names.map(|name| self.block(Source::Profile(name.clone()), direction, local)).collect();
        stages.push(Stage { blocks, end: End::Profiles });
        // What nothing passes on to does not make sets differ.
        let reached = stages.iter().position(Stage::is_last).map_or(stages.len(), |last| last + 1);
        stages.truncate(reached);
        let identity = stages.iter().map(|s| (s.end, s.blocks.iter().map(Arc::as_ptr).collect())).collect();
        self.sets.entry(identity).or_insert_with(|| Arc::new(PolicySet::new(stages))).clone()
    }

    fn block(&mut self, source: Source, direction: Direction, local: &Class) -> Arc<Block> {
        let template = self.templates.get(&(source.clone(), direction));
        // Only what this template asks about makes a difference to it.
        let local = template.map_or_else(Class::default, |template| {
            let asked = template.local_predicates();
            Class::new(local.predicates().iter().filter(|predicate| asked.contains(*predicate)).cloned())
        });
        let name = match &source {
            Source::Policy(at) => self.policies[*at].1.to_string(),
            Source::Profile(name) => Resource::new(Kind::Profile, "", name).to_string(),
        };
        self.blocks
            .entry((source, direction, local))
            .or_insert_with_key(|(_, _, local)| {
                Arc::new(match template {
                    Some(template) => Block::new(name, template.decide(local)),
                    None => Block::new(format!("{name} (missing)"), vec![deny_everything()]),
                })
            })
            .clone()
    }
}

/// What stands for a profile that does not exist.
fn deny_everything() -> Step {
    Step { verb: Verb::Deny, rule: None, area: area::Area::everything(), peer: rules::Criteria::default() }
}
