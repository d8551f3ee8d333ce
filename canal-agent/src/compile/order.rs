//! Which policy is asked before which.

use std::{collections::BTreeMap, sync::Arc};

use crate::model::{Cluster, policy::Policy, resource::Resource, tier::Tier};

/// A tier with its policies in order of evaluation.
pub(super) struct OrderedTier<'a> {
    pub(super) tier: Tier,
    pub(super) policies: Vec<(&'a Resource, &'a Arc<Policy>)>,
}

/// Tiers that have policies, in order of evaluation. A tier that does not exist comes after all that do, closed.
pub(super) fn tiers(cluster: &Cluster) -> Vec<OrderedTier<'_>> {
    let mut by_tier: BTreeMap<&str, Vec<_>> = BTreeMap::new();
    for (resource, policy) in cluster.policies() {
        by_tier.entry(&policy.tier).or_default().push((resource, policy));
    }
    let mut tiers: Vec<(bool, OrderedTier<'_>)> = by_tier
        .into_iter()
        .map(|(name, mut policies)| {
            policies.sort_by_cached_key(|(resource, policy)| (policy.order, Policy::tie_break(resource)));
            let tier = cluster.tier(name);
            (tier.is_none(), OrderedTier { tier: tier.unwrap_or(Tier::MISSING), policies })
        })
        .collect();
    // Stable: ties stay in the order of their names.
    tiers.sort_by_key(|(missing, ordered)| (*missing, ordered.tier.order));
    tiers.into_iter().map(|(_, ordered)| ordered).collect()
}
