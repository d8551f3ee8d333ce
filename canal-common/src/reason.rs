//! THE list of hooks and of what can happen to a packet there. Counters, events, the command line and the
//! documents are made from it.

use crate::{abi, list::list};

list! {
    /// Where a program sits.
    Hook:
    FromPod = 0 "from_pod" "the pod sent it",
    ToPod = 1 "to_pod" "the host stack delivers it to the pod",
    FromWire = 2 "from_wire" "it came in VXLAN on the uplink",
    ToOverlay = 3 "to_overlay" "the host stack sends it to another node's pods",
    FromOverlay = 4 "from_overlay" "the kernel's VXLAN device took it out of its envelope",
}

list! {
    /// What happened: below 16 the packet went on, from 16 up it was dropped.
    Reason:
    Delivered = 0 "delivered" "handed to a pod of this node",
    Encapsulated = 1 "encapsulated" "sent to another node inside VXLAN",
    ToStack = 2 "to-stack" "left to the host's network stack",
    ArpAnswered = 3 "arp-answered" "answered the pod's ARP request",
    Fallback = 4 "fallback" "handed to the kernel's VXLAN device",
    NoPod = 5 "no-pod" "to an address of the pod network that no pod of Canal's has: left to the host's network stack, which says so",
    Routed = 6 "routed" "sent to another node as it is",

    PolicyIngress = 16 "policy-ingress" "denied by policy at the receiving pod",
    PolicyEgress = 17 "policy-egress" "denied by policy at the sending pod",
    FlowDenied = 18 "flow-denied" "belongs to a connection that policy has cut",
    SpoofedIp = 19 "spoofed-ip" "the pod used an address that is not its own",
    SpoofedMac = 20 "spoofed-mac" "the pod used a MAC address that is not its own",
    PodTunnel = 21 "pod-tunnel" "a pod may not send VXLAN or IP in IP",
    NotIpv4 = 22 "not-ipv4" "neither IPv4 nor ARP",
    Malformed = 23 "malformed" "the headers contradict themselves",
    UnknownEndpoint = 24 "unknown-endpoint" "no pod of this node is programmed for this address and interface",
    UnknownNode = 25 "unknown-node" "VXLAN from an address that holds no lease",
    WrongSource = 26 "wrong-source" "VXLAN whose inner source is not in the sender's subnet",
    NoRoute = 27 "no-route" "no node holds a lease for the destination",
    FragUnknown = 28 "frag-unknown" "a fragment whose first part was not seen",
    EncapFailed = 29 "encap-failed" "the kernel refused to make or remove the VXLAN header",
    IcmpUnrelated = 30 "icmp-unrelated" "an ICMP error that belongs to no known connection",
    WrongVtep = 31 "wrong-vtep" "VXLAN addressed to another device's MAC",
    ToHost = 32 "to-host" "pods may not begin anything with this node itself",
    EcnUnaware = 33 "ecn-unaware" "the envelope was marked for congestion, and the sender inside knows no such marks",
}

impl Reason {
    pub const fn is_drop(self) -> bool {
        self as u8 >= 16
    }
}

/// Reasons per hook in `COUNTERS`: the index is `hook * REASONS + reason`.
pub const REASONS: u32 = 64;
/// Size of `COUNTERS`.
pub const COUNTERS: u32 = REASONS * 8;

/// `COUNTERS`: one CPU's share.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counter {
    pub packets: u64,
    pub bytes: u64,
}

abi!(Counter = 16 align 8);

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_has_its_own_slug_and_counter() {
        let slugs: HashSet<_> = Reason::ALL.iter().map(|r| r.slug()).collect();
        assert_eq!(slugs.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            assert!(u32::from(*reason as u8) < REASONS);
            assert_eq!(Reason::from_index(*reason as u8), Some(*reason));
        }
        for hook in Hook::ALL {
            assert!(u32::from(*hook as u8) * REASONS + REASONS <= COUNTERS);
        }
    }
}
