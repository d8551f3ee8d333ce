//! Who an address is: a pod of this node, something behind another node, or the rest of the world.

use aya_ebpf::btf_maps::lpm_trie::Key;
use canal_common::{
    Ip4, Mac,
    endpoint::{BorrowedSource, Endpoint},
    flow::Leg,
    host::is_for_many,
    node::Node,
    settings::Settings,
};

use crate::{
    BARE,
    maps::{ENDPOINTS, GENERATIONS, LOCAL_IPS, NODES, ROUTES, SPOOFABLE, setting},
    packet::FROM_HOST,
};

const NO_MAC: Mac = Mac::new([0; 6]);

#[inline(always)]
pub const fn other(kind: u8) -> Leg {
    Leg { generation: 0, endpoint: 0, target: 0, mac: NO_MAC, kind, flags: 0 }
}

/// A pod of this node.
///
/// The generation is read before the policy is: if policy changes in between, the flow carries the old generation
/// and is judged again, never the other way round.
#[inline(always)]
pub fn pod(addr: Ip4) -> Option<Leg> {
    // SAFETY: values are plain data; the reference is not kept across an update.
    let endpoint = unsafe { ENDPOINTS.get(addr) }?;
    let generation = if BARE { 0 } else { GENERATIONS.get(endpoint.id)?.generation };
    Some(Leg {
        generation,
        endpoint: endpoint.id,
        target: endpoint.ifindex,
        mac: endpoint.pod_mac,
        kind: Leg::POD,
        flags: if endpoint.flags & Endpoint::SHAPED != 0 { Leg::SHAPED } else { 0 },
    })
}

/// The pod of this interface that may send from `addr`, which is not its own.
#[inline(always)]
pub fn borrower(addr: Ip4, ifindex: u32) -> Option<Leg> {
    match borrower_address(addr.to_wire(), ifindex) {
        0 => None,
        own => pod(Ip4::from_wire(own)),
    }
}

/// 0: nobody may. Not inlined: the key would count against the stack of the whole hook.
#[inline(never)]
fn borrower_address(addr: u32, ifindex: u32) -> u32 {
    let source = BorrowedSource { ifindex, addr: Ip4::from_wire(addr) };
    SPOOFABLE.get(&Key::new(BorrowedSource::INTERFACE_BITS + 32, source)).map_or(0, |own| own.addr.to_wire())
}

/// Something in another node's subnet.
#[inline(always)]
pub fn remote(addr: Ip4) -> Option<Leg> {
    let target = ROUTES.get(&Key::new(32, addr))?.node;
    Some(Leg { target, ..other(Leg::NODE) })
}

/// Where `addr` is reached from here.
#[inline(always)]
pub fn anyone(addr: Ip4) -> Leg {
    pod(addr).or_else(|| remote(addr)).unwrap_or(other(Leg::STACK))
}

/// Whether what a pod sends to `addr` ends at this node.
#[inline(always)]
pub fn is_this_node(addr: Ip4) -> bool {
    // SAFETY: only its presence counts.
    is_for_many(addr) || unsafe { LOCAL_IPS.get(addr) }.is_some()
}

/// Whether what the leg remembers still holds.
#[inline(always)]
pub fn is_current(leg: &Leg) -> bool {
    match leg.kind {
        Leg::POD => GENERATIONS.get(leg.endpoint).is_some_and(|g| g.generation == leg.generation),
        Leg::NODE => node(leg.target).is_some(),
        _ => true,
    }
}

/// A node that still holds its lease.
#[inline(always)]
pub fn node(index: u32) -> Option<&'static Node> {
    NODES.get(index).filter(|n| n.flags & Node::ALIVE != 0)
}

/// A node that holds its lease and is reached without an envelope.
#[inline(always)]
pub fn direct_node(index: u32) -> Option<&'static Node> {
    if setting!(flags) & Settings::DIRECT_NODES == 0 { None } else { node(index).filter(|n| is_direct(n)) }
}

/// The same of a node that is known already.
#[inline(always)]
pub fn is_direct(node: &Node) -> bool {
    setting!(flags) & Settings::DIRECT_NODES != 0 && node.flags & Node::DIRECT != 0
}

/// Whether a packet from `addr` that the host stack forwards can be this leg's, given the interface that it came in by:
/// somebody on the underlay may write any source address. What the host itself sends is the host's business.
#[inline(always)]
pub fn may_come_by(from: &Leg, addr: Ip4, ifindex: u32) -> bool {
    match from.kind {
        _ if ifindex == FROM_HOST => true,
        Leg::POD => from.target == ifindex,
        Leg::NODE => {
            ifindex == setting!(overlay_ifindex)
                || (ifindex == setting!(uplink_ifindex) && direct_node(from.target).is_some())
        }
        Leg::HOST => false,
        // An address of the pod network that nobody holds may be a container's of this node, never the underlay's.
        _ => ifindex != setting!(uplink_ifindex) || !is_in_network(addr),
    }
}

#[inline(always)]
pub fn is_in_network(addr: Ip4) -> bool {
    let addr = addr.to_bits();
    setting!(pods_first) <= addr && addr <= setting!(pods_last)
}
