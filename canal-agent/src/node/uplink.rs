//! Which interface and address carry the overlay.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::netlink::{self, Address, Link, Netlink, Route};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    /// Source of our envelopes.
    pub address: Ipv4Addr,
    /// What peers send to.
    pub public_ip: Ipv4Addr,
    /// Why this one, for the log.
    pub reason: String,
}

#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    #[error("--iface {0}: no interface has this name or address; this host has {1}")]
    NotFound(String, String),
    #[error(
        "--public-ip {0}: no interface has this address; if it is translated on its way here, also name the interface with --iface"
    )]
    PublicIpNotLocal(Ipv4Addr),
    #[error("no default route shows which interface leads to the other nodes; name it with --iface")]
    NoDefaultRoute,
    #[error("interface {0} has no usable IPv4 address; give it one, or name another with --iface")]
    NoAddress(String),
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
}

/// The kernel's side of the choice.
#[derive(Debug, Clone, Default)]
pub struct Host {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
}

impl Host {
    pub fn read(netlink: &mut Netlink) -> Result<Self, netlink::Error> {
        Ok(Self { links: netlink.links()?, addresses: netlink.addresses(None)?, routes: netlink.routes()? })
    }

    fn usable(&self, index: u32) -> Option<Ipv4Addr> {
        self.addresses
            .iter()
            .filter(|a| a.ifindex == index)
            .map(|a| a.net.addr())
            .find(|a| !a.is_loopback() && !a.is_unspecified())
    }

    fn link_with(&self, address: Ipv4Addr) -> Option<&Link> {
        let index = self.addresses.iter().find(|a| a.net.addr() == address)?.ifindex;
        self.links.iter().find(|l| l.index == index)
    }
}

/// By name or address if one was given, else by a local public address, else by the default route: flannel's order.
pub fn choose(host: &Host, iface: Option<&str>, public_ip: Option<Ipv4Addr>) -> Result<Uplink, UplinkError> {
    let (link, address, reason) = if let Some(iface) = iface {
        if let Some(link) = host.links.iter().find(|l| l.name == iface) {
            // An address that was asked for and is on this very interface is the one to send from.
            let asked = public_ip.filter(|ip| host.link_with(*ip).is_some_and(|l| l.index == link.index));
            let address = asked
                .or_else(|| host.usable(link.index))
                .ok_or_else(|| UplinkError::NoAddress(link.name.clone()))?;
            (link, address, format!("--iface {iface}"))
        } else {
            let address = iface.parse().ok();
            let link = address.and_then(|a| host.link_with(a));
            match (link, address) {
                (Some(link), Some(address)) => (link, address, format!("--iface {iface} is its address")),
                _ => return Err(UplinkError::NotFound(iface.to_owned(), names(&host.links))),
            }
        }
    } else if let Some(public_ip) = public_ip {
        let link = host.link_with(public_ip).ok_or(UplinkError::PublicIpNotLocal(public_ip))?;
        (link, public_ip, format!("--public-ip {public_ip} is its address"))
    } else {
        let default = host
            .routes
            .iter()
            .filter(|r| r.dst == Ipv4Net::default() && r.oif.is_some())
            .min_by_key(|r| r.metric)
            .ok_or(UplinkError::NoDefaultRoute)?;
        let link =
            host.links.iter().find(|l| Some(l.index) == default.oif).ok_or(UplinkError::NoDefaultRoute)?;
        let address = default
            .src
            .or_else(|| host.usable(link.index))
            .ok_or_else(|| UplinkError::NoAddress(link.name.clone()))?;
        (link, address, "the default route leads there".to_owned())
    };
    Ok(Uplink {
        index: link.index,
        name: link.name.clone(),
        mtu: link.mtu,
        address,
        public_ip: public_ip.unwrap_or(address),
        reason,
    })
}

/// Whether the main routing table sends to `addr` by this interface without a gateway, and by no other way. Policy
/// routing rules are not looked at.
pub fn leads_straight(routes: &[Route], ifindex: u32, addr: Ipv4Addr) -> bool {
    let best = routes
        .iter()
        .filter(|route| route.dst.contains(&addr))
        .min_by_key(|route| (std::cmp::Reverse(route.dst.prefix_len()), route.metric));
    best.is_some_and(|route| route.gateway.is_none() && route.oif == Some(ifindex))
}

fn names(links: &[Link]) -> String {
    links.iter().map(|l| l.name.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> Host {
        let link =
            |index, name: &str| Link { index, name: name.to_owned(), mtu: 1500, up: true, ..Link::default() };
        let address = |ifindex, net: &str| Address { ifindex, net: net.parse().unwrap(), global: true };
        Host {
            links: vec![link(1, "lo"), link(2, "mg0"), link(3, "up0"), link(4, "bare")],
            addresses: vec![
                address(1, "127.0.0.1/8"),
                address(2, "192.168.60.1/24"),
                address(3, "192.168.50.1/24"),
                address(3, "192.168.50.9/24"),
            ],
            routes: vec![Route::via(Ipv4Net::default(), "192.168.60.254".parse().unwrap(), 2)],
        }
    }

    #[test]
    fn the_uplink_is_found_by_name_address_public_ip_or_default_route() {
        let ip = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        for (iface, public_ip, name, address, published) in [
            (Some("up0"), None, "up0", "192.168.50.1", "192.168.50.1"),
            (Some("up0"), Some("192.168.50.9"), "up0", "192.168.50.9", "192.168.50.9"),
            (Some("up0"), Some("203.0.113.7"), "up0", "192.168.50.1", "203.0.113.7"),
            (Some("192.168.50.9"), None, "up0", "192.168.50.9", "192.168.50.9"),
            (None, Some("192.168.50.1"), "up0", "192.168.50.1", "192.168.50.1"),
            (None, None, "mg0", "192.168.60.1", "192.168.60.1"),
        ] {
            let chosen = choose(&host(), iface, public_ip.map(ip)).unwrap();
            assert_eq!(
                (chosen.name.as_str(), chosen.address, chosen.public_ip),
                (name, ip(address), ip(published)),
                "{iface:?} {public_ip:?}"
            );
        }
    }

    #[test]
    fn only_a_route_without_a_gateway_by_the_uplink_leads_straight() {
        let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
        let routes = [
            Route::link(net("192.168.50.0/24"), 3),
            Route::via(net("192.168.50.7/32"), "192.168.50.254".parse().unwrap(), 3),
            Route::link(net("192.168.60.0/24"), 2),
            Route { oif: None, ..Route::link(net("192.168.70.0/24"), 3) },
            Route::via(net("0.0.0.0/0"), "192.168.50.254".parse().unwrap(), 3),
        ];
        for (addr, expected) in [
            ("192.168.50.2", true),
            ("192.168.50.7", false),
            ("192.168.60.2", false),
            ("192.168.70.2", false),
            ("203.0.113.1", false),
        ] {
            assert_eq!(leads_straight(&routes, 3, addr.parse().unwrap()), expected, "{addr}");
        }
    }

    #[test]
    fn a_choice_that_cannot_be_made_says_what_to_do() {
        let error = |iface, public_ip: Option<&str>, host: Host| {
            choose(&host, iface, public_ip.map(|p| p.parse().unwrap())).unwrap_err().to_string()
        };
        assert!(error(Some("eth7"), None, host()).contains("lo, mg0, up0, bare"));
        assert!(error(Some("bare"), None, host()).contains("no usable IPv4 address"));
        assert!(error(None, Some("203.0.113.7"), host()).contains("also name the interface"));
        assert!(error(None, None, Host { routes: Vec::new(), ..host() }).contains("--iface"));
    }
}
