//! Which subnet a node takes, decided from one complete list of the leases. Pure but for the dice.

use ipnet::Ipv4Net;
use rand::{Rng, seq::IndexedRandom};
use tracing::warn;

use crate::store::{EtcdPrefix, LeaseValue, NetworkConfig, Owner, SubnetKey, client::Entry};

/// Flannel draws from this many free subnets.
const CANDIDATES: usize = 100;

/// A lease as it stands in etcd. A value that cannot be read still occupies its subnet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) key: String,
    pub(super) subnet: SubnetKey,
    pub(super) value: Option<LeaseValue>,
    pub(super) mod_revision: i64,
    pub(super) etcd_lease: i64,
}

impl Held {
    /// All leases among `entries`; what is not a lease is left out, and left alone.
    pub(super) fn all(prefix: &EtcdPrefix, entries: &[Entry]) -> Vec<Self> {
        let held = entries.iter().filter_map(|entry| match prefix.parse_subnet(&entry.key)? {
            Ok(subnet) => Some(Self {
                value: LeaseValue::parse(&entry.value).ok(),
                subnet,
                key: entry.key.clone(),
                mod_revision: entry.mod_revision,
                etcd_lease: entry.lease,
            }),
            Err(error) => {
                warn!(key = entry.key, %error, "a key among the leases is none");
                None
            }
        });
        held.collect()
    }

    pub(super) fn is_reservation(&self) -> bool {
        self.etcd_lease == 0
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) network: &'a NetworkConfig,
    pub(super) owner: Owner<'a>,
    /// The subnet of an earlier run, or of this one if it has lost it.
    pub(super) previous: Option<Ipv4Net>,
    /// Pods have addresses of `previous`, or may have: the node runs already.
    pub(super) is_running: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice<'a> {
    /// This key is ours already. If it is a reservation, our leases are given up for it.
    Retake { held: &'a Held, replaces: Vec<&'a Held> },
    /// Take a free subnet, and give up our leases that do not fit the network any more.
    Create { subnet: Ipv4Net, replaces: Vec<&'a Held> },
}

/// `None`: the network is full.
pub(super) fn choose<'a>(request: Request<'_>, held: &'a [Held], rng: &mut impl Rng) -> Option<Choice<'a>> {
    let Request { network, owner, previous, is_running } = request;
    let value = |held: &'a Held| held.value.as_ref();
    for rival in held.iter().filter(|held| value(held).is_some_and(|v| v.rivals(owner))) {
        warn!(key = rival.key, public_ip = ?owner.public_ip, "another node publishes our public address; peers can reach only one");
    }
    let ours: Vec<_> = held.iter().filter(|held| value(held).is_some_and(|v| v.belongs_to(owner))).collect();
    // A reservation is the administrator's to remove.
    let leased = || ours.iter().copied().filter(|held| !held.is_reservation()).collect();
    // A reservation for which the node would move must be free of others.
    let is_free = |wanted: &Held| {
        let others = held.iter().filter(|other| !ours.iter().any(|ours| ours.key == other.key));
        !Taken::new(others).overlaps(wanted.subnet.subnet())
    };
    let is_previous = |held: &Held| Some(held.subnet.subnet()) == previous;
    let mut fitting = ours.iter().copied().filter(|held| network.accepts(&held.subnet));
    // The pods of a node that runs have addresses of its previous subnet: it takes what is reserved for it when it starts.
    let may_take =
        |held: &&Held| !held.is_reservation() || is_previous(held) || (!is_running && is_free(held));
    let best = fitting.clone().filter(may_take).max_by_key(|held| {
        let named = value(held).is_some_and(|v| v.node.is_some());
        let same_machine = value(held).is_some_and(|v| v.machine.as_deref() == Some(owner.machine));
        (held.is_reservation(), named, same_machine, is_previous(held), std::cmp::Reverse(held.subnet))
    });
    let taken = Taken::new(held.iter());
    let fits = |subnet: &Ipv4Net| network.accepts(&SubnetKey::v4(*subnet)) && !taken.overlaps(*subnet);
    let previous = previous.filter(fits);
    // Where neither is left, it has to move.
    let refuge = || fitting.find(|held| previous.is_none() && is_free(held));
    if let Some(held) = best.or_else(refuge) {
        let replaces = if held.is_reservation() { leased() } else { Vec::new() };
        return Some(Choice::Retake { held, replaces });
    }
    let subnet = previous.or_else(|| {
        let free: Vec<_> =
            network.subnets().filter(|subnet| !taken.overlaps(*subnet)).take(CANDIDATES).collect();
        free.choose(rng).copied()
    })?;
    Some(Choice::Create { subnet, replaces: leased() })
}

/// The addresses that leases cover, as disjoint ranges in ascending order.
struct Taken(Vec<(u32, u32)>);

impl Taken {
    fn new<'a>(held: impl Iterator<Item = &'a Held>) -> Self {
        let mut ranges: Vec<_> = held.map(|held| bounds(held.subnet.subnet())).collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if first <= before.1 => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    fn overlaps(&self, subnet: Ipv4Net) -> bool {
        let (first, last) = bounds(subnet);
        let next = self.0.partition_point(|range| range.1 < first);
        self.0.get(next).is_some_and(|range| range.0 <= last)
    }
}

fn bounds(subnet: Ipv4Net) -> (u32, u32) {
    (subnet.network().into(), subnet.broadcast().into())
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const OWNER: Owner<'_> =
        Owner { node: "n1", machine: "m1", public_ip: Some(std::net::Ipv4Addr::new(192, 0, 2, 1)) };

    fn network(text: &str) -> NetworkConfig {
        NetworkConfig::parse(format!(r#"{{{text},"Backend":{{"Type":"vxlan"}}}}"#).as_bytes()).unwrap()
    }

    fn wide() -> NetworkConfig {
        network(r#""Network":"10.77.0.0/16""#)
    }

    fn held(leases: &[(&str, &str, i64)]) -> Vec<Held> {
        let prefix = EtcdPrefix::new("/net").unwrap();
        let entries = leases.iter().map(|(key, value, lease)| Entry {
            key: format!("/net/subnets/{key}"),
            value: value.as_bytes().to_vec(),
            mod_revision: 7,
            lease: *lease,
        });
        Held::all(&prefix, &entries.collect::<Vec<_>>())
    }

    fn pick(network: &NetworkConfig, held: &[Held], previous: Option<&str>) -> Option<String> {
        pick_as(network, held, previous, false)
    }

    fn pick_as(
        network: &NetworkConfig,
        held: &[Held],
        previous: Option<&str>,
        is_running: bool,
    ) -> Option<String> {
        let previous = previous.map(|net| net.parse().unwrap());
        let request = Request { network, owner: OWNER, previous, is_running };
        choose(request, held, &mut StdRng::seed_from_u64(1)).map(|choice| {
            let (what, replaces) = match choice {
                Choice::Retake { held, replaces } => (format!("retake {}", held.subnet), replaces),
                Choice::Create { subnet, replaces } => (format!("create {subnet}"), replaces),
            };
            let gone: Vec<_> = replaces.iter().map(|held| held.subnet.to_string()).collect();
            if gone.is_empty() { what } else { format!("{what} instead of {}", gone.join(" ")) }
        })
    }

    const OURS: &str = r#"{"PublicIP":"192.0.2.9","Canal":{"Node":"n1"}}"#;
    const FLANNELS: &str = r#"{"PublicIP":"192.0.2.1"}"#;
    const RIVALS: &str = r#"{"PublicIP":"192.0.2.1","Canal":{"Node":"n2"}}"#;
    const PEERS: &str = r#"{"PublicIP":"192.0.2.2"}"#;

    #[test]
    fn our_name_decides_before_our_address() {
        let leases = held(&[("10.77.1.0-24", FLANNELS, 1), ("10.77.2.0-24", OURS, 1)]);
        assert_eq!(pick(&wide(), &leases, None).unwrap(), "retake 10.77.2.0-24");
        let leases = held(&[("10.77.1.0-24", FLANNELS, 1), ("10.77.2.0-24", RIVALS, 1)]);
        assert_eq!(pick(&wide(), &leases, None).unwrap(), "retake 10.77.1.0-24");
    }

    #[test]
    fn a_key_with_another_nodes_name_is_not_ours_even_with_our_address() {
        let leases = held(&[("10.77.2.0-24", RIVALS, 1)]);
        assert_eq!(pick(&wide(), &leases, Some("10.77.9.0/24")).unwrap(), "create 10.77.9.0/24");
    }

    #[test]
    fn another_machine_of_our_name_keeps_its_lease() {
        let namesake = r#"{"PublicIP":"192.0.2.9","Canal":{"Node":"n1","Machine":"m2"}}"#;
        let leases = held(&[("10.77.1.0-24", namesake, 1)]);
        assert_eq!(
            pick(&wide(), &leases, Some("10.77.1.0/24")).map(|c| c.starts_with("create ")),
            Some(true)
        );
        let ours = r#"{"PublicIP":"192.0.2.9","Canal":{"Node":"n1","Machine":"m1"}}"#;
        let leases = held(&[("10.77.1.0-24", namesake, 1), ("10.77.2.0-24", ours, 1)]);
        assert_eq!(pick(&wide(), &leases, None).unwrap(), "retake 10.77.2.0-24");
    }

    #[test]
    fn of_several_keys_of_ours_the_previous_one_wins() {
        let leases = held(&[("10.77.1.0-24", OURS, 1), ("10.77.2.0-24", OURS, 1)]);
        assert_eq!(pick(&wide(), &leases, Some("10.77.2.0/24")).unwrap(), "retake 10.77.2.0-24");
        assert_eq!(pick(&wide(), &leases, None).unwrap(), "retake 10.77.1.0-24");
    }

    #[test]
    fn what_is_reserved_for_a_node_that_starts_comes_before_what_it_leased() {
        let reserved_machine = r#"{"PublicIP":"192.0.2.9","Canal":{"Node":"n9","Machine":"m1"}}"#;
        let reserved_other = r#"{"PublicIP":"192.0.2.1","Canal":{"Machine":"m2"}}"#;
        let ours = ("10.77.1.0-24", OURS, 1);
        let previous = Some("10.77.1.0/24");
        let start = |leases: &[(&str, &str, i64)]| pick(&wide(), &held(leases), previous).unwrap();
        let reserved = ("10.77.200.0-24", FLANNELS, 0);
        assert_eq!(start(&[ours, reserved]), "retake 10.77.200.0-24 instead of 10.77.1.0-24");
        let stale = ("10.77.2.0-24", FLANNELS, 1);
        assert_eq!(
            start(&[ours, stale, reserved]),
            "retake 10.77.200.0-24 instead of 10.77.1.0-24 10.77.2.0-24"
        );
        assert_eq!(
            start(&[ours, reserved, ("10.77.100.0-24", OURS, 0)]),
            "retake 10.77.100.0-24 instead of 10.77.1.0-24"
        );
        // For others, and of no use.
        for value in [PEERS, RIVALS, reserved_machine, reserved_other, "{"] {
            assert_eq!(start(&[ours, ("10.77.200.0-24", value, 0)]), "retake 10.77.1.0-24", "{value}");
        }
        for key in ["10.77.0.0-24", "10.77.200.0-25", "10.77.200.7-24", "10.77.200.0-24&fd00::-64"] {
            assert_eq!(start(&[ours, (key, FLANNELS, 0)]), "retake 10.77.1.0-24", "{key}");
        }
    }

    #[test]
    fn a_node_that_runs_keeps_the_subnet_of_its_pods_whatever_is_reserved_for_it() {
        let ours = ("10.77.1.0-24", OURS, 1);
        let reserved = ("10.77.200.0-24", FLANNELS, 0);
        let previous = Some("10.77.1.0/24");
        let again = |leases: &[(&str, &str, i64)]| pick_as(&wide(), &held(leases), previous, true).unwrap();
        assert_eq!(again(&[reserved]), "create 10.77.1.0/24");
        assert_eq!(again(&[ours, reserved]), "retake 10.77.1.0-24");
        assert_eq!(again(&[("10.77.1.0-24", PEERS, 1), reserved]), "retake 10.77.200.0-24");
        assert_eq!(pick(&wide(), &held(&[reserved]), previous).unwrap(), "retake 10.77.200.0-24");
    }

    #[test]
    fn a_reservation_with_a_name_moves_no_node_with_pods_from_a_lease_without() {
        let leases = held(&[("10.77.1.0-24", FLANNELS, 1), ("10.77.200.0-24", OURS, 0)]);
        let previous = Some("10.77.1.0/24");
        assert_eq!(pick_as(&wide(), &leases, previous, true).unwrap(), "retake 10.77.1.0-24");
        assert!(pick(&wide(), &leases, previous).unwrap().starts_with("retake 10.77.200.0-24"));
        let lost = &leases[1..];
        assert_eq!(pick_as(&wide(), lost, previous, true).unwrap(), "create 10.77.1.0/24");
        let taken = held(&[("10.77.1.0-24", PEERS, 1), ("10.77.200.0-24", OURS, 0)]);
        assert_eq!(
            pick_as(&wide(), &taken, previous, true).unwrap(),
            "retake 10.77.200.0-24",
            "it has to move"
        );
    }

    #[test]
    fn nobody_moves_to_a_reservation_where_others_live() {
        let (own, reserved) = (("10.77.5.0-24", OURS, 1), ("10.77.12.0-24", OURS, 0));
        assert!(pick(&wide(), &held(&[own, reserved]), None).unwrap().starts_with("retake 10.77.12.0-24"));
        for others in ["10.77.12.0-23", "10.77.12.128-25"] {
            let leases = held(&[own, reserved, (others, PEERS, 1)]);
            assert_eq!(pick(&wide(), &leases, None).unwrap(), "retake 10.77.5.0-24", "{others}");
        }
    }

    #[test]
    fn the_previous_subnet_is_taken_only_if_it_fits_and_is_free() {
        let leases = held(&[("10.77.8.0-22", PEERS, 1), ("10.77.4.128-25", "garbage", 1)]);
        assert_eq!(pick(&wide(), &leases, Some("10.77.7.0/24")).unwrap(), "create 10.77.7.0/24");
        for previous in ["10.77.9.0/24", "10.77.4.0/24", "10.77.0.0/24", "10.78.1.0/24", "10.77.1.0/25"] {
            let choice = pick(&wide(), &leases, Some(previous)).unwrap();
            assert_ne!(choice, format!("create {previous}"));
            assert!(choice.starts_with("create 10.77."), "{choice}");
        }
    }

    #[test]
    fn a_lease_that_does_not_fit_is_replaced_and_a_reservation_is_not() {
        let small = network(r#""Network":"10.77.0.0/16","SubnetMin":"10.77.5.0","SubnetMax":"10.77.5.0""#);
        let leases = held(&[("10.77.1.0-24", OURS, 1)]);
        assert_eq!(pick(&small, &leases, None).unwrap(), "create 10.77.5.0/24 instead of 10.77.1.0-24");
        let leases = held(&[("10.77.1.0-24", OURS, 0)]);
        assert_eq!(pick(&small, &leases, None).unwrap(), "create 10.77.5.0/24");
    }

    #[test]
    fn candidates_are_the_first_hundred_free_ones() {
        let leases = held(&[("10.77.1.0-24", PEERS, 1), ("10.77.2.0-23", PEERS, 1)]);
        for seed in 0..200 {
            let request = Request { network: &wide(), owner: OWNER, previous: None, is_running: false };
            let choice = choose(request, &leases, &mut StdRng::seed_from_u64(seed));
            let Some(Choice::Create { subnet, .. }) = choice else { panic!("{choice:?}") };
            let third = subnet.addr().octets()[2];
            assert!((4..104).contains(&third), "{subnet}");
        }
    }

    #[test]
    fn a_full_network_has_no_choice_but_ours() {
        let small = network(r#""Network":"10.77.0.0/22","SubnetLen":24"#);
        let mut full = vec![("10.77.1.0-24", PEERS, 1), ("10.77.2.0-24", PEERS, 0), ("10.77.3.0-24", "{", 1)];
        assert_eq!(pick(&small, &held(&full), Some("10.77.1.0/24")), None);
        full[2].1 = OURS;
        assert_eq!(pick(&small, &held(&full), None).unwrap(), "retake 10.77.3.0-24");
    }

    #[test]
    fn keys_that_are_no_leases_take_nothing() {
        let small = network(
            r#""Network":"10.77.0.0/22","SubnetLen":24,"SubnetMin":"10.77.1.0","SubnetMax":"10.77.1.0""#,
        );
        let leases = held(&[("10.77.1.0", PEERS, 1), ("junk", PEERS, 1)]);
        assert_eq!(pick(&small, &leases, None).unwrap(), "create 10.77.1.0/24");
    }
}
