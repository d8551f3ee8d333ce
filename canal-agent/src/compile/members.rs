//! Who is behind an address: classes of all addresses and CIDRs that some predicate holds for.
//!
//! Promises: an address found exactly (`peers`) carries all its memberships, those by CIDR included; a CIDR
//! carries those of all CIDRs around it; so one lookup, first exact, then by longest prefix, tells all.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;

use super::{
    index::SelectorIndex,
    predicate::{Class, Predicate},
};
use crate::model::{Cluster, Labels, Selector, endpoint::NamedPort};

/// Classes by exact address and by longest prefix; what is in neither has the empty class.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Classification {
    pub peers: BTreeMap<Ipv4Addr, Class>,
    pub nets: BTreeMap<Ipv4Net, Class>,
}

impl Classification {
    pub fn class_of(&self, address: Ipv4Addr) -> Class {
        if let Some(class) = self.peers.get(&address) {
            return class.clone();
        }
        let found = (0..=32).rev().find_map(|length| self.nets.get(&around(address, length)));
        found.cloned().unwrap_or_default()
    }
}

/// What selectors and port names see of an object; many objects share one.
#[derive(Debug, PartialEq, Eq, Hash, Clone)]
struct Traits {
    labels: Labels,
    ports: Vec<NamedPort>,
}

/// Every known object, by what is to be known of it.
#[derive(Debug, Default)]
pub(super) struct Members {
    traits: Vec<Traits>,
    by_address: BTreeMap<Ipv4Addr, Vec<usize>>,
    by_net: BTreeMap<Ipv4Net, Vec<usize>>,
    /// What a port name stands for, to anyone.
    port_names: BTreeMap<String, BTreeSet<(u8, u16)>>,
}

impl Members {
    pub(super) fn of(cluster: &Cluster) -> Self {
        let mut members = Self::default();
        let mut interned = HashMap::new();
        // Most endpoints look like many others: their inherited labels are worked out once.
        let mut seen: HashMap<(&Labels, &[String], &[NamedPort]), usize> = HashMap::new();
        let workloads = cluster.endpoints().map(|(_, e)| (&e.labels, &e.profiles, &e.ports, &e.addresses));
        let hosts = cluster.host_endpoints().map(|(_, h)| (&h.labels, &h.profiles, &h.ports, &h.addresses));
        for (labels, profiles, ports, addresses) in workloads.chain(hosts) {
            let id = *seen.entry((labels, profiles, ports)).or_insert_with(|| {
                let labels = cluster.inherited(labels, profiles);
                members.intern(&mut interned, Traits { labels, ports: ports.clone() })
            });
            for address in addresses {
                members.by_address.entry(*address).or_default().push(id);
            }
        }
        for (resource, set) in cluster.network_sets() {
            let labels = cluster.set_labels(resource, set);
            let id = members.intern(&mut interned, Traits { labels, ports: Vec::new() });
            for net in set.ipv4_nets() {
                members.by_net.entry(net).or_default().push(id);
            }
        }
        members
    }

    /// (protocol, port) pairs that some object calls by this name.
    pub(super) fn ports_named(&self, name: &str) -> impl Iterator<Item = (u8, u16)> {
        self.port_names.get(name).into_iter().flatten().copied()
    }

    pub(super) fn classify(&self, predicates: &BTreeSet<Predicate>) -> Classification {
        Classifier::new(self, predicates).classify()
    }

    fn intern(&mut self, interned: &mut HashMap<Traits, usize>, traits: Traits) -> usize {
        for port in &traits.ports {
            self.port_names.entry(port.name.clone()).or_default().insert((port.protocol, port.port));
        }
        *interned.entry(traits).or_insert_with_key(|traits| {
            self.traits.push(traits.clone());
            self.traits.len() - 1
        })
    }
}

/// Answers for a fixed list of predicates.
pub(super) struct Classifier<'a> {
    members: &'a Members,
    predicates: Vec<&'a Predicate>,
    /// For each of the members' traits, the predicates that hold, ascending.
    by_traits: Vec<Vec<usize>>,
    by_net: HashMap<Ipv4Net, usize>,
    /// Bit n: some CIDR at hand has n bits.
    lengths: u64,
    /// Equal classes share their content.
    classes: HashMap<Vec<usize>, Class>,
}

impl<'a> Classifier<'a> {
    pub(super) fn new(members: &'a Members, predicates: &'a BTreeSet<Predicate>) -> Self {
        let predicates: Vec<&Predicate> = predicates.iter().collect();
        let mut by_net = HashMap::new();
        let mut lengths = 0;
        let mut by_selector: BTreeMap<&Selector, Vec<usize>> = BTreeMap::new();
        for (id, predicate) in predicates.iter().enumerate() {
            match predicate {
                Predicate::Net(net) => {
                    by_net.insert(*net, id);
                    lengths |= 1 << net.prefix_len();
                }
                Predicate::Selector(selector) => by_selector.entry(selector).or_default().push(id),
                Predicate::Port(port) => by_selector.entry(&port.selector).or_default().push(id),
            }
        }
        for net in members.by_net.keys() {
            lengths |= 1 << net.prefix_len();
        }
        let index = SelectorIndex::new(by_selector.keys().copied());
        let filed: Vec<&Vec<usize>> = by_selector.values().collect();
        let by_traits = members.traits.iter().map(|traits| {
            let matching =
                index.matches(&traits.labels).into_iter().flat_map(|selector| filed[selector]).copied();
            let mut held: Vec<usize> = matching.filter(|id| traits.declare(predicates[*id])).collect();
            held.sort_unstable();
            held
        });
        let by_traits = by_traits.collect();
        Self { members, by_traits, by_net, lengths, predicates, classes: HashMap::new() }
    }

    pub(super) fn class_of(&mut self, address: Ipv4Addr) -> Class {
        let mut held = self.own(address);
        self.around(Ipv4Net::from(address), &mut held);
        self.class(held)
    }

    fn classify(mut self) -> Classification {
        let members = self.members;
        let mut found = Classification::default();
        for address in members.by_address.keys() {
            // What an address has by CIDR alone is in `nets` already.
            if !self.own(*address).is_empty() {
                found.peers.insert(*address, self.class_of(*address));
            }
        }
        let nets: BTreeSet<Ipv4Net> = members.by_net.keys().chain(self.by_net.keys()).copied().collect();
        // Ascending order puts a CIDR before those within it.
        for net in nets {
            let mut held = Vec::new();
            self.around(net, &mut held);
            let class = self.class(held);
            let outer = (0..net.prefix_len()).rev().find_map(|len| found.nets.get(&around(net.addr(), len)));
            if outer.map_or(!class.is_empty(), |outer| *outer != class) {
                found.nets.insert(net, class);
            }
        }
        found
    }

    /// What the owners of exactly this address bring.
    fn own(&self, address: Ipv4Addr) -> Vec<usize> {
        let owners = self.members.by_address.get(&address).into_iter().flatten();
        owners.flat_map(|id| &self.by_traits[*id]).copied().collect()
    }

    /// What `net` and the CIDRs around it bring.
    fn around(&self, net: Ipv4Net, held: &mut Vec<usize>) {
        for length in (0..=net.prefix_len()).filter(|length| self.lengths & (1 << length) != 0) {
            let outer = around(net.addr(), length);
            held.extend(self.by_net.get(&outer));
            let owners = self.members.by_net.get(&outer).into_iter().flatten();
            held.extend(owners.flat_map(|id| &self.by_traits[*id]));
        }
    }

    fn class(&mut self, mut held: Vec<usize>) -> Class {
        held.sort_unstable();
        held.dedup();
        let predicates = &self.predicates;
        self.classes
            .entry(held)
            .or_insert_with_key(|held| Class::new(held.iter().map(|id| predicates[*id].clone())))
            .clone()
    }
}

impl Traits {
    /// Beyond matching the predicate's selector.
    fn declare(&self, predicate: &Predicate) -> bool {
        match predicate {
            Predicate::Port(wanted) => self
                .ports
                .iter()
                .any(|p| (p.protocol, p.port) == (wanted.protocol, wanted.port) && *p.name == *wanted.name),
            Predicate::Net(_) | Predicate::Selector(_) => true,
        }
    }
}

fn around(address: Ipv4Addr, length: u8) -> Ipv4Net {
    Ipv4Net::new(address, length).map_or_else(|_| Ipv4Net::from(address), |net| net.trunc())
}
