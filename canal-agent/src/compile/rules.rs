//! Rules to steps: criteria about the two addresses become predicates, the rest becomes an area.
//!
//! One rule may become several steps (one for each meaning of a port name, one for each protocol where source ports
//! matter); they bear the same id.

use std::{collections::BTreeSet, sync::Arc};

use canal_common::{policy::key, wire::PROTO_ICMP};
use ipnet::{IpNet, Ipv4Net};

use super::{
    area::{self, Area, Intervals, SrcPorts},
    budget::{NoRoom, OverBudget, Room, STEP},
    census::Census,
    fold,
    predicate::{Class, NamedPort, Predicate},
    verdict::RuleId,
};
use crate::model::{
    Selector,
    resource::Resource,
    rule::{Action, Direction, Entity, Icmp, Port, Protocol, Rule},
};

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
/// The protocols with ports.
const WITH_PORTS: [u8; 3] = [TCP, UDP, SCTP];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Verb {
    Allow,
    Deny,
    Pass,
    /// Take note, and go on.
    Log,
}

/// A conjunction about one address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Criteria {
    /// Of each list at least one holds.
    pub(super) any: Vec<Vec<Predicate>>,
    pub(super) none: Vec<Predicate>,
    /// Where the predicate holds, the step does not reach into these keys and source ports.
    pub(super) holes: Vec<(Predicate, Hole)>,
}

/// A port that is cut out of a step.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Hole {
    Destination(Intervals),
    Source(SrcPorts),
}

impl Hole {
    pub(super) fn cut(&self, area: &mut Area) {
        match self {
            Self::Destination(keys) => area.drop(keys),
            Self::Source(ports) => area.src = area.src.without(ports),
        }
    }
}

/// A step with nothing but questions about the peer left.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Step {
    pub(super) verb: Verb,
    pub(super) rule: Option<Arc<RuleId>>,
    pub(super) area: Area,
    pub(super) peer: Criteria,
}

/// The steps of one policy in one direction, before the local address is known.
#[derive(Debug)]
pub(super) struct Template {
    steps: Result<Vec<(Step, Criteria)>, OverBudget>,
    local: BTreeSet<Predicate>,
    /// Port names that its rules use.
    names: BTreeSet<String>,
}

/// Where rules stand.
pub(super) struct Place<'a> {
    pub(super) tier: &'a str,
    pub(super) policy: &'a Resource,
    pub(super) direction: Direction,
}

impl Template {
    pub(super) fn new(place: &Place<'_>, rules: &[Rule], census: &Census) -> Self {
        let steps = steps(place, rules, census);
        let local = steps.iter().flatten().flat_map(|(_, local)| local.predicates()).cloned().collect();
        let entities = rules.iter().flat_map(|rule| [&rule.source, &rule.destination]);
        let ports = entities.flat_map(|entity| entity.ports.iter().chain(&entity.not_ports));
        let names = ports.filter_map(|port| match port {
            Port::Name(name) => Some(name.clone()),
            Port::Range(..) => None,
        });
        Self { steps, local, names: names.collect() }
    }

    pub(super) fn mentions(&self, names: &BTreeSet<String>) -> bool {
        !self.names.is_disjoint(names)
    }

    /// What it asks about the endpoint's own address.
    pub(super) fn local_predicates(&self) -> &BTreeSet<Predicate> {
        &self.local
    }

    /// What is left once the local address is known to be of `local`.
    pub(super) fn decide(&self, local: &Class) -> Result<Vec<Step>, OverBudget> {
        let steps = self.steps.as_ref().map_err(Clone::clone)?;
        let decided = steps.iter().filter_map(|(step, criteria)| {
            if !criteria.met(|predicate| local.holds(predicate)) {
                return None;
            }
            let mut step = step.clone();
            for (predicate, hole) in &criteria.holes {
                if local.holds(predicate) {
                    hole.cut(&mut step.area);
                }
            }
            (!step.area.is_empty()).then_some(step)
        });
        Ok(decided.collect())
    }
}

fn steps(place: &Place<'_>, rules: &[Rule], census: &Census) -> Result<Vec<(Step, Criteria)>, OverBudget> {
    let mut steps = Vec::new();
    let mut room = Room::default();
    for (index, rule) in (0..).zip(rules) {
        let verb = match rule.action {
            Action::Allow => Verb::Allow,
            Action::Deny => Verb::Deny,
            Action::Pass => Verb::Pass,
            Action::Log => Verb::Log,
        };
        let id = Arc::new(RuleId {
            tier: place.tier.to_owned(),
            policy: place.policy.clone(),
            direction: place.direction,
            index,
        });
        let alternatives =
            alternatives(place, rule, census, &mut room).map_err(|NoRoom| OverBudget::Policy(id.clone()))?;
        for Alternative { area, source, destination } in alternatives {
            let (peer, local) = match place.direction {
                Direction::Ingress => (source, destination),
                Direction::Egress => (destination, source),
            };
            steps.push((Step { verb, rule: Some(id.clone()), area, peer }, local));
        }
    }
    Ok(steps)
}

impl Criteria {
    pub(super) fn predicates(&self) -> impl Iterator<Item = &Predicate> {
        self.any.iter().flatten().chain(&self.none).chain(self.holes.iter().map(|(predicate, _)| predicate))
    }

    fn met(&self, holds: impl Fn(&Predicate) -> bool) -> bool {
        self.any.iter().all(|list| list.iter().any(&holds)) && !self.none.iter().any(&holds)
    }
}

struct Alternative {
    area: Area,
    source: Criteria,
    destination: Criteria,
}

/// One way of meeting a rule's ports on one side.
enum PortsOption {
    Any,
    Numeric(Vec<(u16, u16)>),
    Named { protocol: u8, port: u16, owner: Predicate },
}

impl PortsOption {
    fn restrict_source(&self, alternative: &mut Alternative, has_ports: bool) {
        match self {
            Self::Any => {}
            Self::Numeric(_) | Self::Named { .. } if !has_ports => {
                alternative.area.keys = Intervals::default();
            }
            Self::Numeric(ranges) => {
                alternative.area.src = SrcPorts::from_ranges(ranges.iter().copied());
            }
            Self::Named { protocol, port, owner } => {
                alternative.area.keep(&area::protocols([*protocol]));
                alternative.area.src = SrcPorts::from_ranges([(*port, *port)]);
                alternative.source.any.push(vec![owner.clone()]);
            }
        }
    }

    fn restrict_destination(&self, alternative: &mut Alternative) {
        match self {
            Self::Any => {}
            Self::Numeric(ranges) => alternative.area.keep(&area::ports(&WITH_PORTS, ranges)),
            Self::Named { protocol, port, owner } => {
                alternative.area.keep(&area::ports(&[*protocol], &[(*port, *port)]));
                alternative.destination.any.push(vec![owner.clone()]);
            }
        }
    }
}

fn alternatives(
    place: &Place<'_>,
    rule: &Rule,
    census: &Census,
    room: &mut Room,
) -> Result<Vec<Alternative>, NoRoom> {
    let foreign = rule.ip_version == Some(6) || rule.protocol.is_some_and(|p| p.ip_version == Some(6));
    if rule.inert || foreign {
        return Ok(Vec::new());
    }
    let namespace = place.policy.kind.namespaced().then_some(place.policy.namespace.as_str());
    let side = |entity| Side::new(namespace, entity, rule.protocol, census, room.left());
    let (Some(source), Some(destination)) = (side(&rule.source)?, side(&rule.destination)?) else {
        return Ok(Vec::new());
    };
    let keys = keys(rule);
    let groups = source.protocol_groups();
    let count = groups.len().saturating_mul(source.options.len()).saturating_mul(destination.options.len());
    room.take(count.saturating_mul(STEP + source.weight() + destination.weight()))?;
    let mut found = Vec::new();
    for group in groups {
        for from in &source.options {
            for to in &destination.options {
                let mut alternative = Alternative {
                    area: Area::everything(),
                    source: source.criteria.clone(),
                    destination: destination.criteria.clone(),
                };
                alternative.area.keep(&keys);
                alternative.area.keep(&group.keys);
                from.restrict_source(&mut alternative, group.has_ports);
                to.restrict_destination(&mut alternative);
                source.cut_source(&mut alternative, &group);
                destination.cut_destination(&mut alternative);
                if !alternative.area.is_empty() {
                    found.push(alternative);
                }
            }
        }
    }
    Ok(found)
}

/// What protocol and ICMP criteria leave.
fn keys(rule: &Rule) -> Intervals {
    let mut area = Area::everything();
    if let Some(protocol) = rule.protocol {
        area.keep(&area::protocols([protocol.number]));
    }
    if let Some(protocol) = rule.not_protocol {
        area.drop(&area::protocols([protocol.number]));
    }
    if let Some(icmp) = rule.icmp {
        area.keep(&icmp_keys(icmp));
    }
    if let Some(icmp) = rule.not_icmp {
        area.keep(&area::protocols([PROTO_ICMP]));
        area.drop(&icmp_keys(icmp));
    }
    area.keys
}

fn icmp_keys(icmp: Icmp) -> Intervals {
    let (low, high) = icmp.code.map_or((0, 255), |code| (code, code));
    let of = |code| canal_common::policy::icmp_port(icmp.icmp_type, code);
    area::ports(&[PROTO_ICMP], &[(of(low), of(high))])
}

/// A group of protocols that source ports treat alike.
struct Group {
    keys: Intervals,
    /// The one protocol of the group, if it has ports.
    protocol: Option<u8>,
    has_ports: bool,
}

/// One side of a rule, for IPv4.
struct Side {
    criteria: Criteria,
    options: Vec<PortsOption>,
    not_numeric: Vec<(u16, u16)>,
    not_named: Vec<NamedPort>,
    /// Some criterion is about ports.
    about_ports: bool,
}

impl Side {
    /// `None`: can never be met by an IPv4 address. `most`: how many meanings its port names may have.
    fn new(
        namespace: Option<&str>,
        entity: &Entity,
        protocol: Option<Protocol>,
        census: &Census,
        most: usize,
    ) -> Result<Option<Self>, NoRoom> {
        let folded = fold::entity(namespace, entity);
        let mut criteria = Criteria::default();
        let (Some(nets), Some(not_nets)) = (ipv4(&entity.nets), ipv4(&entity.not_nets)) else {
            return Ok(None);
        };
        // Every address lies in 0.0.0.0/0.
        if !nets.is_empty() && nets.iter().all(|net| net.prefix_len() > 0) {
            criteria.any.push(nets.into_iter().map(Predicate::Net).collect());
        }
        if not_nets.iter().any(|net| net.prefix_len() == 0) {
            // No address lies outside 0.0.0.0/0.
            return Ok(None);
        }
        criteria.none.extend(not_nets.into_iter().map(Predicate::Net));
        criteria.none.extend(folded.not_within.map(Predicate::Selector));
        criteria.any.extend(folded.within.clone().map(|selector| vec![Predicate::Selector(selector)]));

        let owner = folded.within.unwrap_or_else(Selector::all);
        let named = |ports: &[Port]| -> Result<Vec<NamedPort>, NoRoom> {
            let names = ports.iter().filter_map(|port| match port {
                Port::Name(name) => Some(name),
                Port::Range(..) => None,
            });
            let mut named = Vec::new();
            for name in names {
                named.extend(meanings(name, protocol, &owner, census));
                if named.len() > most {
                    return Err(NoRoom);
                }
            }
            Ok(named)
        };
        let mut options = Vec::new();
        if entity.ports.is_empty() {
            options.push(PortsOption::Any);
        }
        let numeric = ranges(&entity.ports);
        if !numeric.is_empty() {
            options.push(PortsOption::Numeric(numeric));
        }
        options.extend(named(&entity.ports)?.into_iter().map(|named| PortsOption::Named {
            protocol: named.protocol,
            port: named.port,
            owner: Predicate::Port(named),
        }));
        Ok(Some(Self {
            criteria,
            options,
            not_numeric: ranges(&entity.not_ports),
            not_named: named(&entity.not_ports)?,
            about_ports: !entity.ports.is_empty() || !entity.not_ports.is_empty(),
        }))
    }

    /// What it brings into each alternative: predicates, and intervals of each protocol.
    fn weight(&self) -> usize {
        let numeric = self.options.iter().map(|option| match option {
            PortsOption::Numeric(ranges) => ranges.len(),
            PortsOption::Any | PortsOption::Named { .. } => 0,
        });
        let ranges = numeric.max().unwrap_or(0) + self.not_numeric.len();
        self.criteria.predicates().count() + self.not_named.len() + WITH_PORTS.len() * ranges
    }

    /// Source ports lie beside the keys, so a step about them is about one protocol.
    fn protocol_groups(&self) -> Vec<Group> {
        if !self.about_ports {
            return vec![Group { keys: Area::everything().keys, protocol: None, has_ports: false }];
        }
        let mut rest = Area::everything();
        rest.drop(&area::protocols(WITH_PORTS));
        let single = |n| Group { keys: area::protocols([n]), protocol: Some(n), has_ports: true };
        let rest = Group { keys: rest.keys, protocol: None, has_ports: false };
        WITH_PORTS.map(single).into_iter().chain([rest]).collect()
    }

    fn cut_source(&self, alternative: &mut Alternative, group: &Group) {
        let Some(protocol) = group.protocol else { return };
        let cut = SrcPorts::from_ranges(self.not_numeric.iter().copied());
        alternative.area.src = alternative.area.src.without(&cut);
        for named in self.not_named.iter().filter(|named| named.protocol == protocol) {
            let hole = Hole::Source(SrcPorts::from_ranges([(named.port, named.port)]));
            alternative.source.holes.push((Predicate::Port(named.clone()), hole));
        }
    }

    fn cut_destination(&self, alternative: &mut Alternative) {
        alternative.area.drop(&area::ports(&WITH_PORTS, &self.not_numeric));
        for named in &self.not_named {
            let port = key(named.protocol, named.port);
            let hole = Hole::Destination(Intervals::new(vec![(port, port + 1)]));
            alternative.destination.holes.push((Predicate::Port(named.clone()), hole));
        }
    }
}

/// The IPv4 part of a list; `None` if the list was about IPv6 alone.
fn ipv4(nets: &[IpNet]) -> Option<Vec<Ipv4Net>> {
    let found: Vec<Ipv4Net> = nets
        .iter()
        .filter_map(|net| match net {
            IpNet::V4(net) => Some(*net),
            IpNet::V6(_) => None,
        })
        .collect();
    (nets.is_empty() || !found.is_empty()).then_some(found)
}

fn ranges(ports: &[Port]) -> Vec<(u16, u16)> {
    ports
        .iter()
        .filter_map(|port| match port {
            Port::Range(low, high) => Some((*low, *high)),
            Port::Name(_) => None,
        })
        .collect()
}

/// What a port name stands for where a rule uses it.
fn meanings(name: &str, protocol: Option<Protocol>, owner: &Selector, census: &Census) -> Vec<NamedPort> {
    let wanted = protocol.map(|p| p.number);
    let name: Arc<str> = name.into();
    census
        .ports_named(&name)
        .filter(|(protocol, _)| wanted.map_or(WITH_PORTS.contains(protocol), |wanted| wanted == *protocol))
        .map(|(protocol, port)| NamedPort { selector: owner.clone(), name: name.clone(), protocol, port })
        .collect()
}
