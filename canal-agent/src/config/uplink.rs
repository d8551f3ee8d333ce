//! What the operator says about the interface and the address that carry the overlay.

use std::net::Ipv4Addr;

use regex_lite::Regex;
use serde::{Serialize, Serializer};

use super::{
    ConfigError, RunArgs,
    environment::{Environment, Value},
};

/// In the order in which they are tried; the first that finds an interface counts. Without any of them, that of the
/// public address, or else of the default route.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct UplinkRules {
    /// Names or addresses.
    pub ifaces: Vec<String>,
    pub patterns: Vec<Pattern>,
    pub can_reach: Option<Ipv4Addr>,
    /// The address that peers send to; `None` means that of the uplink.
    pub public_ip: Option<Ipv4Addr>,
}

/// A regular expression, found anywhere in a text.
#[derive(Debug, Clone)]
pub struct Pattern(Regex);

impl Pattern {
    pub fn new(text: &str) -> Result<Self, regex_lite::Error> {
        Regex::new(text).map(Self)
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    pub fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

pub(super) fn rules(args: &RunArgs, environment: &Environment) -> Result<UplinkRules, ConfigError> {
    let ifaces = environment.find_all("iface", &args.iface);
    let patterns = environment.find_all("iface-regex", &args.iface_regex);
    let can_reach = environment.find("iface-can-reach", args.iface_can_reach.clone());
    let public_ip = environment.find("public-ip", args.public_ip.clone());
    Ok(UplinkRules {
        ifaces: ifaces.into_iter().map(|value| value.text).collect(),
        patterns: patterns.iter().map(pattern).collect::<Result<_, _>>()?,
        can_reach: can_reach.as_ref().map(address).transpose()?,
        public_ip: public_ip.as_ref().map(public_address).transpose()?,
    })
}

fn pattern(value: &Value) -> Result<Pattern, ConfigError> {
    Pattern::new(&value.text).map_err(|error| {
        value.wrong(&format!("is not a regular expression: {error}; write one such as ^10[.]1[.]"))
    })
}

fn address(value: &Value) -> Result<Ipv4Addr, ConfigError> {
    value.text.parse().map_err(|_| value.wrong("is not an IPv4 address; write it as 192.0.2.11"))
}

fn public_address(value: &Value) -> Result<Ipv4Addr, ConfigError> {
    let ip = address(value)?;
    if ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast() {
        return Err(value.wrong("is not an address that peers can send to; use one of this node's"));
    }
    Ok(ip)
}
