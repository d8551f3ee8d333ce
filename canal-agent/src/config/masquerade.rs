//! What pods send out of the network with their node's address, and what with their own.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::Serialize;

use super::{
    ConfigError, RunArgs, boolean,
    environment::{Environment, Value},
};

/// Pods are masqueraded, but to these destinations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct MasqueradeRules {
    /// Sorted, each once.
    pub exempt: Vec<Ipv4Net>,
    /// Source ports are not chosen at random.
    pub keep_ports: bool,
}

/// `None`: pods keep their address. What is wrong is said all the same.
pub(super) fn rules(
    args: &RunArgs,
    environment: &Environment,
    notices: &mut Vec<String>,
) -> Result<Option<MasqueradeRules>, ConfigError> {
    let mut truth = |flag: &'static str, given: &Option<String>| match environment.find(flag, given.clone()) {
        Some(value) => value.read(boolean, notices).map(Option::unwrap_or_default),
        None => Ok(false),
    };
    let wanted = truth("ip-masq", &args.ip_masq)?;
    let keep_ports = truth("ip-masq-fully-random-disable", &args.ip_masq_fully_random_disable)?;
    let mut exempt = Vec::new();
    for value in environment.find_all("ip-masq-exempt", &args.ip_masq_exempt) {
        for text in value.text.split(',').map(str::trim).filter(|text| !text.is_empty()) {
            exempt.push(net(text, &value)?);
        }
    }
    exempt.sort();
    exempt.dedup();
    Ok(wanted.then_some(MasqueradeRules { exempt, keep_ports }))
}

/// An address stands for itself.
fn net(text: &str, value: &Value) -> Result<Ipv4Net, ConfigError> {
    let net = text.parse().or_else(|_| text.parse::<Ipv4Addr>().map(Ipv4Net::from));
    let net: Ipv4Net = net.map_err(|_| {
        value.wrong(&format!(
            "holds {text:?}, which is no IPv4 network; write them as 10.1.0.0/16,192.0.2.7, with commas between"
        ))
    })?;
    Ok(net.trunc())
}
