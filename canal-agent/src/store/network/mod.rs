//! The network's configuration in etcd: flannel's fields, defaults and rules, without flannel's surprises.
//! Field names match in any case, as in Go. Pure: text in, configuration or one error out.

mod backend;
mod range;

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use self::range::{Given, Range};
use super::{SubnetKey, json::Json};

pub use self::backend::{Backend, MTU_MIN, VNI_MAX, VxlanOptions};

/// A configuration that holds together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    pub network: Ipv4Net,
    /// Prefix length of each node's subnet.
    pub subnet_len: u8,
    pub subnet_min: Ipv4Addr,
    pub subnet_max: Ipv4Addr,
    pub backend: Backend,
    /// What was asked for and has no effect, for the log.
    pub notes: Vec<String>,
}

/// What is wrong with the configuration, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    #[error("network config is not JSON: {0}")]
    NotJson(String),
    #[error(
        "network config is {0}: want an object such as {{\"Network\":\"10.100.0.0/16\",\"Backend\":{{\"Type\":\"vxlan\"}}}}"
    )]
    NotAnObject(&'static str),
    #[error("{field} is {found}: want {want}")]
    Field { field: String, found: String, want: &'static str },
    #[error("Network is missing: add an IPv4 range such as \"Network\":\"10.100.0.0/16\"")]
    NoNetwork,
    #[error("IPv6Network is missing: add an IPv6 range, or set EnableIPv6 to false")]
    NoIpv6Network,
    #[error("EnableIPv4 and EnableIPv6 are both false: set EnableIPv4 to true")]
    NoFamily,
    #[error("IPv6 is not carried yet: set EnableIPv4 to true and EnableIPv6 to false")]
    Ipv6,
    #[error("{field} {network} is too small to be shared by nodes: use a prefix of /{longest} or shorter")]
    TooSmall { field: &'static str, network: String, longest: u8 },
    #[error("{field} {len} does not fit {network}: want {shortest} to {longest}")]
    SubnetLen { field: &'static str, len: u64, network: String, shortest: u8, longest: u8 },
    #[error("{field} {address} is outside {network}: move it inside, or leave it out")]
    Outside { field: &'static str, address: String, network: String },
    #[error("{field} {address} is not the start of a /{len} subnet: want {aligned}, or leave it out")]
    NotAligned { field: &'static str, address: String, len: u8, aligned: String },
    #[error("{min_field} {min} is above {max_field} {max}: swap them")]
    MinAboveMax { min_field: &'static str, min: String, max_field: &'static str, max: String },
    #[error("Backend has no Type: add \"Type\":\"vxlan\"")]
    NoBackendType,
    #[error("backend {kind:?} is not supported: {instead}")]
    UnknownBackend { kind: String, instead: &'static str },
}

impl NetworkConfig {
    pub fn parse(value: &[u8]) -> Result<Self, NetworkError> {
        let json: Json = serde_json::from_slice(value).map_err(|e| NetworkError::NotJson(e.to_string()))?;
        let Json::Object(_) = json else { return Err(NetworkError::NotAnObject(json.kind())) };
        let fields = Fields { json: &json, path: "" };
        let mut notes = Vec::new();

        let ipv4 = fields.boolean("EnableIPv4")?.unwrap_or(true);
        let ipv6 = fields.boolean("EnableIPv6")?.unwrap_or(false);
        if fields.boolean("EnableNFTables")?.is_some() {
            notes.push("EnableNFTables has no effect: Canal installs no iptables rules".into());
        }
        if !ipv4 && !ipv6 {
            return Err(NetworkError::NoFamily);
        }
        let range = ipv4.then(|| v4_range(&fields)).transpose()?;
        if ipv6 {
            v6_range(&fields)?;
        }
        let backend = backend::read(&fields, &mut notes)?;
        // A key without its IPv6 half would make the flanneld of a dual-stack cluster panic: refuse, do not degrade.
        let (Some((network, range)), false) = (range, ipv6) else { return Err(NetworkError::Ipv6) };
        Ok(Self {
            network,
            subnet_len: range.len,
            subnet_min: v4_address(range.min),
            subnet_max: v4_address(range.max),
            backend,
            notes,
        })
    }

    /// The same but for what was remarked while reading.
    pub fn agrees_with(&self, other: &Self) -> bool {
        let Self { network, subnet_len, subnet_min, subnet_max, backend, notes: _ } = self;
        (network, subnet_len, subnet_min, subnet_max, backend)
            == (&other.network, &other.subnet_len, &other.subnet_min, &other.subnet_max, &other.backend)
    }

    /// What of `next` only a fresh start can take up, in words: who is addressed how. Ranges and MTU can change under way.
    pub fn needs_restart(&self, next: &Self) -> Vec<String> {
        let fields = [
            ("Network", self.network.to_string(), next.network.to_string()),
            ("SubnetLen", self.subnet_len.to_string(), next.subnet_len.to_string()),
        ];
        let backend = self.backend.needs_restart(&next.backend);
        let changed = fields.into_iter().chain(backend).filter(|(_, before, after)| before != after);
        changed.map(|(field, before, after)| format!("{field} {before} is {after} now")).collect()
    }

    /// May a node of this network hold that key?
    pub fn accepts(&self, key: &SubnetKey) -> bool {
        key.v6.is_none()
            && key.v4 == key.v4.trunc()
            && key.v4.prefix_len() == self.subnet_len
            && (self.subnet_min..=self.subnet_max).contains(&key.v4.addr())
    }

    /// All subnets that nodes may take, in flannel's order.
    pub fn subnets(&self) -> impl Iterator<Item = Ipv4Net> + use<> {
        let (len, step) = (self.subnet_len, 1u64 << (32 - u32::from(self.subnet_len)));
        let (first, last) = (u64::from(u32::from(self.subnet_min)), u64::from(u32::from(self.subnet_max)));
        std::iter::successors(Some(first), move |at| Some(at + step))
            .take_while(move |at| *at <= last)
            .filter_map(move |at| Ipv4Net::new(u32::try_from(at).ok()?.into(), len).ok())
    }
}

fn v4_range(fields: &Fields<'_>) -> Result<(Ipv4Net, Range), NetworkError> {
    let network: Ipv4Net =
        fields.parsed("Network", "an IPv4 range such as 10.100.0.0/16")?.ok_or(NetworkError::NoNetwork)?;
    let network = network.trunc();
    let range = range::IPV4.derive(&Given {
        base: u128::from(u32::from(network.network())),
        network_len: network.prefix_len(),
        subnet_len: fields.unsigned("SubnetLen", u64::MAX, "a prefix length")?.unwrap_or(0),
        min: fields.parsed::<Ipv4Addr>("SubnetMin", "an IPv4 address")?.map(|a| u32::from(a).into()),
        max: fields.parsed::<Ipv4Addr>("SubnetMax", "an IPv4 address")?.map(|a| u32::from(a).into()),
    })?;
    Ok((network, range))
}

fn v6_range(fields: &Fields<'_>) -> Result<(Ipv6Net, Range), NetworkError> {
    let network: Ipv6Net = fields
        .parsed("IPv6Network", "an IPv6 range such as fd42:9::/48")?
        .ok_or(NetworkError::NoIpv6Network)?;
    let network = network.trunc();
    let range = range::IPV6.derive(&Given {
        base: network.network().into(),
        network_len: network.prefix_len(),
        subnet_len: fields.unsigned("IPv6SubnetLen", u64::MAX, "a prefix length")?.unwrap_or(0),
        min: fields.parsed::<Ipv6Addr>("IPv6SubnetMin", "an IPv6 address")?.map(Into::into),
        max: fields.parsed::<Ipv6Addr>("IPv6SubnetMax", "an IPv6 address")?.map(Into::into),
    })?;
    Ok((network, range))
}

fn v4_address(value: u128) -> Ipv4Addr {
    u32::try_from(value).expect("range arithmetic stays inside the network").into()
}

/// Typed access to the members of one object, with their path for messages.
struct Fields<'a> {
    json: &'a Json,
    path: &'static str,
}

impl<'a> Fields<'a> {
    fn wrong(&self, name: &str, found: &Json, want: &'static str) -> NetworkError {
        NetworkError::Field { field: format!("{}{name}", self.path), found: found.render(), want }
    }

    fn boolean(&self, name: &str) -> Result<Option<bool>, NetworkError> {
        match self.json.member(name) {
            None => Ok(None),
            Some(Json::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(self.wrong(name, other, "true or false, without quotes")),
        }
    }

    fn string(&self, name: &str) -> Result<Option<&'a str>, NetworkError> {
        match self.json.member(name) {
            None => Ok(None),
            Some(Json::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, other, "a string in quotes")),
        }
    }

    fn unsigned(&self, name: &str, max: u64, want: &'static str) -> Result<Option<u64>, NetworkError> {
        let Some(json) = self.json.member(name) else { return Ok(None) };
        let number = match json {
            Json::Number(n) => n.as_u64().filter(|n| *n <= max),
            _ => None,
        };
        number.map(Some).ok_or_else(|| self.wrong(name, json, want))
    }

    /// An address or range in a string; an empty string is an absent field.
    fn parsed<T: std::str::FromStr>(
        &self,
        name: &str,
        want: &'static str,
    ) -> Result<Option<T>, NetworkError> {
        let Some(text) = self.string(name)?.filter(|text| !text.is_empty()) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| self.wrong(name, &Json::string(text), want))
    }
}

#[cfg(test)]
mod tests;
