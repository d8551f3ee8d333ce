//! What of a pod's object matters for its endpoint.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;
use serde::Deserialize;

use super::{
    super::{
        config::Wishes,
        error::{CniError, Code},
        request::PodName,
    },
    annotations::Annotations,
    failed,
};

/// A pod as it was when it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFacts {
    pub labels: BTreeMap<String, String>,
    pub service_account: Option<String>,
    /// What the name was made from, if it was made.
    pub generate_name: Option<String>,
    /// The node that the pod was given to.
    pub node_name: Option<String>,
    /// Those with a name or a port of the host.
    pub ports: Vec<Port>,
    /// What its annotations ask for.
    pub wishes: Wishes,
    /// Where else it may send from.
    pub allowed_source_prefixes: Vec<Ipv4Net>,
    /// One line each, for standard error: annotations that have no effect, and why.
    pub notes: Vec<String>,
}

/// A port of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// May be empty.
    pub name: String,
    pub protocol: PortProtocol,
    pub port: u16,
    /// 0: none.
    pub host_port: u16,
    /// Empty: all addresses.
    pub host_ip: String,
}

/// Spelled as in endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum PortProtocol {
    #[default]
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "UDP")]
    Udp,
    #[serde(rename = "SCTP")]
    Sctp,
}

impl PortProtocol {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    namespace: String,
    uid: Option<String>,
    generate_name: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    service_account_name: Option<String>,
    node_name: Option<String>,
    containers: Option<Vec<Container>>,
}

#[derive(Deserialize)]
struct Container {
    ports: Option<Vec<ContainerPort>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerPort {
    name: Option<String>,
    #[serde(rename = "containerPort")]
    port: u16,
    protocol: Option<PortProtocol>,
    host_port: Option<u16>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
}

impl PodFacts {
    pub(super) fn read(answer: &[u8], pod: &PodName) -> Result<Self, CniError> {
        let no_pod = |problem: &dyn std::fmt::Display| {
            failed(
                pod,
                Code::InvalidConfig,
                format!("the answer is no pod: {problem}; is this the API of Kubernetes?"),
            )
        };
        let object: Object = serde_json::from_slice(answer).map_err(|e| no_pod(&e))?;
        let Object { metadata, spec } = object;
        if (&metadata.namespace, &metadata.name) != (&pod.namespace, &pod.name) {
            return Err(no_pod(&format!("it is about {:?}/{:?}", metadata.namespace, metadata.name)));
        }
        // A pod of the same name may be another one by now; its ADD is another one, too.
        if let (Some(asked), Some(known)) = (&pod.uid, &metadata.uid)
            && asked != known
        {
            let why = format!("there is another pod of this name now (uid {known}, not {asked})");
            return Err(failed(pod, Code::TryAgain, why));
        }
        let annotations = Annotations::read(&metadata.annotations.unwrap_or_default(), pod)?;
        let set = |text: Option<String>| text.filter(|text| !text.is_empty());
        let ports = spec.containers.unwrap_or_default().into_iter().flat_map(|c| c.ports.unwrap_or_default());
        Ok(Self {
            labels: metadata.labels.unwrap_or_default(),
            service_account: set(spec.service_account_name),
            generate_name: set(metadata.generate_name),
            node_name: set(spec.node_name),
            ports: ports.filter_map(ContainerPort::matters).collect(),
            wishes: annotations.wishes,
            allowed_source_prefixes: annotations.allowed_source_prefixes,
            notes: annotations.notes,
        })
    }
}

impl ContainerPort {
    fn matters(self) -> Option<Port> {
        let (name, host_port) = (self.name.unwrap_or_default(), self.host_port.unwrap_or_default());
        (self.port != 0 && (!name.is_empty() || host_port != 0)).then(|| Port {
            name,
            protocol: self.protocol.unwrap_or_default(),
            port: self.port,
            host_port,
            host_ip: self.host_ip.unwrap_or_default(),
        })
    }
}
