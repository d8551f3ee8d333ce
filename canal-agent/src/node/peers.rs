//! Leases in etcd → peers of the overlay. Pure.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;

use crate::{
    api::wire::PeerStatus,
    dataplane::nodes::Peer,
    store::{EtcdPrefix, LeaseValue},
};

/// Every lease under the prefix but our own, as last read. A key or value that cannot be used costs that peer alone,
/// and not even that one if an earlier value was good.
#[derive(Debug, Default)]
pub struct Peers {
    by_key: BTreeMap<String, Known>,
    invalid: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
struct Known {
    subnet: Ipv4Net,
    peer: Peer,
    node: Option<String>,
}

impl Peers {
    /// A complete list: what is not in it is gone.
    pub fn replace_all(
        &mut self,
        prefix: &EtcdPrefix,
        mtu: u16,
        entries: impl Iterator<Item = (String, Vec<u8>)>,
    ) {
        let entries: BTreeMap<String, Vec<u8>> = entries.collect();
        self.by_key.retain(|key, _| entries.contains_key(key));
        self.invalid.retain(|key, _| entries.contains_key(key));
        for (key, value) in entries {
            self.put(prefix, mtu, &key, &value);
        }
    }

    pub fn put(&mut self, prefix: &EtcdPrefix, mtu: u16, key: &str, value: &[u8]) {
        match read(prefix, mtu, key, value) {
            Ok(Some(known)) => {
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
        self.by_key.remove(key);
        self.invalid.remove(key);
    }

    pub fn invalid(&self) -> &BTreeMap<String, String> {
        &self.invalid
    }

    /// Who is to be reached through the overlay, from the node that holds `own`; `on_link` tells of an address
    /// whether the uplink leads straight to it.
    pub fn desired(&self, own: &str, on_link: impl Fn(Ipv4Addr) -> bool) -> BTreeMap<Ipv4Net, Peer> {
        let with_link = |known: &Known| Peer { on_link: on_link(known.peer.ip), ..known.peer };
        self.others(own).map(|known| (known.subnet, with_link(known))).collect()
    }

    pub fn status(&self, own: &str) -> Vec<PeerStatus> {
        self.others(own)
            .map(|known| PeerStatus {
                subnet: known.subnet,
                public_ip: known.peer.ip,
                vtep_mac: known.peer.vtep_mac,
                node: known.node.clone(),
            })
            .collect()
    }

    fn others(&self, own: &str) -> impl Iterator<Item = &Known> {
        self.by_key.iter().filter(move |(key, _)| key.as_str() != own).map(|(_, known)| known)
    }
}

/// `None`: not a lease key at all.
fn read(prefix: &EtcdPrefix, mtu: u16, key: &str, value: &[u8]) -> Result<Option<Known>, String> {
    let subnet = match prefix.parse_subnet(key) {
        None => return Ok(None),
        Some(Err(bad)) => return Err(bad.to_string()),
        Some(Ok(subnet)) => subnet.subnet(),
    };
    let lease = LeaseValue::parse(value).map_err(|e| e.to_string())?;
    let data = lease.vxlan_data().map_err(|e| e.to_string())?;
    if lease.public_ip.is_unspecified() || lease.public_ip.is_multicast() || lease.public_ip.is_loopback() {
        return Err(format!("PublicIP {} is not an address to send to", lease.public_ip));
    }
    let peer = Peer { ip: lease.public_ip, vtep_mac: data.vtep_mac, mtu, on_link: false };
    Ok(Some(Known { subnet, peer, node: lease.node }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"PublicIP":"192.168.50.2","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"b6:5a:ac:9f:0c:c3"}}"#;
    const OWN: &str = "/coreos.com/network/subnets/10.100.30.0-24";
    const OTHER: &str = "/coreos.com/network/subnets/10.100.56.0-24";

    fn peers(entries: &[(&str, &str)]) -> Peers {
        let mut peers = Peers::default();
        peers.replace_all(
            &prefix(),
            1450,
            entries.iter().map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())),
        );
        peers
    }

    fn prefix() -> EtcdPrefix {
        EtcdPrefix::new("/coreos.com/network").unwrap()
    }

    #[test]
    fn our_own_lease_is_not_a_peer() {
        let peers = peers(&[(OWN, GOOD), (OTHER, GOOD)]);
        assert_eq!(
            peers.desired(OWN, |_| false).keys().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.100.56.0/24"]
        );
    }

    #[test]
    fn garbage_costs_nobody_else_and_keeps_the_last_good_value() {
        let mut peers = peers(&[
            (OTHER, GOOD),
            ("/coreos.com/network/subnets/10.100.201.0-24", "not json"),
            ("/coreos.com/network/subnets/x", "{}"),
        ]);
        assert_eq!((peers.desired(OWN, |_| false).len(), peers.invalid().len()), (1, 2));
        peers.put(&prefix(), 1450, OTHER, b"{\"PublicIP\":");
        assert_eq!((peers.desired(OWN, |_| false).len(), peers.invalid().len()), (1, 3));
        peers.put(&prefix(), 1450, OTHER, GOOD.as_bytes());
        assert_eq!(peers.invalid().len(), 2);
        peers.delete(OTHER);
        assert!(peers.desired(OWN, |_| false).is_empty());
    }

    #[test]
    fn a_complete_list_without_a_peer_removes_it() {
        let mut peers = peers(&[(OTHER, GOOD)]);
        peers.replace_all(&prefix(), 1450, [(OWN.to_owned(), GOOD.as_bytes().to_vec())].into_iter());
        assert!(peers.desired(OWN, |_| false).is_empty());
    }

    #[test]
    fn other_backends_and_impossible_addresses_are_named() {
        for value in [
            r#"{"PublicIP":"192.168.50.2","PublicIPv6":null,"BackendType":"host-gw"}"#,
            r#"{"PublicIP":"0.0.0.0","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"b6:5a:ac:9f:0c:c3"}}"#,
            r#"{"PublicIP":"192.168.50.2","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"b6"}}"#,
        ] {
            let peers = peers(&[(OTHER, value)]);
            assert!(
                peers.desired(OWN, |_| false).is_empty() && peers.invalid().contains_key(OTHER),
                "{value}"
            );
        }
    }
}
