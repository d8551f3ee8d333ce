//! IPv4 addresses of links.

use std::net::IpAddr;

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
};

use super::{Dev, Error, Netlink, link_verbs::absent_is_false, socket::What};

/// An address on a link. `net` keeps the host bits: 10.1.2.3/24 is the address 10.1.2.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    pub ifindex: u32,
    pub net: Ipv4Net,
    /// Usable beyond the host (`scope global`).
    pub global: bool,
    /// It does not run out (`IFA_F_PERMANENT`).
    pub permanent: bool,
    /// There is an older one in its network (`IFA_F_SECONDARY`).
    pub secondary: bool,
    /// Not for new connections any more (`IFA_F_DEPRECATED`).
    pub deprecated: bool,
}

impl Netlink {
    /// The addresses of one link, or of all by link, in the order of the kernel: what it sends from first.
    pub fn addresses(&mut self, ifindex: Option<u32>) -> Result<Vec<Address>, Error> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.index = ifindex.unwrap_or(0);
        let what = What { operation: "list", object: &"addresses" };
        let entries = match self.dump(what, &RouteNetlinkMessage::GetAddress(message)) {
            // The kernel refuses a filter for a link that is gone; it has no addresses.
            Err(e) if ifindex.is_some() && e.is_absent() => Vec::new(),
            other => other?,
        };
        let mut addresses: Vec<_> = entries.into_iter().filter_map(Address::read).collect();
        addresses.sort_by_key(|address| address.ifindex);
        Ok(addresses)
    }

    /// Fails if the link has it already.
    pub fn add_address<'a>(&mut self, dev: impl Into<Dev<'a>>, net: Ipv4Net) -> Result<(), Error> {
        self.change_address("add", dev.into(), net, NLM_F_CREATE | NLM_F_EXCL)
    }

    pub fn replace_address<'a>(&mut self, dev: impl Into<Dev<'a>>, net: Ipv4Net) -> Result<(), Error> {
        self.change_address("set", dev.into(), net, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// `false` if the link did not have it.
    pub fn delete_address<'a>(&mut self, dev: impl Into<Dev<'a>>, net: Ipv4Net) -> Result<bool, Error> {
        let dev = dev.into();
        let index = match self.index_of("delete", dev) {
            Err(e) if e.is_absent() => return Ok(false),
            other => other?,
        };
        let object = format!("address {net} of {dev}");
        let request = RouteNetlinkMessage::DelAddress(message(index, net));
        absent_is_false(self.change(What { operation: "delete", object: &object }, request, 0))
    }

    fn change_address(
        &mut self,
        operation: &'static str,
        dev: Dev<'_>,
        net: Ipv4Net,
        flags: u16,
    ) -> Result<(), Error> {
        let index = self.index_of(operation, dev)?;
        let object = format!("address {net} on {dev}");
        let request = RouteNetlinkMessage::NewAddress(message(index, net));
        self.change(What { operation, object: &object }, request, flags)
    }
}

impl Address {
    fn read(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewAddress(message) = message else { return None };
        // On a point-to-point link `Address` is the far end; `Local` is ours.
        let find = |want_local: bool| {
            message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(IpAddr::V4(ip)) if want_local => Some(*ip),
                AddressAttribute::Address(IpAddr::V4(ip)) if !want_local => Some(*ip),
                _ => None,
            })
        };
        let ip = find(true).or_else(|| find(false))?;
        Some(Self {
            ifindex: message.header.index,
            net: Ipv4Net::new(ip, message.header.prefix_len).ok()?,
            global: message.header.scope == AddressScope::Universe,
            permanent: message.header.flags.contains(AddressHeaderFlags::Permanent),
            secondary: message.header.flags.contains(AddressHeaderFlags::Secondary),
            deprecated: message.header.flags.contains(AddressHeaderFlags::Deprecated),
        })
    }
}

fn message(index: u32, net: Ipv4Net) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.index = index;
    message.header.prefix_len = net.prefix_len();
    let ip = IpAddr::V4(net.addr());
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    if net.prefix_len() < 31 {
        message.attributes.push(AddressAttribute::Broadcast(net.broadcast()));
    }
    message
}
