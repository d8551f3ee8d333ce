//! What rules are called where people see them.

use crate::{api::wire::RuleName, compile::RuleId, model::Cluster};

pub(super) fn rule(cluster: &Cluster, rule: &RuleId) -> RuleName {
    let RuleId { tier, policy, direction, index } = rule;
    let name = match cluster.policy(policy) {
        Some(object) => object.display_name(policy),
        // A profile, or a policy that is gone by now.
        None => &policy.name,
    };
    RuleName {
        tier: tier.clone(),
        kind: policy.kind.name().to_owned(),
        namespace: policy.namespace.clone(),
        name: name.to_owned(),
        key: policy.key(),
        direction: direction.to_string(),
        index: *index,
    }
}
