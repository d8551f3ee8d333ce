//! Where rules come from: policies and profiles, what they say, and the blocks that they become.
//!
//! What was worked out is kept as long as somebody uses it and its source stands.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    sync::Arc,
};

use super::{
    area,
    census::Census,
    fold,
    index::SelectorIndex,
    predicate::Class,
    rules::{Criteria, Place, Step, Template, Verb},
    set::{Block, End, PolicySet, Stage},
};
use crate::model::{
    Cluster, Labels, Selector,
    policy::{Order, Policy},
    resource::{Kind, Resource},
    rule::Direction,
    tier::Tier,
};

/// So much is worked out between two sweeps.
const SWEPT_TOGETHER: usize = 64;

/// Where the rules of a block come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Source {
    /// A number of [`Sources`].
    Policy(u32),
    Profile(String),
}

/// A policy that workloads may see.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) resource: Resource,
    pub(super) policy: Arc<Policy>,
    pub(super) tier: String,
    applies_to: Selector,
    tie_break: String,
}

#[derive(Debug, Default)]
pub(super) struct Sources {
    numbers: HashMap<Resource, u32>,
    policies: BTreeMap<u32, Known>,
    next: u32,
    index: SelectorIndex,
    templates: HashMap<(Source, Direction), Template>,
    /// With a number that no other block has had.
    blocks: HashMap<(Source, Direction, Class), (u64, Arc<Block>)>,
    next_block: u64,
    /// By the numbers of their blocks.
    sets: HashMap<Vec<(End, Vec<u64>)>, Arc<PolicySet>>,
    /// Templates, blocks and sets that were left by the last [`Sources::sweep`].
    swept: usize,
}

impl Sources {
    /// Takes a policy in, or out; its number before and after.
    pub(super) fn set_policy(
        &mut self,
        resource: &Resource,
        policy: Option<&Arc<Policy>>,
    ) -> (Option<u32>, Option<u32>) {
        let old = self.numbers.remove(resource);
        if let Some(old) = old {
            self.policies.remove(&old);
            self.index.remove(old);
            self.forget(&Source::Policy(old));
        }
        // Those for host endpoints before connection tracking or DNAT are not the workloads' business.
        let Some(policy) = policy.filter(|policy| !policy.do_not_track && !policy.pre_dnat) else {
            return (old, None);
        };
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let known = Known {
            resource: resource.clone(),
            policy: policy.clone(),
            tier: policy.tier.clone(),
            applies_to: fold::applies_to(resource, policy),
            tie_break: Policy::tie_break(resource),
        };
        self.index.insert(id, &known.applies_to);
        self.policies.insert(id, known);
        self.numbers.insert(resource.clone(), id);
        (old, Some(id))
    }

    pub(super) fn policy(&self, id: u32) -> &Known {
        &self.policies[&id]
    }

    pub(super) fn applies_to(&self, id: u32) -> &Selector {
        &self.policies[&id].applies_to
    }

    /// Policies that select an endpoint with these labels.
    pub(super) fn selecting(&self, labels: &Labels) -> BTreeSet<u32> {
        self.index.matches(labels).into_iter().collect()
    }

    /// The rules of this source are others now.
    pub(super) fn forget(&mut self, source: &Source) {
        for direction in Direction::BOTH {
            self.templates.remove(&(source.clone(), direction));
        }
        // A missing profile has blocks without a template.
        self.blocks.retain(|(of, ..), _| of != source);
    }

    /// Some port names may stand for other ports now; whose rules that changes.
    pub(super) fn forget_names(&mut self, names: &BTreeSet<String>) -> BTreeSet<Source> {
        if names.is_empty() {
            return BTreeSet::new();
        }
        let mention = self.templates.iter().filter(|(_, template)| template.mentions(names));
        let sources: BTreeSet<Source> = mention.map(|((source, _), _)| source.clone()).collect();
        for source in &sources {
            self.forget(source);
        }
        sources
    }

    /// Drops what nobody uses any more, some at a time: to find it takes a look at everything, and many at once take long.
    pub(super) fn sweep(&mut self) {
        if self.worked_out() < self.swept + SWEPT_TOGETHER {
            return;
        }
        self.sets.retain(|_, set| Arc::strong_count(set) > 1);
        self.blocks.retain(|_, (_, block)| Arc::strong_count(block) > 1);
        let used: BTreeSet<(&Source, Direction)> =
            self.blocks.keys().map(|(source, direction, _)| (source, *direction)).collect();
        self.templates.retain(|(source, direction), _| used.contains(&(source, *direction)));
        self.swept = self.worked_out();
    }

    fn worked_out(&self) -> usize {
        self.templates.len() + self.blocks.len() + self.sets.len()
    }

    /// What decides about an address of an endpoint in one direction. `policies`: those that select it, in order of
    /// evaluation, grouped by tier.
    pub(super) fn set(
        &mut self,
        cluster: &Cluster,
        census: &Census,
        (policies, profiles): (&[Vec<u32>], &[String]),
        direction: Direction,
        address: Ipv4Addr,
    ) -> Arc<PolicySet> {
        let (mut stages, mut identity) = (Vec::new(), Vec::new());
        let mut push = |blocks: Vec<(u64, Arc<Block>)>, end| {
            let (numbers, blocks): (Vec<u64>, Vec<Arc<Block>>) = blocks.into_iter().unzip();
            identity.push((end, numbers));
            stages.push(Stage { blocks, end });
        };
        for tier in policies {
            let governing = |id: &&u32| self.policies[*id].policy.rules(direction).is_some();
            let governing: Vec<u32> = tier.iter().filter(governing).copied().collect();
            // A tier none of whose policies governs this direction is not there.
            let Some(first) = governing.first() else { continue };
            let passes = cluster.tier(&self.policies[first].tier).unwrap_or(Tier::MISSING).passes;
            let blocks = governing
                .iter()
                .map(|id| self.block(cluster, census, Source::Policy(*id), direction, address))
                .collect();
            push(blocks, if passes { End::Pass } else { End::Deny });
        }
        let blocks = profiles
            .iter()
            .map(|name| self.block(cluster, census, Source::Profile(name.clone()), direction, address))
            .collect();
        push(blocks, End::Profiles);
        // What nothing passes on to does not make sets differ.
        let reached = stages.iter().position(Stage::is_last).map_or(stages.len(), |last| last + 1);
        stages.truncate(reached);
        identity.truncate(reached);
        self.sets.entry(identity).or_insert_with(|| Arc::new(PolicySet::new(stages))).clone()
    }

    /// Tiers with their policies, both in order of evaluation. A tier that does not exist comes after all that do, closed.
    pub(super) fn in_order(&self, cluster: &Cluster, policies: &BTreeSet<u32>) -> Vec<Vec<u32>> {
        let mut tiers: BTreeMap<(bool, Order, &str), Vec<u32>> = BTreeMap::new();
        for id in policies {
            let name = self.policies[id].tier.as_str();
            let tier = cluster.tier(name);
            let place = (tier.is_none(), tier.unwrap_or(Tier::MISSING).order, name);
            tiers.entry(place).or_default().push(*id);
        }
        let mut tiers: Vec<Vec<u32>> = tiers.into_values().collect();
        let place = |id: &u32| {
            let known = &self.policies[id];
            (known.policy.order, &known.tie_break)
        };
        for policies in &mut tiers {
            policies.sort_by(|a, b| place(a).cmp(&place(b)));
        }
        tiers
    }

    fn block(
        &mut self,
        cluster: &Cluster,
        census: &Census,
        source: Source,
        direction: Direction,
        address: Ipv4Addr,
    ) -> (u64, Arc<Block>) {
        let key = (source, direction);
        if !self.templates.contains_key(&key)
            && let Some(template) = self.template(cluster, census, &key)
        {
            self.templates.insert(key.clone(), template);
        }
        let template = self.templates.get(&key);
        // Only what this template asks about makes a difference to it.
        let asked = template.into_iter().flat_map(Template::local_predicates);
        let local = Class::new(asked.filter(|predicate| census.holds(address, predicate)).cloned());
        let (source, direction) = key;
        let resource = match &source {
            Source::Policy(id) => self.policies[id].resource.clone(),
            Source::Profile(name) => Resource::new(Kind::Profile, "", name),
        };
        let next = &mut self.next_block;
        let made = self.blocks.entry((source, direction, local)).or_insert_with_key(|(_, _, local)| {
            *next += 1;
            let block = match template {
                Some(template) => Block::new(resource.to_string(), template.decide(local)),
                None => Block::new(format!("{resource} (missing)"), Ok(vec![deny_everything()])),
            };
            (*next, Arc::new(block))
        });
        made.clone()
    }

    /// `None`: there is no such profile.
    fn template(&self, cluster: &Cluster, census: &Census, key: &(Source, Direction)) -> Option<Template> {
        let (source, direction) = key;
        Some(match source {
            Source::Policy(id) => {
                let Known { resource, policy, .. } = &self.policies[id];
                let place = Place { tier: &policy.tier, policy: resource, direction: *direction };
                Template::new(&place, policy.rules(*direction)?, census)
            }
            Source::Profile(name) => {
                let resource = Resource::new(Kind::Profile, "", name);
                let place = Place { tier: "", policy: &resource, direction: *direction };
                Template::new(&place, cluster.profile(name)?.rules(*direction), census)
            }
        })
    }
}

/// What stands for a profile that does not exist.
fn deny_everything() -> Step {
    Step { verb: Verb::Deny, rule: None, area: area::Area::everything(), peer: Criteria::default() }
}
