//! Local endpoints: `ENDPOINTS`, `SPOOFABLE`, `POLICY` and `GENERATIONS`.

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
    /// [`Endpoint::SHAPED`].
    pub flags: u32,
}

impl Endpoint {
    /// Somebody's queueing discipline is on the pod's interface: its packets go through the host's stack, where they meet it.
    pub const SHAPED: u32 = 1;
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

/// `SPOOFABLE`: a source address besides its own that a pod may use on its interface (a longest-prefix table,
/// [`BorrowedSource::INTERFACE_BITS`] and those of the prefix; →) [`Borrower`].
///
/// Calico's `allowSpoofedSourcePrefixes` while `WorkloadSourceSpoofing` is `Any`. The table is read only where a source would
/// be refused otherwise. Such a packet is judged by the egress policy of the pod that sends it, and by the receivers'
/// for its source address. Its answers are the sender's if they come through this node. Other nodes take it for
/// nobody's: they accept sources of this node's subnet only.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct BorrowedSource {
    /// Host side of the pod's veth.
    pub ifindex: u32,
    pub addr: Ip4,
}

impl BorrowedSource {
    /// The interface is always compared as a whole.
    pub const INTERFACE_BITS: u32 = 32;
}

/// Value of `SPOOFABLE`: the pod's own address, key of `ENDPOINTS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Borrower {
    pub addr: Ip4,
}

/// Size of `SPOOFABLE`.
pub const MAX_SPOOFABLE: u32 = 4096;

abi!(BorrowedSource = 8 align 4, Borrower = 4 align 4);
abi!(Endpoint = 24 align 4, EndpointPolicy = 12 align 4, Generation = 4 align 4);
