//! WorkloadEndpoint: a pod's interface, as Calico stores it and as Canal publishes it.

use std::{fmt, net::Ipv4Addr};

use canal_common::Mac;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    Labels, Pod,
    labels::{self, NAMESPACE, ORCHESTRATOR, SERVICE_ACCOUNT},
    name,
    pod::PodPort,
    reading::{Envelope, Reading},
    resource::{Kind, Resource},
    rule::parse_net,
};
use crate::store::json::escape_as_go;

/// Identity of a workload endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EndpointKey {
    pub namespace: String,
    pub name: String,
}

impl EndpointKey {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }

    pub fn resource(&self) -> Resource {
        Resource::new(Kind::WorkloadEndpoint, &self.namespace, &self.name)
    }

    /// Where etcd has it.
    pub fn store_key(&self) -> String {
        self.resource().key()
    }
}

impl fmt::Display for EndpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The four parts of an endpoint's name: `<node>-<orchestrator>-<workload>-<endpoint>`, every dash within a part
/// doubled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointName {
    pub node: String,
    pub orchestrator: String,
    pub workload: String,
    pub endpoint: String,
}

/// A part of an endpoint name is empty, or begins or ends with a dash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("endpoint name: {0:?} is empty, or begins or ends with a dash")]
pub struct BadName(pub String);

impl EndpointName {
    /// Orchestrators: a runtime by itself, and Kubernetes.
    pub const CNI: &str = "cni";
    pub const KUBERNETES: &str = "k8s";

    pub fn cni(node: &str, container_id: &str, interface: &str) -> Self {
        Self::new(node, Self::CNI, container_id, interface)
    }

    pub fn kubernetes(node: &str, pod: &str, interface: &str) -> Self {
        Self::new(node, Self::KUBERNETES, pod, interface)
    }

    fn new(node: &str, orchestrator: &str, workload: &str, endpoint: &str) -> Self {
        Self {
            node: node.to_owned(),
            orchestrator: orchestrator.to_owned(),
            workload: workload.to_owned(),
            endpoint: endpoint.to_owned(),
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        // Dashes pair up from the left, as the writer doubled them; a part never begins or ends with one.
        let mut parts = vec![String::new()];
        let mut rest = name.chars().peekable();
        while let Some(next) = rest.next() {
            if next == '-' && rest.next_if_eq(&'-').is_none() {
                parts.push(String::new());
            } else {
                parts.last_mut()?.push(next);
            }
        }
        let [node, orchestrator, workload, endpoint] = <[String; 4]>::try_from(parts).ok()?;
        let name = Self { node, orchestrator, workload, endpoint };
        name.format().is_ok().then_some(name)
    }

    pub fn format(&self) -> Result<String, BadName> {
        let parts = [&self.node, &self.orchestrator, &self.workload, &self.endpoint];
        if let Some(bad) = parts.iter().find(|p| p.is_empty() || p.starts_with('-') || p.ends_with('-')) {
            return Err(BadName((*bad).clone()));
        }
        Ok(parts.map(|part| part.replace('-', "--")).join("-"))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WorkloadEndpoint {
    /// Whose it is: the first part of its name, not what the spec claims.
    pub node: String,
    pub orchestrator: String,
    /// Container id, or name of the Kubernetes pod.
    pub workload: String,
    /// Interface name inside the pod.
    pub endpoint: String,
    pub container_id: String,
    /// Interface name on the host.
    pub interface_name: String,
    pub addresses: Vec<Ipv4Addr>,
    pub mac: Option<Mac>,
    /// Own labels: with namespace and service account, without what only profiles may hand out.
    pub labels: Labels,
    pub profiles: Vec<String>,
    pub ports: Vec<NamedPort>,
    /// Source addresses beside its own that it asks to be let use.
    pub spoofed: Vec<IpNet>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    pub name: String,
    pub protocol: u8,
    pub port: u16,
}

#[derive(Deserialize)]
pub(super) struct RawPort {
    name: Option<String>,
    protocol: Option<serde_json::Value>,
    port: Option<u16>,
}

pub(super) fn named_ports(raw: Option<Vec<RawPort>>, faults: &mut Vec<String>) -> Vec<NamedPort> {
    let mut ports = Vec::new();
    for RawPort { name, protocol, port } in raw.unwrap_or_default() {
        let Some(name) = name.filter(|name| !name.is_empty()) else { continue };
        if !name::is_port(&name) {
            faults.push(format!("port {name:?}: not a port's name; it is left out"));
            continue;
        }
        let protocol = match &protocol {
            None => Ok(6),
            Some(protocol) => super::rule::parse_protocol(protocol).map(|p| p.number),
        };
        match (protocol, port) {
            (Ok(protocol), _) if !matches!(protocol, 6 | 17 | 132) => {
                faults.push(format!("port {name:?}: protocol {protocol} has no ports; it is left out"));
            }
            (Ok(protocol), Some(port @ 1..)) => ports.push(NamedPort { name, protocol, port }),
            (Err(problem), _) => faults.push(format!("port {name:?}: {problem}; it is left out")),
            (_, None | Some(0)) => faults.push(format!("port {name:?} has no number; it is left out")),
        }
    }
    ports
}

impl WorkloadEndpoint {
    pub fn read(key: &EndpointKey, value: &[u8]) -> Reading<Self> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct Raw {
            #[serde(rename = "containerID")]
            container_id: Option<String>,
            service_account_name: Option<String>,
            ip_networks: Option<Vec<String>>,
            profiles: Option<Vec<String>>,
            interface_name: Option<String>,
            mac: Option<String>,
            ports: Option<Vec<RawPort>>,
            allow_spoofed_source_prefixes: Option<Vec<String>>,
            node: Option<String>,
        }
        let Some(parsed) = EndpointName::parse(&key.name) else {
            return Reading::bad("the name is not <node>-<orchestrator>-<workload>-<endpoint>");
        };
        let envelope = match Envelope::parse(value) {
            Ok(envelope) => envelope,
            Err(reason) => return Reading::bad(reason),
        };
        let raw: Raw = match envelope.spec() {
            Ok(raw) => raw,
            Err(reason) => return Reading::bad(reason),
        };
        let mut faults = Vec::new();
        let mut addresses = Vec::new();
        for text in raw.ip_networks.unwrap_or_default() {
            match parse_net(&text) {
                Ok(IpNet::V4(net)) if net.prefix_len() == 32 => addresses.push(net.addr()),
                Ok(IpNet::V6(_)) => {}
                _ => faults.push(format!("ipNetworks: {text:?} is not one address; it is left out")),
            }
        }
        if let Some(node) = raw.node.filter(|node| !node.is_empty() && *node != parsed.node) {
            faults.push(format!("node: {node:?} is not the {:?} of the name, which counts", parsed.node));
        }
        let mut interface_name = raw.interface_name.unwrap_or_default();
        if !interface_name.is_empty() && !name::is_interface(&interface_name) {
            faults.push(format!(
                "interfaceName: {interface_name:?} can be no interface's; the endpoint has none"
            ));
            interface_name.clear();
        }
        let mut spoofed = Vec::new();
        for text in raw.allow_spoofed_source_prefixes.unwrap_or_default() {
            match parse_net(&text) {
                Ok(net) => spoofed.push(net),
                Err(problem) => faults.push(format!("allowSpoofedSourcePrefixes: {problem}; it is left out")),
            }
        }
        let mac = raw.mac.filter(|text| !text.is_empty()).and_then(|text| {
            text.parse().map_err(|e| faults.push(format!("mac: {e}; the endpoint has none"))).ok()
        });
        let mut own = match envelope.labels() {
            Ok(labels) => labels,
            Err(reason) => return Reading::bad(reason),
        };
        if let Some(account) = raw.service_account_name.filter(|account| !account.is_empty()) {
            own.insert(SERVICE_ACCOUNT.to_owned(), account);
        }
        let endpoint = Self {
            node: parsed.node,
            orchestrator: parsed.orchestrator,
            workload: parsed.workload,
            endpoint: parsed.endpoint,
            container_id: raw.container_id.unwrap_or_default(),
            interface_name,
            addresses,
            mac,
            labels: own,
            profiles: raw.profiles.unwrap_or_default(),
            ports: named_ports(raw.ports, &mut faults),
            spoofed,
        };
        Reading::with_faults(endpoint.normalised(key), &faults)
    }

    /// Labels as selectors may see them, on every node alike: the namespace is the key's, whatever a writer claimed,
    /// and the orchestrator is named, also before the endpoint was published.
    #[must_use]
    pub(super) fn normalised(mut self, key: &EndpointKey) -> Self {
        self.labels = labels::without_inherited_prefixes(self.labels);
        self.labels.insert(NAMESPACE.to_owned(), key.namespace.clone());
        self.labels.entry(ORCHESTRATOR.to_owned()).or_insert_with(|| self.orchestrator.clone());
        self
    }

    /// The value for etcd, byte for byte what Calico's CNI plugin writes; `pod` for orchestrator `k8s`.
    pub fn to_json(&self, key: &EndpointKey, birth: &Birth, pod: Option<&Pod>) -> String {
        let mut labels = self.labels.clone();
        labels.insert(NAMESPACE.to_owned(), key.namespace.clone());
        labels.insert(ORCHESTRATOR.to_owned(), self.orchestrator.clone());
        if labels.get(SERVICE_ACCOUNT).is_some_and(|account| account.len() >= LABEL_MAX) {
            labels.remove(SERVICE_ACCOUNT);
        }
        let none = Pod::default();
        let pod = pod.unwrap_or(&none);
        go_json(&Out {
            kind: "WorkloadEndpoint",
            api_version: "projectcalico.org/v3",
            metadata: OutMetadata {
                name: &key.name,
                generate_name: &pod.generate_name,
                namespace: &key.namespace,
                uid: &birth.uid,
                creation_timestamp: &birth.creation_timestamp,
                labels: &labels,
            },
            spec: OutSpec {
                orchestrator: &self.orchestrator,
                node: &self.node,
                container_id: &self.container_id,
                pod: &pod.name,
                endpoint: &self.endpoint,
                service_account_name: &pod.service_account,
                ip_networks: self.addresses.iter().map(|address| format!("{address}/32")).collect(),
                profiles: &self.profiles,
                interface_name: &self.interface_name,
                mac: self.mac,
                ports: &pod.ports,
                allow_spoofed_source_prefixes: &pod.sources,
            },
        })
    }
}

/// Calico's plugin writes no longer service account as a label; the longest of Kubernetes has this many bytes.
const LABEL_MAX: usize = 63;

/// What an object keeps from its creation on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Birth {
    /// A random UUID.
    pub uid: String,
    /// UTC, `2026-03-04T05:06:07Z`.
    pub creation_timestamp: String,
}

#[derive(Serialize)]
struct Out<'a> {
    kind: &'static str,
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    metadata: OutMetadata<'a>,
    spec: OutSpec<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutMetadata<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    generate_name: &'a str,
    namespace: &'a str,
    uid: &'a str,
    creation_timestamp: &'a str,
    labels: &'a Labels,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutSpec<'a> {
    orchestrator: &'a str,
    node: &'a str,
    #[serde(rename = "containerID")]
    container_id: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pod: &'a str,
    endpoint: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service_account_name: &'a str,
    ip_networks: Vec<String>,
    profiles: &'a [String],
    interface_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<Mac>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    ports: &'a [PodPort],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    allow_spoofed_source_prefixes: &'a [String],
}

/// Compact JSON as Go writes it.
pub(super) fn go_json(value: &impl Serialize) -> String {
    escape_as_go(
        &serde_json::to_string(value).expect("a struct of strings and maps with string keys serialises"),
    )
}
