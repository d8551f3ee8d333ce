//! `SETTINGS`: constants of this node, read-only in the kernel; a change means loading the programs again.

use crate::{Ip4, Mac, abi};

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Settings {
    /// Our VXLAN address: outer source, and the only outer destination we accept.
    pub node_ip: Ip4,
    /// Our VTEP MAC, as published in our lease.
    pub vtep_mac: Mac,
    /// UDP destination port of VXLAN.
    pub vxlan_port: u16,
    pub vni: u32,
    /// Where envelopes leave.
    pub uplink_ifindex: u32,
    /// `canal.<VNI>`: the only way in for remote pods' packets that come through the stack.
    pub overlay_ifindex: u32,
    /// The whole pod network, and its mask.
    pub network: Ip4,
    pub netmask: Ip4,
}

abi!(Settings = 32 align 4);
