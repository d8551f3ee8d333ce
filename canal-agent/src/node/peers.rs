//! Leases in etcd → peers of the overlay. Pure.

mod claims;
mod means;

use std::{
    collections::{BTreeMap, btree_map},
    net::Ipv4Addr,
};

use canal_common::Mac;
use claims::claims;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

pub use self::means::Means;
use crate::{
    api::wire::{PeerStatus, Way},
    dataplane::nodes::Peer,
    store::{Backend, Entry, EtcdPrefix, LeaseValue},
};

/// Every lease under the prefix but our own, as last read. A key or value that cannot be used costs that peer alone,
/// and not even that one if an earlier value was good.
#[derive(Debug)]
pub struct Peers {
    prefix: EtcdPrefix,
    means: Means,
    by_key: BTreeMap<String, Known>,
    invalid: BTreeMap<String, String>,
    /// Of before the store lost its past, and not written again since.
    remembered: BTreeMap<String, Known>,
    /// Whose lease has gone a moment ago, and how many looks they are given to take it again.
    leaving: BTreeMap<String, (Known, u8)>,
}

/// Leases, and peers that are only remembered, by their keys.
pub type Records = [BTreeMap<String, Known>; 2];

/// A lease goes when its node leaves for good, but also when somebody deletes it, or when etcd could not be reached for longer
/// than it lasts. Who is alive takes it again within moments of being back, and is not cut off for them.
const LOOKS: u8 = 5;

/// A peer, as its lease says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    subnet: Ipv4Net,
    ip: Ipv4Addr,
    /// `None` where the node has no VXLAN device.
    vtep_mac: Option<Mac>,
    /// Why it cannot be reached whatever the way, if so.
    misfit: Option<String>,
    node: Option<String>,
    #[serde(skip)]
    machine: Option<String>,
    /// Its key never expires.
    #[serde(skip)]
    is_reservation: bool,
    /// Of its key, when last seen.
    #[serde(skip)]
    mod_revision: i64,
}

impl Known {
    /// The peer, or why this node cannot reach it. `None`: others carry what goes there.
    fn peer(&self, means: &Means, own: Own<'_>, on_link: impl Fn(Ipv4Addr) -> bool) -> Reached {
        if !means.backend.carries() {
            return None;
        }
        if let Some(reason) = &self.misfit {
            return Some(Err(reason.clone()));
        }
        if let Some(reason) = means.refusal(self.subnet, self.ip) {
            return Some(Err(reason));
        }
        let on_link = on_link(self.ip);
        let direct = on_link && means.backend.reaches_directly();
        let has_tunnel = self.vtep_mac.is_some() && means.backend.vxlan().is_some();
        if !has_tunnel && !direct {
            return Some(Err(
                "it is not on this node's own link, where host-gw needs all nodes to be".to_owned()
            ));
        }
        if !direct && self.vtep_mac == Some(own.vtep_mac) {
            return Some(Err(format!(
                "its VtepMAC {} is this node's too: delete the VXLAN device of either and restart that node's agent",
                own.vtep_mac
            )));
        }
        let mtu = if direct { means.uplink_mtu() } else { means.backend.pod_mtu(means.uplink_mtu) };
        let vtep_mac = self.vtep_mac.unwrap_or_default();
        Some(Ok(Peer { ip: self.ip, vtep_mac, mtu, on_link, direct }))
    }
}

/// The way to a peer, or why there is none here. `None`: others carry what goes there.
type Reached = Option<Result<Peer, String>>;

/// Ourselves among the leases.
#[derive(Debug, Clone, Copy)]
pub struct Own<'a> {
    pub key: &'a str,
    pub subnet: Ipv4Net,
    pub public_ip: Ipv4Addr,
    /// Zeros where this node has no VXLAN device.
    pub vtep_mac: Mac,
}

impl Peers {
    pub fn new(prefix: EtcdPrefix, means: Means) -> Self {
        Self {
            prefix,
            means,
            by_key: BTreeMap::new(),
            invalid: BTreeMap::new(),
            remembered: BTreeMap::new(),
            leaving: BTreeMap::new(),
        }
    }

    /// Another MTU, or other options of the same backend.
    pub fn set_means(&mut self, means: Means) {
        self.means = means;
    }

    /// A complete list: what is not in it is gone.
    pub fn replace_all(&mut self, entries: impl Iterator<Item = Entry>) {
        let entries: BTreeMap<String, Entry> = entries.map(|entry| (entry.key.clone(), entry)).collect();
        let gone = self.by_key.extract_if(.., |key, _| !entries.contains_key(key));
        let gone = gone.filter(|(_, known)| known.misfit.is_none());
        self.leaving.extend(gone.map(|(key, known)| (key, (known, LOOKS))));
        self.invalid.retain(|key, _| entries.contains_key(key));
        for entry in entries.values() {
            self.put(entry);
        }
    }

    /// A complete list of a store that has lost its past. Who is not in it may only not know yet that its lease is to be written
    /// again: such peers are remembered until a lease comes to stand in their place, or [`forget`](Self::forget).
    pub fn begin_again(&mut self, entries: impl Iterator<Item = Entry>) {
        self.remembered.append(&mut self.by_key);
        self.replace_all(entries);
    }

    /// Those that are only remembered.
    pub fn remembered(&self, own: Own<'_>) -> Vec<Ipv4Net> {
        self.remembered.values().filter(|known| !claims(known, own)).map(|known| known.subnet).collect()
    }

    pub fn forget(&mut self) {
        self.remembered.clear();
    }

    /// A moment has passed: who was given enough of them has left for good. True if somebody has.
    pub fn look(&mut self) -> bool {
        let before = self.leaving.len();
        self.leaving.retain(|_, (_, looks)| {
            *looks = looks.saturating_sub(1);
            *looks > 0
        });
        self.leaving.len() != before
    }

    pub fn put(&mut self, entry: &Entry) {
        let key = entry.key.as_str();
        match self.read(key, &entry.value) {
            Ok(Some(known)) => {
                let known =
                    Known { is_reservation: entry.lease == 0, mod_revision: entry.mod_revision, ..known };
                let in_its_place = |old: &Known| old.ip == known.ip || old.overlaps(known.subnet);
                if !self.remembered.is_empty() {
                    self.remembered.retain(|_, old| !in_its_place(old));
                }
                if !self.leaving.is_empty() {
                    self.leaving.retain(|_, (old, _)| !in_its_place(old));
                }
                self.by_key.insert(key.to_owned(), known);
                self.invalid.remove(key);
            }
            Ok(None) => {}
            Err(reason) => {
                self.invalid.insert(key.to_owned(), reason);
            }
        }
    }

    pub fn delete(&mut self, key: &str) {
        self.remembered.remove(key);
        if let Some(known) = self.by_key.remove(key).filter(|known| known.misfit.is_none()) {
            self.leaving.insert(key.to_owned(), (known, LOOKS));
        }
        self.invalid.remove(key);
    }

    pub fn invalid(&self) -> &BTreeMap<String, String> {
        &self.invalid
    }

    /// Every lease, and every peer that is only remembered, by their keys.
    pub fn records(&self) -> Records {
        [self.by_key.clone(), self.remembered.clone()]
    }

    /// What an earlier process knew, to begin with.
    pub fn recall(&mut self, [leases, remembered]: Records) {
        (self.by_key, self.remembered) = (leases, remembered);
    }

    /// Who is to be reached through the overlay; `on_link` tells of an address whether the uplink leads straight to it.
    pub fn desired(&self, own: Own<'_>, on_link: impl Fn(Ipv4Addr) -> bool) -> BTreeMap<Ipv4Net, Peer> {
        let peer = |(known, way): (&Known, Reached)| Some((known.subnet, way?.ok()?));
        self.ways(own, on_link).into_iter().filter_map(peer).collect()
    }

    /// All of them, with the way there.
    pub fn status(&self, own: Own<'_>, on_link: impl Fn(Ipv4Addr) -> bool) -> Vec<PeerStatus> {
        let status = |(known, way): (&Known, Reached)| {
            let (way, reason) = match way {
                Some(Ok(peer)) if peer.direct => (Way::Direct, None),
                Some(Ok(_)) => (Way::Vxlan, None),
                Some(Err(reason)) => (Way::None, Some(reason)),
                None => (Way::None, None),
            };
            PeerStatus {
                subnet: known.subnet,
                public_ip: known.ip,
                vtep_mac: known.vtep_mac,
                node: known.node.clone(),
                way,
                reason,
            }
        };
        self.ways(own, on_link).into_iter().map(status).collect()
    }

    /// Subnets of those that cannot be reached; of such as would be missed elsewhere, none.
    pub fn lost(&self, own: Own<'_>, on_link: impl Fn(Ipv4Addr) -> bool) -> Vec<Ipv4Net> {
        let ways = self.ways(own, on_link).into_iter();
        let lost = ways.filter(|(_, way)| matches!(way, Some(Err(_)))).map(|(known, _)| known);
        let ours_to_refuse = lost.filter(|known| self.means.refusal(known.subnet, known.ip).is_none());
        ours_to_refuse.map(|known| known.subnet).collect()
    }

    /// In one line, if some cannot be reached.
    pub fn unreachable(&self, own: Own<'_>, on_link: impl Fn(Ipv4Addr) -> bool) -> Option<String> {
        const SHOWN: usize = 3;
        let reason = |(known, way): (_, Reached)| Some((known, way?.err()?));
        let lost: Vec<(&Known, String)> = self.ways(own, on_link).into_iter().filter_map(reason).collect();
        let shown: Vec<_> =
            lost.iter().take(SHOWN).map(|(known, reason)| format!("{} ({reason})", known.subnet)).collect();
        let more = if lost.len() > SHOWN { ", …" } else { "" };
        let has_misfits = lost.iter().any(|(known, _)| known.misfit.is_some());
        let remedy = "; all nodes must use one Backend: restart those that began with another";
        (!lost.is_empty()).then(|| {
            format!(
                "{} nodes cannot be reached, and packets to them are dropped: {}{more}{}",
                lost.len(),
                shown.join(", "),
                if has_misfits { remedy } else { "" }
            )
        })
    }

    /// Who has each subnet, and the way there: of several one that can be reached, then the one that counts most.
    fn ways<'a>(&'a self, own: Own<'a>, on_link: impl Fn(Ipv4Addr) -> bool) -> Vec<(&'a Known, Reached)> {
        let leases = self.ranked(own).into_iter().map(|(_, known)| known);
        let past = self.remembered.values().chain(self.leaving.values().map(|(known, _)| known));
        let others = leases.chain(past.filter(|known| !claims(known, own)));
        let mut ways: BTreeMap<Ipv4Net, (&Known, Reached)> = BTreeMap::new();
        for known in others {
            let way = known.peer(&self.means, own, &on_link);
            match ways.entry(known.subnet) {
                btree_map::Entry::Vacant(place) => drop(place.insert((known, way))),
                btree_map::Entry::Occupied(mut place) => {
                    if matches!(place.get().1, Some(Err(_))) && matches!(way, Some(Ok(_))) {
                        place.insert((known, way));
                    }
                }
            }
        }
        ways.into_values().collect()
    }

    /// `None`: not a lease key at all.
    fn read(&self, key: &str, value: &[u8]) -> Result<Option<Known>, String> {
        let subnet = match self.prefix.parse_subnet(key) {
            None => return Ok(None),
            Some(Err(bad)) => return Err(bad.to_string()),
            Some(Ok(subnet)) => subnet.subnet(),
        };
        if !claims::may_be_pods(subnet) {
            return Err(format!("{subnet} cannot be a node's"));
        }
        let lease = LeaseValue::parse(value).map_err(|e| e.to_string())?;
        let (vtep_mac, misfit) = self.fit(&lease)?;
        if lease.public_ip.is_unspecified() || lease.public_ip.is_multicast() || lease.public_ip.is_loopback()
        {
            return Err(format!("PublicIP {} is not an address to send to", lease.public_ip));
        }
        Ok(Some(Known {
            subnet,
            ip: lease.public_ip,
            vtep_mac,
            misfit,
            node: lease.node,
            machine: lease.machine,
            is_reservation: false,
            mod_revision: 0,
        }))
    }

    /// The MAC of its VXLAN device, if it has one, and why it does not fit this node, if so.
    fn fit(&self, lease: &LeaseValue) -> Result<(Option<Mac>, Option<String>), String> {
        let own = &self.means.backend;
        let is_vxlan = lease.backend_type.eq_ignore_ascii_case("vxlan");
        let data = is_vxlan.then(|| lease.vxlan_data().map_err(|e| e.to_string())).transpose()?;
        let misfit = match (own, data) {
            (Backend::Vxlan(options), Some(data)) => (data.vni != options.vni)
                .then(|| format!("its VNI is {}, this node's {}", data.vni, options.vni)),
            (Backend::HostGw, None) if lease.backend_type.eq_ignore_ascii_case("host-gw") => None,
            _ => {
                let theirs = if lease.backend_type.is_empty() { "udp or alloc" } else { &lease.backend_type };
                Some(format!("its backend is {theirs}, this node's {own}"))
            }
        };
        Ok((data.map(|data| data.vtep_mac), misfit))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{
        netlink::{Route, protocol},
        store::{Owner, VxlanOptions},
    };

    pub(super) const GOOD: &str = r#"{"PublicIP":"192.168.50.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"b6:5a:ac:9f:0c:c3"}}"#;
    pub(super) const OWN: &str = "/coreos.com/network/subnets/10.100.30.0-24";
    pub(super) const OTHER: &str = "/coreos.com/network/subnets/10.100.56.0-24";

    pub(super) fn peers(entries: &[(&str, &str)]) -> Peers {
        peers_of(Backend::Vxlan(VxlanOptions::default()), entries)
    }

    pub(super) fn means(backend: Backend, uplink_mtu: u32) -> Means {
        let way = |dst: &str| Route::link(dst.parse().unwrap(), 3);
        Means {
            backend,
            uplink_mtu,
            network: "10.100.0.0/16".parse().unwrap(),
            addresses: BTreeSet::from([own().public_ip]),
            etcd: BTreeSet::from(["10.5.0.7".parse().unwrap()]),
            ways: vec![
                way("192.168.50.0/24"),
                way("172.17.0.0/16"),
                Route {
                    protocol: protocol::BOOT,
                    gateway: Some("192.168.50.2".parse().unwrap()),
                    ..way("10.210.4.0/24")
                },
                Route { oif: None, unreachable: true, ..way("10.192.0.0/10") },
                Route { gateway: Some(own().public_ip), ..way("10.0.0.0/8") },
            ],
        }
    }

    fn peers_of(backend: Backend, entries: &[(&str, &str)]) -> Peers {
        let mut peers = Peers::new(prefix(), means(backend, 1500));
        peers.replace_all(entries.iter().map(|(key, value)| entry(key, value)));
        peers
    }

    pub(super) fn entry(key: &str, value: &str) -> Entry {
        Entry { key: key.to_owned(), value: value.as_bytes().to_vec(), mod_revision: 1, lease: 1 }
    }

    pub(super) fn own() -> Own<'static> {
        Own {
            key: OWN,
            subnet: "10.100.30.0/24".parse().unwrap(),
            public_ip: "192.168.50.1".parse().unwrap(),
            vtep_mac: Mac::new([2; 6]),
        }
    }

    fn prefix() -> EtcdPrefix {
        EtcdPrefix::new("/coreos.com/network").unwrap()
    }

    #[test]
    fn our_own_lease_is_not_a_peer_and_further_lists_with_or_without_it_change_nothing() {
        let (ours, other) = (entry(OWN, GOOD), entry(OTHER, GOOD));
        let mut peers = peers(&[(OWN, GOOD), (OTHER, GOOD)]);
        let before = peers.desired(own(), |_| false);
        assert_eq!(before.keys().map(ToString::to_string).collect::<Vec<_>>(), ["10.100.56.0/24"]);
        for list in [vec![ours.clone(), other.clone()], vec![other.clone()], vec![other, ours]] {
            peers.replace_all(list.into_iter());
            assert_eq!(peers.desired(own(), |_| false), before);
            let_go(&mut peers);
            assert_eq!(peers.desired(own(), |_| false), before);
        }
    }

    #[test]
    fn garbage_costs_nobody_else_and_keeps_the_last_good_value() {
        let mut peers = peers(&[
            (OTHER, GOOD),
            ("/coreos.com/network/subnets/10.100.201.0-24", "not json"),
            ("/coreos.com/network/subnets/x", "{}"),
        ]);
        assert_eq!((peers.desired(own(), |_| false).len(), peers.invalid().len()), (1, 2));
        peers.put(&entry(OTHER, "{\"PublicIP\":"));
        assert_eq!((peers.desired(own(), |_| false).len(), peers.invalid().len()), (1, 3));
        peers.put(&entry(OTHER, GOOD));
        assert_eq!(peers.invalid().len(), 2);
        peers.delete(OTHER);
        let_go(&mut peers);
        assert!(peers.desired(own(), |_| false).is_empty());
    }

    fn let_go(peers: &mut Peers) {
        (0..LOOKS).for_each(|_| _ = peers.look());
    }

    #[test]
    fn a_peer_whose_lease_goes_has_some_time_to_take_it_again() {
        let ours = GOOD.replace("192.168.50.2", "192.168.50.1");
        let only_ours = || [entry(OWN, &ours)].into_iter();
        for is_listed in [false, true] {
            let goes = |peers: &mut Peers| {
                if is_listed { peers.replace_all(only_ours()) } else { peers.delete(OTHER) }
            };
            let mut peers = peers(&[(OTHER, GOOD)]);
            let subnets =
                |peers: &Peers| peers.desired(own(), |_| false).keys().map(ToString::to_string).collect();
            goes(&mut peers);
            peers.look();
            assert_eq!(peers.desired(own(), |_| false).len(), 1);
            peers.put(&entry(OTHER, GOOD));
            let_go(&mut peers);
            assert_eq!(peers.desired(own(), |_| false).len(), 1, "it has taken it again");
            // Somebody else has its place, or it has another.
            for (key, ip) in [("10.100.56.0-25", "192.168.50.7"), ("10.100.7.0-24", "192.168.50.2")] {
                let mut peers = self::peers(&[(OTHER, GOOD)]);
                goes(&mut peers);
                let other = format!("/coreos.com/network/subnets/{key}");
                peers.put(&entry(&other, &GOOD.replace("192.168.50.2", ip)));
                let now: Vec<String> = subnets(&peers);
                assert_eq!(now, [key.replace('-', "/")]);
            }
            goes(&mut peers);
            let_go(&mut peers);
            assert!(peers.desired(own(), |_| false).is_empty());
        }
    }

    #[test]
    fn what_changed_between_two_lists_counts_and_keys_of_both_families_are_peers_too() {
        let mut peers = peers(&[(OTHER, GOOD)]);
        let changed = GOOD.replace("b6:5a", "b6:5b").replace("192.168.50.2", "192.168.50.3");
        let dual = "/coreos.com/network/subnets/10.100.57.0-24&fd42:9:0:7::-64";
        peers.replace_all([entry(OTHER, &changed), entry(dual, GOOD)].into_iter());
        let desired = peers.desired(own(), |_| false);
        let found: Vec<_> =
            desired.iter().map(|(subnet, peer)| format!("{subnet} {} {}", peer.ip, peer.vtep_mac)).collect();
        assert_eq!(
            found,
            [
                "10.100.56.0/24 192.168.50.3 b6:5b:ac:9f:0c:c3",
                "10.100.57.0/24 192.168.50.2 b6:5a:ac:9f:0c:c3"
            ]
        );
    }

    #[test]
    fn after_a_loss_of_data_peers_stay_until_somebody_writes_in_their_place() {
        let subnets = |peers: &Peers| {
            peers.desired(own(), |_| false).keys().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        let lease = |ip: &str| GOOD.replace("192.168.50.2", ip);
        let key = |subnet: &str| format!("/coreos.com/network/subnets/{subnet}");
        let before: Vec<_> = (2..=6)
            .map(|n| entry(&key(&format!("10.100.5{n}.0-24")), &lease(&format!("192.168.50.{n}"))))
            .collect();
        let mut peers = peers(&[(OWN, GOOD)]);
        peers.replace_all(before.clone().into_iter());
        // One has written again already, with the same subnet; another with its address has another subnet.
        let elsewhere = Entry { key: key("10.100.9.0-24"), ..before[1].clone() };
        peers.begin_again([before[0].clone(), elsewhere].into_iter());
        let all = "10.100.9.0/24 10.100.52.0/24 10.100.54.0/24 10.100.55.0/24 10.100.56.0/24";
        assert_eq!(subnets(&peers), all);
        assert_eq!(peers.remembered(own()).len(), 3);
        // The next list, after a compaction, says nothing about those who have not written since.
        peers.replace_all([before[0].clone()].into_iter());
        let_go(&mut peers);
        assert_eq!(subnets(&peers), "10.100.52.0/24 10.100.54.0/24 10.100.55.0/24 10.100.56.0/24");
        peers.put(&before[2]);
        peers.put(&entry(&key("10.100.55.0-25"), &lease("192.168.50.9")));
        assert_eq!(
            (subnets(&peers).as_str(), peers.remembered(own()).len()),
            ("10.100.52.0/24 10.100.54.0/24 10.100.55.0/25 10.100.56.0/24", 1)
        );
        // The next process is told.
        let mut next = self::peers(&[]);
        next.recall(peers.records());
        assert_eq!((subnets(&next), next.remembered(own())), (subnets(&peers), peers.remembered(own())));
        peers.delete(&before[2].key);
        peers.forget();
        let_go(&mut peers);
        assert_eq!(subnets(&peers), "10.100.52.0/24 10.100.55.0/25");
    }

    #[test]
    fn another_machine_of_our_name_is_a_peer_like_others_and_is_named() {
        let namesake = GOOD.replace("}}", r#"},"Canal":{"Node":"n1","Machine":"m2"}}"#);
        let mut peers = peers(&[(OWN, &namesake), (OTHER, &namesake)]);
        assert_eq!(peers.desired(own(), |_| false).len(), 1);
        let attributes = claims::tests::terms().attributes;
        let told = peers.namesakes(own(), attributes.owner());
        assert!(told.len() == 1 && told[0].starts_with(OTHER), "{told:?}");
        assert!(peers.namesakes(own(), Owner { node: "n2", ..attributes.owner() }).is_empty());
        let backend = Backend::Vxlan(VxlanOptions { direct_routing: true, ..VxlanOptions::default() });
        peers.set_means(means(backend, 1400));
        for (on_link, mtu) in [(false, 1350), (true, 1400)] {
            let desired = peers.desired(own(), |_| on_link);
            assert!(desired.values().all(|peer| (peer.direct, peer.mtu) == (on_link, mtu)), "{desired:?}");
        }
    }

    #[test]
    fn a_node_that_began_with_another_backend_is_named_and_not_reached() {
        let host_gw = r#"{"PublicIP":"192.168.50.3","PublicIPv6":null,"BackendType":"host-gw"}"#;
        let vni = GOOD.replace("\"VNI\":1", "\"VNI\":7");
        let other = |subnet: &str| format!("/coreos.com/network/subnets/{subnet}");
        let entries = [
            (OTHER.to_owned(), GOOD),
            (other("10.100.57.0-24"), host_gw),
            (other("10.100.58.0-24"), r#"{"PublicIP":"192.168.50.4"}"#),
            (other("10.100.59.0-24"), vni.as_str()),
        ];
        let entries: Vec<_> = entries.iter().map(|(key, value)| (key.as_str(), *value)).collect();
        let ways = |peers: &Peers, on_link: bool| {
            let status = peers.status(own(), |_| on_link);
            let shown = status
                .iter()
                .map(|peer| format!("{:?} {}", peer.way, peer.reason.clone().unwrap_or_default()));
            shown.map(|line| line.trim().to_owned()).collect::<Vec<_>>()
        };
        let vxlan = peers_of(Backend::Vxlan(VxlanOptions::default()), &entries);
        let backend = |theirs, ours| format!("None its backend is {theirs}, this node's {ours}");
        assert_eq!(
            ways(&vxlan, true),
            [
                "Vxlan",
                &backend("host-gw", "vxlan"),
                &backend("udp or alloc", "vxlan"),
                "None its VNI is 7, this node's 1"
            ]
        );
        assert!(vxlan.invalid().is_empty() && vxlan.desired(own(), |_| true).len() == 1);
        let told = vxlan.unreachable(own(), |_| true).unwrap();
        assert!(
            told.starts_with("3 nodes cannot be reached") && told.contains("10.100.57.0/24 (its backend"),
            "{told}"
        );
        let gateway = peers_of(Backend::HostGw, &entries);
        assert_eq!(ways(&gateway, true)[1], "Direct");
        assert!(ways(&gateway, false)[1].starts_with("None it is not on this node's own link"));
        assert_eq!(gateway.desired(own(), |_| true).values().next().unwrap().mtu, 1500);
        let alloc = peers_of(Backend::Alloc, &entries);
        assert_eq!(ways(&alloc, true), ["None"; 4]);
        assert_eq!((alloc.desired(own(), |_| true).len(), alloc.unreachable(own(), |_| true)), (0, None));
    }

    #[test]
    fn impossible_addresses_are_named() {
        for value in [
            r#"{"PublicIP":"0.0.0.0","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"b6:5a:ac:9f:0c:c3"}}"#,
            r#"{"PublicIP":"192.168.50.2","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"b6"}}"#,
        ] {
            let peers = peers(&[(OTHER, value)]);
            assert!(
                peers.desired(own(), |_| false).is_empty() && peers.invalid().contains_key(OTHER),
                "{value}"
            );
        }
    }
}
