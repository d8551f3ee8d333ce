//! Making, changing and deleting links.

use std::{
    net::Ipv4Addr,
    os::fd::{AsRawFd, BorrowedFd},
};

use canal_common::Mac;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};

use super::{Dev, Error, Netlink, link::check_name, socket::What};

/// A veth pair to make: one end here, the other directly in another namespace under its final name, so that
/// it is never seen under a passing name and never has to be moved.
#[derive(Debug, Clone, Copy)]
pub struct NewVeth<'a> {
    pub host_name: &'a str,
    pub host_mac: Option<Mac>,
    pub peer_name: &'a str,
    /// The kernel takes a random one otherwise.
    pub peer_mac: Option<Mac>,
    pub peer_netns: BorrowedFd<'a>,
    pub mtu: u32,
}

/// A VXLAN device in external mode: it owns the UDP port, and each packet says its own VNI and peer.
#[derive(Debug, Clone, Copy)]
pub struct NewVxlan<'a> {
    pub name: &'a str,
    pub mac: Mac,
    pub mtu: u32,
    pub port: u16,
}

/// A VXLAN device with one VNI, whose peers are entries in its FDB.
#[derive(Debug, Clone, Copy)]
pub struct NewTunnel<'a> {
    pub name: &'a str,
    pub vni: u32,
    pub mac: Mac,
    pub mtu: u32,
    pub port: u16,
    /// Source of its envelopes.
    pub local: Ipv4Addr,
    /// Index of the interface that carries them.
    pub lower: u32,
}

impl Netlink {
    /// Both ends start down.
    pub fn add_veth(&mut self, veth: &NewVeth<'_>) -> Result<(), Error> {
        let mut peer = vec![
            LinkAttribute::IfName(check_name(MAKE, veth.peer_name)?),
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::NetNsFd(veth.peer_netns.as_raw_fd()),
        ];
        peer.extend(veth.peer_mac.map(mac));
        let peer = with(LinkMessage::default(), peer);

        let mut host =
            vec![LinkAttribute::IfName(check_name(MAKE, veth.host_name)?), LinkAttribute::Mtu(veth.mtu)];
        host.extend(veth.host_mac.map(mac));
        host.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let object = format!("veth pair {} to {}", veth.host_name, veth.peer_name);
        self.make(&object, with(LinkMessage::default(), host))
    }

    /// Starts down. Setting it up is what takes the port, so that is where a port in use shows.
    pub fn add_vxlan_external(&mut self, vxlan: &NewVxlan<'_>) -> Result<(), Error> {
        let parameters =
            vec![InfoVxlan::CollectMetadata(true), InfoVxlan::Learning(false), InfoVxlan::Port(vxlan.port)];
        self.make_vxlan(*vxlan, parameters)
    }

    /// Starts down. It sends UDP checksums, as the kernel has it by default.
    pub fn add_vxlan_tunnel(&mut self, tunnel: &NewTunnel<'_>) -> Result<(), Error> {
        let NewTunnel { name, vni, mac, mtu, port, local, lower } = *tunnel;
        let parameters = vec![
            InfoVxlan::Id(vni),
            InfoVxlan::Link(lower),
            InfoVxlan::Local(local),
            InfoVxlan::Learning(false),
            InfoVxlan::Port(port),
        ];
        self.make_vxlan(NewVxlan { name, mac, mtu, port }, parameters)
    }

    fn make_vxlan(&mut self, vxlan: NewVxlan<'_>, parameters: Vec<InfoVxlan>) -> Result<(), Error> {
        let attributes = vec![
            LinkAttribute::IfName(check_name(MAKE, vxlan.name)?),
            LinkAttribute::Mtu(vxlan.mtu),
            mac(vxlan.mac),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(parameters)),
            ]),
        ];
        let object = format!("VXLAN interface {} on UDP port {}", vxlan.name, vxlan.port);
        self.make(&object, with(LinkMessage::default(), attributes))
    }

    fn make(&mut self, object: &str, message: LinkMessage) -> Result<(), Error> {
        let what = What { operation: MAKE, object: &object };
        self.change(what, RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    pub fn set_up<'a>(&mut self, dev: impl Into<Dev<'a>>) -> Result<(), Error> {
        self.set_flags("set up", dev.into(), LinkFlags::Up, LinkFlags::Up)
    }

    pub fn set_down<'a>(&mut self, dev: impl Into<Dev<'a>>) -> Result<(), Error> {
        self.set_flags("set down", dev.into(), LinkFlags::Up, LinkFlags::empty())
    }

    pub fn set_noarp<'a>(&mut self, dev: impl Into<Dev<'a>>) -> Result<(), Error> {
        self.set_flags("switch off ARP on", dev.into(), LinkFlags::Noarp, LinkFlags::Noarp)
    }

    pub fn set_mtu<'a>(&mut self, dev: impl Into<Dev<'a>>, mtu: u32) -> Result<(), Error> {
        self.set("set the MTU of", dev.into(), LinkAttribute::Mtu(mtu))
    }

    pub fn set_mac<'a>(&mut self, dev: impl Into<Dev<'a>>, address: Mac) -> Result<(), Error> {
        self.set("set the MAC of", dev.into(), mac(address))
    }

    /// An alias is free text (at most 255 bytes) that stays with the link; an empty one removes it.
    pub fn set_alias<'a>(&mut self, dev: impl Into<Dev<'a>>, alias: &str) -> Result<(), Error> {
        self.set("set the alias of", dev.into(), LinkAttribute::IfAlias(alias.to_owned()))
    }

    pub fn rename<'a>(&mut self, dev: impl Into<Dev<'a>>, name: &str) -> Result<(), Error> {
        let operation = "rename";
        let dev = dev.into();
        let name = LinkAttribute::IfName(check_name(operation, name)?);
        let index = self.index_of(operation, dev)?;
        self.set(operation, Dev { index, name: dev.name }, name)
    }

    /// Deleting one end of a veth pair deletes both. `false` if there was none.
    pub fn delete_link<'a>(&mut self, dev: impl Into<Dev<'a>>) -> Result<bool, Error> {
        let operation = "delete";
        let dev = dev.into();
        let request = RouteNetlinkMessage::DelLink(dev.message(operation)?);
        absent_is_false(self.change(What { operation, object: &dev }, request, 0))
    }

    fn set(&mut self, operation: &'static str, dev: Dev<'_>, attribute: LinkAttribute) -> Result<(), Error> {
        let mut message = dev.message(operation)?;
        message.attributes.push(attribute);
        self.change(What { operation, object: &dev }, RouteNetlinkMessage::SetLink(message), 0)
    }

    fn set_flags(
        &mut self,
        operation: &'static str,
        dev: Dev<'_>,
        mask: LinkFlags,
        flags: LinkFlags,
    ) -> Result<(), Error> {
        let mut message = dev.message(operation)?;
        message.header.flags = flags;
        message.header.change_mask = mask;
        self.change(What { operation, object: &dev }, RouteNetlinkMessage::SetLink(message), 0)
    }
}

const MAKE: &str = "make";

fn mac(mac: Mac) -> LinkAttribute {
    LinkAttribute::Address(mac.octets.to_vec())
}

fn with(mut message: LinkMessage, attributes: Vec<LinkAttribute>) -> LinkMessage {
    message.attributes = attributes;
    message
}

/// For deletions: what is gone already was deleted by someone else, which is as good.
pub(super) fn absent_is_false(result: Result<(), Error>) -> Result<bool, Error> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.is_absent() => Ok(false),
        Err(e) => Err(e),
    }
}
