//! The evaluation of one packet at one endpoint, step by step, as [`Reference`] performs it.

use std::net::Ipv4Addr;

use crate::{
    api::explain::{DecidedBy, MatchedRule, PolicyWalk, ProfileWalk, TierWalk, Walk},
    compile::reference::{Met, Packet, Reference, Verdict},
    model::{
        Cluster, EndpointKey,
        policy::Policy,
        resource::{Kind, Resource},
        rule::{Action, Direction, Rule},
        tier::Tier,
    },
    node::names,
};

/// A walk, and what only those who compare it with the kernel need.
#[derive(Debug)]
pub(super) struct Walked {
    pub(super) walk: Walk,
    pub(super) verdict: Verdict,
    /// Some rule on the way asks for source ports.
    pub(super) asks_src_port: bool,
}

pub(super) fn walk(
    cluster: &Cluster,
    endpoint: &EndpointKey,
    direction: Direction,
    packet: &Packet,
) -> Walked {
    let mut steps =
        Steps { cluster, tiers: Vec::new(), profiles: Vec::new(), end: None, asks_src_port: false };
    let between: [Ipv4Addr; 2] = [packet.source, packet.destination];
    let verdict =
        Reference::between(cluster, between).walk(endpoint, direction, packet, |met| steps.take(met));
    let by_profile = verdict.rule.as_ref().is_some_and(|rule| rule.policy.kind == Kind::Profile);
    let rule = verdict.rule.as_ref().map(|rule| names::rule(cluster, rule));
    let (decided_by, reason) = match (&rule, steps.end) {
        (Some(rule), _) if by_profile => (DecidedBy::ProfileRule, rule.to_string()),
        (Some(rule), _) => (DecidedBy::Rule, rule.to_string()),
        (None, Some(end)) => end,
        (None, None) => (DecidedBy::NoProfile, "the endpoint is not known".to_owned()),
    };
    let walk =
        Walk { tiers: steps.tiers, profiles: steps.profiles, allow: verdict.allow, decided_by, rule, reason };
    Walked { walk, verdict, asks_src_port: steps.asks_src_port }
}

struct Steps<'a> {
    cluster: &'a Cluster,
    tiers: Vec<TierWalk>,
    profiles: Vec<ProfileWalk>,
    /// What decided without a rule.
    end: Option<(DecidedBy, String)>,
    asks_src_port: bool,
}

impl Steps<'_> {
    fn take(&mut self, met: Met<'_>) {
        match met {
            Met::Policy { resource, policy, rules } => self.policy(resource, policy, rules),
            Met::Rule { index, rule, matches } => self.rule(index, rule, matches),
            Met::EndOfTier { tier } => self.end_of_tier(tier),
            Met::Profile { name, rules } => self.profile(name, rules),
            Met::EndOfProfiles => self.end_of_profiles(),
        }
    }

    fn policy(&mut self, resource: &Resource, policy: &Policy, rules: usize) {
        if self.tiers.last().is_none_or(|last| last.tier != policy.tier) {
            let tier = self.cluster.tier(&policy.tier);
            self.tiers.push(TierWalk {
                tier: policy.tier.clone(),
                exists: tier.is_some(),
                default_action: default_action(tier.unwrap_or(Tier::MISSING)).to_owned(),
                policies: Vec::new(),
                ended: false,
            });
        }
        let walk = PolicyWalk {
            kind: resource.kind.name().to_owned(),
            namespace: resource.namespace.clone(),
            name: policy.display_name(resource).to_owned(),
            problem: self.cluster.invalid().get(&resource.key()).cloned(),
            key: resource.key(),
            rules,
            matched: Vec::new(),
        };
        self.tiers.last_mut().expect("one was just there").policies.push(walk);
    }

    fn rule(&mut self, index: u32, rule: &Rule, matches: bool) {
        self.asks_src_port |= !rule.source.ports.is_empty() || !rule.source.not_ports.is_empty();
        if !matches {
            return;
        }
        let matched = MatchedRule { index, action: action(rule.action).to_owned() };
        let policy = self.tiers.last_mut().and_then(|tier| tier.policies.last_mut());
        // Profiles come behind the policies.
        match (self.profiles.last_mut(), policy) {
            (Some(profile), _) => profile.matched.push(matched),
            (None, Some(policy)) => policy.matched.push(matched),
            (None, None) => {}
        }
    }

    fn end_of_tier(&mut self, tier: Tier) {
        let Some(last) = self.tiers.last_mut() else { return };
        last.ended = true;
        if !tier.passes {
            let reason = if last.exists {
                format!("no rule of tier {} matches, and its default action is Deny", last.tier)
            } else {
                format!("no rule of tier {} matches, which does not exist: that denies", last.tier)
            };
            self.end = Some((DecidedBy::TierDefault, reason));
        }
    }

    fn profile(&mut self, name: &str, rules: Option<usize>) {
        let key = Resource::new(Kind::Profile, "", name).key();
        self.profiles.push(ProfileWalk {
            name: name.to_owned(),
            exists: rules.is_some(),
            problem: self.cluster.invalid().get(&key).cloned(),
            rules: rules.unwrap_or_default(),
            matched: Vec::new(),
        });
        if rules.is_none() {
            let reason = format!("profile {name} does not exist, which denies everything");
            self.end = Some((DecidedBy::MissingProfile, reason));
        }
    }

    fn end_of_profiles(&mut self) {
        self.end = Some(if self.profiles.is_empty() {
            (DecidedBy::NoProfile, "no policy decided, and the endpoint has no profile".to_owned())
        } else {
            (DecidedBy::EndOfProfiles, "no rule of its profiles matches".to_owned())
        });
    }
}

fn default_action(tier: Tier) -> &'static str {
    if tier.passes { "Pass" } else { "Deny" }
}

fn action(action: Action) -> &'static str {
    match action {
        Action::Allow => "Allow",
        Action::Deny => "Deny",
        Action::Pass => "Pass",
        Action::Log => "Log",
    }
}
