//! Neighbours: which MAC an IPv4 address has on a link, and where a VXLAN device finds a MAC.

use std::net::Ipv4Addr;

use canal_common::Mac;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::RouteType,
};

use super::{Dev, Error, Netlink, link_verbs::absent_is_false, socket::What};

/// A neighbour with a known MAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    pub ifindex: u32,
    pub ip: Ipv4Addr,
    pub mac: Mac,
    /// Set by hand: the kernel neither asks nor forgets.
    pub permanent: bool,
}

impl Netlink {
    /// The neighbours with a known MAC, sorted.
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>, Error> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        let what = What { operation: "list", object: &"neighbours" };
        let request = RouteNetlinkMessage::GetNeighbour(message);
        let mut all: Vec<_> = self.dump(what, &request)?.into_iter().filter_map(Neighbour::read).collect();
        all.sort();
        Ok(all)
    }

    /// Makes or replaces the entry.
    pub fn add_neigh_permanent<'a>(
        &mut self,
        dev: impl Into<Dev<'a>>,
        ip: Ipv4Addr,
        mac: Mac,
    ) -> Result<(), Error> {
        let dev = dev.into();
        let mut message = message(self.index_of("set neighbour on", dev)?, ip);
        message.header.state = NeighbourState::Permanent;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.octets.to_vec()));
        let object = format!("neighbour {ip} on {dev}");
        let what = What { operation: "set", object: &object };
        self.change(what, RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Makes or replaces the entry by which a VXLAN device sends to `mac` at the node `node`.
    pub fn add_fdb_permanent<'a>(
        &mut self,
        dev: impl Into<Dev<'a>>,
        mac: Mac,
        node: Ipv4Addr,
    ) -> Result<(), Error> {
        let dev = dev.into();
        let mut message = message(self.index_of("set the way to a MAC on", dev)?, node);
        message.header.family = AddressFamily::Bridge;
        message.header.state = NeighbourState::Permanent;
        message.header.flags = NeighbourFlags::Own;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.octets.to_vec()));
        let object = format!("the way to {mac} via {node} on {dev}");
        let what = What { operation: "set", object: &object };
        self.change(what, RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// `false` if there was none.
    pub fn delete_neigh<'a>(&mut self, dev: impl Into<Dev<'a>>, ip: Ipv4Addr) -> Result<bool, Error> {
        let dev = dev.into();
        let index = match self.index_of("delete neighbour on", dev) {
            Err(e) if e.is_absent() => return Ok(false),
            other => other?,
        };
        let object = format!("neighbour {ip} on {dev}");
        let request = RouteNetlinkMessage::DelNeighbour(message(index, ip));
        absent_is_false(self.change(What { operation: "delete", object: &object }, request, 0))
    }
}

impl Neighbour {
    fn read(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewNeighbour(message) = message else { return None };
        let ip = message.attributes.iter().find_map(|a| match a {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(*ip),
            _ => None,
        })?;
        let mac = message.attributes.iter().find_map(|a| match a {
            NeighbourAttribute::LinkLayerAddress(mac) => mac.as_slice().try_into().ok().map(Mac::new),
            _ => None,
        })?;
        let permanent = message.header.state == NeighbourState::Permanent;
        Some(Self { ifindex: message.header.ifindex, ip, mac, permanent })
    }
}

fn message(index: u32, ip: Ipv4Addr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::Inet(ip))];
    message
}
