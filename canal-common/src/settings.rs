//! `SETTINGS`: constants of this node, read-only in the kernel; a change means loading the programs again.

use crate::{Ip4, Mac, abi, flow::FlowLimits};

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Settings {
    /// Our VXLAN address: outer source, and the only outer destination we accept.
    pub node_ip: Ip4,
    /// Our VTEP MAC, as published in our lease.
    pub vtep_mac: Mac,
    /// UDP destination port of VXLAN; 0 where there is none.
    pub vxlan_port: u16,
    pub vni: u32,
    /// Where envelopes leave.
    pub uplink_ifindex: u32,
    /// `canal.<VNI>`: the only way in for remote pods' packets that come through the stack.
    pub overlay_ifindex: u32,
    /// What only nodes bring, and nobody else on the underlay: addresses of pods, from the first to the last, as numbers.
    /// Nothing (the first above the last) where nodes do not carry each other's packets (`alloc`).
    pub pods_first: u32,
    pub pods_last: u32,
    pub limits: FlowLimits,
    /// What one CPU tells about one decision in a tick of 2^30 ns, see [`crate::event::Event`].
    pub events_per_tick: u32,
    /// The constants of [`Settings`].
    pub flags: u32,
    /// Felix's `VXLANPort`: what pods send there is VXLAN as well.
    pub calico_vxlan_port: u16,
    pub _pad: [u8; 2],
}

impl Settings {
    /// A change of policy alone does not end a live, answered flow (Calico's behaviour).
    pub const KEEP_ESTABLISHED: u32 = 1;
    /// Pods may send VXLAN; but on our own port to other pods only. What leaves the pod network may get this node's
    /// address on the way, and other nodes would take it for ours.
    pub const ALLOW_POD_VXLAN: u32 = 1 << 1;
    /// Pods may send IP in IP.
    pub const ALLOW_POD_IPIP: u32 = 1 << 2;
    /// What pods begin with an address of this node is dropped after their egress policy has allowed it
    /// (`DefaultEndpointToHostAction: Drop`). Judged by the address that the pod uses: unlike in Calico, a port of the node
    /// that the host translates to another pod is among them.
    pub const DROP_TO_HOST: u32 = 1 << 3;
    /// Some nodes may be [`crate::node::Node::DIRECT`]: plain packets on the uplink are looked at as well.
    pub const DIRECT_NODES: u32 = 1 << 4;
    /// Envelopes carry a UDP checksum, which the kernel's device computes.
    pub const OUTER_CHECKSUM: u32 = 1 << 5;
    /// The host's stack puts fragments together before it looks at them: it may have those whose first part is still to
    /// come, on any way.
    pub const DEFRAGMENTS: u32 = 1 << 6;
    /// `xdp_wire` is on the uplink.
    pub const XDP: u32 = 1 << 7;

    /// The default of `calico_vxlan_port`.
    pub const CALICO_VXLAN_PORT: u16 = 4789;
}

abi!(Settings = 76 align 4);
