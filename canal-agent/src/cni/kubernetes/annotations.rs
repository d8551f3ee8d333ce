//! What a pod's annotations ask of the network, in Calico's words.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::{IpNet, Ipv4Net};

use super::{
    super::{
        config::Wishes,
        error::{CniError, Code},
        request::{PodName, mac},
    },
    failed,
};

const OURS: &str = "cni.projectcalico.org/";
const QOS: &str = "qos.projectcalico.org/";
/// Written by Calico's plugin for others to read.
const REPORTS: [&str; 3] = ["containerID", "podIP", "podIPs"];

#[derive(Debug, Default)]
pub(super) struct Annotations {
    pub(super) wishes: Wishes,
    pub(super) allowed_source_prefixes: Vec<Ipv4Net>,
    pub(super) notes: Vec<String>,
}

impl Annotations {
    pub(super) fn read(all: &BTreeMap<String, String>, pod: &PodName) -> Result<Self, CniError> {
        let mut read = Self::default();
        for (name, value) in all.iter().filter(|(_, value)| !value.is_empty()) {
            let refused =
                |code, why: &str| failed(pod, code, format!("its annotation `{name}` is {value:?}: {why}"));
            let unsupported = |why| Err(refused(Code::UnsupportedField, why));
            let invalid = |why| refused(Code::InvalidConfig, why);
            let mut note = |why| read.notes.push(format!("annotation `{name}` has no effect: {why}"));
            if name.starts_with(QOS) {
                note("traffic of pods is not limited");
                continue;
            }
            let Some(key) = name.strip_prefix(OURS) else { continue };
            match key {
                "ipAddrs" => read.wishes.ip = ip(value).map_err(invalid)?,
                "hwAddr" => read.wishes.mac = Some(mac(value).map_err(invalid)?),
                "allowedSourcePrefixes" => {
                    let (prefixes, all) = prefixes(value).map_err(invalid)?;
                    if !all {
                        note("pods have no IPv6 here; the others count");
                    }
                    read.allowed_source_prefixes = prefixes;
                }
                "ipAddrsNoIpam" => {
                    return unsupported(
                        "an address outside the node's subnet would not be reachable; use `ipAddrs`",
                    );
                }
                "floatingIPs" => return unsupported("pods have the one address of the node's subnet"),
                "ipv4pools" | "ipv6pools" => note("addresses come from the node's subnet, not from pools"),
                "ipFamilies" => {
                    let families = texts(value).map_err(invalid)?;
                    if families.iter().any(|family| family != "IPv4") {
                        note("pods have IPv4 only");
                    }
                }
                report if REPORTS.contains(&report) => {}
                _ => note("it is not known here"),
            }
        }
        Ok(read)
    }
}

fn texts(value: &str) -> Result<Vec<String>, &'static str> {
    serde_json::from_str(value).map_err(|_| "want a JSON list of texts")
}

fn ip(value: &str) -> Result<Option<Ipv4Addr>, &'static str> {
    match texts(value)?.as_slice() {
        [] => Ok(None),
        [one] => match one.parse() {
            Ok(IpAddr::V4(ip)) => Ok(Some(ip)),
            Ok(IpAddr::V6(_)) => Err("pods have no IPv6 here"),
            Err(_) => Err("want a JSON list with an IPv4 address"),
        },
        _ => Err("a pod has one IPv4 address: ask for one"),
    }
}

/// Those of IPv4, and whether this is all.
fn prefixes(value: &str) -> Result<(Vec<Ipv4Net>, bool), &'static str> {
    let mut prefixes = Vec::new();
    let mut all = true;
    for text in texts(value)? {
        // An address stands for itself.
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        match net {
            Ok(IpNet::V4(net)) => prefixes.push(net.trunc()),
            Ok(IpNet::V6(_)) => all = false,
            Err(_) => return Err("want a JSON list of networks such as 192.0.2.0/24"),
        }
    }
    Ok((prefixes, all))
}
