//! The pod's interface: a veth pair, its pod end complete, its host end left down for the agent.
//!
//! Promises: never to touch a pair that is marked as somebody else's ([`mark`]).

use std::{net::Ipv4Addr, os::fd::AsFd, path::Path};

use canal_common::Mac;
use ipnet::Ipv4Net;

use super::{
    call::note,
    error::{CniError, Code},
    request::Attachment,
};
use crate::{
    api::wire::AttachmentId,
    endpoint::mark,
    netlink::{self, Link, Netlink, Netns, NewVeth, Route, set_gro, sysctl},
};

/// What pods use as their gateway. No interface has it: the kernel program on the host end answers ARP for it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Every host end has this MAC, as with Calico.
pub const HOST_MAC: Mac = Mac::new([0xee; 6]);

const FORWARDING: &str = "net/ipv4/ip_forward";

/// How the pod's end is to be.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plan {
    pub(super) mtu: u32,
    /// `None`: the kernel's choice.
    pub(super) mac: Option<Mac>,
    pub(super) address: Ipv4Addr,
    /// Destinations; all go by [`GATEWAY`].
    pub(super) routes: Vec<Ipv4Net>,
    pub(super) ip_forwarding: bool,
}

/// What has the name that the pod's interface is to have.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Found {
    Nothing,
    /// This attachment's own interface, of an earlier call, and its end on the host.
    Ours(Box<(Link, Link)>),
    /// The end of a pair whose other end, on this host, has a name as ours have and nobody's mark.
    Unmarked,
    Foreign,
}

/// The pod's namespace; refuses the caller's own.
pub(super) fn open(attachment: &Attachment) -> Result<Netns, CniError> {
    let path = attachment.netns.as_deref().unwrap_or(Path::new(""));
    let pod = Netns::open(path).map_err(|e| {
        let msg = format!("there is no network namespace CNI_NETNS={}", path.display());
        CniError::new(Code::UnknownContainer, msg, e.to_string())
    })?;
    if Netns::current().map_err(|e| CniError::kernel(&e))?.is(&pod) {
        let msg = format!("CNI_NETNS={} is the host's network namespace", path.display());
        return Err(CniError::new(
            Code::InvalidEnvironment,
            msg,
            "a pod needs one of its own; pods with the host's network are not attached",
        ));
    }
    Ok(pod)
}

/// Looks into the pod, and touches nothing.
pub(super) fn look(pod: &Netns, id: &AttachmentId, prefix: &str) -> Result<Found, netlink::Error> {
    let Some(inside) = Netlink::open_in(pod)?.link_by_name(&id.interface)? else { return Ok(Found::Nothing) };
    let hosts = Netlink::open()?.links()?;
    Ok(match hosts.into_iter().find(|host| are_ends(host, &inside)) {
        Some(host) if mark::is_of(host.alias.as_deref(), id) => Found::Ours(Box::new((inside, host))),
        Some(host) if host.alias.is_none() && host.name.starts_with(prefix) => Found::Unmarked,
        _ => Found::Foreign,
    })
}

/// The routes that the pod's interface can have beside what is there: those that another interface has stay with it. A
/// second one by our gateway is refused, for answers would leave by the wrong one.
pub(super) fn room(
    pod: &Netns,
    id: &AttachmentId,
    mut wanted: Vec<Ipv4Net>,
) -> Result<Vec<Ipv4Net>, CniError> {
    let kernel = |e| CniError::kernel(&e);
    let mut inside = Netlink::open_in(pod).map_err(kernel)?;
    let own = inside.link_by_name(&id.interface).map_err(kernel)?.map(|link| link.index);
    let others: Vec<Route> =
        inside.routes().map_err(kernel)?.into_iter().filter(|route| route.oif != own).collect();
    if others.iter().any(|route| route.dst == Ipv4Net::from(GATEWAY)) {
        return Err(CniError::new(
            Code::SecondNetwork,
            "the container has an interface of such a network already",
            "a pod has one: its answers would leave by the wrong one; use another plugin for the second network",
        ));
    }
    wanted.retain(|dst| {
        let is_free = !others.iter().any(|route| route.dst == *dst);
        if !is_free {
            note(&format!("the container has a route to {dst} already, which stays"));
        }
        is_free
    });
    Ok(wanted)
}

/// The first of the names that is no other attachment's.
pub(super) fn choose_name(
    host: &mut Netlink,
    names: &[String],
    id: &AttachmentId,
) -> Result<String, netlink::Error> {
    for name in names {
        match host.link_by_name(name)? {
            Some(taken) if !mark::is_of(taken.alias.as_deref(), id) => {}
            _ => return Ok(name.clone()),
        }
    }
    Err(netlink::Error::Invalid {
        operation: "make",
        object: format!("the host's end for container {}", id.container_id),
        why: "every name for it belongs to another container",
    })
}

/// Makes the pair and marks it. Both ends are down. False: someone took the name in this very moment.
pub(super) fn make(
    host: &mut Netlink,
    pod: &Netns,
    names: (&str, &str),
    plan: &Plan,
    mark: &str,
) -> Result<bool, netlink::Error> {
    let (host_name, peer_name) = names;
    let veth = NewVeth {
        host_name,
        host_mac: Some(HOST_MAC),
        peer_name,
        peer_mac: plan.mac,
        peer_netns: pod.as_fd(),
        mtu: plan.mtu,
    };
    match host.add_veth(&veth) {
        Ok(()) => host
            .set_alias(host_name, mark)
            .inspect_err(|_| {
                host.delete_link(host_name).ok();
            })
            .map(|()| true),
        Err(e) if e.is_present() && host.link_by_name(host_name)?.is_some() => Ok(false),
        Err(e) => Err(e),
    }
}

/// Gives the pod's end its address and routes, and brings it up.
pub(super) fn configure(pod: &Netns, name: &str, plan: &Plan) -> Result<Mac, netlink::Error> {
    let absent = || netlink::Error::Invalid {
        operation: "configure",
        object: format!("interface {name} in {}", pod.path().display()),
        why: "it is gone, or has no MAC",
    };
    let mut inside = Netlink::open_in(pod)?;
    pod.run(|| {
        // A namespace begins as its maker's was, and a pod is no router unless it asks for it.
        sysctl::set(FORWARDING, if plan.ip_forwarding { "1" } else { "0" })?;
        // Without GRO a veth end has no NAPI, and XDP cannot redirect into it.
        set_gro(name, true)
    })??;
    inside.add_address(name, Ipv4Net::from(plan.address))?;
    inside.set_up(name)?;
    let link = inside.link_by_name(name)?.ok_or_else(absent)?;
    inside.replace_route(&Route::link(Ipv4Net::from(GATEWAY), link.index))?;
    for destination in &plan.routes {
        inside.replace_route(&Route::via(*destination, GATEWAY, link.index))?;
    }
    link.mac.ok_or_else(absent)
}

/// Deletes every pair that bears the attachment's mark; tells how many there were.
pub(super) fn delete_marked(host: &mut Netlink, id: &AttachmentId) -> Result<usize, netlink::Error> {
    delete(host, None, id, |_| false)
}

/// Deletes every pair of this attachment; tells how many there were. An unmarked one, whose plugin was killed before it
/// could mark it or was Calico's, is known by its end in the pod, and goes if `is_ours` says so.
pub(super) fn delete(
    host: &mut Netlink,
    pod: Option<&Netns>,
    id: &AttachmentId,
    is_ours: impl Fn(&Link) -> bool,
) -> Result<usize, netlink::Error> {
    let links = host.links()?;
    let inside = pod.and_then(|pod| inside(pod, id));
    let ours = links.iter().filter(|link| {
        let is_unmarked_end =
            || link.alias.is_none() && inside.as_ref().is_some_and(|inside| are_ends(link, inside));
        mark::is_of(link.alias.as_deref(), id) || (is_unmarked_end() && is_ours(link))
    });
    let mut deleted = 0;
    for link in ours {
        deleted += usize::from(host.delete_link(link)?);
    }
    Ok(deleted)
}

/// Deletes the pod's end, whoever made it, and with it the other.
pub(super) fn delete_inside(pod: &Netns, id: &AttachmentId) -> Result<(), netlink::Error> {
    match inside(pod, id) {
        Some(link) => Netlink::open_in(pod)?.delete_link(&link).map(drop),
        None => Ok(()),
    }
}

/// The addresses of the pod's interface, as far as it is there.
pub(super) fn addresses(pod: &Netns, id: &AttachmentId) -> Vec<Ipv4Addr> {
    let Some(link) = inside(pod, id) else { return Vec::new() };
    let read = Netlink::open_in(pod).and_then(|mut inside| inside.addresses(Some(link.index)));
    read.unwrap_or_default().iter().map(|address| address.net.addr()).collect()
}

/// The interface in the pod, if the namespace is a pod's and still there.
fn inside(pod: &Netns, id: &AttachmentId) -> Option<Link> {
    if Netns::current().is_ok_and(|own| own.is(pod)) {
        return None;
    }
    Netlink::open_in(pod).ok()?.link_by_name(&id.interface).ok()?
}

/// The two ends of one pair name each other.
pub(super) fn are_ends(host: &Link, inside: &Link) -> bool {
    host.kind == "veth"
        && inside.kind == "veth"
        && host.peer_ifindex == Some(inside.index)
        && inside.peer_ifindex == Some(host.index)
        && host.peer_netnsid.is_some()
}
