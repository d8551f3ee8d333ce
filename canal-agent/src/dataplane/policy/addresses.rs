//! Who is in which class: `PEERS` and `NETS`, as the kernel holds them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;

use crate::{
    compile::{Class, Classification},
    dataplane::tables::Tables,
};

/// An entry of one of the two tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    Peer(Ipv4Addr),
    Net(Ipv4Net),
}

/// An entry that is there, or will be: the class that judges its addresses now, and what they are to be.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) place: Place,
    pub(super) from: u32,
    pub(super) to: Class,
}

#[derive(Debug)]
pub(super) struct Addresses {
    pub(super) peers: BTreeMap<Ipv4Addr, u32>,
    pub(super) nets: BTreeMap<Ipv4Net, u32>,
}

impl Addresses {
    /// Every class that some entry names.
    pub(super) fn classes(&self) -> BTreeSet<u32> {
        self.peers.values().chain(self.nets.values()).copied().collect()
    }

    /// Of all entries, those there are and those there will be.
    pub(super) fn moves(&self, goal: &Classification) -> Vec<Move> {
        let peers: BTreeSet<&Ipv4Addr> = self.peers.keys().chain(goal.peers.keys()).collect();
        let nets: BTreeSet<&Ipv4Net> = self.nets.keys().chain(goal.nets.keys()).collect();
        let peers = peers.into_iter().map(|addr| Move {
            place: Place::Peer(*addr),
            from: self.at(Place::Peer(*addr)).unwrap_or_else(|| self.fallback(Place::Peer(*addr))),
            to: goal.class_of(*addr),
        });
        let nets = nets.into_iter().map(|net| Move {
            place: Place::Net(*net),
            from: self.at(Place::Net(*net)).unwrap_or_else(|| self.fallback(Place::Net(*net))),
            to: longest(&goal.nets, *net, net.prefix_len()).cloned().unwrap_or_default(),
        });
        peers.chain(nets).collect()
    }

    pub(super) fn at(&self, place: Place) -> Option<u32> {
        match place {
            Place::Peer(addr) => self.peers.get(&addr),
            Place::Net(net) => self.nets.get(&net),
        }
        .copied()
    }

    /// The class of the place's addresses if it had no entry.
    pub(super) fn fallback(&self, place: Place) -> u32 {
        let found = match place {
            Place::Peer(addr) => longest(&self.nets, addr.into(), 32),
            Place::Net(net) if net.prefix_len() == 0 => None,
            Place::Net(net) => longest(&self.nets, net, net.prefix_len() - 1),
        };
        found.copied().unwrap_or(0)
    }

    /// Puts the place into a class, unless it is there.
    pub(super) fn put<T: Tables>(
        &mut self,
        tables: &mut T,
        place: Place,
        class: u32,
    ) -> Result<(), T::Error> {
        if self.at(place) == Some(class) {
            return Ok(());
        }
        match place {
            Place::Peer(addr) => {
                tables.write_peer(addr, class)?;
                self.peers.insert(addr, class);
            }
            Place::Net(net) => {
                tables.write_net(net, class)?;
                self.nets.insert(net, class);
            }
        }
        Ok(())
    }

    pub(super) fn remove<T: Tables>(&mut self, tables: &mut T, place: Place) -> Result<(), T::Error> {
        match place {
            Place::Peer(addr) => {
                tables.delete_peer(addr)?;
                self.peers.remove(&addr);
            }
            Place::Net(net) => {
                tables.delete_net(net)?;
                self.nets.remove(&net);
            }
        }
        Ok(())
    }

    /// Entries that `goal` does not have, in the order in which they can go one by one: an address within several
    /// of them is judged by the innermost until that is the last.
    pub(super) fn gone(&self, goal: &Classification) -> Vec<Place> {
        let mut nets: Vec<Ipv4Net> =
            self.nets.keys().filter(|net| !goal.nets.contains_key(net)).copied().collect();
        nets.sort_by_key(Ipv4Net::prefix_len);
        let peers = self.peers.keys().filter(|addr| !goal.peers.contains_key(addr)).copied();
        nets.into_iter().map(Place::Net).chain(peers.map(Place::Peer)).collect()
    }
}

/// Entries of `goal`, in the order in which they can be written one by one: an address within several of them gets
/// the innermost first, which is the one that stays its own.
pub(super) fn in_order(goal: &Classification) -> Vec<(Place, &Class)> {
    let mut nets: Vec<(&Ipv4Net, &Class)> = goal.nets.iter().collect();
    nets.sort_by_key(|(net, _)| std::cmp::Reverse(net.prefix_len()));
    let peers = goal.peers.iter().map(|(addr, class)| (Place::Peer(*addr), class));
    peers.chain(nets.into_iter().map(|(net, class)| (Place::Net(*net), class))).collect()
}

/// The innermost entry around `net` with at most `bits` bits.
fn longest<V>(nets: &BTreeMap<Ipv4Net, V>, net: Ipv4Net, bits: u8) -> Option<&V> {
    if nets.is_empty() {
        return None;
    }
    (0..=bits).rev().find_map(|bits| nets.get(&Ipv4Net::new(net.addr(), bits).ok()?.trunc()))
}
