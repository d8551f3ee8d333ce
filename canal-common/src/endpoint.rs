//! Local endpoints: `ENDPOINTS`, `POLICY` and `GENERATIONS`.

use crate::{Ip4, Mac, abi};

/// `ENDPOINTS`: pod address ([`Ip4`]) → what is needed to accept its packets and to deliver to it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Endpoint {
    /// Host side of the pod's veth.
    pub ifindex: u32,
    /// Index into `GENERATIONS`, key of `POLICY`; 0 is never an endpoint.
    pub id: u32,
    pub pod_mac: Mac,
    pub host_mac: Mac,
    pub _reserved: u32,
}

/// `POLICY`: endpoint id → its policy sets. Replaced as one element, so a packet sees one policy, never a mix.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct EndpointPolicy {
    /// Set for traffic towards the pod; 0 denies.
    pub ingress_set: u32,
    /// Set for traffic from the pod; 0 denies.
    pub egress_set: u32,
    /// [`EndpointPolicy::USES_NETS`].
    pub flags: u32,
}

impl EndpointPolicy {
    /// Some rule of either set names a CIDR: addresses that `PEERS` does not hold are looked up in `NETS`.
    pub const USES_NETS: u32 = 1;
}

/// Endpoint ids are below this: the size of `GENERATIONS`.
pub const MAX_ENDPOINTS: u32 = 4096;

/// Key type of `ENDPOINTS`, `PEERS` and `NODE_IPS`.
pub type AddressKey = Ip4;

/// `GENERATIONS`: bumped after `POLICY` changed; a flow judged under another generation is judged again.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Generation {
    pub generation: u32,
}

abi!(Endpoint = 24 align 4, EndpointPolicy = 12 align 4, Generation = 4 align 4);
