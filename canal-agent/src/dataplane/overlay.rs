//! The overlay device `canal.<VNI>`: a kernel VXLAN device in external mode, without any state per peer.
//!
//! It owns the UDP port, which makes the kernel aggregate incoming VXLAN; it is where one route sends the whole pod
//! network; it reassembles and it answers for what the fast path declines. A fresh process knows it by its name.

use std::net::Ipv4Addr;

use canal_common::Mac;
use ipnet::Ipv4Net;
use tracing::{info, warn};

use super::routes;
use crate::netlink::{self, Link, Netlink, NewVxlan, Route, sysctl};

/// Routes of ours carry this protocol number: `ip route show proto 202`.
pub const ROUTE_PROTOCOL: u8 = 202;

#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    #[error(
        "UDP port {port} is taken{by}, so {name} cannot come up; stop whatever holds it (`ss -lunp sport = :{port}`, \
         `ip -d link show type vxlan`), or choose another Backend.Port in the network configuration"
    )]
    PortTaken { port: u16, name: String, by: String },
    #[error("{name} exists and is not a VXLAN device; remove or rename it (`ip link del {name}`)")]
    NameTaken { name: String },
    #[error("{name} vanished while it was set up")]
    Vanished { name: String },
}

/// What the device should be, before it has a place in the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub vni: u32,
    pub port: u16,
    pub mac: Mac,
    /// MTU of the device and of the pods, in bytes.
    pub mtu: u16,
}

/// What the device should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    pub device: Device,
    /// The whole pod network.
    pub network: Ipv4Net,
    /// This node's part of it; the device has its `.0` address.
    pub subnet: Ipv4Net,
    /// What of it leads to the device, as a whole.
    pub routed: Vec<Ipv4Net>,
}

impl Overlay {
    pub fn name(&self) -> String {
        name(self.device.vni)
    }

    /// Source address of what this host sends to remote pods, as flannel has it.
    pub fn address(&self) -> Ipv4Addr {
        self.subnet.network()
    }

    /// The way to pods of other nodes, by the device with this index.
    pub fn route(&self, to: Ipv4Net, index: u32) -> Route {
        Route { src: Some(self.address()), protocol: ROUTE_PROTOCOL, ..Route::link(to, index) }
    }
}

pub fn name(vni: u32) -> String {
    format!("canal.{vni}")
}

/// The device as it is, or a new one, which is down: the programs are loaded with its index.
pub fn find_or_make(netlink: &mut Netlink, device: &Device) -> Result<Link, OverlayError> {
    match netlink.link_by_name(&name(device.vni))? {
        Some(link) => Ok(link),
        None => make(netlink, device),
    }
}

/// Makes or mends device, address and routes; what is right is left alone.
pub fn ensure(netlink: &mut Netlink, overlay: &Overlay) -> Result<Link, OverlayError> {
    let link = prepare(netlink, overlay)?;
    if !link.up {
        netlink.set_up(link.index).map_err(|error| port_taken(netlink, overlay, error))?;
    }
    route(netlink, overlay, link.index)?;
    let name = &link.name;
    for (key, value) in [
        (format!("net/ipv4/conf/{name}/forwarding"), "1"),
        // No IPv6 goes this way yet: no router solicitations into nowhere.
        (format!("net/ipv6/conf/{name}/disable_ipv6"), "1"),
    ] {
        match sysctl::set_if_present(&key, value) {
            Ok(true) => info!(key, value, "set sysctl"),
            Ok(false) => {}
            Err(error) => warn!(key, %error, "cannot set sysctl: the host will not forward for its pods"),
        }
    }
    Ok(link)
}

/// The device and its address, all but up.
pub fn prepare(netlink: &mut Netlink, overlay: &Overlay) -> Result<Link, OverlayError> {
    let (name, device) = (overlay.name(), &overlay.device);
    let link = match netlink.link_by_name(&name)? {
        Some(link) if link.kind != "vxlan" => return Err(OverlayError::NameTaken { name }),
        Some(link) if fits(&link, device) => link,
        Some(link) => {
            warn!(device = name, "has other parameters than the network configuration: made anew");
            netlink.delete_link(link.index)?;
            make(netlink, device)?
        }
        None => make(netlink, device)?,
    };
    if link.mac != Some(device.mac) {
        netlink.set_mac(link.index, device.mac)?;
    }
    if link.mtu != u32::from(device.mtu) {
        netlink.set_mtu(link.index, device.mtu.into())?;
    }
    if !link.noarp {
        // Every address behind the device is one hop away, and nobody there answers ARP.
        netlink.set_noarp(link.index)?;
    }
    address(netlink, overlay, link.index)?;
    Ok(link)
}

fn make(netlink: &mut Netlink, device: &Device) -> Result<Link, OverlayError> {
    let Device { vni, port, mac, mtu } = *device;
    let name = name(vni);
    // In external mode one device has the port for all VNIs: that of an earlier configuration would keep this one away. With
    // another port it would go on listening there.
    for (_, earlier) in present(netlink)? {
        if earlier.name != name {
            info!(device = earlier.name, "removed: the network has another VNI now");
            netlink.delete_link(earlier.index)?;
        }
    }
    netlink.add_vxlan_external(&NewVxlan { name: &name, mac, mtu: mtu.into(), port })?;
    info!(device = name, %mac, mtu, port, "made the overlay device");
    netlink.link_by_name(&name)?.ok_or(OverlayError::Vanished { name })
}

fn fits(link: &Link, device: &Device) -> bool {
    link.vxlan.as_ref().is_some_and(|v| v.external && v.port == device.port)
}

fn port_taken(netlink: &mut Netlink, overlay: &Overlay, error: netlink::Error) -> OverlayError {
    if error.errno() != Some(libc::EADDRINUSE) && error.errno() != Some(libc::EEXIST) {
        return error.into();
    }
    let other = netlink.links().ok().and_then(|links| {
        links.into_iter().find(|l| {
            l.name != overlay.name()
                && l.up
                && l.vxlan.as_ref().is_some_and(|v| v.port == overlay.device.port)
        })
    });
    let by = other.map(|l| format!(" by device {}", l.name)).unwrap_or_default();
    OverlayError::PortTaken { port: overlay.device.port, name: overlay.name(), by }
}

fn address(netlink: &mut Netlink, overlay: &Overlay, index: u32) -> Result<(), netlink::Error> {
    let wanted = Ipv4Net::from(overlay.address());
    let mut present = false;
    for address in netlink.addresses(Some(index))? {
        if address.net == wanted {
            present = true;
        } else if overlay.network.contains(&address.net.addr()) {
            // Of an earlier subnet; addresses that others put there stay.
            netlink.delete_address(index, address.net)?;
        }
    }
    if !present {
        netlink.replace_address(index, wanted)?;
    }
    Ok(())
}

fn route(netlink: &mut Netlink, overlay: &Overlay, index: u32) -> Result<(), netlink::Error> {
    let present = netlink.routes()?;
    for network in &overlay.routed {
        let wanted = overlay.route(*network, index);
        // Somebody else's in its place is told with all other routes.
        if !present.contains(&wanted) && !present.iter().any(|there| routes::is_taken(there, &wanted)) {
            netlink.replace_route(&wanted)?;
            info!(%network, "routed the pod network to the overlay device");
        }
    }
    Ok(())
}

/// The devices that an agent made, with their VNIs: more than one only if the configuration has changed.
pub fn present(netlink: &mut Netlink) -> Result<Vec<(u32, Link)>, netlink::Error> {
    let ours = |link: Link| {
        let vni = link.name.strip_prefix("canal.").filter(|vni| vni.bytes().all(|b| b.is_ascii_digit()))?;
        let vni = vni.parse().ok()?;
        link.vxlan.as_ref().is_some_and(|vxlan| vxlan.external).then_some((vni, link))
    };
    Ok(netlink.links()?.into_iter().filter_map(ours).collect())
}

/// Removes every trace of the device; its address and routes go with it.
pub fn remove(netlink: &mut Netlink) -> Result<Vec<String>, netlink::Error> {
    let mut removed = Vec::new();
    for (_, link) in present(netlink)? {
        if netlink.delete_link(link.index)? {
            removed.push(link.name);
        }
    }
    Ok(removed)
}

/// A MAC for a device that nobody knows yet: locally administered, unicast.
pub fn random_mac() -> Mac {
    let mut octets: [u8; 6] = rand::random();
    octets[0] = octets[0] & 0xfe | 0x02;
    Mac::new(octets)
}
