//! Who is behind an address: for each address and CIDR of a known object, the class of what is asked and holds there.
//!
//! Promises: an address found exactly carries all its memberships, those by CIDR included; a CIDR carries those of all
//! CIDRs around it; so one lookup, first exact, then by longest prefix, tells all. What it says depends on the objects
//! and on the wanted sets, not on how they came about; the work is proportional to what changed.
//!
//! Addresses with the same owners (as `descriptions` tells them apart) within the same innermost CIDR are a *site*:
//! whatever is asked, it holds for all of them or for none. Sites and CIDRs for which the same holds are a *group*
//! (`groups`), whose class is what the others get to see.

mod asks;
mod descriptions;
mod ground;
mod groups;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
    sync::Arc,
};

use ipnet::Ipv4Net;

use self::{
    asks::{Ask, Asks},
    descriptions::{Descriptions, Said},
    ground::{Net, Sites, around, span},
    groups::{Content, Groups, Member},
};
use super::{
    predicate::{Class, Predicate},
    set::PolicySet,
};
use crate::model::{Cluster, Labels, endpoint::NamedPort, resource::Resource};

/// An entry of one of the two tables that classes are looked up in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    Peer(Ipv4Addr),
    Net(Ipv4Net),
}

/// What [`Census::take_delta`] tells.
#[derive(Debug, Default)]
pub struct Delta {
    /// It is the first one of this census: nothing is known of what was before.
    pub is_first: bool,
    /// Places that may be of another class now, or none.
    pub moved: BTreeSet<Place>,
    /// All other places that had the first class have the second one now.
    pub renamed: Vec<(Class, Class)>,
}

/// A known object, as far as rules about peers see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Object<'a> {
    pub(super) labels: &'a Labels,
    pub(super) profiles: &'a [String],
    pub(super) ports: &'a [NamedPort],
    pub(super) addresses: &'a [Ipv4Addr],
    pub(super) nets: &'a [Ipv4Net],
}

#[derive(Debug)]
pub struct Census {
    descriptions: Descriptions,
    objects: HashMap<Resource, Known>,
    asks: Asks,
    wanted: HashMap<Arc<PolicySet>, Box<[Ask]>>,
    sites: Sites,
    nets: BTreeMap<Ipv4Net, Net>,
    /// CIDRs by length.
    lengths: [usize; 33],
    groups: Groups,
    /// Entries that the two tables need.
    peers: usize,
    prefixes: usize,
    due: Due,
    moved: BTreeSet<Place>,
    /// Nobody has taken a delta yet.
    is_new: bool,
    touched: Touched,
}

#[derive(Debug)]
struct Known {
    description: u32,
    addresses: Box<[Ipv4Addr]>,
    nets: Box<[Ipv4Net]>,
}

/// What is to be worked out again.
#[derive(Debug, Default)]
struct Due {
    sites: BTreeSet<u32>,
    /// With all within them.
    nets: BTreeSet<Ipv4Net>,
}

/// What changed about owners since [`Census::forget_touched`].
#[derive(Debug, Default)]
struct Touched {
    addresses: BTreeSet<Ipv4Addr>,
    nets: BTreeSet<Ipv4Net>,
    descriptions: BTreeSet<u32>,
}

impl Default for Census {
    fn default() -> Self {
        Self {
            descriptions: Descriptions::default(),
            objects: HashMap::new(),
            asks: Asks::default(),
            wanted: HashMap::new(),
            sites: Sites::default(),
            nets: BTreeMap::new(),
            lengths: [0; 33],
            groups: Groups::default(),
            peers: 0,
            prefixes: 0,
            due: Due::default(),
            moved: BTreeSet::new(),
            is_new: true,
            touched: Touched::default(),
        }
    }
}

impl Census {
    /// An object is there, is another, or is gone.
    pub(super) fn set(&mut self, key: &Resource, object: Option<Object<'_>>, cluster: &Cluster) {
        let known = object.map(|object| {
            let said = Said { labels: object.labels, profiles: object.profiles, ports: object.ports };
            Known {
                description: self.descriptions.acquire(said, cluster, &self.asks),
                addresses: each_once(object.addresses),
                nets: each_once(object.nets),
            }
        });
        let old = match known {
            Some(known) => self.objects.insert(key.clone(), known),
            None => self.objects.remove(key),
        };
        let new = self.objects.get(key);
        let ends = |known: Option<&Known>| {
            known.map_or_else(Default::default, |known| {
                (Some(known.description), known.addresses.clone(), known.nets.clone())
            })
        };
        let (gone, old_addresses, old_nets) = ends(old.as_ref());
        let (come, new_addresses, new_nets) = ends(new);
        for net in &new_nets {
            if let Some(owner) = come {
                self.own(*net, owner);
            }
        }
        for (address, owner) in old_addresses.iter().zip(std::iter::repeat(gone)) {
            // An address that stays changes hands at once, not by way of being nobody's.
            let stays = new_addresses.binary_search(address).ok().and(come);
            self.change_owners(*address, owner, stays);
        }
        for address in new_addresses.iter().filter(|address| old_addresses.binary_search(address).is_err()) {
            self.change_owners(*address, None, come);
        }
        for net in &old_nets {
            if let Some(owner) = gone {
                self.disown(*net, owner);
            }
        }
        if let Some(gone) = gone {
            self.descriptions.release(gone);
        }
    }

    /// A profile is there, is another, or is gone.
    pub(super) fn profile_changed(&mut self, name: &str, cluster: &Cluster) {
        for id in self.descriptions.inherit_again(name, cluster, &self.asks) {
            self.touched.descriptions.insert(id);
            self.description_is_due(id);
        }
    }

    /// (protocol, port) pairs that some object calls by this name.
    pub(super) fn ports_named(&self, name: &str) -> impl Iterator<Item = (u8, u16)> {
        self.descriptions.ports_named(name)
    }

    /// Port names that may stand for something else since the last call.
    pub(super) fn take_changed_names(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.descriptions.changed_names)
    }

    /// Whether the predicate holds for the address, asked or not.
    pub(super) fn holds(&self, address: Ipv4Addr, predicate: &Predicate) -> bool {
        if let Predicate::Net(net) = predicate {
            return net.contains(&address);
        }
        self.owners_around(address).any(|id| {
            let owner = self.descriptions.get(id);
            asks::holds(&owner.labels, &owner.ports, predicate)
        })
    }

    /// Somebody whose the address is, by itself or by a CIDR, has changed, come or gone.
    pub(super) fn is_touched(&self, address: Ipv4Addr) -> bool {
        let touched = &self.touched;
        touched.addresses.contains(&address)
            || !touched.nets.is_empty()
                && (0..=32).any(|length| touched.nets.contains(&around(address, length)))
            || !touched.descriptions.is_empty()
                && self.owners_around(address).any(|id| touched.descriptions.contains(&id))
    }

    pub(super) fn forget_touched(&mut self) {
        self.touched = Touched::default();
    }

    /// From now on classes tell apart what these sets ask about, and nothing else.
    pub fn want<'a>(&mut self, sets: impl IntoIterator<Item = &'a Arc<PolicySet>>) {
        let mut unwanted = std::mem::take(&mut self.wanted);
        let (mut fresh, mut gone) = (Vec::new(), Vec::new());
        for set in sets {
            if self.wanted.contains_key(set) {
                continue;
            }
            let asks = unwanted.remove(set).unwrap_or_else(|| self.acquire(set.predicates(), &mut fresh));
            self.wanted.insert(set.clone(), asks);
        }
        for asks in unwanted.into_values() {
            gone.extend(asks.into_iter().filter(|ask| self.asks.release(*ask)));
        }
        self.change_asks(&fresh, &gone);
    }

    /// Entries that `PEERS` needs for this.
    pub fn peers(&self) -> usize {
        self.peers
    }

    /// Entries that `NETS` needs for this.
    pub fn prefixes(&self) -> usize {
        self.prefixes
    }

    /// Whether some predicate of this wanted set may hold by a CIDR alone.
    pub fn asks_by_net(&self, set: &Arc<PolicySet>) -> bool {
        self.wanted.get(set).is_some_and(|asks| asks.iter().any(|ask| self.groups.held_by_net(*ask)))
    }

    /// The class in the entry for exactly this place, if it is to have one.
    pub fn at(&self, place: Place) -> Option<&Class> {
        let group = match place {
            Place::Peer(address) => self.sites.of(address)?.group,
            Place::Net(net) => self.nets.get(&net)?.group,
        };
        group.map(|group| self.groups.class(group))
    }

    /// What the tables will say of addresses there: those of the place's own entry, or of the innermost one around it.
    pub fn class_of(&self, place: Place) -> Class {
        let (own, within) = match place {
            Place::Peer(address) => (self.at(place), Ipv4Net::from(address)),
            Place::Net(net) => (None, net),
        };
        let by_net = || {
            let mut lengths =
                (0..=within.prefix_len()).rev().filter(|length| self.lengths[usize::from(*length)] > 0);
            lengths
                .find_map(|length| self.nets.get(&around(within.addr(), length))?.group)
                .map(|group| self.groups.class(group))
        };
        own.or_else(by_net).cloned().unwrap_or_default()
    }

    /// Every entry that is to be, with its class.
    pub fn places(&self) -> impl Iterator<Item = (Place, &Class)> {
        let peers = self.sites.at.iter().filter_map(|(address, site)| {
            let group = self.sites.slots[*site as usize].as_ref()?.group?;
            Some((Place::Peer(*address), self.groups.class(group)))
        });
        let nets = self
            .nets
            .iter()
            .filter_map(|(net, content)| Some((Place::Net(*net), self.groups.class(content.group?))));
        peers.chain(nets)
    }

    /// How many places [`Census::take_delta`] would tell of.
    pub fn moving(&self) -> usize {
        self.moved.len()
    }

    /// What has changed since the last call.
    pub fn take_delta(&mut self) -> Delta {
        Delta {
            is_first: std::mem::replace(&mut self.is_new, false),
            moved: std::mem::take(&mut self.moved),
            renamed: self.groups.take_renamed(),
        }
    }

    /// Takes objects that changed into account; [`Census::want`] does it too.
    pub(super) fn refresh(&mut self) {
        let Due { mut sites, nets } = std::mem::take(&mut self.due);
        let mut changes: Vec<(Member, Option<u32>, Option<Content>)> = Vec::new();
        let mut done: Option<Ipv4Net> = None;
        // Ascending order puts a CIDR before those within it.
        for root in nets {
            if done.is_some_and(|done| done.contains(&root)) {
                continue;
            }
            done = Some(root);
            let within: Vec<Ipv4Net> = self.nets.range(span(root)).map(|(net, _)| *net).collect();
            for net in within {
                let outer = self.outer(net).map(|outer| &self.nets[&outer].held);
                let outer = outer.cloned().unwrap_or_default();
                let content = &self.nets[&net];
                let mut held = outer.to_vec();
                held.extend(content.asked);
                held.extend(content.owners.keys().flat_map(|id| &self.descriptions.get(*id).held));
                let held = ascending(held);
                changes.push((Member::Net(net), content.group, (held != outer).then(|| held.clone())));
                if held != content.held {
                    sites.extend(&content.sites);
                    self.nets.get_mut(&net).expect("it was just seen").held = held;
                }
            }
        }
        for id in sites {
            let Some(site) = &self.sites.slots[id as usize] else { continue };
            let own = || site.owners.iter().flat_map(|owner| &self.descriptions.get(*owner).held);
            // What an address has by CIDR alone is in the entry of the CIDR already.
            let content = own().next().is_some().then(|| {
                let by_net = site.net.iter().flat_map(|net| &self.nets[net].held);
                ascending(own().chain(by_net).copied().collect())
            });
            changes.push((Member::Site(id), site.group, content));
        }
        for (member, from, to) in self.groups.regroup(changes, &self.asks) {
            match member {
                Member::Site(id) => {
                    let Some(site) = self.sites.slots[id as usize].as_mut() else { continue };
                    site.group = to;
                    let size = site.addresses.len();
                    self.peers = self.peers + if to.is_some() { size } else { 0 }
                        - if from.is_some() { size } else { 0 };
                    self.moved.extend(site.addresses.iter().map(|address| Place::Peer(*address)));
                }
                Member::Net(net) => {
                    self.nets.get_mut(&net).expect("it was just seen").group = to;
                    self.prefixes = self.prefixes + usize::from(to.is_some()) - usize::from(from.is_some());
                    self.moved.insert(Place::Net(net));
                }
            }
        }
    }

    fn acquire<'a>(
        &mut self,
        predicates: impl IntoIterator<Item = &'a Predicate>,
        fresh: &mut Vec<Ask>,
    ) -> Box<[Ask]> {
        predicates
            .into_iter()
            .map(|predicate| {
                let (ask, is_fresh) = self.asks.acquire(predicate);
                if is_fresh {
                    fresh.push(ask);
                }
                ask
            })
            .collect()
    }

    fn change_asks(&mut self, fresh: &[Ask], gone: &[Ask]) {
        let is_net = |asks: &Asks, ask: &&Ask| matches!(asks.get(**ask), Predicate::Net(_));
        let by_owner: Vec<Ask> = fresh.iter().filter(|ask| !is_net(&self.asks, ask)).copied().collect();
        let gone_by_owner: BTreeSet<Ask> =
            gone.iter().filter(|ask| !is_net(&self.asks, ask)).copied().collect();
        if !by_owner.is_empty() || !gone_by_owner.is_empty() {
            let mut due = Vec::new();
            for (id, description) in self.descriptions.iter_mut() {
                let before = description.held.len();
                description.held.retain(|ask| !gone_by_owner.contains(ask));
                let kept = description.held.len();
                let (labels, ports) = (&description.labels, &description.ports);
                if by_owner.len() > FEW {
                    description.held = self.asks.held(labels, ports);
                } else {
                    let new = by_owner.iter().filter(|ask| asks::holds(labels, ports, self.asks.get(**ask)));
                    let new: Vec<Ask> = new.copied().collect();
                    description.held.extend(new);
                    description.held.sort_unstable();
                }
                if kept != before || description.held.len() != kept {
                    due.push(id);
                }
            }
            for id in due {
                self.description_is_due(id);
            }
        }
        for ask in fresh {
            if let Predicate::Net(net) = *self.asks.get(*ask) {
                self.ask_about(net, *ask);
            }
        }
        for ask in gone {
            if let Predicate::Net(net) = *self.asks.get(*ask) {
                self.ask_no_more(net, *ask);
            }
        }
        self.refresh();
        self.asks.free(gone);
    }

    fn description_is_due(&mut self, id: u32) {
        let description = self.descriptions.get(id);
        self.due.sites.extend(&description.sites);
        self.due.nets.extend(&description.nets);
    }

    fn owners_around(&self, address: Ipv4Addr) -> impl Iterator<Item = u32> {
        let own = self.sites.of(address).into_iter().flat_map(|site| site.owners.iter().copied());
        let lengths = (0..=32).filter(|length| self.lengths[usize::from(*length)] > 0);
        let nets = lengths.filter_map(move |length| self.nets.get(&around(address, length)));
        own.chain(nets.flat_map(|net| net.owners.keys().copied()))
    }
}

/// So many questions are put to a description one by one; more are found by index.
const FEW: usize = 8;

fn ascending(mut asks: Vec<Ask>) -> Content {
    asks.sort_unstable();
    asks.dedup();
    asks.into()
}

fn each_once<T: Ord + Copy>(items: &[T]) -> Box<[T]> {
    let once: BTreeSet<T> = items.iter().copied().collect();
    once.into_iter().collect()
}

#[cfg(test)]
mod tests;
