//! The node itself: `LOCAL_IPS`.

use crate::{Ip4, abi};

/// `LOCAL_IPS`: an address of this node ([`crate::Ip4`] →). Read for new flows only, and only with
/// [`crate::settings::Settings::DROP_TO_HOST`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LocalIp {
    /// None yet.
    pub flags: u32,
}

/// Size of `LOCAL_IPS`: a node may hold an address for each service (kube-proxy's IPVS).
pub const MAX_LOCAL_IPS: u32 = 65_536;

/// Whether what a pod sends there ends at its node, whoever else gets it: multicast, and the limited broadcast.
#[inline(always)]
pub const fn is_for_many(addr: Ip4) -> bool {
    addr.octets[0] >= 224
}

abi!(LocalIp = 4 align 4);
