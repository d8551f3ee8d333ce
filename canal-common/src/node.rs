//! Other nodes of the overlay: `ROUTES`, `NODE_IPS` and `NODES`.

use crate::{Ip4, Mac, abi};

/// Value of `ROUTES` ([`crate::addr::Prefix`] of a pod subnet →) and of `NODE_IPS` (outer source address →).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct NodeRef {
    /// Index into `NODES`.
    pub node: u32,
}

/// `NODES`: index → one lease. Written once before anything points at it; a changed lease gets a new index and
/// the old one loses [`Node::ALIVE`], so a packet never sees half of each.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Node {
    /// Outer destination.
    pub ip: Ip4,
    /// Inner destination MAC that the receiving VXLAN device insists on; zeros where there is none (host-gw).
    pub vtep_mac: Mac,
    /// Largest inner packet, in bytes.
    pub mtu: u16,
    pub flags: u32,
}

impl Node {
    pub const ALIVE: u32 = 1;
    /// The uplink's own link leads there without a gateway: no route needs to be looked up per packet.
    pub const ON_LINK: u32 = 2;
    /// Its pods' packets go there, and come from there, as they are: no envelope (host-gw, `DirectRouting`).
    pub const DIRECT: u32 = 4;
}

/// Size of `NODES`; index 0 is never a node.
pub const MAX_NODES: u32 = 16384;

abi!(NodeRef = 4 align 4, Node = 16 align 4);
