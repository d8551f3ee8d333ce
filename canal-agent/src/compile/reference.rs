//! Policy as its definition reads, packet by packet: the oracle for compiled tables and kernel programs.
//!
//! Promises: nothing is folded, indexed or precomputed; it shares with the compiler only what admission made of the
//! stored objects. Does not: care about speed.

use std::net::Ipv4Addr;

use ipnet::IpNet;

use super::verdict::RuleId;
use crate::model::{
    Cluster, EndpointKey, Labels, WorkloadEndpoint,
    endpoint::NamedPort,
    labels::{NAMESPACE, NAMESPACE_PREFIX, SERVICE_ACCOUNT, SERVICE_ACCOUNT_PREFIX},
    policy::Policy,
    resource::{Kind, Resource},
    rule::{Action, Direction, Entity, Icmp, Port, Protocol, Rule},
    tier::Tier,
};

/// A packet from `source` to `destination`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    /// Both 0 where the protocol has no ports.
    pub src_port: u16,
    pub dst_port: u16,
    /// Both 0 where the protocol is not ICMP.
    pub icmp_type: u8,
    pub icmp_code: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub allow: bool,
    pub rule: Option<RuleId>,
    /// Log rules that were met on the way, in order.
    pub logs: Vec<RuleId>,
}

impl Verdict {
    const DENY: Self = Self { allow: false, rule: None, logs: Vec::new() };
}

/// What an evaluation meets, in order.
#[derive(Debug, Clone, Copy)]
pub enum Met<'a> {
    /// One that selects the endpoint and governs the direction; its tier is the one before, or the next.
    Policy { resource: &'a Resource, policy: &'a Policy, rules: usize },
    /// A rule of the policy or profile that was met last.
    Rule { index: u32, rule: &'a Rule, matches: bool },
    /// Of a tier with such a policy: no rule has decided.
    EndOfTier { tier: Tier },
    /// `rules`: how many, or `None` when the profile does not exist, which denies.
    Profile { name: &'a str, rules: Option<usize> },
    /// No profile has decided, or there is none. That denies.
    EndOfProfiles,
}

/// A known object: what selectors see of it, and its addresses.
struct Object {
    labels: Labels,
    ports: Vec<NamedPort>,
    nets: Vec<IpNet>,
}

type Policies<'a> = Vec<(&'a Resource, &'a Policy)>;

pub struct Reference<'a> {
    cluster: &'a Cluster,
    objects: Vec<Object>,
}

impl<'a> Reference<'a> {
    pub fn new(cluster: &'a Cluster) -> Self {
        Self::of(cluster, |_| true)
    }

    /// For packets between these addresses alone: made quickly, also of a large cluster.
    pub fn between(cluster: &'a Cluster, addresses: [Ipv4Addr; 2]) -> Self {
        Self::of(cluster, |nets| addresses.iter().any(|a| nets.iter().any(|net| contains(net, *a))))
    }

    fn of(cluster: &'a Cluster, wanted: impl Fn(&[IpNet]) -> bool) -> Self {
        let hosts = |addresses: &[Ipv4Addr]| {
            addresses.iter().map(|a| IpNet::from(std::net::IpAddr::V4(*a))).collect()
        };
        let mut objects = Vec::new();
        let mut add = |nets: Vec<IpNet>, ports: &[NamedPort], labels: &dyn Fn() -> Labels| {
            if wanted(&nets) {
                objects.push(Object { labels: labels(), ports: ports.to_vec(), nets });
            }
        };
        for (_, endpoint) in cluster.endpoints() {
            let labels = || cluster.inherited(&endpoint.labels, &endpoint.profiles);
            add(hosts(&endpoint.addresses), &endpoint.ports, &labels);
        }
        for (_, host) in cluster.host_endpoints() {
            add(hosts(&host.addresses), &host.ports, &|| cluster.inherited(&host.labels, &host.profiles));
        }
        for (resource, set) in cluster.network_sets() {
            add(set.nets.clone(), &[], &|| cluster.set_labels(resource, set));
        }
        Self { cluster, objects }
    }

    /// What the policy of `endpoint` says about a packet that no connection accounts for.
    pub fn judge(&self, endpoint: &EndpointKey, direction: Direction, packet: &Packet) -> Verdict {
        self.walk(endpoint, direction, packet, |_| {})
    }

    /// The same, and `tell` hears of everything that was met on the way.
    pub fn walk(
        &self,
        endpoint: &EndpointKey,
        direction: Direction,
        packet: &Packet,
        mut tell: impl FnMut(Met<'_>),
    ) -> Verdict {
        let Some(endpoint) = self.cluster.endpoint(endpoint) else { return Verdict::DENY };
        let view =
            View { packet, source: self.owners(packet.source), destination: self.owners(packet.destination) };
        let mut logs = Vec::new();
        'tiers: for (name, tier, policies) in self.tiers() {
            let mut applied = false;
            for (resource, policy) in policies {
                let Some(rules) = policy.rules(direction) else { continue };
                if policy.do_not_track || policy.pre_dnat || !self.selects(resource, policy, endpoint) {
                    continue;
                }
                applied = true;
                tell(Met::Policy { resource, policy, rules: rules.len() });
                for (index, rule) in (0..).zip(rules.iter()) {
                    let matches = rule_matches(resource, rule, &view);
                    tell(Met::Rule { index, rule, matches });
                    if !matches {
                        continue;
                    }
                    let id = || RuleId { tier: name.to_owned(), policy: resource.clone(), direction, index };
                    match rule.action {
                        Action::Allow => return Verdict { allow: true, rule: Some(id()), logs },
                        Action::Deny => return Verdict { allow: false, rule: Some(id()), logs },
                        Action::Pass => continue 'tiers,
                        Action::Log => logs.push(id()),
                    }
                }
            }
            if applied {
                tell(Met::EndOfTier { tier });
                if !tier.passes {
                    return Verdict { logs, ..Verdict::DENY };
                }
            }
        }
        for name in &endpoint.profiles {
            let Some(profile) = self.cluster.profile(name) else {
                tell(Met::Profile { name, rules: None });
                return Verdict { logs, ..Verdict::DENY };
            };
            let resource = Resource::new(Kind::Profile, "", name);
            let rules = profile.rules(direction);
            tell(Met::Profile { name, rules: Some(rules.len()) });
            for (index, rule) in (0..).zip(rules.iter()) {
                let matches = rule_matches(&resource, rule, &view);
                tell(Met::Rule { index, rule, matches });
                if !matches {
                    continue;
                }
                let id = RuleId { tier: String::new(), policy: resource.clone(), direction, index };
                if rule.action == Action::Log {
                    logs.push(id);
                } else {
                    return Verdict { allow: rule.action == Action::Allow, rule: Some(id), logs };
                }
            }
        }
        tell(Met::EndOfProfiles);
        Verdict { logs, ..Verdict::DENY }
    }

    fn owners(&self, address: Ipv4Addr) -> Vec<&Object> {
        let holds = |object: &&Object| object.nets.iter().any(|net| contains(net, address));
        self.objects.iter().filter(holds).collect()
    }

    fn tiers(&self) -> Vec<(&str, Tier, Policies<'_>)> {
        let mut names: Vec<&str> = self.cluster.policies().map(|(_, policy)| policy.tier.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names.sort_by_key(|name| match self.cluster.tier(name) {
            Some(tier) => (false, tier.order),
            None => (true, Tier::MISSING.order),
        });
        let of = |name: &str| {
            let mut policies: Policies<'_> = self
                .cluster
                .policies()
                .filter(|(_, policy)| policy.tier == name)
                .map(|(resource, policy)| (resource, &**policy))
                .collect();
            let text = |r: &Resource| format!("{}/{}/{}", r.name, r.namespace, r.kind.name());
            policies.sort_by(|a, b| a.1.order.cmp(&b.1.order).then_with(|| text(a.0).cmp(&text(b.0))));
            policies
        };
        names
            .into_iter()
            .map(|name| (name, self.cluster.tier(name).unwrap_or(Tier::MISSING), of(name)))
            .collect()
    }

    fn selects(&self, resource: &Resource, policy: &Policy, endpoint: &WorkloadEndpoint) -> bool {
        let labels = self.cluster.inherited(&endpoint.labels, &endpoint.profiles);
        let global = !resource.kind.namespaced();
        let within = |selector: &crate::model::Selector, prefix, any: &str| {
            if global && selector.is_all() {
                labels.contains_key(any)
            } else {
                selector.matches(&unprefixed(&labels, prefix))
            }
        };
        policy.selector.as_ref().is_none_or(|s| s.matches(&labels))
            && (global || labels.get(NAMESPACE) == Some(&resource.namespace))
            && policy.namespace_selector.as_ref().is_none_or(|s| within(s, NAMESPACE_PREFIX, NAMESPACE))
            && policy
                .service_account_selector
                .as_ref()
                .is_none_or(|s| within(s, SERVICE_ACCOUNT_PREFIX, SERVICE_ACCOUNT))
    }
}

struct View<'a> {
    packet: &'a Packet,
    source: Vec<&'a Object>,
    destination: Vec<&'a Object>,
}

fn rule_matches(resource: &Resource, rule: &Rule, view: &View<'_>) -> bool {
    let packet = view.packet;
    let is_icmp =
        |icmp: Icmp| icmp.icmp_type == packet.icmp_type && icmp.code.is_none_or(|c| c == packet.icmp_code);
    let namespace = resource.kind.namespaced().then_some(resource.namespace.as_str());
    let side = |entity, address, owners: &[&Object], port| {
        Side { namespace, entity, rule, address, owners, protocol: packet.protocol, port }.matches()
    };
    !rule.inert
        && rule.ip_version != Some(6)
        && rule.protocol.is_none_or(|p| p.ip_version != Some(6) && p.number == packet.protocol)
        && rule.not_protocol.is_none_or(|p| p.number != packet.protocol)
        && rule.icmp.is_none_or(|icmp| packet.protocol == 1 && is_icmp(icmp))
        && rule.not_icmp.is_none_or(|icmp| packet.protocol == 1 && !is_icmp(icmp))
        && side(&rule.source, packet.source, &view.source, packet.src_port)
        && side(&rule.destination, packet.destination, &view.destination, packet.dst_port)
}

struct Side<'a> {
    namespace: Option<&'a str>,
    entity: &'a Entity,
    rule: &'a Rule,
    address: Ipv4Addr,
    owners: &'a [&'a Object],
    protocol: u8,
    port: u16,
}

impl Side<'_> {
    fn matches(&self) -> bool {
        self.nets_match() && self.owners_match() && self.ports_match()
    }

    fn nets_match(&self) -> bool {
        let Entity { nets, not_nets, .. } = self.entity;
        let of_family =
            |nets: &[IpNet]| nets.is_empty() || nets.iter().any(|net| matches!(net, IpNet::V4(_)));
        let within = |nets: &[IpNet]| nets.iter().any(|net| contains(net, self.address));
        of_family(nets) && of_family(not_nets) && (nets.is_empty() || within(nets)) && !within(not_nets)
    }

    fn owners_match(&self) -> bool {
        if self.is_about_owners() {
            return self.owners.iter().any(|owner| self.selects(owner));
        }
        let unwanted = |s: &crate::model::Selector| self.owners.iter().any(|owner| s.matches(&owner.labels));
        !self.entity.not_selector.as_ref().is_some_and(unwanted)
    }

    /// Says whom the address must belong to, so that an address of nobody does not do.
    fn is_about_owners(&self) -> bool {
        let entity = self.entity;
        let positive = entity.selector.is_some() || entity.service_accounts.is_some();
        let in_own_namespace =
            self.namespace.is_some() && !entity.any_namespace && entity.not_selector.is_some();
        positive || entity.namespace_selector.is_some() || in_own_namespace
    }

    fn selects(&self, owner: &Object) -> bool {
        let entity = self.entity;
        let labels = &owner.labels;
        let account = labels.get(SERVICE_ACCOUNT);
        let namespace = match (&entity.namespace_selector, self.namespace) {
            (Some(s), _) if s.is_global() => !labels.contains_key(NAMESPACE),
            (Some(s), _) if s.is_all() => labels.contains_key(NAMESPACE),
            (Some(s), _) => s.matches(&unprefixed(labels, NAMESPACE_PREFIX)),
            (None, Some(own)) if !entity.any_namespace => {
                labels.get(NAMESPACE).is_some_and(|namespace| namespace == own)
            }
            (None, _) => true,
        };
        let accounts = entity.service_accounts.as_ref().is_none_or(|wanted| {
            (wanted.names.is_empty() || account.is_some_and(|name| wanted.names.contains(name)))
                && wanted
                    .selector
                    .as_ref()
                    .is_none_or(|s| s.matches(&unprefixed(labels, SERVICE_ACCOUNT_PREFIX)))
        });
        namespace
            && accounts
            && entity.selector.as_ref().is_none_or(|s| s.matches(labels))
            && !entity.not_selector.as_ref().is_some_and(|s| s.matches(labels))
    }

    fn ports_match(&self) -> bool {
        let Entity { ports, not_ports, .. } = self.entity;
        (ports.is_empty() || ports.iter().any(|port| self.is_port(port)))
            && !not_ports.iter().any(|port| self.is_port(port))
    }

    fn is_port(&self, port: &Port) -> bool {
        match port {
            Port::Range(low, high) => {
                matches!(self.protocol, 6 | 17 | 132) && (*low..=*high).contains(&self.port)
            }
            Port::Name(name) => {
                let wanted = match self.rule.protocol {
                    None => matches!(self.protocol, 6 | 17 | 132),
                    Some(Protocol { number: number @ (17 | 132), .. }) => self.protocol == number,
                    Some(_) => self.protocol == 6,
                };
                let declares = |owner: &&&Object| {
                    owner
                        .ports
                        .iter()
                        .any(|p| p.name == *name && p.protocol == self.protocol && p.port == self.port)
                };
                // Without positive criteria everybody's names count.
                let counts = |owner: &&Object| !self.is_about_owners() || self.selects(owner);
                wanted && self.owners.iter().filter(declares).any(counts)
            }
        }
    }
}

/// Labels whose names begin with `prefix`, without it.
fn unprefixed(labels: &Labels, prefix: &str) -> Labels {
    labels.iter().filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_owned(), v.clone()))).collect()
}

fn contains(net: &IpNet, address: Ipv4Addr) -> bool {
    matches!(net, IpNet::V4(net) if net.contains(&address))
}
