//! Who is in which class: `PEERS` and `NETS`, as the kernel holds them.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;

use crate::{
    compile::{Census, Class, Place},
    dataplane::tables::Tables,
};

/// An entry that is there, or is to be: the class that judges its addresses now, and what they are to be.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) place: Place,
    pub(super) from: u32,
    pub(super) to: Class,
    /// There is to be an entry.
    pub(super) stays: bool,
}

#[derive(Debug, Default)]
pub(super) struct Addresses {
    peers: BTreeMap<Ipv4Addr, u32>,
    nets: BTreeMap<Ipv4Net, u32>,
    /// Class → entries that name it.
    population: HashMap<u32, usize>,
}

impl Addresses {
    pub(super) fn new(peers: BTreeMap<Ipv4Addr, u32>, nets: BTreeMap<Ipv4Net, u32>) -> Self {
        let mut population = HashMap::new();
        for class in peers.values().chain(nets.values()) {
            *population.entry(*class).or_default() += 1;
        }
        Self { peers, nets, population }
    }

    pub(super) fn peers(&self) -> usize {
        self.peers.len()
    }

    pub(super) fn nets(&self) -> usize {
        self.nets.len()
    }

    /// Every class that some entry names.
    pub(super) fn classes(&self) -> impl Iterator<Item = u32> {
        self.population.keys().copied()
    }

    /// How many entries name the class.
    pub(super) fn population(&self, class: u32) -> usize {
        self.population.get(&class).copied().unwrap_or(0)
    }

    /// Every entry that there is.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> {
        self.peers.keys().copied().map(Place::Peer).chain(self.nets.keys().copied().map(Place::Net))
    }

    /// What is to become of those of the places that have an entry or are to have one.
    pub(super) fn moves(&self, places: impl IntoIterator<Item = Place>, census: &Census) -> Vec<Move> {
        let places = places.into_iter().filter_map(|place| {
            let (at, goal) = (self.at(place), census.at(place));
            let stays = goal.is_some();
            if at.is_none() && !stays {
                return None;
            }
            let to = goal.cloned().unwrap_or_else(|| census.class_of(place));
            Some(Move { place, from: at.unwrap_or_else(|| self.fallback(place)), to, stays })
        });
        places.collect()
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
        match place {
            Place::Peer(addr) => self.longest(addr.into(), 33),
            Place::Net(net) => self.longest(net, net.prefix_len()),
        }
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
        let old = match place {
            Place::Peer(addr) => {
                tables.write_peer(addr, class)?;
                self.peers.insert(addr, class)
            }
            Place::Net(net) => {
                tables.write_net(net, class)?;
                self.nets.insert(net, class)
            }
        };
        *self.population.entry(class).or_default() += 1;
        self.one_less(old);
        Ok(())
    }

    pub(super) fn remove<T: Tables>(&mut self, tables: &mut T, place: Place) -> Result<(), T::Error> {
        let old = match place {
            Place::Peer(addr) => {
                tables.delete_peer(addr)?;
                self.peers.remove(&addr)
            }
            Place::Net(net) => {
                tables.delete_net(net)?;
                self.nets.remove(&net)
            }
        };
        self.one_less(old);
        Ok(())
    }

    fn one_less(&mut self, class: Option<u32>) {
        let Some(class) = class else { return };
        if let Some(count) = self.population.get_mut(&class) {
            *count -= 1;
            if *count == 0 {
                self.population.remove(&class);
            }
        }
    }

    /// The class of the innermost entry around `net` with less than `bits` bits; 0 without one.
    fn longest(&self, net: Ipv4Net, bits: u8) -> u32 {
        if self.nets.is_empty() {
            return 0;
        }
        let around = |bits| Some(Ipv4Net::new(net.addr(), bits).ok()?.trunc());
        (0..bits).rev().find_map(|bits| self.nets.get(&around(bits)?)).copied().unwrap_or(0)
    }
}

/// Entries that are to be, in the order in which they can be written one by one: an address within several of them
/// gets the innermost first, which is the one that stays its own.
pub(super) fn to_put(moves: &[Move]) -> Vec<&Move> {
    let mut staying: Vec<&Move> = moves.iter().filter(|m| m.stays).collect();
    staying.sort_by_key(|m| match m.place {
        Place::Peer(_) => (false, std::cmp::Reverse(0)),
        Place::Net(net) => (true, std::cmp::Reverse(net.prefix_len())),
    });
    staying
}

/// Entries that are to go, in the order in which they can go one by one: an address within several of them is judged by
/// the innermost until that is the last.
pub(super) fn to_remove(moves: &[Move], addresses: &Addresses) -> Vec<Place> {
    let gone = moves.iter().filter(|m| !m.stays && addresses.at(m.place).is_some());
    let mut places: Vec<Place> = gone.map(|m| m.place).collect();
    places.sort_by_key(|place| match place {
        Place::Net(net) => (false, net.prefix_len()),
        Place::Peer(_) => (true, 0),
    });
    places
}
