//! `canal-agent cleanup --for-flannel`: takes Canal off a node and leaves it as flanneld wants to find it, pods and all.

use std::collections::BTreeMap;

use anyhow::Context as _;
use canal_common::node::Node;
use ipnet::Ipv4Net;

use crate::{
    cleanup::remove_status_files,
    config::Config,
    dataplane::{
        flannel::{device, peers},
        masquerade, overlay,
        pins::Pins,
        routes,
    },
    lock::AgentLock,
    netlink::{Link, Netlink, Route, protocol, sysctl},
    node::uplink::{self, Host},
};

/// Puts flannel's device with our MAC and address in the place of ours, with the peers that our tables hold, and takes the
/// programs away behind that. Lease, endpoints, `subnet.env` and what the agent remembers of pods stay. What an earlier call
/// did not come to is done by the next.
pub fn run(config: &Config) -> anyhow::Result<Vec<String>> {
    let _lock = AgentLock::take()?;
    let pins = Pins::open(&config.bpffs)?;
    let mut netlink = Netlink::open()?;
    let mut done = Vec::new();
    let ours = overlay::present(&mut netlink)?;
    for (vni, link) in &ours {
        let known = peers::pinned(&pins);
        if known.is_err() {
            done.push("NOT taken over: peers, for no tables are there; flanneld programs them".to_owned());
        }
        done.extend(hand_over(config, &mut netlink, *vni, link, &known.unwrap_or_default())?);
    }
    done.extend(hand_routes_over(&mut netlink)?);
    if masquerade::remove().unwrap_or(false) {
        done.push("removed the masquerade table; flanneld makes its own with --ip-masq".to_owned());
    }
    if pins.remove_all()? {
        done.push(
            "detached the programs and removed the tables: NO POLICY IS ENFORCED on this node's pods until Felix runs"
                .to_owned(),
        );
    }
    for device in overlay::remove(&mut netlink)? {
        done.push(format!("removed {device}"));
    }
    done.extend(routes::remove_all(&mut netlink)?);
    done.extend(remove_status_files(config)?);
    if std::fs::remove_file(&config.socket).is_ok() {
        done.push(format!("removed {}", config.socket.display()));
    }
    Ok(done)
}

/// The one goes down, the other up: only then is the port free.
fn hand_over(
    config: &Config,
    netlink: &mut Netlink,
    vni: u32,
    ours: &Link,
    known: &BTreeMap<Ipv4Net, Node>,
) -> anyhow::Result<Vec<String>> {
    let uplink = uplink::choose(&Host::read(netlink, &config.uplink)?, &config.uplink)
        .context("cannot tell the interface for flannel's device")?;
    let address = netlink.addresses(Some(ours.index))?.into_iter().find(|a| a.net.prefix_len() == 32);
    let mac = ours.mac.with_context(|| format!("{} has no MAC", ours.name))?;
    let wanted = device::Wanted {
        vni,
        port: ours.vxlan.as_ref().map(|vxlan| vxlan.port).unwrap_or_default(),
        mac,
        mtu: ours.mtu,
        local: uplink.address,
        lower: uplink.index,
        address: address.map(|address| address.net.addr()),
    };
    let theirs = device::make(netlink, &wanted)?;
    netlink.set_down(ours.index)?;
    netlink.set_up(theirs.index)?;
    let mut done = vec![format!(
        "made {} on {} with the MAC {mac}{}",
        theirs.name,
        uplink.name,
        address.map(|address| format!(" and the address {}", address.net.addr())).unwrap_or_default()
    )];
    let mut programmed = 0;
    let through_it = known.iter().filter(|(_, node)| node.flags & Node::DIRECT == 0);
    for (subnet, node) in through_it {
        match peers::program(netlink, theirs.index, *subnet, *node) {
            Ok(()) => programmed += 1,
            Err(error) => done.push(format!("NOT taken over: the peer with {subnet}: {error}")),
        }
    }
    if programmed != 0 {
        done.push(format!("programmed {programmed} peers there, as flanneld does"));
    }
    Ok(done)
}

/// Routes to pods stay, as Calico's plugin would have made them, and those to peers without a tunnel, as flanneld would have.
/// Pods that our plugin made have been told their gateway's MAC by our programs; the kernel does it from now on.
fn hand_routes_over(netlink: &mut Netlink) -> anyhow::Result<Vec<String>> {
    let mut done = Vec::new();
    for route in netlink.routes()?.iter().filter(|r| r.protocol == overlay::ROUTE_PROTOCOL) {
        let to_pod = route.dst.prefix_len() == 32 && route.gateway.is_none() && !route.unreachable;
        if to_pod {
            let Some(link) = route.oif.map(|oif| netlink.link(oif)).transpose()?.flatten() else { continue };
            for (setting, value) in [("conf/{}/proxy_arp", "1"), ("neigh/{}/proxy_delay", "0")] {
                sysctl::set_if_present(&format!("net/ipv4/{}", setting.replace("{}", &link.name)), value)?;
            }
        }
        if to_pod || route.gateway.is_some() {
            netlink.replace_route(&Route { protocol: protocol::BOOT, ..route.clone() })?;
            done.push(format!("left the {route}"));
        }
    }
    Ok(done)
}
