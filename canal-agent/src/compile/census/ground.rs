//! Where addresses lie: sites, and the CIDRs around them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;

use super::{
    Census, Place,
    asks::Ask,
    groups::{Content, Member},
};

/// Addresses that nothing can tell apart.
#[derive(Debug)]
pub(super) struct Site {
    /// Descriptions of the owners, ascending, as many as there are owners.
    pub(super) owners: Box<[u32]>,
    /// The innermost CIDR around.
    pub(super) net: Option<Ipv4Net>,
    pub(super) addresses: BTreeSet<Ipv4Addr>,
    pub(super) group: Option<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Sites {
    pub(super) slots: Vec<Option<Site>>,
    free: Vec<u32>,
    pub(super) at: BTreeMap<Ipv4Addr, u32>,
    by_content: HashMap<(Box<[u32]>, Option<Ipv4Net>), u32>,
}

/// A CIDR that some network set lists or some rule names.
#[derive(Debug, Default)]
pub(super) struct Net {
    /// Descriptions of the owners, and how many of them have it.
    pub(super) owners: BTreeMap<u32, usize>,
    pub(super) asked: Option<Ask>,
    /// What holds within, that of the CIDRs around included; ascending.
    pub(super) held: Content,
    /// `None`: nothing more holds than around it.
    pub(super) group: Option<u32>,
    pub(super) sites: BTreeSet<u32>,
}

impl Census {
    pub(super) fn change_owners(&mut self, address: Ipv4Addr, gone: Option<u32>, come: Option<u32>) {
        let mut owners: Vec<u32> =
            self.sites.of(address).map(|site| site.owners.to_vec()).unwrap_or_default();
        if let Some(at) = gone.and_then(|gone| owners.iter().position(|owner| *owner == gone)) {
            owners.swap_remove(at);
        }
        owners.extend(come);
        owners.sort_unstable();
        let net = self.innermost(address);
        self.settle(address, owners.into(), net);
        self.touched.addresses.insert(address);
    }

    /// Puts the address where it belongs.
    fn settle(&mut self, address: Ipv4Addr, owners: Box<[u32]>, net: Option<Ipv4Net>) {
        let old = self.sites.at.get(&address).copied();
        let new = (!owners.is_empty()).then(|| self.site(owners, net));
        if old == new {
            return;
        }
        if let Some(id) = new {
            self.sites.at.insert(address, id);
            let site = self.sites.slots[id as usize].as_mut().expect("it was just made");
            site.addresses.insert(address);
            self.peers += usize::from(site.group.is_some());
        } else {
            self.sites.at.remove(&address);
        }
        if let Some(id) = old {
            let site =
                self.sites.slots[id as usize].as_mut().expect("a site lives as long as it has addresses");
            site.addresses.remove(&address);
            self.peers -= usize::from(site.group.is_some());
            if site.addresses.is_empty() {
                self.close_site(id);
            }
        }
        self.moved.insert(Place::Peer(address));
    }

    fn site(&mut self, owners: Box<[u32]>, net: Option<Ipv4Net>) -> u32 {
        let key = (owners, net);
        if let Some(id) = self.sites.by_content.get(&key) {
            return *id;
        }
        let id = self.sites.free.pop().unwrap_or_else(|| {
            self.sites.slots.push(None);
            u32::try_from(self.sites.slots.len() - 1).unwrap_or(u32::MAX)
        });
        for owner in &key.0 {
            self.descriptions.get_mut(*owner).sites.insert(id);
        }
        if let Some(net) = net.and_then(|net| self.nets.get_mut(&net)) {
            net.sites.insert(id);
        }
        self.sites.slots[id as usize] =
            Some(Site { owners: key.0.clone(), net, addresses: BTreeSet::new(), group: None });
        self.sites.by_content.insert(key, id);
        self.due.sites.insert(id);
        id
    }

    fn close_site(&mut self, id: u32) {
        let Some(site) = self.sites.slots[id as usize].take() else { return };
        for owner in &site.owners {
            self.descriptions.get_mut(*owner).sites.remove(&id);
        }
        if let Some(net) = site.net.and_then(|net| self.nets.get_mut(&net)) {
            net.sites.remove(&id);
        }
        if let Some(group) = site.group {
            self.groups.leave(Member::Site(id), group);
        }
        self.sites.by_content.remove(&(site.owners, site.net));
        self.sites.free.push(id);
        self.due.sites.remove(&id);
    }

    /// An owner of the CIDR comes.
    pub(super) fn own(&mut self, net: Ipv4Net, owner: u32) {
        *self.known(net).owners.entry(owner).or_default() += 1;
        self.descriptions.get_mut(owner).nets.insert(net);
        self.touched.nets.insert(net);
    }

    /// An owner of the CIDR goes.
    pub(super) fn disown(&mut self, net: Ipv4Net, owner: u32) {
        let owners = &mut self.known(net).owners;
        if let Some(count) = owners.get_mut(&owner) {
            *count -= 1;
            if *count == 0 {
                owners.remove(&owner);
                self.descriptions.get_mut(owner).nets.remove(&net);
            }
        }
        self.touched.nets.insert(net);
        self.forget_unused(net);
    }

    /// Some rule names the CIDR.
    pub(super) fn ask_about(&mut self, net: Ipv4Net, ask: Ask) {
        self.known(net).asked = Some(ask);
    }

    /// No rule names the CIDR under this number any more; one may under another.
    pub(super) fn ask_no_more(&mut self, net: Ipv4Net, ask: Ask) {
        let known = self.known(net);
        known.asked = known.asked.filter(|asked| *asked != ask);
        self.forget_unused(net);
    }

    /// The CIDR, which is to be looked at.
    fn known(&mut self, net: Ipv4Net) -> &mut Net {
        if !self.nets.contains_key(&net) {
            let outer = self.outer(net);
            self.nets.insert(net, Net::default());
            self.lengths[usize::from(net.prefix_len())] += 1;
            self.settle_within(net, outer, Some(net));
        }
        self.due.nets.insert(net);
        self.nets.get_mut(&net).expect("it was just made")
    }

    /// A CIDR that nobody owns or asks about is none.
    fn forget_unused(&mut self, net: Ipv4Net) {
        if self.nets.get(&net).is_none_or(|known| !known.owners.is_empty() || known.asked.is_some()) {
            return;
        }
        let outer = self.outer(net);
        self.settle_within(net, Some(net), outer);
        self.lengths[usize::from(net.prefix_len())] -= 1;
        if let Some(group) = self.nets.remove(&net).and_then(|net| net.group) {
            self.groups.leave(Member::Net(net), group);
            self.prefixes -= 1;
            self.moved.insert(Place::Net(net));
        }
    }

    /// Addresses within `range` whose innermost CIDR was `from` have `to` for that.
    fn settle_within(&mut self, range: Ipv4Net, from: Option<Ipv4Net>, to: Option<Ipv4Net>) {
        let within: Vec<(Ipv4Addr, u32)> = self
            .sites
            .at
            .range(range.network()..=range.broadcast())
            .map(|(address, site)| (*address, *site))
            .collect();
        for (address, id) in within {
            let site =
                self.sites.slots[id as usize].as_ref().expect("a site lives as long as it has addresses");
            if site.net == from {
                let owners = site.owners.clone();
                self.settle(address, owners, to);
            }
        }
    }

    fn innermost(&self, address: Ipv4Addr) -> Option<Ipv4Net> {
        self.longest(Ipv4Net::from(address), 33)
    }

    /// The innermost CIDR around this one.
    pub(super) fn outer(&self, net: Ipv4Net) -> Option<Ipv4Net> {
        self.longest(net, net.prefix_len())
    }

    /// The innermost known CIDR around `net` with less than `bits` bits.
    fn longest(&self, net: Ipv4Net, bits: u8) -> Option<Ipv4Net> {
        let lengths = (0..bits).rev().filter(|length| self.lengths[usize::from(*length)] > 0);
        lengths.map(|length| around(net.addr(), length)).find(|net| self.nets.contains_key(net))
    }
}

impl Sites {
    pub(super) fn of(&self, address: Ipv4Addr) -> Option<&Site> {
        self.slots[*self.at.get(&address)? as usize].as_ref()
    }
}

pub(super) fn around(address: Ipv4Addr, length: u8) -> Ipv4Net {
    Ipv4Net::new(address, length).map_or_else(|_| Ipv4Net::from(address), |net| net.trunc())
}

/// This CIDR and all within it, as they are ordered: by address, then by length.
pub(super) fn span(net: Ipv4Net) -> std::ops::RangeInclusive<Ipv4Net> {
    net..=Ipv4Net::from(net.broadcast())
}
