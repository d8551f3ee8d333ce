//! HostEndpoint: not enforced yet, but its addresses and ports count where rules select them.

use std::net::{IpAddr, Ipv4Addr};

use serde::Deserialize;

use super::{
    Labels,
    endpoint::{NamedPort, RawPort, named_ports},
    labels,
    reading::{Envelope, Reading},
};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostEndpoint {
    pub labels: Labels,
    pub profiles: Vec<String>,
    pub addresses: Vec<Ipv4Addr>,
    pub ports: Vec<NamedPort>,
}

impl HostEndpoint {
    pub fn read(value: &[u8]) -> Reading<Self> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Raw {
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
        for text in raw.expected_ips.unwrap_or_default() {
            match text.parse() {
                Ok(IpAddr::V4(address)) => addresses.push(address),
                Ok(IpAddr::V6(_)) => {}
                Err(_) => faults.push(format!("expectedIPs: {text:?} is not an address; it is left out")),
            }
        }
        let host = Self {
            labels: labels::without_inherited_prefixes(envelope.labels()),
            profiles: raw.profiles.unwrap_or_default(),
            addresses,
            ports: named_ports(raw.ports, &mut faults),
        };
        Reading::with_faults(host, &faults)
    }
}
