//! Namespaces and service accounts folded into one expression over labels.

use crate::model::{
    Selector,
    labels::{NAMESPACE, NAMESPACE_PREFIX, SERVICE_ACCOUNT, SERVICE_ACCOUNT_PREFIX},
    policy::Policy,
    resource::Resource,
    rule::Entity,
};

/// Whom a policy selects.
pub(super) fn applies_to(resource: &Resource, policy: &Policy) -> Selector {
    let mut parts: Vec<Selector> = policy.selector.iter().cloned().collect();
    if resource.kind.namespaced() {
        parts.push(Selector::equals(NAMESPACE, &resource.namespace));
        parts.extend(policy.service_account_selector.iter().map(|s| s.prefixed(SERVICE_ACCOUNT_PREFIX)));
    } else {
        // "Any namespace" and "any service account" still mean that there is one: no host endpoint has either.
        parts.extend(
            policy.namespace_selector.iter().map(|s| any_or_prefixed(s, NAMESPACE, NAMESPACE_PREFIX)),
        );
        parts.extend(
            policy
                .service_account_selector
                .iter()
                .map(|s| any_or_prefixed(s, SERVICE_ACCOUNT, SERVICE_ACCOUNT_PREFIX)),
        );
    }
    Selector::all_of(parts)
}

/// What one side of a rule asks about the owner of an address.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Folded {
    pub(super) within: Option<Selector>,
    /// Only without `within`: otherwise it is part of that, and so is asked of each owner, not of the address.
    pub(super) not_within: Option<Selector>,
}

/// `namespace`: of the policy, if it has one.
pub(super) fn entity(namespace: Option<&str>, entity: &Entity) -> Folded {
    let account = entity.service_accounts.as_ref();
    let positive: Vec<Selector> = account
        .and_then(|a| a.selector.as_ref())
        .map(|selector| selector.prefixed(SERVICE_ACCOUNT_PREFIX))
        .into_iter()
        .chain(
            account
                .filter(|a| !a.names.is_empty())
                .map(|a| Selector::one_of(SERVICE_ACCOUNT, a.names.iter().map(String::as_str))),
        )
        .chain(entity.selector.clone())
        .collect();
    let of_namespace = match (&entity.namespace_selector, namespace) {
        (Some(selector), _) if selector.is_global() => Some(Selector::has(NAMESPACE).negated()),
        (Some(selector), _) => Some(any_or_prefixed(selector, NAMESPACE, NAMESPACE_PREFIX)),
        // A rule that only names nets or ports is about everybody, also in a namespaced policy.
        (None, Some(_)) if entity.any_namespace => None,
        (None, Some(_)) if positive.is_empty() && entity.not_selector.is_none() => None,
        (None, Some(namespace)) => Some(Selector::equals(NAMESPACE, namespace)),
        (None, None) => None,
    };
    let parts: Vec<Selector> = of_namespace.into_iter().chain(positive).collect();
    if parts.is_empty() {
        return Folded { within: None, not_within: entity.not_selector.clone() };
    }
    let excluded = entity.not_selector.as_ref().map(Selector::negated);
    Folded { within: Some(Selector::all_of(parts.into_iter().chain(excluded))), not_within: None }
}

fn any_or_prefixed(selector: &Selector, any: &str, prefix: &str) -> Selector {
    if selector.is_all() { Selector::has(any) } else { selector.prefixed(prefix) }
}
