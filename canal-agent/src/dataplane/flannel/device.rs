//! `flannel.<VNI>`: a VXLAN device whose peers are routes, neighbours and FDB entries. It holds the UDP port that ours
//! needs, and peers know its MAC.

use std::net::Ipv4Addr;

use canal_common::Mac;
use ipnet::Ipv4Net;

use super::super::overlay;
use crate::netlink::{self, Link, Netlink, NewTunnel};

pub fn name(vni: u32) -> String {
    format!("flannel.{vni}")
}

/// flannel's second device.
pub fn name_v6(vni: u32) -> String {
    format!("flannel-v6.{vni}")
}

/// The device of this network, as flanneld makes it.
pub fn find(netlink: &mut Netlink, vni: u32, port: u16) -> Result<Option<Link>, netlink::Error> {
    find_named(netlink, &name(vni), vni, port)
}

/// The one for IPv6. It has a socket of its own with the same port, and ours wants both: a device in external mode
/// serves both families (`vxlan_sock_add`, Linux 6.6 to 6.18).
pub fn find_v6(netlink: &mut Netlink, vni: u32, port: u16) -> Result<Option<Link>, netlink::Error> {
    find_named(netlink, &name_v6(vni), vni, port)
}

fn find_named(
    netlink: &mut Netlink,
    name: &str,
    vni: u32,
    port: u16,
) -> Result<Option<Link>, netlink::Error> {
    let fits = |link: &Link| {
        link.vxlan.as_ref().is_some_and(|vxlan| vxlan.id == vni && vxlan.port == port && !vxlan.external)
    };
    // With a long VNI flannel has no device: the kernel takes no such name.
    if name.len() > netlink::NAME_MAX {
        return Ok(None);
    }
    Ok(netlink.link_by_name(name)?.filter(fits))
}

/// The MAC by which this node is known: that of the device that is in use, ours or flannel's.
pub fn known_mac(netlink: &mut Netlink, vni: u32, port: u16) -> Result<Option<Mac>, netlink::Error> {
    let ours = netlink.link_by_name(&overlay::name(vni))?.filter(|link| link.kind == "vxlan");
    let theirs = find(netlink, vni, port)?;
    let in_use = [&ours, &theirs].into_iter().flatten().find(|link| link.up);
    Ok(in_use.or(ours.as_ref()).or(theirs.as_ref()).and_then(|link| link.mac))
}

/// What flanneld wants to find: it keeps a device that is so, with its MAC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub vni: u32,
    pub port: u16,
    pub mac: Mac,
    pub mtu: u32,
    /// Source of the envelopes, and the interface that carries them.
    pub local: Ipv4Addr,
    pub lower: u32,
    /// The `.0` address of the node's subnet.
    pub address: Option<Ipv4Addr>,
}

/// Makes the device, which stays down as long as another has the port; one that is there and fits is kept.
pub fn make(netlink: &mut Netlink, wanted: &Wanted) -> Result<Link, netlink::Error> {
    let Wanted { vni, port, mac, mtu, local, lower, address } = *wanted;
    let name = name(vni);
    let kept = find(netlink, vni, port)?.filter(|link| {
        let place = link.vxlan.as_ref().map(|vxlan| (vxlan.local, vxlan.lower));
        place == Some((Some(local), Some(lower))) && link.mac == Some(mac)
    });
    let link = if let Some(link) = kept {
        link
    } else {
        let other = netlink.link_by_name(&name)?;
        if other.as_ref().is_some_and(|link| link.kind != "vxlan") {
            return Err(invalid(&name, "another device has this name; remove or rename it"));
        }
        netlink.delete_link(name.as_str())?;
        netlink.add_vxlan_tunnel(&NewTunnel { name: &name, vni, mac, mtu, port, local, lower })?;
        netlink.link_by_name(&name)?.ok_or_else(|| invalid(&name, "it is gone"))?
    };
    if let Some(address) = address {
        netlink.replace_address(link.index, Ipv4Net::from(address))?;
    }
    Ok(link)
}

fn invalid(name: &str, why: &'static str) -> netlink::Error {
    netlink::Error::Invalid { operation: "make", object: name.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{Route, tests::in_new_netns};

    const MAC: Mac = Mac::new([0x0e, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac::new([0x0e, 0, 0, 0, 0, 2]);

    fn wanted(lower: u32) -> Wanted {
        Wanted {
            vni: 1,
            port: 8472,
            mac: MAC,
            mtu: 1450,
            local: Ipv4Addr::LOCALHOST,
            lower,
            address: Some(Ipv4Addr::new(10, 77, 12, 0)),
        }
    }

    #[test]
    fn a_device_is_flannels_by_name_vni_and_port_and_the_mac_is_that_of_the_one_in_use() {
        in_new_netns(|| {
            let mut nl = Netlink::open().unwrap();
            nl.set_up("lo").unwrap();
            let lo = nl.link_by_name("lo").unwrap().unwrap().index;
            assert_eq!(known_mac(&mut nl, 1, 8472).unwrap(), None);
            let theirs = make(&mut nl, &wanted(lo)).unwrap();
            assert!(!theirs.up);
            assert_eq!(make(&mut nl, &wanted(lo)).unwrap().index, theirs.index, "one that fits is kept");
            assert_eq!(find(&mut nl, 1, 8472).unwrap().map(|l| l.index), Some(theirs.index));
            assert_eq!((find(&mut nl, 2, 8472).unwrap(), find(&mut nl, 1, 4789).unwrap()), (None, None));
            assert_eq!(known_mac(&mut nl, 1, 8472).unwrap(), Some(MAC));

            let ours = overlay::Device { vni: 1, port: 8472, mac: OTHER, mtu: 1450 };
            let ours = overlay::find_or_make(&mut nl, &ours).unwrap();
            assert_eq!(known_mac(&mut nl, 1, 8472).unwrap(), Some(OTHER), "ours, of two that are down");
            nl.set_up(theirs.index).unwrap();
            assert_eq!(known_mac(&mut nl, 1, 8472).unwrap(), Some(MAC), "theirs is in use");
            nl.set_down(theirs.index).unwrap();
            nl.set_up(ours.index).unwrap();
            assert_eq!(known_mac(&mut nl, 1, 8472).unwrap(), Some(OTHER));
            nl.set_down(ours.index).unwrap();

            // A peer, as flanneld programs it.
            nl.set_up(theirs.index).unwrap();
            let [via, node] = [Ipv4Addr::new(10, 77, 13, 0), Ipv4Addr::new(192, 0, 2, 2)];
            nl.add_neigh_permanent(theirs.index, via, OTHER).unwrap();
            nl.add_fdb_permanent(theirs.index, OTHER, node).unwrap();
            nl.add_fdb_permanent(theirs.index, OTHER, node).unwrap();
            let route =
                Route { onlink: true, ..Route::via("10.77.13.0/24".parse().unwrap(), via, theirs.index) };
            nl.replace_route(&route).unwrap();
            assert_eq!(nl.routes().unwrap(), [route]);

            let moved = Wanted { mac: OTHER, ..wanted(lo) };
            assert_ne!(
                make(&mut nl, &moved).unwrap().index,
                theirs.index,
                "one that does not fit is made anew"
            );
        });
    }
}
