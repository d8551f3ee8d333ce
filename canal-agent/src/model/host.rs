//! HostEndpoint: not enforced yet, but its addresses and ports count where rules select them.

use std::net::{IpAddr, Ipv4Addr};

use serde::Deserialize;

use super::{
    Labels,
    endpoint::{NamedPort, RawPort, named_ports},
    labels, name,
    reading::{Envelope, Reading},
};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostEndpoint {
    /// Whose it is.
    pub node: String,
    /// `*`: every interface that is no pod's; `None`: those with one of the addresses.
    pub interface: Option<String>,
    pub labels: Labels,
    pub profiles: Vec<String>,
    pub addresses: Vec<Ipv4Addr>,
    pub ports: Vec<NamedPort>,
}

impl HostEndpoint {
    pub fn read(value: &[u8]) -> Reading<Self> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        struct Raw {
            node: Option<String>,
            interface_name: Option<String>,
            #[serde(rename = "expectedIPs")]
            expected_ips: Option<Vec<String>>,
            profiles: Option<Vec<String>>,
            ports: Option<Vec<RawPort>>,
        }
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
        let node = raw.node.unwrap_or_default();
        if node.is_empty() {
            faults.push("node: missing; it is no node's".to_owned());
        }
        let interface = raw.interface_name.filter(|name| !name.is_empty());
        let fits = |name: &String| name == "*" || name::is_interface(name);
        if let Some(name) = interface.as_ref().filter(|name| !fits(name)) {
            return Reading::bad(format!("interfaceName: {name:?} can be no interface's"));
        }
        if interface.is_none() && raw.expected_ips.as_ref().is_none_or(Vec::is_empty) {
            return Reading::bad("has neither interfaceName nor expectedIPs; give it one of them");
        }
        for text in raw.expected_ips.unwrap_or_default() {
            match text.parse() {
                Ok(IpAddr::V4(address)) => addresses.push(address),
                Ok(IpAddr::V6(_)) => {}
                Err(_) => faults.push(format!("expectedIPs: {text:?} is not an address; it is left out")),
            }
        }
        let own = match envelope.labels() {
            Ok(labels) => labels,
            Err(reason) => return Reading::bad(reason),
        };
        let host = Self {
            node,
            interface,
            labels: labels::without_inherited_prefixes(own),
            profiles: raw.profiles.unwrap_or_default(),
            addresses,
            ports: named_ports(raw.ports, &mut faults),
        };
        Reading::with_faults(host, &faults)
    }
}
