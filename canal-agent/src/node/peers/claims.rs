//! Leases that claim what another has: ours, or each other's.

use std::{cmp::Reverse, collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;

use super::{Known, Own, Peers};
use crate::store::{NetworkConfig, Owner, Terms};

pub(super) fn claims(known: &Known, own: Own<'_>) -> bool {
    known.overlaps(own.subnet) || known.ip == own.public_ip
}

/// Whether a node can have that subnet, be it of this network or of one that it was before, or will be.
pub(super) fn may_be_pods(subnet: Ipv4Net) -> bool {
    // The shortest prefix that leaves four of them in a /8.
    const SHORTEST: u8 = 10;
    let first = subnet.network();
    let is_special =
        first.is_loopback() || first.is_link_local() || first.octets()[0] == 0 || first.octets()[0] >= 224;
    subnet.prefix_len() >= SHORTEST && !is_special
}

impl Known {
    pub(super) fn overlaps(&self, subnet: Ipv4Net) -> bool {
        self.subnet.contains(&subnet) || subnet.contains(&self.subnet)
    }

    fn belongs_to(&self, owner: Owner<'_>) -> bool {
        owner.owns(self.ip, self.node.as_deref(), self.machine.as_deref())
    }

    /// Two Canal nodes have written these leases of one address.
    fn is_rival(&self, other: &Self) -> bool {
        let has_names = self.node.is_some() && other.node.is_some();
        has_names && self.node != other.node && (self.machine.is_none() || self.machine != other.machine)
    }
}

impl Peers {
    /// Leases that claim something of ours, which are not used, and reservations for us that we do not hold.
    pub fn conflicts(&self, own: Own<'_>, terms: &Terms) -> Vec<String> {
        let line = |(key, known): (&String, &Known)| {
            if known.is_reservation && known.belongs_to(terms.attributes.owner()) {
                return Some(self.reserved(key, known.subnet, own, &terms.network));
            }
            let claims = claims(known, own);
            claims.then(|| format!("{key} claims our subnet or our address; delete it if its node is gone"))
        };
        self.by_key.iter().filter(|(key, _)| key.as_str() != own.key).filter_map(line).collect()
    }

    fn reserved(&self, key: &str, subnet: Ipv4Net, own: Own<'_>, network: &NetworkConfig) -> String {
        let parsed = self.prefix.parse_subnet(key).and_then(Result::ok);
        if parsed.is_some_and(|key| network.accepts(&key)) {
            let first = self.by_key.get(own.key).filter(|held| held.is_reservation);
            let first = first.map(|_| format!("delete {}, ", own.key)).unwrap_or_default();
            return format!(
                "{key} reserves {subnet} for this node, which has {}: {first}drain the node and restart canal-agent to take it",
                own.subnet
            );
        }
        let NetworkConfig { subnet_len, subnet_min, subnet_max, .. } = network;
        format!(
            "{key} reserves {subnet} for this node, but nodes have a /{subnet_len} from {subnet_min} to {subnet_max}: delete it, \
             or reserve one of those"
        )
    }

    /// Leases of other machines that are called like this node.
    pub fn namesakes(&self, own: Own<'_>, owner: Owner<'_>) -> Vec<String> {
        let node = owner.node;
        let named = self.by_key.iter().filter(|(key, known)| {
            key.as_str() != own.key && known.node.as_deref() == Some(node) && !known.belongs_to(owner)
        });
        named
            .map(|(key, _)| {
                format!("{key} is of another machine that is called {node} too; give one of them another --node-name, or \
                         delete the key if that machine is gone")
            })
            .collect()
    }

    /// The leases of others by subnet, of several keys of one subnet first the one that counts: that which fits this node, then
    /// that which is spelt as nodes do it, then that which was written last.
    pub(super) fn ranked<'a>(&'a self, own: Own<'_>) -> Vec<(&'a str, &'a Known)> {
        let rank = |(key, known): &(&str, &Known)| {
            let name = format!("{}-", known.subnet.addr());
            let is_usual = key.rsplit('/').next().is_some_and(|last| last.starts_with(&name));
            Reverse((known.misfit.is_none(), is_usual, known.mod_revision))
        };
        let others = self.by_key.iter().map(|(key, known)| (key.as_str(), known));
        let mut others: Vec<_> =
            others.filter(|(key, known)| *key != own.key && !claims(known, own)).collect();
        others.sort_by(|one, other| {
            one.1.subnet.cmp(&other.1.subnet).then_with(|| rank(one).cmp(&rank(other)))
        });
        others
    }

    /// Leases of others that collide, which of them count, and what to do: the first ones, and how many more there are. Two
    /// leases of one node are none: it has got another subnet, and the old lease ends by itself.
    pub fn collisions(&self, own: Own<'_>) -> Vec<String> {
        const SHOWN: usize = 10;
        let mut lines = Vec::new();
        // Those whose subnets the present one lies in, the widest first.
        let mut around: Vec<(&str, &Known)> = Vec::new();
        let mut by_address: BTreeMap<Ipv4Addr, (&str, &Known)> = BTreeMap::new();
        for (key, known) in self.ranked(own) {
            around.retain(|(_, outer)| outer.subnet.contains(&known.subnet));
            match around.last() {
                Some((first, outer)) if outer.subnet == known.subnet => {
                    lines.push(format!(
                        "{key} leases the subnet of {first} once more, and does not count: delete the one whose node is gone"
                    ));
                    continue;
                }
                Some((outer, _)) => lines.push(format!(
                    "{key} lies in the subnet of {outer}, and counts where both do: delete the one whose node is gone"
                )),
                None => {}
            }
            around.push((key, known));
            let (first, rival) = *by_address.entry(known.ip).or_insert((key, known));
            if known.is_rival(rival) {
                lines.push(format!(
                    "{key} and {first} are of two nodes with one address, {}, and packets to both go there: delete the one \
                     whose node is gone, or give one node another --public-ip",
                    known.ip
                ));
            }
        }
        let more = lines.len().saturating_sub(SHOWN);
        lines.truncate(SHOWN);
        lines.extend((more > 0).then(|| format!("{more} more leases collide with others")));
        lines
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{
        super::tests::{GOOD, OTHER, OWN, entry, means, own, peers},
        *,
    };
    use crate::store::{Attributes, Backend, BackendKind, Entry, VxlanOptions};

    pub(in super::super) fn terms() -> Terms {
        Terms {
            network: NetworkConfig::parse(br#"{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan"}}"#)
                .unwrap(),
            attributes: Attributes {
                public_ip: own().public_ip,
                backend: BackendKind::Alloc,
                node: "n1".to_owned(),
                machine: "m1".to_owned(),
            },
        }
    }

    fn key(name: &str) -> String {
        format!("/coreos.com/network/subnets/{name}")
    }

    fn lease(ip: &str, canal: &str) -> String {
        GOOD.replace("192.168.50.2", ip).replace("}}", &format!(r#"}},"Canal":{{{canal}}}}}"#))
    }

    #[test]
    fn a_subnet_that_is_reserved_for_this_node_is_named_with_the_way_to_it() {
        let (named, machine) = (r#""Node":"n1","Machine":"m1""#, r#""Machine":"m2""#);
        for (name, value, etcd_lease, want) in [
            (
                "10.100.77.0-24",
                lease("192.168.50.1", ""),
                0,
                "drain the node and restart canal-agent to take it",
            ),
            ("10.100.77.0-24", lease("192.168.50.66", named), 0, "drain the node and restart canal-agent"),
            (
                "10.100.77.0-25",
                lease("192.168.50.1", ""),
                0,
                "nodes have a /24 from 10.100.1.0 to 10.100.255.0",
            ),
            ("10.100.77.7-24", lease("192.168.50.1", ""), 0, "nodes have a /24"),
            ("10.100.77.0-24", lease("192.168.50.1", ""), 1, "claims our subnet or our address"),
            ("10.100.77.0-24", lease("192.168.50.1", machine), 0, "claims our subnet or our address"),
        ] {
            let mut peers = peers(&[(OWN, GOOD), (OTHER, GOOD)]);
            assert!(peers.conflicts(own(), &terms()).is_empty());
            peers.put(&Entry { lease: etcd_lease, ..entry(&key(name), &value) });
            let told = peers.conflicts(own(), &terms());
            assert!(told.len() == 1 && told[0].contains(want), "{name} {value}: {told:?}");
            assert!(peers.namesakes(own(), terms().attributes.owner()).is_empty());
        }
    }

    #[test]
    fn a_lease_may_claim_neither_what_is_ours_nor_what_is_nobodys() {
        let stolen = GOOD.replace("192.168.50.2", "192.168.50.1");
        for (key, value, [invalid, conflicting, unreachable]) in [
            ("0.0.0.0-0", GOOD, [true, false, false]),
            ("128.0.0.0-1", GOOD, [true, false, false]),
            ("169.254.1.0-24", GOOD, [true, false, false]),
            ("224.1.0.0-16", GOOD, [true, false, false]),
            ("192.168.0.0-16", GOOD, [false, false, true]),
            ("192.168.50.96-27", GOOD, [false, false, true]),
            ("172.17.5.0-24", GOOD, [false, false, true]),
            ("10.5.0.0-24", GOOD, [false, false, true]),
            ("172.16.0.0-12", GOOD, [false, false, true]),
            ("10.100.0.0-16", GOOD, [false, true, false]),
            ("10.100.30.128-25", GOOD, [false, true, false]),
            ("10.100.28.0-22", GOOD, [false, true, false]),
            ("10.100.77.0-24", stolen.as_str(), [false, true, false]),
        ] {
            let key = format!("/coreos.com/network/subnets/{key}");
            let peers = peers(&[(OWN, GOOD), (OTHER, GOOD), (&key, value)]);
            assert_eq!(peers.desired(own(), |_| false).len(), 1, "{key}");
            assert_eq!(peers.invalid().contains_key(&key), invalid, "{key}");
            assert_eq!(peers.conflicts(own(), &terms()).len(), usize::from(conflicting), "{key}");
            let reason = peers.unreachable(own(), |_| false);
            assert_eq!(reason.is_some(), unreachable, "{key}: {reason:?}");
            assert_eq!(peers.lost(own(), |_| false), [], "no way is closed for it");
        }
    }

    #[test]
    fn of_two_keys_of_one_subnet_the_one_that_can_be_used_counts() {
        let both = "/coreos.com/network/subnets/10.100.56.0-24&fd00::-64";
        for (first, second) in
            [(GOOD, r#"{"PublicIP":"192.168.50.2"}"#), (r#"{"PublicIP":"192.168.50.2"}"#, GOOD)]
        {
            let peers = peers(&[(OTHER, first), (both, second)]);
            assert_eq!(peers.desired(own(), |_| false).len(), 1, "{first}");
            assert_eq!((peers.lost(own(), |_| false), peers.unreachable(own(), |_| false)), (vec![], None));
        }
    }

    #[test]
    fn a_node_of_another_network_is_a_peer_like_others() {
        let key = "/coreos.com/network/subnets/10.200.4.0-24";
        let peers = peers(&[(OWN, GOOD), (key, GOOD)]);
        assert!(peers.desired(own(), |_| false).contains_key(&"10.200.4.0/24".parse().unwrap()));
        let before = "/coreos.com/network/subnets/10.210.4.0-24";
        let peers = super::super::tests::peers(&[(OWN, GOOD), (before, GOOD)]);
        assert_eq!(peers.unreachable(own(), |_| false), None, "flanneld's way to it is none of others'");
        let elsewhere = GOOD.replace(r#""VNI":1"#, r#""VNI":2"#);
        let peers = super::super::tests::peers(&[(OWN, GOOD), (key, &elsewhere)]);
        assert_eq!(peers.lost(own(), |_| false), ["10.200.4.0/24".parse().unwrap()]);
    }

    #[test]
    fn a_mac_that_cannot_be_a_peers_costs_that_peer_alone_and_is_named() {
        let third = "/coreos.com/network/subnets/10.100.57.0-24";
        for mac in ["00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff"] {
            let peers = peers(&[(OTHER, GOOD), (third, &GOOD.replace("b6:5a:ac:9f:0c:c3", mac))]);
            assert_eq!(peers.desired(own(), |_| false).len(), 1, "{mac}");
            assert!(peers.invalid()[third].contains("a MAC address that a device can have"), "{mac}");
        }
        let ours = GOOD.replace("b6:5a:ac:9f:0c:c3", "02:02:02:02:02:02");
        let mut peers = peers(&[(OTHER, GOOD), (third, &ours)]);
        assert_eq!((peers.desired(own(), |_| false).len(), peers.status(own(), |_| false).len()), (1, 2));
        let told = peers.unreachable(own(), |_| false).unwrap();
        assert!(told.contains("10.100.57.0/24 (its VtepMAC 02:02:02:02:02:02 is this node's too"), "{told}");
        // Without an envelope the MAC is of no account.
        let backend = Backend::Vxlan(VxlanOptions { direct_routing: true, ..VxlanOptions::default() });
        peers.set_means(means(backend, 1500));
        assert_eq!(peers.desired(own(), |_| true).len(), 2);
    }

    #[test]
    fn of_several_keys_of_one_subnet_the_usual_one_counts_and_then_the_last_that_was_written() {
        let mut peers = peers(&[]);
        let put = |peers: &mut Peers, name: &str, node: u8, mod_revision| {
            let value = GOOD.replace("192.168.50.2", &format!("192.168.50.{node}"));
            peers.put(&Entry { mod_revision, ..entry(&key(name), &value) });
        };
        let who = |peers: &Peers| {
            let desired = peers.desired(own(), |_| false);
            desired.values().next().unwrap().ip.octets()[3]
        };
        put(&mut peers, "10.100.56.9-24", 9, 7);
        put(&mut peers, "10.100.56.7-24", 7, 8);
        assert_eq!(who(&peers), 7);
        put(&mut peers, "10.100.56.0-24", 3, 2);
        assert_eq!(who(&peers), 3);
        put(&mut peers, "10.100.56.0-24&fd42::-64", 4, 1);
        assert_eq!(who(&peers), 3);
        put(&mut peers, "10.100.56.0-24&fd42::-64", 4, 9);
        assert_eq!(who(&peers), 4);
        assert_eq!(peers.status(own(), |_| false).len(), 1);
        for (name, next) in [("10.100.56.0-24&fd42::-64", 3), ("10.100.56.0-24", 7)] {
            peers.delete(&key(name));
            assert_eq!(who(&peers), next);
        }
    }

    #[test]
    fn leases_of_others_that_collide_are_named_with_the_one_that_counts() {
        let told = |leases: &[(&str, &str)]| {
            let leases: Vec<_> = leases.iter().map(|(name, value)| (key(name), *value)).collect();
            let leases: Vec<_> = leases.iter().map(|(key, value)| (key.as_str(), *value)).collect();
            peers(&leases).collisions(own()).join("; ").replace("/coreos.com/network/subnets/", "")
        };
        let [two, three, four] = ["192.168.50.2", "192.168.50.3", "192.168.50.4"].map(|ip| lease(ip, ""));
        assert_eq!(told(&[("10.100.56.0-24", &two), ("10.100.57.0-24", &three)]), "");
        let same = "10.100.56.7-24 leases the subnet of 10.100.56.0-24 once more, and does not count";
        let inside = "10.100.56.0-24 lies in the subnet of 10.100.56.0-22, and counts where both do";
        let all = told(&[
            ("10.100.56.0-24", &two),
            ("10.100.56.7-24", &three),
            ("10.100.56.0-22", &four),
            ("10.100.60.0-24", &two),
        ]);
        assert!(all.starts_with(inside) && all.contains(same) && all.split("; ").count() == 2, "{all}");
        // Ours, and what claims something of ours, are told elsewhere.
        assert_eq!(
            told(&[("10.100.30.0-24", &two), ("10.100.30.0-25", &three), ("10.100.28.0-22", &four)]),
            ""
        );
    }

    #[test]
    fn two_leases_of_one_address_are_a_change_of_subnet_unless_two_nodes_have_written_them() {
        let at = |canal| lease("192.168.50.2", canal);
        for (other, collides) in [
            ("", false),
            (r#""Node":"n2","Machine":"m2""#, false),
            (r#""Node":"n3","Machine":"m2""#, false), // renamed
            (r#""Node":"n2","Machine":"m3""#, false), // installed anew
            (r#""Node":"n3","Machine":"m3""#, true),
            (r#""Node":"n3""#, true),
        ] {
            let (first, second) = (at(r#""Node":"n2","Machine":"m2""#), at(other));
            let peers = peers(&[(OTHER, &first), (&key("10.100.57.0-24"), &second)]);
            let told = peers.collisions(own());
            assert_eq!(told.len(), usize::from(collides), "{other}: {told:?}");
            assert!(
                told.iter().all(|line| line.contains("two nodes with one address, 192.168.50.2")),
                "{told:?}"
            );
        }
    }

    #[test]
    fn many_collisions_are_told_in_eleven_lines() {
        let leases: Vec<_> = (0..40).map(|at| key(&format!("10.100.56.{at}-24"))).collect();
        let leases: Vec<_> = leases.iter().map(|key| (key.as_str(), GOOD)).collect();
        let told = peers(&leases).collisions(own());
        assert_eq!((told.len(), told[10].as_str()), (11, "29 more leases collide with others"));
    }
}
