//! NetworkPolicy and GlobalNetworkPolicy.

use std::{cmp::Ordering, sync::Arc};

use serde::Deserialize;

use super::{
    Selector, name,
    reading::{Envelope, Reading},
    resource::Resource,
    rule::{self, Action, Direction, Entity, RawRule, Rule},
};

/// The tier of a policy that names none.
pub const DEFAULT_TIER: &str = "default";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The name that its author typed, if the object says so.
    typed_name: Option<String>,
    pub tier: String,
    pub order: Order,
    pub selector: Option<Selector>,
    /// GlobalNetworkPolicy only.
    pub namespace_selector: Option<Selector>,
    pub service_account_selector: Option<Selector>,
    /// `None`: the policy does not govern this direction.
    pub ingress: Option<Arc<[Rule]>>,
    pub egress: Option<Arc<[Rule]>>,
    /// For host endpoints before connection tracking; workloads never see such a policy.
    pub do_not_track: bool,
    /// For host endpoints before DNAT; workloads never see such a policy.
    pub pre_dnat: bool,
    pub apply_on_forward: bool,
}

/// An order that cannot be read puts the denial before all others.
fn stand_in_order(envelope: &Envelope) -> Order {
    let given = envelope.field::<serde_json::Value>("order").filter(|order| !order.is_null());
    Order::new(given.map(|order| order.as_f64().unwrap_or(f64::NEG_INFINITY)))
}

/// Lower goes first; missing is last, and all missing ones are equal.
#[derive(Debug, Clone, Copy)]
pub struct Order(f64);

impl Order {
    pub const LAST: Self = Self(f64::INFINITY);

    /// −0 is 0.
    pub fn new(order: Option<f64>) -> Self {
        order.map_or(Self::LAST, |order| Self(order + 0.0))
    }
}

impl Ord for Order {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Order {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Order {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Order {}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawPolicy {
    tier: Option<String>,
    order: Option<f64>,
    selector: Option<String>,
    namespace_selector: Option<String>,
    service_account_selector: Option<String>,
    types: Option<Vec<String>>,
    ingress: Option<Vec<RawRule>>,
    egress: Option<Vec<RawRule>>,
}

/// What only a GlobalNetworkPolicy can say: elsewhere these are unknown fields, which would take a policy away from
/// the pods that it is for.
#[derive(Clone, Copy)]
struct ForHosts {
    do_not_track: bool,
    pre_dnat: bool,
    apply_on_forward: bool,
}

impl ForHosts {
    fn of(resource: &Resource, envelope: &Envelope) -> Self {
        let field = |name: &str| !resource.kind.namespaced() && envelope.field(name).unwrap_or_default();
        Self {
            do_not_track: field("doNotTrack"),
            pre_dnat: field("preDNAT"),
            apply_on_forward: field("applyOnForward"),
        }
    }

    fn check(self, raw: &RawPolicy) -> Result<(), String> {
        let governs_egress =
            raw.types.as_ref().is_some_and(|types| types.iter().any(|t| t.eq_ignore_ascii_case("egress")))
                || raw.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        match self {
            Self { pre_dnat: true, do_not_track: true, .. } => {
                Err("preDNAT and doNotTrack exclude each other".to_owned())
            }
            Self { pre_dnat: true, .. } if governs_egress => Err("preDNAT is for ingress only".to_owned()),
            Self { pre_dnat: true, apply_on_forward: false, .. }
            | Self { do_not_track: true, apply_on_forward: false, .. } => {
                Err("preDNAT and doNotTrack need applyOnForward: true".to_owned())
            }
            _ => Ok(()),
        }
    }
}

impl Policy {
    pub fn read(resource: &Resource, value: &[u8]) -> Reading<Self> {
        let envelope = match Envelope::parse(value) {
            Ok(envelope) => envelope,
            Err(reason) => return Reading::bad(reason),
        };
        let mut faults = Vec::new();
        match Self::admit(resource, &envelope, &mut faults) {
            Ok(policy) => Reading::with_faults(policy, &faults),
            Err(reason) => Reading::Bad { reason, stand_in: Self::stand_in(resource, &envelope) },
        }
    }

    pub fn rules(&self, direction: Direction) -> Option<&Arc<[Rule]>> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }

    /// The text that breaks a tie of equal orders, compared by bytes.
    pub fn tie_break(resource: &Resource) -> String {
        format!("{}/{}/{}", resource.name, resource.namespace, resource.kind.name())
    }

    /// The name that people know it by. Up to Calico 3.31 the key has the tier in front.
    pub fn display_name<'a>(&'a self, resource: &'a Resource) -> &'a str {
        match &self.typed_name {
            Some(name) => name,
            None if self.tier == DEFAULT_TIER => untiered(&resource.name),
            None => &resource.name,
        }
    }

    fn admit(resource: &Resource, envelope: &Envelope, faults: &mut Vec<String>) -> Result<Self, String> {
        let raw: RawPolicy = envelope.spec()?;
        if !name::is_subdomain(&resource.name) {
            return Err("name: not lower-case letters, digits, dashes and dots".to_owned());
        }
        let for_hosts = ForHosts::of(resource, envelope);
        for_hosts.check(&raw)?;
        let tier = tier_name(raw.tier);
        if !name::is_label(&tier) {
            faults.push(format!(
                "tier: {tier:?} can be no tier's name; the policy counts as one of a missing tier"
            ));
        }
        let (ingress, egress) = directions(raw.types)?;
        let mut rules = |raw: Option<Vec<RawRule>>, direction, governs: bool| -> Option<Arc<[Rule]>> {
            governs.then(|| rule::admit(raw.unwrap_or_default(), direction, faults).into())
        };
        let namespace_selector = if resource.kind.namespaced() { None } else { raw.namespace_selector };
        Ok(Self {
            typed_name: envelope.typed_name(),
            tier,
            order: Order::new(raw.order),
            selector: selector("selector", raw.selector)?,
            namespace_selector: selector("namespaceSelector", namespace_selector)?,
            service_account_selector: selector("serviceAccountSelector", raw.service_account_selector)?,
            ingress: rules(raw.ingress, Direction::Ingress, ingress),
            egress: rules(raw.egress, Direction::Egress, egress),
            do_not_track: for_hosts.do_not_track,
            pre_dnat: for_hosts.pre_dnat,
            apply_on_forward: for_hosts.apply_on_forward,
        })
    }

    /// A policy that cannot be used, but says whom it is about, denies them what it was to govern.
    fn stand_in(resource: &Resource, envelope: &Envelope) -> Option<Self> {
        let text = match envelope.field::<Option<String>>("selector") {
            Some(text) => text,
            // Without any selector it is about everyone; one of the wrong type says nothing.
            None if envelope.field::<serde_json::Value>("selector").is_none() => None,
            None => return None,
        };
        let (ingress, egress) = directions(envelope.field("types")).unwrap_or((true, true));
        let deny = |governs: bool| -> Option<Arc<[Rule]>> { governs.then(|| [deny_everything()].into()) };
        let optional = |name: &str| -> Option<Selector> {
            selector(name, envelope.field::<Option<String>>(name).flatten()).ok().flatten()
        };
        let for_hosts = ForHosts::of(resource, envelope);
        Some(Self {
            typed_name: envelope.typed_name(),
            tier: tier_name(envelope.field("tier")),
            order: stand_in_order(envelope),
            selector: selector("selector", text).ok()?,
            namespace_selector: optional("namespaceSelector").filter(|_| !resource.kind.namespaced()),
            service_account_selector: optional("serviceAccountSelector"),
            ingress: deny(ingress),
            egress: deny(egress),
            do_not_track: for_hosts.do_not_track,
            pre_dnat: for_hosts.pre_dnat,
            apply_on_forward: for_hosts.apply_on_forward,
        })
    }
}

fn untiered(name: &str) -> &str {
    name.strip_prefix(DEFAULT_TIER).and_then(|rest| rest.strip_prefix('.')).unwrap_or(name)
}

/// The rule of a stand-in.
fn deny_everything() -> Rule {
    Rule {
        action: Action::Deny,
        inert: false,
        ip_version: None,
        protocol: None,
        not_protocol: None,
        icmp: None,
        not_icmp: None,
        source: Entity::default(),
        destination: Entity::default(),
    }
}

fn tier_name(raw: Option<String>) -> String {
    raw.filter(|tier| !tier.is_empty()).unwrap_or_else(|| DEFAULT_TIER.to_owned())
}

/// (ingress, egress); saying nothing means both.
fn directions(types: Option<Vec<String>>) -> Result<(bool, bool), String> {
    let types = types.unwrap_or_default();
    let mut found = (types.is_empty(), types.is_empty());
    for text in types {
        match text.to_ascii_lowercase().as_str() {
            "ingress" => found.0 = true,
            "egress" => found.1 = true,
            _ => return Err(format!("types: {text:?} is neither Ingress nor Egress")),
        }
    }
    Ok(found)
}

fn selector(field: &str, text: Option<String>) -> Result<Option<Selector>, String> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let selector = Selector::parse(&text).map_err(|e| format!("{field}: {text:?} {e}"))?;
    if selector.mentions_global() {
        return Err(format!("{field}: global() is only for a rule's namespaceSelector"));
    }
    Ok(Some(selector))
}
