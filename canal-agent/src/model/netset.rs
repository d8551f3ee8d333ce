//! NetworkSet and GlobalNetworkSet: CIDRs under labels.

use ipnet::{IpNet, Ipv4Net};
use serde::Deserialize;

use super::{
    Labels,
    labels::{self, NAMESPACE},
    reading::{Envelope, Reading},
    resource::Resource,
    rule::parse_net,
};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NetworkSet {
    /// Own labels; those of its namespace's profile come on top.
    pub labels: Labels,
    pub nets: Vec<IpNet>,
}

impl NetworkSet {
    pub fn read(resource: &Resource, value: &[u8]) -> Reading<Self> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Raw {
            nets: Option<Vec<String>>,
        }
        let envelope = match Envelope::parse(value) {
            Ok(envelope) => envelope,
            Err(reason) => return Reading::bad(reason),
        };
        let raw: Raw = match envelope.spec() {
            Ok(raw) => raw,
            Err(reason) => return Reading::bad(reason),
        };
        let (mut nets, mut faults) = (Vec::new(), Vec::new());
        for text in raw.nets.unwrap_or_default() {
            match parse_net(&text) {
                Ok(net) => nets.push(net),
                Err(problem) => faults.push(format!("nets: {problem}")),
            }
        }
        let written = match envelope.labels() {
            Ok(labels) => labels,
            Err(reason) => return Reading::bad(reason),
        };
        // Only a namespace's own profile may say what the namespace is; of a global set nobody else says anything.
        let mut own = if resource.kind.namespaced() {
            labels::without_inherited_prefixes(written.clone())
        } else {
            written.clone()
        };
        let dropped = written.keys().find(|name| !own.contains_key(*name)).cloned();
        let claimed = own.remove(NAMESPACE);
        let claim = claimed.filter(|claimed| !resource.kind.namespaced() || *claimed != resource.namespace);
        if resource.kind.namespaced() {
            own.insert(NAMESPACE.to_owned(), resource.namespace.clone());
        }
        let set = Self { labels: own, nets };
        if faults.is_empty() {
            let claim = claim
                .map(|claim| format!("label {NAMESPACE}={claim}: not for a writer to set; it is left out"));
            let dropped =
                dropped.map(|name| format!("label {name}: only a profile may say so; it is left out"));
            Reading::with_faults(set, &claim.into_iter().chain(dropped).collect::<Vec<_>>())
        } else {
            // Some Deny may rest on the last good version; without one, on the entries that can be read.
            Reading::Bad { reason: faults.join("; "), stand_in: Some(set) }
        }
    }

    pub fn ipv4_nets(&self) -> impl Iterator<Item = Ipv4Net> {
        self.nets.iter().filter_map(|net| match net {
            IpNet::V4(net) => Some(*net),
            IpNet::V6(_) => None,
        })
    }
}
