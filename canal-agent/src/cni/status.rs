//! STATUS: whether an ADD would work, short of what only a container could tell.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::Ipv4Net;
use serde_json::Value;

use super::{
    config::{Config, Policy},
    error::{CniError, Code},
    exec, ipam, kubernetes, names,
    request::Environment,
    subnet::Subnet,
};
use crate::{api::client::Client, endpoint::Leases};

/// Runtimes ask often, and do not wait long.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn status(config: &Config, environment: &Environment, path: &[PathBuf]) -> Result<(), CniError> {
    let unavailable = |error: CniError| CniError { code: Code::NotAvailable, ..error };
    exec::find(ipam::PLUGIN, path).map_err(unavailable)?;
    let agent = Client::new(&config.socket).timeout(PATIENCE).ready();
    let agent = agent.map_err(|error| CniError::new(Code::NotAvailable, "no agent", error.to_string()))?;
    if let Some(reason) = agent.reason {
        let (code, msg) = if agent.limited {
            (Code::Limited, "the agent is not ready, and pods may be cut off from a part of the network")
        } else {
            (Code::NotAvailable, "the agent is not ready; pods that exist go on")
        };
        return Err(CniError::new(code, msg, reason));
    }
    let subnet = Subnet::load(&config.subnet_file).map_err(unavailable)?;
    config.mtu_on(&subnet).map_err(unavailable)?;
    config.node_name.resolve().map_err(unavailable)?;
    names::prefix(environment).map_err(unavailable)?;
    if let Policy::Kubernetes(access) = &config.policy {
        kubernetes::check(access).map_err(unavailable)?;
    }
    let ranges = config.range.within(subnet.net).map_err(unavailable)?;
    room(&ranges, &config.ipam_data_dir(), &config.network).map_err(unavailable)
}

/// Whether a pod would get an address.
fn room(ranges: &Value, data_dir: &Path, network: &str) -> Result<(), CniError> {
    let leases = Leases::of_network(data_dir, network);
    let taken = leases.list().map_err(|error| {
        let msg = format!("cannot read host-local's notes in {}", leases.folder().display());
        CniError::new(Code::Io, msg, error.to_string())
    })?;
    let taken: BTreeSet<Ipv4Addr> = taken.into_iter().map(|lease| lease.address).collect();
    let sets = ranges.as_array().into_iter().flatten();
    let free = sets.filter_map(Value::as_array).flatten().any(|range| has_room(range, &taken));
    if free {
        return Ok(());
    }
    Err(CniError::pool_full(""))
}

/// One range as `host-local` reads it: the network's, its broadcast's and the gateway's address are no pod's.
fn has_room(range: &Value, taken: &BTreeSet<Ipv4Addr>) -> bool {
    let text = |key: &str| range.get(key).and_then(Value::as_str);
    let Some(subnet) = text("subnet").and_then(|text| text.parse::<Ipv4Net>().ok()) else { return false };
    let address =
        |key: &str, or: u32| text(key).and_then(|t| t.parse::<Ipv4Addr>().ok()).map_or(or, u32::from);
    let (first, last) = (u32::from(subnet.network()) + 1, u32::from(subnet.broadcast()).saturating_sub(1));
    let (start, end) = (address("rangeStart", first).max(first), address("rangeEnd", last).min(last));
    let gateway = address("gateway", first);
    (start..=end).any(|ip| ip != gateway && !taken.contains(&Ipv4Addr::from(ip)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_range_has_room_while_an_address_of_it_is_no_pods() {
        let taken = |list: &[&str]| list.iter().map(|ip| ip.parse().unwrap()).collect::<BTreeSet<_>>();
        let whole = json!({"subnet": "10.1.0.8/29"});
        assert!(has_room(&whole, &taken(&["10.1.0.10", "10.1.0.11", "10.1.0.12", "10.1.0.13"])));
        assert!(!has_room(
            &whole,
            &taken(&["10.1.0.10", "10.1.0.11", "10.1.0.12", "10.1.0.13", "10.1.0.14"])
        ));
        let part = json!({"subnet": "10.1.0.8/29", "rangeStart": "10.1.0.12", "rangeEnd": "10.1.0.12"});
        assert!(has_room(&part, &taken(&[])));
        assert!(!has_room(&part, &taken(&["10.1.0.12"])));
        assert!(!has_room(&json!({}), &taken(&[])));
    }
}
