//! The peers of the overlay in the kernel: `NODES`, `ROUTES`, `NODE_IPS`.
//!
//! A peer's entry in `NODES` is written once, before anything points at it. A peer that changed gets a new entry, then
//! its route is flipped, then the old entry loses its life flag, at which flows that remember it look again.
//! A fresh process reads the tables back and keeps what is still right.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::Ipv4Addr,
};

use aya::{
    Ebpf, Pod,
    maps::{
        Array, HashMap as BpfHashMap, IterableMap as _, LpmTrie, MapData, MapError, MapFd, lpm_trie::Key,
    },
};
use canal_common::{
    Ip4, Mac, names,
    node::{MAX_NODES, Node, NodeRef},
};
use ipnet::Ipv4Net;
use tracing::{debug, info};

use super::{
    batch,
    tables::{absent_is_fine, take},
};

/// Another node, as its lease describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    pub ip: Ipv4Addr,
    /// Zeros where it has none (host-gw).
    pub vtep_mac: Mac,
    /// Largest packet of a pod's, in bytes.
    pub mtu: u16,
    /// The uplink's link leads there without a gateway.
    pub on_link: bool,
    /// Packets go there, and come from there, without an envelope.
    pub direct: bool,
}

impl Peer {
    fn node(self) -> Node {
        let flags = [(true, Node::ALIVE), (self.on_link, Node::ON_LINK), (self.direct, Node::DIRECT)];
        let flags = flags.into_iter().filter(|(is_set, _)| *is_set).fold(0, |all, (_, flag)| all | flag);
        Node { ip: self.ip.into(), vtep_mac: self.vtep_mac, mtu: self.mtu, flags }
    }

    fn of(node: Node) -> Self {
        let has = |flag| node.flags & flag != 0;
        Self {
            ip: node.ip.into(),
            vtep_mac: node.vtep_mac,
            mtu: node.mtu,
            on_link: has(Node::ON_LINK),
            direct: has(Node::DIRECT),
        }
    }
}

/// More than that at once, as when the agent starts, are told in one line.
const TOLD_ONE_BY_ONE: usize = 16;

/// A peer on its way into the kernel.
struct Arrival {
    subnet: Ipv4Net,
    peer: Peer,
    index: u32,
}

impl Arrival {
    fn node(&self) -> NodeRef {
        NodeRef { node: self.index }
    }
}

pub struct Nodes {
    entries: Array<MapData, Node>,
    routes: LpmTrie<MapData, Ip4, NodeRef>,
    node_ips: BpfHashMap<MapData, Ip4, NodeRef>,
    /// What the kernel holds.
    programmed: BTreeMap<Ipv4Net, (Peer, u32)>,
    /// Unused indices; the one that was freed longest ago is taken first.
    free: VecDeque<u32>,
}

impl Nodes {
    /// Reads back what an earlier process programmed.
    pub fn adopt(ebpf: &mut Ebpf) -> Result<Self, MapError> {
        let mut entries: Array<_, Node> = take(ebpf, names::NODES)?;
        let routes: LpmTrie<_, Ip4, NodeRef> = take(ebpf, names::ROUTES)?;
        let mut node_ips: BpfHashMap<_, Ip4, NodeRef> = take(ebpf, names::NODE_IPS)?;
        let mut programmed = BTreeMap::new();
        let mut used = vec![false; MAX_NODES as usize];
        for entry in &routes {
            let (key, NodeRef { node: index }) = entry?;
            let node = entries.get(&index, 0)?;
            let length = u8::try_from(key.prefix_len()).unwrap_or(32);
            let (Ok(subnet), true) = (Ipv4Net::new(key.data().into(), length), node.flags & Node::ALIVE != 0)
            else {
                continue;
            };
            used[index as usize] = true;
            programmed.insert(subnet, (Peer::of(node), index));
        }
        // What nothing points at was being made or removed when the process died. Entries that were never written are
        // handed out first: flows may still remember the others.
        let (mut never, mut before) = (VecDeque::new(), VecDeque::new());
        for index in (1..MAX_NODES).filter(|index| !used[*index as usize]) {
            let node = entries.get(&index, 0)?;
            if node == Node::default() {
                never.push_back(index);
                continue;
            }
            if node.flags & Node::ALIVE != 0 {
                entries.set(index, Node { flags: 0, ..node }, 0)?;
            }
            before.push_back(index);
        }
        never.append(&mut before);
        let orphans: Vec<Ip4> = node_ips
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, NodeRef { node }): &(Ip4, NodeRef)| {
                !used.get(*node as usize).is_some_and(|used| *used)
            })
            .map(|(ip, _)| ip)
            .collect();
        for ip in orphans {
            absent_is_fine(node_ips.remove(&ip))?;
        }
        let free = never;
        Ok(Self { entries, routes, node_ips, programmed, free })
    }

    pub fn len(&self) -> usize {
        self.programmed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.programmed.is_empty()
    }

    /// Makes the kernel hold exactly `desired`. A peer that cannot be programmed is reported and does not keep the
    /// others back.
    pub fn apply(&mut self, desired: &BTreeMap<Ipv4Net, Peer>) -> Vec<String> {
        let mut problems = Vec::new();
        let gone: Vec<Ipv4Net> =
            self.programmed.keys().filter(|subnet| !desired.contains_key(subnet)).copied().collect();
        let is_programmed = |subnet: &Ipv4Net, peer: &Peer| {
            self.programmed.get(subnet).is_some_and(|(known, _)| known == peer)
        };
        let wanted: Vec<(Ipv4Net, Peer)> = desired
            .iter()
            .filter(|(subnet, peer)| !is_programmed(subnet, peer))
            .map(|(subnet, peer)| (*subnet, *peer))
            .collect();
        self.program(&wanted, &mut problems);
        for subnet in gone {
            if let Err(error) = self.remove(subnet) {
                problems.push(format!("cannot remove the route to {subnet}: {error}"));
            }
        }
        problems
    }

    /// Table by table: all entries, then what points at them.
    fn program(&mut self, wanted: &[(Ipv4Net, Peer)], problems: &mut Vec<String>) {
        let room = wanted.len().min(self.free.len());
        let (wanted, left_out) = wanted.split_at(room);
        let mut coming: Vec<Arrival> = wanted
            .iter()
            .zip(self.free.drain(..room))
            .map(|((subnet, peer), index)| Arrival { subnet: *subnet, peer: *peer, index })
            .collect();
        let limit = MAX_NODES - 1;
        problems.extend(left_out.iter().map(|(subnet, peer)| {
            format!(
                "no room for the route to {subnet} via {}: all places for {limit} nodes are taken, or were until now; it is \
                 tried again",
                peer.ip
            )
        }));
        let mut refused = write(self.entries.map().fd(), &mut coming, |new| (new.index, new.peer.node()));
        refused
            .extend(write(self.node_ips.map().fd(), &mut coming, |new| (Ip4::from(new.peer.ip), new.node())));
        refused.extend(write(self.routes.map().fd(), &mut coming, |new| (key(new.subnet), new.node())));
        let mut retired = Vec::new();
        let few = coming.len() <= TOLD_ONE_BY_ONE;
        if !few {
            info!(peers = coming.len(), "peers programmed");
        }
        for Arrival { subnet, peer, index } in coming {
            if few {
                info!(%subnet, node = %peer.ip, vtep_mac = %peer.vtep_mac, "peer programmed");
            } else {
                debug!(%subnet, node = %peer.ip, vtep_mac = %peer.vtep_mac, "peer programmed");
            }
            retired.extend(self.programmed.insert(subnet, (peer, index)).map(|old| (subnet, old)));
        }
        for (Arrival { subnet, peer, index }, error) in refused {
            problems.push(format!("cannot program the route to {subnet} via {}: {error}", peer.ip));
            retired.push((subnet, (peer, index)));
        }
        // Once all that came are known: who left an address may have handed it to one of them.
        for (subnet, (peer, index)) in retired {
            if let Err(error) = self.retire(peer, index) {
                problems.push(format!("cannot remove the route to {subnet} via {}: {error}", peer.ip));
            }
        }
    }

    fn remove(&mut self, subnet: Ipv4Net) -> Result<(), MapError> {
        if let Some((peer, index)) = self.programmed.remove(&subnet) {
            absent_is_fine(self.routes.remove(&key(subnet)))?;
            self.retire(peer, index)?;
            info!(%subnet, node = %peer.ip, "peer removed");
        }
        Ok(())
    }

    fn retire(&mut self, peer: Peer, index: u32) -> Result<(), MapError> {
        let mut node = peer.node();
        node.flags = 0;
        self.entries.set(index, node, 0)?;
        // Another lease of the same node may speak for this address.
        match self.programmed.values().find(|(other, _)| other.ip == peer.ip) {
            Some((_, other)) => self.node_ips.insert(Ip4::from(peer.ip), NodeRef { node: *other }, 0)?,
            None => absent_is_fine(self.node_ips.remove(&peer.ip.into()))?,
        }
        self.free.push_back(index);
        Ok(())
    }
}

/// Writes one element for each; takes out those for which that is impossible.
fn write<K: Pod, V: Pod>(
    table: &MapFd,
    coming: &mut Vec<Arrival>,
    element: impl Fn(&Arrival) -> (K, V),
) -> Vec<(Arrival, io::Error)> {
    let (keys, values): (Vec<K>, Vec<V>) = coming.iter().map(element).unzip();
    let mut errors = Vec::new();
    batch::update_each(table, &keys, &values, |at, error| errors.push((at, error)));
    // From behind, so that the positions stay.
    errors.into_iter().rev().map(|(at, error)| (coming.remove(at), error)).collect()
}

fn key(subnet: Ipv4Net) -> Key<Ip4> {
    Key::new(u32::from(subnet.prefix_len()), subnet.network().into())
}
