//! Which interface and address carry the overlay.

use std::{fmt, net::Ipv4Addr};

use ipnet::Ipv4Net;

use crate::{
    config::{Pattern, UplinkRules},
    netlink::{self, Address, Link, Netlink, Route, Way},
    store::{Backend, network::MTU_MIN},
};

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

impl Uplink {
    /// Whether other nodes can send to this one as the backend has them do it.
    pub fn suits(&self, backend: &Backend) -> Result<(), UplinkError> {
        match backend {
            Backend::HostGw if self.public_ip != self.address => Err(UplinkError::Translated(self.clone())),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Uplink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, name, mtu, address, public_ip, reason: _ } = self;
        write!(f, "{name} ({index}) with {address}, public address {public_ip}, MTU {mtu}")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    #[error("{} this host has {host}", no_rule(.reasons))]
    NotFound { reasons: Vec<String>, host: String },
    #[error(
        "--public-ip {0}: no interface has this address; if it is translated on its way here, also name the interface with --iface"
    )]
    PublicIpNotLocal(Ipv4Addr),
    #[error("no default route shows which interface leads to the other nodes; name it with --iface")]
    NoDefaultRoute,
    #[error("the default route has several next hops; name the interface to the other nodes with --iface")]
    ManyDefaultRoutes,
    #[error("interface {0} has no usable IPv4 address; give it one, or name another with --iface")]
    NoAddress(String),
    #[error(
        "interface {0} has an MTU of {1}, which leaves nothing to pods; raise it, or name another with --iface"
    )]
    SmallMtu(String, u32),
    #[error(
        "--public-ip {} is translated on its way to {} of {}, and host-gw has no tunnel that could pass that; leave \
         --public-ip out, or use the backend vxlan", .0.public_ip, .0.address, .0.name
    )]
    Translated(Uplink),
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
}

/// The kernel's side of the choice.
#[derive(Debug, Clone, Default)]
pub struct Host {
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
    /// Where `--iface-can-reach` leads.
    pub way: Option<Way>,
}

impl Host {
    pub fn read(netlink: &mut Netlink, rules: &UplinkRules) -> Result<Self, netlink::Error> {
        Ok(Self {
            links: netlink.links()?,
            addresses: netlink.addresses(None)?,
            routes: netlink.routes()?,
            way: rules.can_reach.map(|addr| netlink.way_to(addr)).transpose()?.flatten(),
        })
    }

    /// What other nodes may send to, flannel's preferences first.
    fn usable(&self, index: u32) -> Vec<Ipv4Addr> {
        let legal = |ip: Ipv4Addr| {
            !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast())
        };
        let of_link = |a: &&Address| a.ifindex == index && legal(a.net.addr()) && !a.deprecated;
        let mut found: Vec<&Address> = self.addresses.iter().filter(of_link).collect();
        // Equals stay in the kernel's order.
        found.sort_by_key(|a| (a.net.addr().is_link_local(), !a.permanent, a.secondary));
        found.into_iter().map(|a| a.net.addr()).collect()
    }

    fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|l| l.index == index)
    }

    fn link_with(&self, address: Ipv4Addr) -> Option<&Link> {
        self.link(self.addresses.iter().find(|a| a.net.addr() == address)?.ifindex)
    }
}

/// An interface that some rule leads to; the address if the rule says that too.
struct Found<'a> {
    link: &'a Link,
    address: Option<Ipv4Addr>,
    reason: String,
}

/// Flannel's order: the rules that were given, one after the other; without any a local public address; else the default
/// route.
pub fn choose(host: &Host, rules: &UplinkRules) -> Result<Uplink, UplinkError> {
    decide(host, rules, None)
}

/// The same for a node that has one: where no rule names an address, it keeps its own as long as that is there. Others
/// know it by this one, and an address that came later may be one that wanders (VRRP).
pub fn choose_again(host: &Host, rules: &UplinkRules, now: &Uplink) -> Result<Uplink, UplinkError> {
    decide(host, rules, Some(now))
}

fn decide(host: &Host, rules: &UplinkRules, now: Option<&Uplink>) -> Result<Uplink, UplinkError> {
    let UplinkRules { ifaces, patterns, can_reach, public_ip } = rules;
    let found = if !ifaces.is_empty() || !patterns.is_empty() || can_reach.is_some() {
        let by_name = ifaces.iter().map(|iface| by_name_or_address(host, iface));
        let by_pattern = patterns.iter().map(|pattern| by_pattern(host, pattern));
        let by_way = can_reach.iter().map(|addr| by_way(host, *addr));
        first_of(by_name.chain(by_pattern).chain(by_way), host)?
    } else if let Some(ip) = *public_ip {
        let link = host.link_with(ip).ok_or(UplinkError::PublicIpNotLocal(ip))?;
        Found { link, address: Some(ip), reason: format!("--public-ip {ip} is its address") }
    } else {
        by_default_route(host)?
    };
    let Found { link, address, reason } = found;
    // An address that was asked for and is on this very interface is the one to send from.
    let asked = public_ip.filter(|ip| host.link_with(*ip).is_some_and(|l| l.index == link.index));
    let usable = host.usable(link.index);
    let kept = now.filter(|now| now.index == link.index && usable.contains(&now.address));
    let address = address
        .or(asked)
        .or(kept.map(|now| now.address))
        .or_else(|| usable.first().copied())
        .ok_or_else(|| UplinkError::NoAddress(link.name.clone()))?;
    if link.mtu < u32::from(MTU_MIN) {
        return Err(UplinkError::SmallMtu(link.name.clone(), link.mtu));
    }
    Ok(Uplink {
        index: link.index,
        name: link.name.clone(),
        mtu: link.mtu,
        address,
        public_ip: public_ip.unwrap_or(address),
        reason,
    })
}

/// The first rule that leads somewhere; else why none does.
fn first_of<'a>(
    tried: impl Iterator<Item = Result<Found<'a>, String>>,
    host: &Host,
) -> Result<Found<'a>, UplinkError> {
    let mut reasons = Vec::new();
    for found in tried {
        match found {
            Ok(found) if found.address.is_none() && host.usable(found.link.index).is_empty() => {
                reasons.push(format!(
                    "{}: interface {} has no usable IPv4 address",
                    found.reason, found.link.name
                ));
            }
            Ok(found) => return Ok(found),
            Err(reason) => reasons.push(reason),
        }
    }
    let host = host.links.iter().map(|l| l.name.as_str()).collect::<Vec<_>>().join(", ");
    Err(UplinkError::NotFound { reasons, host })
}

fn no_rule(reasons: &[String]) -> String {
    format!("{}; name another interface with --iface:", reasons.join("; "))
}

fn by_name_or_address<'a>(host: &'a Host, iface: &str) -> Result<Found<'a>, String> {
    if let Some(link) = host.links.iter().find(|l| l.name == iface) {
        return Ok(Found { link, address: None, reason: format!("--iface {iface}") });
    }
    let address: Option<Ipv4Addr> = iface.parse().ok();
    let link = address.and_then(|address| host.link_with(address));
    let link = link.ok_or_else(|| format!("--iface {iface}: no interface has this name or address"))?;
    Ok(Found { link, address, reason: format!("--iface {iface} is its address") })
}

/// Ours, or flanneld's: its address is of the pod network, which a pattern may match as well as the underlay's.
fn is_overlay(link: &Link) -> bool {
    link.kind == "vxlan" && ["canal.", "flannel."].iter().any(|prefix| link.name.starts_with(prefix))
}

/// Addresses first: a name is looked at only when no address of any interface matches.
fn by_pattern<'a>(host: &'a Host, pattern: &Pattern) -> Result<Found<'a>, String> {
    let rule = format!("--iface-regex {}", pattern.as_str());
    let mut links: Vec<&Link> = host.links.iter().filter(|link| !is_overlay(link)).collect();
    links.sort_by_key(|link| link.index);
    for link in &links {
        if let Some(address) = host.usable(link.index).into_iter().find(|ip| pattern.matches(&ip.to_string()))
        {
            let reason = format!("{rule} matches its address {address}");
            return Ok(Found { link, address: Some(address), reason });
        }
    }
    let named = links.into_iter().find(|link| pattern.matches(&link.name));
    let link = named.ok_or_else(|| format!("{rule}: matches no interface's address and no name"))?;
    Ok(Found { link, address: None, reason: format!("{rule} matches its name") })
}

fn by_way(host: &Host, addr: Ipv4Addr) -> Result<Found<'_>, String> {
    let rule = format!("--iface-can-reach {addr}");
    let way = host.way.ok_or_else(|| format!("{rule}: no route leads there"))?;
    let link = host.link(way.oif).ok_or_else(|| format!("{rule}: its interface is gone"))?;
    if way.src.is_some_and(|src| src.is_loopback() || src == addr) {
        return Err(format!("{rule}: this is an address of this host itself"));
    }
    Ok(Found { link, address: way.src, reason: format!("{rule}: the way there leads over it") })
}

fn by_default_route(host: &Host) -> Result<Found<'_>, UplinkError> {
    let defaults = host.routes.iter().filter(|r| r.dst == Ipv4Net::default());
    let best = defaults.min_by_key(|r| r.metric).ok_or(UplinkError::NoDefaultRoute)?;
    let oif = best.oif.ok_or(UplinkError::ManyDefaultRoutes)?;
    let link = host.link(oif).ok_or(UplinkError::NoDefaultRoute)?;
    Ok(Found { link, address: None, reason: "the default route leads there".to_owned() })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link { index, name: name.to_owned(), mtu: 1500, up: true, ..Link::default() }
    }

    fn address(ifindex: u32, net: &str) -> Address {
        Address {
            ifindex,
            net: net.parse().unwrap(),
            global: true,
            permanent: true,
            secondary: false,
            deprecated: false,
        }
    }

    fn host() -> Host {
        Host {
            links: vec![link(1, "lo"), link(2, "mg0"), link(3, "up0"), link(4, "bare")],
            addresses: vec![
                address(1, "127.0.0.1/8"),
                address(2, "192.168.60.1/24"),
                address(3, "192.168.50.1/24"),
                address(3, "192.168.50.9/24"),
            ],
            routes: vec![Route::via(Ipv4Net::default(), "192.168.60.254".parse().unwrap(), 2)],
            way: None,
        }
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    /// `n` a name or address, `r` a regular expression, `c` an address to reach, `p` the public address.
    fn rules(text: &str) -> UplinkRules {
        let mut rules = UplinkRules::default();
        for rule in text.split_whitespace() {
            match rule.split_at(2) {
                ("n:", name) => rules.ifaces.push(name.to_owned()),
                ("r:", regex) => rules.patterns.push(Pattern::new(regex).unwrap()),
                ("c:", addr) => rules.can_reach = Some(ip(addr)),
                ("p:", addr) => rules.public_ip = Some(ip(addr)),
                other => panic!("{other:?}"),
            }
        }
        rules
    }

    #[test]
    fn the_uplink_is_found_by_name_address_public_ip_or_default_route() {
        for (given, name, address, published) in [
            ("n:up0", "up0", "192.168.50.1", "192.168.50.1"),
            ("n:up0 p:192.168.50.9", "up0", "192.168.50.9", "192.168.50.9"),
            ("n:up0 p:203.0.113.7", "up0", "192.168.50.1", "203.0.113.7"),
            ("n:192.168.50.9", "up0", "192.168.50.9", "192.168.50.9"),
            ("p:192.168.50.1", "up0", "192.168.50.1", "192.168.50.1"),
            ("", "mg0", "192.168.60.1", "192.168.60.1"),
        ] {
            let chosen = choose(&host(), &rules(given)).unwrap();
            let found = (chosen.name.as_str(), chosen.address, chosen.public_ip);
            assert_eq!(found, (name, ip(address), ip(published)), "{given}");
        }
    }

    #[test]
    fn of_several_rules_the_first_that_leads_somewhere_counts() {
        let host = Host { way: Some(Way { oif: 2, src: Some(ip("192.168.60.1")) }), ..host() };
        for (given, name, address) in [
            ("n:eth7 n:mg0 n:up0", "mg0", "192.168.60.1"),
            ("n:eth7 r:50[.]9$ c:192.0.2.1", "up0", "192.168.50.9"),
            ("n:bare r:^mg", "mg0", "192.168.60.1"),
            ("r:none r:up c:192.0.2.1", "up0", "192.168.50.1"),
            ("r:. p:192.168.50.9", "mg0", "192.168.60.1"),
            ("r:none c:192.0.2.1", "mg0", "192.168.60.1"),
            // A name is looked at only when no address matches: "0" is in every address.
            ("r:0", "mg0", "192.168.60.1"),
        ] {
            let chosen = choose(&host, &rules(given)).unwrap();
            assert_eq!((chosen.name.as_str(), chosen.address), (name, ip(address)), "{given}");
        }
    }

    #[test]
    fn of_several_addresses_flannels_preference_counts() {
        let up0 = |addresses: Vec<Address>| {
            choose(&Host { addresses, ..host() }, &rules("n:up0"))
                .map(|uplink| uplink.address.to_string())
                .ok()
        };
        let plain = |net| address(3, net);
        let found = |addresses| up0(addresses).unwrap();
        assert_eq!(found(vec![plain("192.168.50.9/24"), plain("192.168.50.1/24")]), "192.168.50.9");
        assert_eq!(found(vec![plain("169.254.7.7/16"), plain("10.0.0.1/24")]), "10.0.0.1");
        let leased = Address { permanent: false, ..plain("10.0.0.2/24") };
        assert_eq!(found(vec![leased, plain("10.0.0.1/24")]), "10.0.0.1");
        let second = Address { secondary: true, ..plain("10.0.0.2/24") };
        assert_eq!(found(vec![second, plain("10.0.1.1/24")]), "10.0.1.1");
        let old = Address { deprecated: true, ..plain("10.0.0.2/24") };
        assert_eq!(found(vec![old, plain("169.254.7.7/16")]), "169.254.7.7");
        assert_eq!(up0(vec![old]), None);
    }

    #[test]
    fn a_node_keeps_its_address_as_long_as_that_is_there() {
        let (mut host, rules) = (host(), rules("n:up0"));
        let before = choose(&host, &rules).unwrap();
        host.addresses.insert(0, address(3, "192.168.50.7/32"));
        assert_eq!(choose(&host, &rules).unwrap().address, ip("192.168.50.7"));
        assert_eq!(choose_again(&host, &rules, &before).unwrap(), before);
        host.addresses.retain(|a| a.net.addr() != before.address);
        assert_eq!(choose_again(&host, &rules, &before).unwrap().address, ip("192.168.50.7"));
    }

    #[test]
    fn a_pattern_never_leads_to_an_overlay() {
        let mut host = host();
        host.links.insert(0, Link { kind: "vxlan".to_owned(), ..link(5, "canal.1") });
        host.addresses.insert(0, address(5, "192.168.50.200/32"));
        for text in ["r:^192[.]168[.]50[.]", "r:canal|up0"] {
            assert_eq!(choose(&host, &rules(text)).unwrap().name, "up0", "{text}");
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
        let error = |given: &str, host: Host| choose(&host, &rules(given)).unwrap_err().to_string();
        let all = error("n:eth7 r:^wg c:192.0.2.1", host());
        for part in [
            "--iface eth7: no interface has this name",
            "--iface-regex ^wg: matches no",
            "--iface-can-reach 192.0.2.1: no route",
            "this host has lo, mg0, up0, bare",
        ] {
            assert!(all.contains(part), "{all}");
        }
        assert!(error("n:bare", host()).contains("no usable IPv4 address"));
        assert!(error("p:203.0.113.7", host()).contains("also name the interface"));
        assert!(error("", Host { routes: Vec::new(), ..host() }).contains("--iface"));
        let many = Route { oif: None, gateway: None, ..host().routes[0].clone() };
        assert!(error("", Host { routes: vec![many], ..host() }).contains("several next hops"));
        let own = Way { oif: 1, src: Some(ip("192.168.50.1")) };
        assert!(error("c:192.168.50.1", Host { way: Some(own), ..host() }).contains("this host itself"));
        let mut narrow = host();
        narrow.links[2].mtu = 117;
        assert!(error("n:up0", narrow).contains("MTU of 117"));
    }
}
