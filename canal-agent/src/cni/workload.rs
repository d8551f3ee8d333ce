//! Who the endpoint is: a container by itself, or a pod of Kubernetes with what the API says of it.

use std::collections::BTreeMap;

use super::{
    call::{Call, note},
    config::{Policy, Wishes},
    error::CniError,
    kubernetes::PodFacts,
};
use crate::model::{Pod, pod::PodPort};

#[derive(Debug, Default)]
pub(super) struct Workload {
    pub(super) labels: BTreeMap<String, String>,
    /// Empty: the network's.
    pub(super) profiles: Vec<String>,
    pub(super) pod: Option<Pod>,
    pub(super) wishes: Wishes,
}

impl Workload {
    /// Asks Kubernetes, where the configuration says so and the container is a pod.
    pub(super) fn find(call: Call<'_>) -> Result<Self, CniError> {
        let labels = call.config.labels.clone();
        let Some(name) = &call.arguments.pod else { return Ok(Self { labels, ..Self::default() }) };
        let mut pod = Pod { namespace: name.namespace.clone(), name: name.name.clone(), ..Pod::default() };
        let Policy::Kubernetes(access) = &call.config.policy else {
            return Ok(Self { labels, pod: Some(pod), ..Self::default() });
        };
        let facts = PodFacts::ask(access, name)?;
        for line in &facts.notes {
            note(line);
        }
        let mut profiles = vec![format!("kns.{}", pod.namespace)];
        profiles
            .extend(facts.service_account.iter().map(|account| format!("ksa.{}.{account}", pod.namespace)));
        pod.service_account = facts.service_account.unwrap_or_default();
        pod.generate_name = facts.generate_name.unwrap_or_default();
        pod.sources = facts.allowed_source_prefixes.iter().map(ToString::to_string).collect();
        let port = |port: super::kubernetes::Port| PodPort {
            name: port.name,
            protocol: port.protocol.name().to_owned(),
            port: port.port,
            host_port: port.host_port,
            host_ip: port.host_ip,
        };
        pod.ports = facts.ports.into_iter().map(port).collect();
        // The pod's own labels come from Kubernetes alone: what a caller adds must not make it another pod.
        Ok(Self { labels: facts.labels, profiles, pod: Some(pod), wishes: facts.wishes })
    }
}
