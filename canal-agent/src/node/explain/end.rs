//! Whom an operator means by a pod or an address, and where that is.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::{
    api::{
        explain::{End, Place},
        wire::PeerStatus,
    },
    model::{Cluster, EndpointKey, WorkloadEndpoint},
};

/// What there is around here.
pub(super) struct Around<'a> {
    pub(super) cluster: &'a Cluster,
    /// Name of this node.
    pub(super) node: &'a str,
    /// By address.
    pub(super) locals: BTreeMap<Ipv4Addr, Local>,
    /// This host's own addresses.
    pub(super) host: Vec<Ipv4Addr>,
    pub(super) peers: Vec<PeerStatus>,
    pub(super) network: Ipv4Net,
}

#[derive(Debug)]
pub(super) struct Found {
    pub(super) end: End,
    /// Of a pod of this node.
    pub(super) local: Option<Local>,
}

/// A pod of this node.
#[derive(Debug, Clone)]
pub(super) struct Local {
    pub(super) key: EndpointKey,
    /// Why nothing passes, whatever policy says.
    pub(super) closed: Option<String>,
    /// Why an earlier policy is in force, if so.
    pub(super) degraded: Option<String>,
}

impl Local {
    fn closed(key: &EndpointKey, reason: String) -> Self {
        Self { key: key.clone(), closed: Some(reason), degraded: None }
    }
}

/// A container id is given by at least so much of it.
const MIN_PREFIX: usize = 4;
const NOT_PROGRAMMED: &str = "it is not programmed: it is leaving, or has just come";
/// Of several that a name may mean, so many are named.
const SHOWN: usize = 5;

impl Around<'_> {
    /// The error is one line.
    pub(super) fn find(&self, text: &str) -> Result<Found, String> {
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(self.at(address));
        }
        if text.parse::<std::net::Ipv6Addr>().is_ok() {
            return Err(format!("{text}: IPv6 is not carried; name an IPv4 address or a pod"));
        }
        let (key, endpoint) = self.named(text)?;
        self.pod(key, endpoint)
    }

    fn named(&self, text: &str) -> Result<(&EndpointKey, &WorkloadEndpoint), String> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        let found: Vec<_> = self
            .cluster
            .endpoints()
            .filter(|(key, _)| namespace.is_none_or(|namespace| namespace == key.namespace))
            .collect();
        // Endpoints without a container have an empty id.
        if name.is_empty() {
            return Err("nobody is named".to_owned());
        }
        let is_name = |(key, e): &&(&EndpointKey, &WorkloadEndpoint)| {
            key.name == name || e.workload == name || e.container_id == name
        };
        let is_prefix = |(_, e): &&(&EndpointKey, &WorkloadEndpoint)| {
            name.len() >= MIN_PREFIX && e.container_id.starts_with(name)
        };
        // A name is meant before the beginning of an id is.
        let mut matching: Vec<_> = found.iter().filter(is_name).collect();
        if matching.is_empty() {
            matching = found.iter().filter(is_prefix).collect();
        }
        match matching[..] {
            [(key, endpoint)] => Ok((key, endpoint)),
            [] => Err(format!(
                "no WorkloadEndpoint is called {text:?}; name one as `canalctl status` shows it, a pod, the first \
                 characters of a container id, or an address"
            )),
            _ => {
                let keys: Vec<String> =
                    matching.iter().take(SHOWN).map(|(key, e)| format!("{key} on {}", e.node)).collect();
                let more = if matching.len() > SHOWN { ", …" } else { "" };
                Err(format!(
                    "{text:?} may be {} of {}: {}{more}; say which",
                    if matching.len() == 2 { "either" } else { "any" },
                    matching.len(),
                    keys.join(", ")
                ))
            }
        }
    }

    fn pod(&self, key: &EndpointKey, endpoint: &WorkloadEndpoint) -> Result<Found, String> {
        let Some(first) = endpoint.addresses.first() else {
            return Err(format!("{key} has no IPv4 address"));
        };
        if endpoint.node != self.node {
            return Ok(Self::remote(*first, key, endpoint));
        }
        let is_own = |address: &&Ipv4Addr| self.locals.get(*address).is_some_and(|holder| holder.key == *key);
        let address = endpoint.addresses.iter().find(is_own).unwrap_or(first);
        let local = match self.locals.get(address) {
            Some(holder) if holder.key == *key => holder.clone(),
            Some(holder) => Local::closed(key, format!("its address is that of {}", holder.key)),
            None => Local::closed(key, NOT_PROGRAMMED.to_owned()),
        };
        Ok(self.local(*address, local))
    }

    fn at(&self, address: Ipv4Addr) -> Found {
        if let Some(local) = self.locals.get(&address) {
            return self.local(address, local.clone());
        }
        if self.host.contains(&address) {
            return self.other(
                address,
                Place::ThisHost,
                Some(self.node),
                format!("this host, {}", self.node),
            );
        }
        if let Some((key, endpoint)) = self.cluster.endpoints_at(address).next() {
            return if endpoint.node == self.node {
                self.local(address, Local::closed(key, NOT_PROGRAMMED.to_owned()))
            } else {
                Self::remote(address, key, endpoint)
            };
        }
        let name = |peer: &PeerStatus| peer.node.clone().unwrap_or_else(|| peer.public_ip.to_string());
        if let Some(peer) = self.peers.iter().find(|peer| peer.public_ip == address) {
            let node = name(peer);
            return self.other(address, Place::OtherNode, Some(&node), format!("node {node} itself"));
        }
        let (node, what) = match self.peers.iter().find(|peer| peer.subnet.contains(&address)) {
            Some(peer) => {
                let node = name(peer);
                let what = format!("in the subnet of node {node}, where no WorkloadEndpoint has it");
                (Some(node), what)
            }
            None if self.network.contains(&address) => {
                (None, "an address of the pod network that nobody holds".to_owned())
            }
            None => (None, "outside the pod network".to_owned()),
        };
        self.other(address, Place::Elsewhere, node.as_deref(), what)
    }

    fn local(&self, address: Ipv4Addr, local: Local) -> Found {
        let end = End {
            address,
            place: Place::Pod,
            endpoint: Some(local.key.to_string()),
            node: Some(self.node.to_owned()),
            description: "pod of this node".to_owned(),
        };
        Found { end, local: Some(local) }
    }

    fn remote(address: Ipv4Addr, key: &EndpointKey, endpoint: &WorkloadEndpoint) -> Found {
        let description = format!("pod of {}: ask canalctl there what its own policy says", endpoint.node);
        let end = End {
            address,
            place: Place::RemotePod,
            endpoint: Some(key.to_string()),
            node: Some(endpoint.node.clone()),
            description,
        };
        Found { end, local: None }
    }

    /// Not a pod: it may still be a host endpoint, or of network sets.
    fn other(&self, address: Ipv4Addr, place: Place, node: Option<&str>, mut description: String) -> Found {
        let holds = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&std::net::IpAddr::V4(address)));
        let hosts = self
            .cluster
            .host_endpoints()
            .filter(|(_, host)| host.addresses.contains(&address))
            .map(|(resource, _)| resource);
        let sets =
            self.cluster.network_sets().filter(|(_, set)| holds(&set.nets)).map(|(resource, _)| resource);
        let mut objects: Vec<String> = hosts.chain(sets).map(ToString::to_string).collect();
        if objects.len() > SHOWN {
            objects.truncate(SHOWN);
            objects.push("…".to_owned());
        }
        if !objects.is_empty() {
            description = format!("{description}; in {}", objects.join(", "));
        }
        let end = End { address, place, endpoint: None, node: node.map(str::to_owned), description };
        Found { end, local: None }
    }
}
