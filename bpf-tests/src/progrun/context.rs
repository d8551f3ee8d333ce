//! What BPF_PROG_RUN lets a test say about the packet besides its bytes.
//!
//! The kernel accepts `mark`, `priority`, `ingress_ifindex`, `ifindex` (a device of the caller's network namespace, or
//! 0 for its loopback), `cb`, `tstamp`, `wire_len`, `gso_segs`, `gso_size` and `hwtstamp`; everything else must be
//! zero (6.18, `convert___skb_to_skb`). So a test can set neither a tunnel key, which `from_overlay` needs, nor the
//! type of an aggregate, which encapsulating one needs: both are left to the tests with namespaces. It refuses frames
//! that are shorter than the IP header that their ethertype promises.

/// The fields that tests set.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context {
    /// Interface whose hook the program sits on.
    pub ifindex: u32,
    /// Interface that the packet came in by; 0 when this host made it.
    pub ingress_ifindex: u32,
    /// Payload of each segment; 0 for a single packet.
    pub gso_size: u32,
}

impl Context {
    pub fn on(ifindex: u32) -> Self {
        Self { ifindex, ..Self::default() }
    }

    #[must_use]
    pub fn came_by(self, ingress_ifindex: u32) -> Self {
        Self { ingress_ifindex, ..self }
    }

    #[must_use]
    pub fn segments_of(self, gso_size: u32) -> Self {
        Self { gso_size, ..self }
    }

    /// As `struct __sk_buff` lies in memory (uapi/linux/bpf.h).
    pub(super) fn bytes(self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        let mut put =
            |offset: usize, value: u32| bytes[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        put(INGRESS_IFINDEX, self.ingress_ifindex);
        put(IFINDEX, self.ifindex);
        put(GSO_SIZE, self.gso_size);
        put(GSO_SEGS, u32::from(self.gso_size > 0) * 2);
        bytes
    }
}

const INGRESS_IFINDEX: usize = 36;
const IFINDEX: usize = 40;
const GSO_SEGS: usize = 164;
const GSO_SIZE: usize = 176;
const SIZE: usize = 192;
