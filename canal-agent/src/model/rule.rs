//! One rule of a policy or profile: what it says, after admission.
//!
//! Promises: a criterion that cannot be understood never opens anything: an Allow or Pass rule with one never
//! matches, a Deny rule matches on what remains. Does not: fold selectors into namespaces, resolve names.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::{Selector, name};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Towards the endpoint: the peer is the source.
    Ingress,
    Egress,
}

impl Direction {
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    Allow,
    Deny,
    /// Leave this tier; inside a profile, deny.
    Pass,
    /// Decides nothing.
    Log,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub action: Action,
    /// Some criterion can never be met.
    pub inert: bool,
    /// 4 or 6; missing means both, unless the protocol's name implies one.
    pub ip_version: Option<u8>,
    pub protocol: Option<Protocol>,
    pub not_protocol: Option<Protocol>,
    pub icmp: Option<Icmp>,
    pub not_icmp: Option<Icmp>,
    pub source: Entity,
    pub destination: Entity,
}

/// A protocol by number; the names `ICMP` and `ICMPv6` belong to one address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protocol {
    pub number: u8,
    pub ip_version: Option<u8>,
}

impl Protocol {
    pub const fn has_ports(self) -> bool {
        matches!(self.number, 6 | 17 | 132)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Icmp {
    pub icmp_type: u8,
    pub code: Option<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// Both ends belong to it.
    Range(u16, u16),
    Name(String),
}

/// One side of a rule. Empty lists and `None` say nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entity {
    pub nets: Vec<IpNet>,
    pub not_nets: Vec<IpNet>,
    pub selector: Option<Selector>,
    pub not_selector: Option<Selector>,
    pub namespace_selector: Option<Selector>,
    /// A namespace selector was given and could not be read: it is not that of the policy that is meant instead.
    pub any_namespace: bool,
    pub service_accounts: Option<ServiceAccounts>,
    pub ports: Vec<Port>,
    pub not_ports: Vec<Port>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServiceAccounts {
    pub names: Vec<String>,
    pub selector: Option<Selector>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RawRule {
    action: Option<String>,
    ip_version: Option<Value>,
    protocol: Option<Value>,
    not_protocol: Option<Value>,
    icmp: Option<RawIcmp>,
    #[serde(rename = "notICMP")]
    not_icmp: Option<RawIcmp>,
    source: Option<RawEntity>,
    destination: Option<RawEntity>,
    http: Option<Value>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct RawIcmp {
    #[serde(rename = "type")]
    icmp_type: Option<i64>,
    code: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawEntity {
    nets: Option<Vec<String>>,
    not_nets: Option<Vec<String>>,
    selector: Option<String>,
    not_selector: Option<String>,
    namespace_selector: Option<String>,
    service_accounts: Option<RawServiceAccounts>,
    ports: Option<Vec<Value>>,
    not_ports: Option<Vec<Value>>,
    services: Option<Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct RawServiceAccounts {
    names: Option<Vec<String>>,
    selector: Option<String>,
}

/// Reads the rules of one direction; what is wrong is added to `faults`.
pub(super) fn admit(raw: Vec<RawRule>, direction: Direction, faults: &mut Vec<String>) -> Vec<Rule> {
    raw.into_iter()
        .enumerate()
        .map(|(index, raw)| {
            let mut admission =
                Admission { direction, action: Action::Deny, inert: false, problems: Vec::new() };
            let rule = admission.rule(raw);
            faults.extend(
                admission.problems.iter().map(|problem| format!("{direction} rule {index}: {problem}")),
            );
            rule
        })
        .collect()
}

struct Admission {
    direction: Direction,
    action: Action,
    inert: bool,
    problems: Vec<String>,
}

impl Admission {
    fn rule(&mut self, raw: RawRule) -> Rule {
        let action = raw.action.unwrap_or_default();
        self.action = match action.to_ascii_lowercase().as_str() {
            "allow" => Action::Allow,
            "deny" => Action::Deny,
            "pass" => Action::Pass,
            "log" => Action::Log,
            _ => {
                self.problems
                    .push(format!("action {action:?} is not one of Allow, Deny, Pass, Log; it denies"));
                Action::Deny
            }
        };
        let ip_version = raw.ip_version.and_then(|version| {
            self.criterion(
                "ipVersion",
                match version.as_u64() {
                    Some(4) => Ok(4),
                    Some(6) => Ok(6),
                    _ => Err(format!("{version} is neither 4 nor 6")),
                },
            )
        });
        let protocol = raw.protocol.and_then(|p| self.criterion("protocol", parse_protocol(&p)));
        let not_protocol = raw.not_protocol.and_then(|p| self.criterion("notProtocol", parse_protocol(&p)));
        let mut icmp = raw.icmp.and_then(|i| self.icmp("icmp", i));
        let mut not_icmp = raw.not_icmp.and_then(|i| self.icmp("notICMP", i));
        let source = self.entity("source", raw.source.unwrap_or_default());
        let destination = self.entity("destination", raw.destination.unwrap_or_default());
        if raw.http.is_some_and(|http| !http.is_null()) {
            self.unusable("http", "matches on HTTP are not enforced");
        }
        let mut rule = Rule {
            action: self.action,
            inert: false,
            ip_version,
            protocol,
            not_protocol,
            icmp: icmp.take(),
            not_icmp: not_icmp.take(),
            source,
            destination,
        };
        self.combinations(&mut rule);
        rule.inert = self.inert;
        rule
    }

    /// Criteria that are fine by themselves and make no sense together.
    fn combinations(&mut self, rule: &mut Rule) {
        let is_icmp = |p: Protocol| matches!(p.number, 1 | 58);
        if (rule.icmp.is_some() || rule.not_icmp.is_some()) && !rule.protocol.is_some_and(is_icmp) {
            self.unusable("icmp", "needs protocol ICMP or ICMPv6");
            (rule.icmp, rule.not_icmp) = (None, None);
        }
        self.families(rule);
        let numeric = |ports: &[Port]| ports.iter().any(|port| matches!(port, Port::Range(..)));
        let entities = [&rule.source, &rule.destination];
        let any_numeric = entities.iter().any(|e| numeric(&e.ports) || numeric(&e.not_ports));
        let any_ports = entities.iter().any(|e| !e.ports.is_empty() || !e.not_ports.is_empty());
        match rule.protocol {
            Some(protocol) if any_ports && !protocol.has_ports() => {
                self.unusable("ports", "need protocol TCP, UDP or SCTP");
                for entity in [&mut rule.source, &mut rule.destination] {
                    entity.ports.clear();
                    entity.not_ports.clear();
                }
            }
            None if any_numeric && self.action == Action::Deny => {
                self.problems.push("ports without a protocol: taken for TCP, UDP and SCTP".to_owned());
            }
            None if any_numeric => self.unusable("ports", "need protocol TCP, UDP or SCTP"),
            _ => {}
        }
    }

    /// All that names an IP version must name the same one.
    fn families(&mut self, rule: &mut Rule) {
        let of_protocol = rule.protocol.and_then(|protocol| protocol.ip_version);
        if let (Some(named), Some(implied)) = (rule.ip_version, of_protocol)
            && named != implied
        {
            self.unusable("ipVersion", "is not that of the protocol");
            rule.ip_version = None;
        }
        let version = |net: &IpNet| if net.addr().is_ipv4() { 4 } else { 6 };
        let named: BTreeSet<u8> = [&rule.source, &rule.destination]
            .into_iter()
            .flat_map(|entity| entity.nets.iter().chain(&entity.not_nets))
            .map(version)
            .chain(rule.ip_version.or(of_protocol))
            .collect();
        if named.len() < 2 {
            return;
        }
        if rule.ip_version.or(of_protocol).is_none() && self.action == Action::Deny {
            // It would match each version by its own nets, which is what it says.
            self.problems.push("nets: IPv4 and IPv6 in one rule; each is taken by itself".to_owned());
            return;
        }
        self.unusable("nets", "IPv4 and IPv6 do not go together in one rule");
        for entity in [&mut rule.source, &mut rule.destination] {
            entity.nets.clear();
            entity.not_nets.clear();
        }
    }

    /// Nobody writes services to etcd, so their addresses are the empty set, whatever the action; but a place where they
    /// cannot stand is a mistake like any other.
    fn services(&mut self, side: &'static str, raw: &RawEntity) {
        if raw.services.as_ref().is_none_or(Value::is_null) {
            return;
        }
        let field = format!("{side}.services");
        let place = match self.direction {
            Direction::Ingress => "source",
            Direction::Egress => "destination",
        };
        let has = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
        let has_ports = |list: &Option<Vec<Value>>| list.as_ref().is_some_and(|list| !list.is_empty());
        let is_said = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let company = has(&raw.nets)
            || has(&raw.not_nets)
            || has_ports(&raw.ports)
            || has_ports(&raw.not_ports)
            || [&raw.selector, &raw.not_selector, &raw.namespace_selector].into_iter().any(is_said)
            || raw.service_accounts.is_some();
        if side != place {
            self.unusable(
                &field,
                "services stand in the source of ingress or the destination of egress only",
            );
        } else if company {
            self.unusable(&field, "services stand alone, without ports, nets and selectors");
        } else {
            self.inert = true;
            self.problems.push(format!("{field}: services are not known here; the rule never matches"));
        }
    }

    fn entity(&mut self, side: &'static str, raw: RawEntity) -> Entity {
        let field = |name: &str| format!("{side}.{name}");
        self.services(side, &raw);
        let accounts = raw.service_accounts.map(|accounts| ServiceAccounts {
            names: accounts.names.unwrap_or_default(),
            selector: self.selector(&field("serviceAccounts.selector"), accounts.selector, false),
        });
        let names_namespaces = raw.namespace_selector.as_ref().is_some_and(|text| !text.is_empty());
        let namespace_selector = self.selector(&field("namespaceSelector"), raw.namespace_selector, true);
        Entity {
            any_namespace: names_namespaces && namespace_selector.is_none(),
            nets: self.list(&field("nets"), raw.nets, parse_net),
            not_nets: self.list(&field("notNets"), raw.not_nets, parse_not_net),
            selector: self.selector(&field("selector"), raw.selector, false),
            not_selector: self.selector(&field("notSelector"), raw.not_selector, false),
            namespace_selector,
            service_accounts: accounts.filter(|a| !a.names.is_empty() || a.selector.is_some()),
            ports: self.list(&field("ports"), raw.ports, parse_port),
            not_ports: self.list(&field("notPorts"), raw.not_ports, parse_port),
        }
    }

    /// A list with one bad entry says nothing at all: the rest would be narrower than meant, or wider.
    fn list<R, T>(&mut self, field: &str, raw: Option<Vec<R>>, parse: fn(&R) -> Result<T, String>) -> Vec<T> {
        let parsed: Result<Vec<T>, String> = raw.unwrap_or_default().iter().map(parse).collect();
        self.criterion(field, parsed).unwrap_or_default()
    }

    fn selector(&mut self, field: &str, raw: Option<String>, global_allowed: bool) -> Option<Selector> {
        let text = raw.filter(|text| !text.is_empty())?;
        let parsed = match Selector::parse(&text) {
            Ok(selector) if selector.mentions_global() && !(global_allowed && selector.is_global()) => {
                Err("global() stands alone, and only in a rule's namespaceSelector".to_owned())
            }
            Ok(selector) => Ok(selector),
            Err(e) => Err(format!("{text:?} {e}")),
        };
        self.criterion(field, parsed)
    }

    fn icmp(&mut self, field: &str, raw: RawIcmp) -> Option<Icmp> {
        let parsed = match (raw.icmp_type, raw.code.map(u8::try_from)) {
            (None, None) => return None,
            (None, Some(_)) => Err("a code needs a type".to_owned()),
            (_, Some(Err(_))) => Err("the code is not within 0 and 255".to_owned()),
            (Some(icmp_type), code) => match u8::try_from(icmp_type) {
                Ok(icmp_type @ 0..=254) => Ok(Icmp { icmp_type, code: code.and_then(Result::ok) }),
                _ => Err("the type is not within 0 and 254".to_owned()),
            },
        };
        self.criterion(field, parsed)
    }

    fn criterion<T>(&mut self, field: &str, parsed: Result<T, String>) -> Option<T> {
        match parsed {
            Ok(value) => Some(value),
            Err(problem) => {
                self.unusable(field, &problem);
                None
            }
        }
    }

    fn unusable(&mut self, field: &str, problem: &str) {
        let effect = match self.action {
            Action::Deny => "this Deny rule matches without it",
            Action::Allow | Action::Pass | Action::Log => {
                self.inert = true;
                "the rule never matches"
            }
        };
        self.problems.push(format!("{field}: {problem}; {effect}"));
    }
}

pub(super) fn parse_protocol(raw: &Value) -> Result<Protocol, String> {
    let number = match raw {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "tcp" => Some(6),
            "udp" => Some(17),
            "sctp" => Some(132),
            "udplite" => Some(136),
            "icmp" => return Ok(Protocol { number: 1, ip_version: Some(4) }),
            "icmpv6" => return Ok(Protocol { number: 58, ip_version: Some(6) }),
            digits => digits.parse().ok(),
        },
        _ => None,
    };
    match number.and_then(|number| u8::try_from(number).ok()) {
        Some(number @ 1..) => Ok(Protocol { number, ip_version: None }),
        _ => Err(format!(
            "{raw} is neither a number from 1 to 255 nor one of TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite"
        )),
    }
}

/// A number, a text of digits, `"lo:hi"`, or a name.
pub(super) fn parse_port(raw: &Value) -> Result<Port, String> {
    let bad = || format!("{raw} is neither a port, a range \"low:high\" nor a port name");
    let text = match raw {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        _ => return Err(bad()),
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits { text.parse::<u16>().map_err(|_| bad()) } else { Err(bad()) }
    };
    if let Some((low, high)) = text.split_once(':') {
        let (low, high) = (number(low)?, number(high)?);
        return if low <= high { Ok(Port::Range(low, high)) } else { Err(bad()) };
    }
    if raw.is_number() || text.bytes().all(|byte| byte.is_ascii_digit()) {
        return number(&text).map(|port| Port::Range(port, port));
    }
    if name::is_port(&text) { Ok(Port::Name(text)) } else { Err(bad()) }
}

/// A CIDR, of which the host bits are dropped, or a plain address.
pub(super) fn parse_net(text: &String) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .map(|net| net.trunc())
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| format!("{text:?} is not a CIDR"))
}

/// In a list of what is not meant, everything would leave nothing.
fn parse_not_net(text: &String) -> Result<IpNet, String> {
    let net = parse_net(text)?;
    if net.prefix_len() == 0 { Err(format!("{text:?} leaves nothing that could match")) } else { Ok(net) }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}
