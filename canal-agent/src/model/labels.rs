//! Labels: what selectors look at, and how an endpoint comes by them.

use std::collections::BTreeMap;

pub type Labels = BTreeMap<String, String>;

/// Namespace of a workload endpoint or network set; always that of its key.
pub const NAMESPACE: &str = "projectcalico.org/namespace";
pub const SERVICE_ACCOUNT: &str = "projectcalico.org/serviceaccount";
pub const ORCHESTRATOR: &str = "projectcalico.org/orchestrator";

/// Labels of the namespace, inherited from profile `kns.<namespace>`.
pub const NAMESPACE_PREFIX: &str = "pcns.";
/// Labels of the service account, inherited from profile `ksa.<namespace>.<account>`.
pub const SERVICE_ACCOUNT_PREFIX: &str = "pcsa.";

/// Drops the labels that only a profile may hand out: an endpoint that carried them itself could claim to be of
/// any namespace or service account.
pub fn without_inherited_prefixes(mut labels: Labels) -> Labels {
    labels.retain(|name, _| !name.starts_with(NAMESPACE_PREFIX) && !name.starts_with(SERVICE_ACCOUNT_PREFIX));
    labels
}

/// Own labels first, then the parents' in order: whoever says it first is heard.
pub fn inherit<'a>(own: &Labels, parents: impl IntoIterator<Item = &'a Labels>) -> Labels {
    let mut all = own.clone();
    for (name, value) in parents.into_iter().flatten() {
        if !all.contains_key(name) {
            all.insert(name.clone(), value.clone());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn own_labels_beat_inherited_ones_and_earlier_parents_beat_later_ones() {
        let (first, second) = (labels(&[("a", "1"), ("b", "1")]), labels(&[("b", "2"), ("c", "2")]));
        assert_eq!(
            inherit(&labels(&[("a", "own")]), [&first, &second]),
            labels(&[("a", "own"), ("b", "1"), ("c", "2")])
        );
    }

    #[test]
    fn an_endpoint_cannot_claim_a_namespaces_labels() {
        let claimed = labels(&[("pcns.env", "prod"), ("pcsa.role", "admin"), ("app", "web")]);
        assert_eq!(without_inherited_prefixes(claimed), labels(&[("app", "web")]));
    }
}
