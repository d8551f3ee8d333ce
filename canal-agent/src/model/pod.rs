//! A Kubernetes pod, as far as its endpoint carries it.

use serde::{Deserialize, Serialize};

use super::{
    WorkloadEndpoint,
    endpoint::NamedPort,
    labels::SERVICE_ACCOUNT,
    rule::{parse_net, parse_protocol},
};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    /// What its owner's pods' names begin with; empty for a pod without owner. Shown, and nothing else.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub generate_name: String,
    /// Empty: not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service_account: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PodPort>,
    /// Source addresses beside its own that it asks to be let use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
}

/// A container's port that has a name or is the node's as well; in the order and under the names of Calico's format.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodPort {
    #[serde(default)]
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    pub port: u16,
    /// 0: none.
    #[serde(default)]
    pub host_port: u16,
    #[serde(default, rename = "hostIP")]
    pub host_ip: String,
}

impl Pod {
    /// Tells the endpoint what policies may ask of it.
    pub(crate) fn describe(&self, workload: &mut WorkloadEndpoint) {
        workload.workload.clone_from(&self.name);
        if !self.service_account.is_empty() {
            workload.labels.insert(SERVICE_ACCOUNT.to_owned(), self.service_account.clone());
        }
        let named = self.ports.iter().filter(|port| !port.name.is_empty() && port.port != 0);
        workload.ports = named
            .filter_map(|port| {
                let protocol = parse_protocol(&port.protocol.clone().into()).ok()?.number;
                Some(NamedPort { name: port.name.clone(), protocol, port: port.port })
            })
            .collect();
        workload.spoofed = self.sources.iter().filter_map(|net| parse_net(net).ok()).collect();
    }
}
