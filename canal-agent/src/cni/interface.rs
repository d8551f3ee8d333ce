//! The pod's interface: a veth pair, its pod end complete, its host end left down for the agent.
//!
//! Owns: the pair's names and the mark by which a later call knows its own pair: the host end's alias,
//! `canal <container> <interface>`. Promises: never to touch a pair with another mark.

use std::{net::Ipv4Addr, os::fd::AsFd};

use canal_common::Mac;
use ipnet::Ipv4Net;

use super::{
    error::{CniError, Code},
    request::Attachment,
};
use crate::netlink::{self, Link, Netlink, Netns, NewVeth, Route, set_gro};

/// What pods use as their gateway. No interface has it: the kernel program on the host end answers ARP for it.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// Every host end has this MAC, as with Calico.
pub const HOST_MAC: Mac = Mac::new([0xee; 6]);
/// Host ends are called this and something of the container.
pub const HOST_PREFIX: &str = "cali";
/// What fits behind the prefix.
const SUFFIX_MAX: usize = 11;
/// How many names to try.
const NAMES: u8 = 8;
/// The kernel's limit for an alias.
const ALIAS_MAX: usize = 255;

const DEFAULT: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);

/// Refuses a namespace that is the caller's own, and an interface name that is taken. Touches nothing.
pub(super) fn check(pod: &Netns, attachment: &Attachment) -> Result<(), CniError> {
    let own = Netns::current().map_err(|e| CniError::kernel(&e))?;
    if own.is(pod) {
        let msg = format!("CNI_NETNS={} is the host's network namespace", pod.path().display());
        return Err(CniError::new(
            Code::InvalidEnvironment,
            msg,
            "a pod needs one of its own; pods with the host's network are not attached",
        ));
    }
    let mut inside = Netlink::open_in(pod).map_err(|e| CniError::kernel(&e))?;
    match inside.link_by_name(&attachment.interface).map_err(|e| CniError::kernel(&e))? {
        None => Ok(()),
        Some(_) => Err(CniError::new(
            Code::InterfaceExists,
            format!("the container has an interface {} already", attachment.interface),
            "DEL the earlier attachment first, or choose another CNI_IFNAME",
        )),
    }
}

/// Makes the pair and marks it. Both ends are down.
pub(super) fn make(
    host: &mut Netlink,
    pod: &Netns,
    attachment: &Attachment,
    mtu: u32,
) -> Result<String, netlink::Error> {
    let mark = mark(attachment);
    let mut last = None;
    for name in names(attachment) {
        if let Some(taken) = host.link_by_name(&name)? {
            if taken.alias.as_deref() != Some(mark.as_str()) {
                continue;
            }
            // Ours, of an earlier life of this container: its pod end is not in this namespace.
            host.delete_link(&taken)?;
        }
        let veth = NewVeth {
            host_name: &name,
            host_mac: Some(HOST_MAC),
            peer_name: &attachment.interface,
            peer_mac: None,
            peer_netns: pod.as_fd(),
            mtu,
        };
        match host.add_veth(&veth) {
            Ok(()) => {
                host.set_alias(name.as_str(), &mark).inspect_err(|_| {
                    host.delete_link(name.as_str()).ok();
                })?;
                return Ok(name);
            }
            // Someone took the name in this very moment.
            Err(e) if e.is_present() => last = Some(e),
            Err(e) => return Err(e),
        }
    }
    Err(last.unwrap_or_else(|| netlink::Error::Invalid {
        operation: "make",
        object: format!("the host's end for container {}", attachment.container_id),
        why: "every name for it belongs to another container",
    }))
}

/// Gives the pod's end its address and routes, and brings it up.
pub(super) fn configure(pod: &Netns, attachment: &Attachment, ip: Ipv4Addr) -> Result<Mac, netlink::Error> {
    let name = attachment.interface.as_str();
    let absent = || netlink::Error::Invalid {
        operation: "configure",
        object: format!("interface {name} in {}", pod.path().display()),
        why: "it is gone, or has no MAC",
    };
    let mut inside = Netlink::open_in(pod)?;
    // Without GRO a veth end has no NAPI, and XDP cannot redirect into it.
    pod.run(|| set_gro(name, true))??;
    inside.add_address(name, Ipv4Net::from(ip))?;
    inside.set_up(name)?;
    let link = inside.link_by_name(name)?.ok_or_else(absent)?;
    inside.replace_route(&Route::link(Ipv4Net::from(GATEWAY), link.index))?;
    inside.replace_route(&Route::via(DEFAULT, GATEWAY, link.index))?;
    link.mac.ok_or_else(absent)
}

/// Deletes every pair of this attachment; tells how many there were.
pub(super) fn delete(
    host: &mut Netlink,
    pod: Option<&Netns>,
    attachment: &Attachment,
) -> Result<usize, netlink::Error> {
    let mark = mark(attachment);
    let links = host.links()?;
    let inside = pod.and_then(|pod| inside(pod, attachment));
    let ours = links.iter().filter(|link| {
        link.alias.as_deref() == Some(mark.as_str())
            || inside.as_ref().is_some_and(|inside| is_unmarked_peer(link, inside))
    });
    let mut deleted = 0;
    for link in ours {
        deleted += usize::from(host.delete_link(link)?);
    }
    Ok(deleted)
}

/// The interface in the pod, if the namespace is a pod's and still there.
fn inside(pod: &Netns, attachment: &Attachment) -> Option<Link> {
    if Netns::current().is_ok_and(|own| own.is(pod)) {
        return None;
    }
    Netlink::open_in(pod).ok()?.link_by_name(&attachment.interface).ok()?
}

/// A host end whose plugin was killed before it could mark it, or that Calico's plugin made for this pod: the two
/// ends name each other.
fn is_unmarked_peer(host: &Link, inside: &Link) -> bool {
    host.alias.is_none()
        && host.name.starts_with(HOST_PREFIX)
        && host.kind == "veth"
        && inside.kind == "veth"
        && host.peer_ifindex == Some(inside.index)
        && inside.peer_ifindex == Some(host.index)
        && host.peer_netnsid.is_some()
}

/// By what a host end is known as this attachment's.
pub(super) fn mark(attachment: &Attachment) -> String {
    let mark = format!("canal {} {}", attachment.container_id, attachment.interface);
    if mark.len() <= ALIAS_MAX {
        return mark;
    }
    format!("canal {:016x} {}", hash(&[attachment.container_id.as_bytes()]), attachment.interface)
}

/// Names for the host end, in the order in which they are tried: Calico's first.
pub(super) fn names(attachment: &Attachment) -> impl Iterator<Item = String> {
    let id = &attachment.container_id;
    // Identifiers are ASCII, so this cuts no character.
    let calico = format!("{HOST_PREFIX}{}", id.get(..SUFFIX_MAX).unwrap_or(id));
    let others = (1..NAMES).map(|number| {
        let digest = hash(&[id.as_bytes(), attachment.interface.as_bytes(), &[number]]);
        format!("{HOST_PREFIX}{:011x}", digest & 0xfff_ffff_ffff)
    });
    std::iter::once(calico).chain(others)
}

/// FNV-1a: stable over versions and machines.
fn hash(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.iter().copied().chain([0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
