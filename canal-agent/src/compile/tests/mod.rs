pub(crate) mod random;
mod semantics;
mod structure;

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use canal_common::policy::icmp_port;
use serde_json::{Value, json};

use super::{
    Census, Class, Compiler, Final, Place, PolicySet,
    reference::{Packet, Reference},
};
use crate::model::{
    Cluster, EndpointKey,
    resource::{Kind, Resource},
    rule::Direction,
};

pub(crate) const NODE: &str = "n1";

/// A cluster made of JSON, with a readable way of asking it.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) cluster: Cluster,
}

impl World {
    pub(crate) fn put(&mut self, kind: Kind, namespace: &str, name: &str, value: &Value) -> &mut Self {
        let key = Resource::new(kind, namespace, name).key();
        self.cluster.apply(&key, Some(value.to_string().as_bytes()));
        self
    }

    /// A pod of [`NODE`] with `labels` (`a=x b=y`) and `profiles`.
    pub(crate) fn pod(&mut self, name: &str, address: &str, labels: &str, profiles: &[&str]) -> EndpointKey {
        self.pod_in("shop", name, address, labels, &json!({ "profiles": profiles }))
    }

    pub(crate) fn pod_in(
        &mut self,
        namespace: &str,
        name: &str,
        address: &str,
        labels: &str,
        spec: &Value,
    ) -> EndpointKey {
        let labels: serde_json::Map<String, Value> = labels
            .split_whitespace()
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (name.to_owned(), value.into()))
            .collect();
        let name = format!("{NODE}-cni-{name}-eth0");
        let mut spec = spec.clone();
        spec["ipNetworks"] = json!([format!("{address}/32")]);
        let value = json!({ "metadata": { "labels": labels }, "spec": spec });
        self.put(Kind::WorkloadEndpoint, namespace, &name, &value);
        EndpointKey { namespace: namespace.to_owned(), name }
    }

    pub(crate) fn global(&mut self, name: &str, spec: &Value) -> &mut Self {
        self.put(Kind::GlobalNetworkPolicy, "", name, &json!({ "spec": spec }))
    }

    pub(crate) fn policy(&mut self, namespace: &str, name: &str, spec: &Value) -> &mut Self {
        self.put(Kind::NetworkPolicy, namespace, name, &json!({ "spec": spec }))
    }

    pub(crate) fn tier(&mut self, name: &str, order: &Value, default_action: &str) -> &mut Self {
        let spec = json!({ "order": order, "defaultAction": default_action });
        self.put(Kind::Tier, "", name, &json!({ "spec": spec }))
    }

    pub(crate) fn profile(&mut self, name: &str, spec: &Value) -> &mut Self {
        self.put(Kind::Profile, "", name, &json!({ "spec": spec }))
    }

    /// Judges a packet by the tables and by the reference; they must agree.
    pub(crate) fn verdict(
        &self,
        endpoint: &EndpointKey,
        direction: Direction,
        packet: Packet,
    ) -> (bool, String) {
        let mut compiled = Compiler::of(&self.cluster, NODE);
        let expected = Reference::new(&self.cluster).judge(endpoint, direction, &packet);
        let found = by_tables(&mut compiled, endpoint, direction, &packet);
        let wanted =
            Final { allow: expected.allow, rule: expected.rule.map(Arc::new), logs: arcs(expected.logs) };
        assert_eq!(found, wanted, "tables (left) against reference: {packet:?}");
        (found.allow, found.rule.map(|rule| rule.to_string()).unwrap_or_default())
    }

    pub(crate) fn ingress(&self, endpoint: &EndpointKey, from: &str, what: &str) -> bool {
        let to = self.address(endpoint);
        self.verdict(endpoint, Direction::Ingress, packet(address(from), to, what)).0
    }

    pub(crate) fn egress(&self, endpoint: &EndpointKey, to: &str, what: &str) -> bool {
        let from = self.address(endpoint);
        self.verdict(endpoint, Direction::Egress, packet(from, address(to), what)).0
    }

    pub(crate) fn address(&self, endpoint: &EndpointKey) -> Ipv4Addr {
        self.cluster.endpoint(endpoint).unwrap().addresses[0]
    }
}

pub(crate) fn address(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

/// `tcp 80`, `udp 53 from 1024`, `icmp 8/0`, `sctp 9`, `47`.
pub(crate) fn packet(source: Ipv4Addr, destination: Ipv4Addr, what: &str) -> Packet {
    let words: Vec<&str> = what.split_whitespace().collect();
    let mut packet =
        Packet { source, destination, protocol: 0, src_port: 0, dst_port: 0, icmp_type: 0, icmp_code: 0 };
    packet.protocol = match words[0] {
        "tcp" => 6,
        "udp" => 17,
        "sctp" => 132,
        "icmp" => 1,
        number => number.parse().unwrap(),
    };
    if packet.protocol == 1 {
        let (icmp_type, code) = words[1].split_once('/').unwrap();
        (packet.icmp_type, packet.icmp_code) = (icmp_type.parse().unwrap(), code.parse().unwrap());
    } else if words.len() > 1 {
        packet.dst_port = words[1].parse().unwrap();
        packet.src_port = words.get(3).map_or(40000, |port| port.parse().unwrap());
    }
    packet
}

/// The third number of a table look-up.
pub(crate) fn port_of(packet: &Packet) -> u16 {
    if packet.protocol == 1 { icmp_port(packet.icmp_type, packet.icmp_code) } else { packet.dst_port }
}

/// Who is behind an address, for what all sets in use ask.
pub(crate) fn census_of(compiler: &mut Compiler) -> &mut Census {
    let sets: Vec<Arc<PolicySet>> = compiler.sets().into_iter().cloned().collect();
    compiler.census().want(&sets);
    compiler.census()
}

pub(crate) fn class_of(census: &Census, address: Ipv4Addr) -> Class {
    census.class_of(Place::Peer(address))
}

/// Every entry with its class.
pub(crate) fn places(census: &Census) -> BTreeMap<Place, Class> {
    census.places().map(|(place, class)| (place, class.clone())).collect()
}

fn arcs<T>(items: Vec<T>) -> Vec<Arc<T>> {
    items.into_iter().map(Arc::new).collect()
}

fn by_tables(
    compiled: &mut Compiler,
    endpoint: &EndpointKey,
    direction: Direction,
    packet: &Packet,
) -> Final {
    let (local, peer) = match direction {
        Direction::Ingress => (packet.destination, packet.source),
        Direction::Egress => (packet.source, packet.destination),
    };
    let judgement = compiled.endpoints()[&(endpoint.clone(), local)].clone();
    let set = match direction {
        Direction::Ingress => judgement.ingress,
        Direction::Egress => judgement.egress,
    };
    let class = class_of(census_of(compiled), peer);
    set.row(&class).unwrap().lookup(packet.protocol, packet.src_port, port_of(packet)).clone()
}
