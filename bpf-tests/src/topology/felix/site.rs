//! The node that rules and sets are written for.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// What differs from node to node.
#[derive(Debug, Clone)]
pub(super) struct Site {
    /// The host's end of the pod's veth pair.
    pub(super) interface: String,
    /// flannel's network, and the node's part of it.
    pub(super) network: Ipv4Net,
    pub(super) subnet: Ipv4Net,
    /// The node's own addresses.
    pub(super) own: Vec<Ipv4Addr>,
    /// The measured pods of all nodes.
    pub(super) pods: Vec<Ipv4Addr>,
}
