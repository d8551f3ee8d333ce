//! IPv4 routes of the main table: unicast ones, and those that refuse.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteScope,
        RouteType,
    },
};

use super::{Error, Netlink, link_verbs::absent_is_false, socket::What};

/// Who made a route, as the kernel records it.
pub mod protocol {
    /// The kernel itself, for an address.
    pub const KERNEL: u8 = 2;
    /// Made at boot or by hand with iproute2.
    pub const BOOT: u8 = 3;
    /// Made by an administrator on purpose.
    pub const STATIC: u8 = 4;
}

/// How far away the destination is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Behind a gateway, or anywhere.
    #[default]
    Universe,
    /// On the link itself.
    Link,
    /// Any other.
    Other(u8),
}

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub dst: Ipv4Net,
    /// `None` where there are several next hops.
    pub oif: Option<u32>,
    pub gateway: Option<Ipv4Addr>,
    /// Preferred source address.
    pub src: Option<Ipv4Addr>,
    pub scope: Scope,
    /// Take the gateway to be on the link even if no route says so.
    pub onlink: bool,
    /// Nothing is sent there, and the sender is told so (ICMP host unreachable).
    pub unreachable: bool,
    /// See [`protocol`].
    pub protocol: u8,
    pub mtu: Option<u32>,
    /// Of two routes to one destination the one with the lower metric is used.
    pub metric: u32,
}

/// Where the kernel sends what goes to some address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    pub oif: u32,
    /// The source address that it chooses.
    pub src: Option<Ipv4Addr>,
}

impl Route {
    /// `dst` is on the link.
    pub fn link(dst: Ipv4Net, oif: u32) -> Self {
        Self {
            dst,
            oif: Some(oif),
            gateway: None,
            src: None,
            scope: Scope::Link,
            onlink: false,
            unreachable: false,
            protocol: protocol::BOOT,
            mtu: None,
            metric: 0,
        }
    }

    /// Nobody has an address of `dst`.
    pub fn unreachable(dst: Ipv4Net) -> Self {
        Self { oif: None, unreachable: true, scope: Scope::Universe, ..Self::link(dst, 0) }
    }

    /// `dst` is behind `gateway`.
    pub fn via(dst: Ipv4Net, gateway: Ipv4Addr, oif: u32) -> Self {
        Self { gateway: Some(gateway), scope: Scope::Universe, ..Self::link(dst, oif) }
    }
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.unreachable {
            f.write_str("unreachable ")?;
        }
        write!(f, "route to {}", self.dst)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        match self.oif {
            Some(oif) => write!(f, " on interface {oif}"),
            None => Ok(()),
        }
    }
}

impl Netlink {
    /// The routes of the main table, sorted.
    pub fn routes(&mut self) -> Result<Vec<Route>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        let what = What { operation: "list", object: &"routes" };
        let entries = match self.dump(what, &RouteNetlinkMessage::GetRoute(message)) {
            // A namespace that has never had a route has no main table.
            Err(e) if e.is_absent() => Vec::new(),
            other => other?,
        };
        let mut routes: Vec<_> = entries.into_iter().filter_map(Route::read).collect();
        routes.sort();
        Ok(routes)
    }

    /// The kernel's own answer, by its routing policy and all tables; `None` if nothing leads there.
    pub fn way_to(&mut self, addr: Ipv4Addr) -> Result<Option<Way>, Error> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        message.header.destination_prefix_length = 32;
        message.attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(addr))];
        let object = format!("the way to {addr}");
        let request = RouteNetlinkMessage::GetRoute(message);
        let answer = match self.get(What { operation: "look up", object: &object }, request) {
            // Unreachable and prohibited ways are none.
            Err(e) if matches!(e.errno(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES)) => {
                None
            }
            other => other?,
        };
        Ok(answer.and_then(Way::read))
    }

    /// Makes the route, or puts it in the place of the one with the same destination and metric.
    pub fn replace_route(&mut self, route: &Route) -> Result<(), Error> {
        let request = RouteNetlinkMessage::NewRoute(route.message());
        self.change(What { operation: "set", object: route }, request, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Deletes this route and no other with the same destination. `false` if there was none.
    pub fn delete_route(&mut self, route: &Route) -> Result<bool, Error> {
        let mut message = route.message();
        message.attributes.retain(|a| !matches!(a, RouteAttribute::Metrics(_)));
        let request = RouteNetlinkMessage::DelRoute(message);
        absent_is_false(self.change(What { operation: "delete", object: route }, request, 0))
    }
}

impl Way {
    fn read(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewRoute(message) = message else { return None };
        let (mut oif, mut src) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => oif = Some(*index),
                RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => src = Some(*ip),
                _ => {}
            }
        }
        Some(Self { oif: oif?, src })
    }
}

impl Route {
    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let header = &mut message.header;
        header.address_family = AddressFamily::Inet;
        header.destination_prefix_length = self.dst.prefix_len();
        header.table = RouteHeader::RT_TABLE_MAIN;
        header.protocol = self.protocol.into();
        header.kind = if self.unreachable { RouteType::Unreachable } else { RouteType::Unicast };
        header.scope = match self.scope {
            Scope::Universe => RouteScope::Universe,
            Scope::Link => RouteScope::Link,
            Scope::Other(other) => other.into(),
        };
        if self.onlink {
            header.flags |= RouteFlags::Onlink;
        }
        let mut attributes = vec![RouteAttribute::Destination(RouteAddress::Inet(self.dst.network()))];
        attributes.extend(self.oif.map(RouteAttribute::Oif));
        attributes.extend(self.gateway.map(|ip| RouteAttribute::Gateway(RouteAddress::Inet(ip))));
        attributes.extend(self.src.map(|ip| RouteAttribute::PrefSource(RouteAddress::Inet(ip))));
        attributes.extend(self.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
        if self.metric != 0 {
            attributes.push(RouteAttribute::Priority(self.metric));
        }
        message.attributes = attributes;
        message
    }

    fn read(message: RouteNetlinkMessage) -> Option<Self> {
        let RouteNetlinkMessage::NewRoute(message) = message else { return None };
        let header = &message.header;
        let unreachable = header.kind == RouteType::Unreachable;
        let is_known = unreachable || header.kind == RouteType::Unicast;
        if !is_known || header.table != RouteHeader::RT_TABLE_MAIN {
            return None;
        }
        let mut dst = Ipv4Addr::UNSPECIFIED;
        let mut route = Self {
            dst: Ipv4Net::default(),
            oif: None,
            gateway: None,
            src: None,
            scope: match header.scope {
                RouteScope::Universe => Scope::Universe,
                RouteScope::Link => Scope::Link,
                other => Scope::Other(other.into()),
            },
            onlink: header.flags.contains(RouteFlags::Onlink),
            unreachable,
            protocol: header.protocol.into(),
            mtu: None,
            metric: 0,
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => dst = *ip,
                RouteAttribute::Oif(index) => route.oif = Some(*index),
                RouteAttribute::Gateway(RouteAddress::Inet(ip)) => route.gateway = Some(*ip),
                RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => route.src = Some(*ip),
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::Metrics(metrics) => {
                    route.mtu = metrics.iter().find_map(|m| match m {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        route.dst = Ipv4Net::new(dst, header.destination_prefix_length).ok()?;
        Some(route)
    }
}
