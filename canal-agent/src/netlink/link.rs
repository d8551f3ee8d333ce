//! Links: what the kernel says about a network device, and reading it.

use std::{fmt, net::Ipv4Addr};

use canal_common::Mac;
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};

use super::{Error, Netlink, socket::What};

/// `IFNAMSIZ` without the closing zero.
pub const NAME_MAX: usize = 15;

/// A network device as last read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// `None` for devices without an Ethernet address.
    pub mac: Option<Mac>,
    pub mtu: u32,
    /// Set up by an administrator (`IFF_UP`).
    pub up: bool,
    /// Up and with a carrier: packets can pass.
    pub running: bool,
    pub noarp: bool,
    /// `veth`, `vxlan`, `bridge` …; empty for physical devices and loopback.
    pub kind: String,
    /// The other end of a veth pair, or the lower device.
    pub peer_ifindex: Option<u32>,
    /// The namespace of [`peer_ifindex`](Self::peer_ifindex), in this namespace's numbering; `None` if it is
    /// this namespace.
    pub peer_netnsid: Option<i32>,
    pub alias: Option<String>,
    pub master: Option<u32>,
    /// Kind of the root queueing discipline: `noqueue` as a veth is born, `noop` while nothing is attached.
    pub qdisc: String,
    pub vxlan: Option<Vxlan>,
}

/// The parameters of a VXLAN device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vxlan {
    pub id: u32,
    pub port: u16,
    /// External (collect-metadata) mode: the VNI and the peer come with each packet.
    pub external: bool,
    pub local: Option<Ipv4Addr>,
    pub lower: Option<u32>,
    pub learning: bool,
}

/// A device to act on: by name, by index, or as read before. An index is exact; a name is looked up by the
/// kernel at the moment of the request.
#[derive(Debug, Clone, Copy)]
pub struct Dev<'a> {
    pub(super) index: u32,
    pub(super) name: Option<&'a str>,
}

impl From<u32> for Dev<'_> {
    fn from(index: u32) -> Self {
        Self { index, name: None }
    }
}

impl<'a> From<&'a str> for Dev<'a> {
    fn from(name: &'a str) -> Self {
        Self { index: 0, name: Some(name) }
    }
}

impl<'a> From<&'a Link> for Dev<'a> {
    fn from(link: &'a Link) -> Self {
        Self { index: link.index, name: Some(&link.name) }
    }
}

impl fmt::Display for Dev<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name {
            Some(name) => write!(f, "interface {name}"),
            None => write!(f, "interface with index {}", self.index),
        }
    }
}

impl Dev<'_> {
    /// A message about this device. The name goes along only if the index is unknown: with both, the kernel
    /// would rename.
    pub(super) fn message(self, operation: &'static str) -> Result<LinkMessage, Error> {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        if self.index == 0 {
            let name = check_name(operation, self.name.unwrap_or_default())?;
            message.attributes.push(LinkAttribute::IfName(name));
        }
        Ok(message)
    }
}

/// What the kernel takes as an interface name.
pub(super) fn check_name(operation: &'static str, name: &str) -> Result<String, Error> {
    let invalid = |why| Error::Invalid { operation, object: format!("interface {name:?}"), why };
    if name.is_empty() {
        return Err(invalid("the name is empty"));
    }
    if name.len() > NAME_MAX {
        return Err(invalid("the name is longer than 15 bytes"));
    }
    if name == "." || name == ".." || name.bytes().any(|b| b == b'/' || b == b':' || b <= b' ') {
        return Err(invalid("the name contains a slash, a colon or white space"));
    }
    Ok(name.to_owned())
}

impl Netlink {
    /// All links, by index.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let what = What { operation: "list", object: &"interfaces" };
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let mut links: Vec<_> = self.dump(what, &request)?.into_iter().filter_map(Link::read).collect();
        links.sort_by_key(|l| l.index);
        Ok(links)
    }

    /// One link by name, index, or as read before; `None` if there is none.
    pub fn link<'a>(&mut self, dev: impl Into<Dev<'a>>) -> Result<Option<Link>, Error> {
        let dev = dev.into();
        let request = RouteNetlinkMessage::GetLink(dev.message("read")?);
        let answer = self.get(What { operation: "read", object: &dev }, request)?;
        Ok(answer.and_then(Link::read))
    }

    pub fn link_by_name(&mut self, name: &str) -> Result<Option<Link>, Error> {
        self.link(name)
    }

    /// The index behind a device; an absent one is an error.
    pub(super) fn index_of(&mut self, operation: &'static str, dev: Dev<'_>) -> Result<u32, Error> {
        if dev.index != 0 {
            return Ok(dev.index);
        }
        let link = self.link(dev)?;
        link.map(|l| l.index).ok_or_else(|| Error::refused(operation, dev.to_string(), libc::ENODEV, None))
    }
}

impl Link {
    pub(super) fn read(message: RouteNetlinkMessage) -> Option<Self> {
        let (RouteNetlinkMessage::NewLink(message) | RouteNetlinkMessage::DelLink(message)) = message else {
            return None;
        };
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            up: flags.contains(LinkFlags::Up),
            running: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
            noarp: flags.contains(LinkFlags::Noarp),
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac.try_into().ok().map(Mac::new),
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Link(index) => link.peer_ifindex = (index != 0).then_some(index),
                LinkAttribute::LinkNetNsId(id) => link.peer_netnsid = Some(id),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias).filter(|a| !a.is_empty()),
                LinkAttribute::Controller(index) => link.master = Some(index),
                LinkAttribute::Qdisc(kind) => link.qdisc = kind,
                LinkAttribute::LinkInfo(info) => link.read_info(info),
                _ => {}
            }
        }
        Some(link)
    }

    fn read_info(&mut self, info: Vec<LinkInfo>) {
        for item in info {
            match item {
                LinkInfo::Kind(kind) => self.kind = kind.to_string(),
                LinkInfo::Data(InfoData::Vxlan(parameters)) => self.vxlan = Some(Vxlan::read(parameters)),
                _ => {}
            }
        }
    }
}

impl Vxlan {
    fn read(parameters: Vec<InfoVxlan>) -> Self {
        let mut vxlan = Self::default();
        for parameter in parameters {
            match parameter {
                InfoVxlan::Id(id) => vxlan.id = id,
                InfoVxlan::Port(port) => vxlan.port = port,
                InfoVxlan::CollectMetadata(on) => vxlan.external = on,
                InfoVxlan::Local(address) => vxlan.local = Some(address),
                InfoVxlan::Link(index) => vxlan.lower = Some(index),
                InfoVxlan::Learning(on) => vxlan.learning = on,
                _ => {}
            }
        }
        vxlan
    }
}
