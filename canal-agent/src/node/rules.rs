//! What `canalctl rules` is told: new flows by rule.

use std::{collections::BTreeMap, sync::Arc};

use super::{Node, names};
use crate::{
    api::wire::{ApiError, RuleStatus, Rules},
    compile::{Final, RuleId},
    dataplane::hits::Hits,
};

impl Node {
    pub(super) fn rules(&self) -> Result<Rules, ApiError> {
        let failed = |error: aya::maps::MapError| ApiError {
            message: format!("cannot read what the rules have counted: {error}"),
            try_again: true,
        };
        let mut counted = Vec::new();
        for (id, decided) in self.policy.decisions() {
            counted.push((decided.clone(), self.hits.of(id)));
        }
        let nameless =
            Hits { flows: self.hits.of(0).flows, lost: self.hits.lost_without_decision().map_err(failed)? };
        counted.push((Arc::new(Final::DENY), nameless));
        let rules = by_rule(&counted)
            .into_iter()
            .map(|((rule, action), hits)| RuleStatus {
                rule: rule.map(|rule| names::rule(&self.cluster, rule)),
                action: action.to_owned(),
                flows: hits.flows,
                lost: hits.lost,
            })
            .collect();
        Ok(Rules { seconds: self.started.elapsed().as_secs(), rules })
    }
}

type Key<'a> = (Option<&'a RuleId>, &'static str);

/// Several decisions may name a rule: with other Log rules before it, or as one of those.
fn by_rule(counted: &[(Arc<Final>, Hits)]) -> BTreeMap<Key<'_>, Hits> {
    let mut sums = BTreeMap::<Key<'_>, Hits>::new();
    for (decided, hits) in counted {
        let action = if decided.allow { "Allow" } else { "Deny" };
        let deciding = (decided.rule.as_deref(), action);
        for rule in decided.logs.iter().map(|rule| (Some(&**rule), "Log")).chain([deciding]) {
            let sum = sums.entry(rule).or_default();
            sum.flows += hits.flows;
            sum.lost += hits.lost;
        }
    }
    sums.retain(|_, hits| *hits != Hits::default());
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        resource::{Kind, Resource},
        rule::Direction,
    };

    #[test]
    fn the_decisions_that_name_a_rule_are_added_up() {
        let rule = |index| {
            let policy = Resource::new(Kind::GlobalNetworkPolicy, "", "p");
            Arc::new(RuleId { tier: "default".to_owned(), policy, direction: Direction::Ingress, index })
        };
        let decision = |allow, index: Option<u32>, logs: &[u32]| {
            let logs = logs.iter().map(|index| rule(*index)).collect();
            Arc::new(Final { allow, rule: index.map(rule), logs })
        };
        let hits = |flows, lost| Hits { flows, lost };
        let counted = [
            (decision(true, Some(2), &[]), hits(1, 0)),
            (decision(true, Some(2), &[0, 1]), hits(10, 2)),
            (decision(false, None, &[0]), hits(100, 20)),
            (decision(false, None, &[]), hits(1000, 0)),
            (decision(false, Some(3), &[]), hits(0, 0)),
        ];
        let sums: Vec<_> = by_rule(&counted)
            .into_iter()
            .map(|((rule, action), sum)| (rule.map(|rule| rule.index), action, sum))
            .collect();
        assert_eq!(
            sums,
            [
                (None, "Deny", hits(1100, 20)),
                (Some(0), "Log", hits(110, 22)),
                (Some(1), "Log", hits(10, 2)),
                (Some(2), "Allow", hits(11, 2)),
            ]
        );
    }
}
