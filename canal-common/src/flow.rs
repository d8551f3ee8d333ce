//! Connection tracking: `FLOWS`, `FLOWS_NEW` and `FRAGS`.

use crate::{Ip4, Mac, abi};

/// Direction-neutral: the numerically lower (address, port) is `lo`, so both directions meet in one entry. But who asks
/// is part of an ICMP query: the other side's queries are flows of their own, as are those of other types.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct FlowKey {
    pub lo: Ip4,
    pub hi: Ip4,
    /// For ICMP queries both ports are the identifier.
    pub lo_port: u16,
    pub hi_port: u16,
    pub proto: u8,
    /// For ICMP: the type of the query; else 0.
    pub query: u8,
    /// For ICMP: 1 if the side called `hi` asks; else 0.
    pub asked_by_hi: u8,
    pub _pad: u8,
}

/// What is known about one side of a flow; valid as long as its generation stands.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Leg {
    /// For a pod: the generation under which this leg was judged.
    pub generation: u32,
    /// For a pod: its endpoint id; else 0.
    pub endpoint: u32,
    /// For a pod: host-side ifindex. For a remote pod: node index.
    pub target: u32,
    /// For a pod: its MAC.
    pub mac: Mac,
    /// One of [`Leg::POD`], [`Leg::NODE`], [`Leg::STACK`], [`Leg::HOST`].
    pub kind: u8,
    /// [`Leg::SHAPED`].
    pub flags: u8,
}

impl Leg {
    /// A pod of this node.
    pub const POD: u8 = 1;
    /// A pod (or the host) behind another node's lease.
    pub const NODE: u8 = 2;
    /// Reached through the host stack: the world, or a peer that the stack translates.
    pub const STACK: u8 = 3;
    /// This node itself, which is never policed.
    pub const HOST: u8 = 4;

    /// For a pod: [`crate::endpoint::Endpoint::SHAPED`].
    pub const SHAPED: u8 = 1;

    #[must_use]
    #[inline(always)]
    pub const fn is_shaped(&self) -> bool {
        self.flags & Self::SHAPED != 0
    }
}

/// One flow.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Flow {
    /// When a packet was last seen, in ticks of 2^30 ns since boot (about 1.07 s).
    pub last_seen: u32,
    /// One of [`Flow::NEW`], [`Flow::ESTABLISHED`], [`Flow::CLOSING`], [`Flow::DENIED`].
    pub state: u8,
    /// [`Flow::HI_INITIATED`], [`Flow::VIA_STACK`], [`Flow::HALF_OPEN`], [`Flow::SHAPED`].
    pub flags: u8,
    /// TCP FINs seen: bit 0 from `lo`, bit 1 from `hi`.
    pub fins: u8,
    pub _pad: u8,
    pub lo: Leg,
    pub hi: Leg,
}

impl Flow {
    /// Only the initiator has spoken; for TCP and SCTP, or it has not taken up the answer to its request yet.
    pub const NEW: u8 = 1;
    pub const ESTABLISHED: u8 = 2;
    /// A reset, or a FIN from either side.
    pub const CLOSING: u8 = 3;
    /// Was live and is denied now; kept so that nothing in mid-stream brings it back.
    pub const DENIED: u8 = 4;

    /// The side called `hi` sent the first packet.
    pub const HI_INITIATED: u8 = 1;
    /// Made by a packet that the host stack forwards (and may translate): replies must go through the stack.
    pub const VIA_STACK: u8 = 2;
    /// The request of a TCP connection or SCTP association has been answered, which proves nothing of who sent it.
    pub const HALF_OPEN: u8 = 4;
    /// An end is shaped. Both directions go through the stack: it may track connections, and drop what it saw half of.
    pub const SHAPED: u8 = 8;
    /// All of its packets are the stack's to forward.
    pub const BY_STACK: u8 = Self::VIA_STACK | Self::SHAPED;

    /// With the legs that it has.
    #[must_use]
    #[inline(always)]
    pub const fn with_shape(self) -> Self {
        let shaped = if self.lo.is_shaped() || self.hi.is_shaped() { Self::SHAPED } else { 0 };
        Self { flags: self.flags & !Self::SHAPED | shaped, ..self }
    }
}

/// `FRAGS`: which datagram a fragment belongs to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct FragKey {
    pub src: Ip4,
    pub dst: Ip4,
    pub id: u16,
    pub proto: u8,
    pub _pad: u8,
}

/// What the first fragment says of its flow.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FragPorts {
    pub src_port: u16,
    pub dst_port: u16,
    /// For ICMP: the type of the query; else 0.
    pub query: u8,
    /// For ICMP: 1 if this is the answer; else 0.
    pub is_answer: u8,
    /// 1: a later part came first and was left to the stack, where all the others must go. Nothing else is known then.
    pub is_scattered: u8,
    pub _pad: u8,
    /// Ticks of 2^30 ns, as [`Flow::last_seen`].
    pub seen: u32,
}

/// How long a flow may be idle, in ticks of 2^30 ns. The same kinds as Calico's conntrack timeouts, and SCTP's.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FlowLimits {
    pub tcp_established: u32,
    /// Unanswered.
    pub tcp_new: u32,
    /// After a reset, or a FIN from either side.
    pub closing: u32,
    pub udp: u32,
    pub icmp: u32,
    pub sctp_established: u32,
    /// Unanswered.
    pub sctp_new: u32,
    /// Every other protocol.
    pub other: u32,
}

impl FlowLimits {
    /// Calico's values. It has none for SCTP: its value for other protocols is twenty heartbeats of an association that
    /// has nothing to say (RFC 9260 §8.3), and an INIT is repeated like a SYN.
    pub const DEFAULT: Self = Self {
        tcp_established: ticks(3600),
        tcp_new: ticks(20),
        closing: ticks(30),
        udp: ticks(60),
        icmp: ticks(5),
        sctp_established: ticks(600),
        sctp_new: ticks(20),
        other: ticks(600),
    };

    /// For a denied flow, longer than any client goes on trying: an hour of idling and TCP's two of keep-alive.
    pub const DENIED: u32 = ticks(3 * 3600);
}

/// The ticks of 2^30 ns that so many seconds take at least.
pub const fn ticks(seconds: u32) -> u32 {
    // 2^32 seconds are fewer ticks than seconds.
    #[expect(clippy::cast_possible_truncation, reason = "a tick is longer than a second")]
    let ticks = (seconds as u64 * 1_000_000_000).div_ceil(1 << 30) as u32;
    ticks
}

/// How long the ports of a fragmented datagram are kept (the kernel's reassembly limit is 30 s).
pub const FRAG_LIMIT: u32 = ticks(30);

abi!(
    FlowKey = 16 align 4,
    Leg = 20 align 4,
    Flow = 48 align 4,
    FlowLimits = 32 align 4,
    FragKey = 12 align 4,
    FragPorts = 12 align 4,
);

/// The direction-neutral key of a packet, and whether its sender is the side called `hi`.
#[inline(always)]
pub const fn flow_key(src: Ip4, dst: Ip4, src_port: u16, dst_port: u16, proto: u8) -> (FlowKey, bool) {
    let from_hi = src.to_wire() > dst.to_wire() || (src.to_wire() == dst.to_wire() && src_port > dst_port);
    let (lo, hi, lo_port, hi_port) =
        if from_hi { (dst, src, dst_port, src_port) } else { (src, dst, src_port, dst_port) };
    (FlowKey { lo, hi, lo_port, hi_port, proto, query: 0, asked_by_hi: 0, _pad: 0 }, from_hi)
}

impl FlowKey {
    /// The key of an ICMP query or its answer, from the key of the addresses and the identifier.
    #[must_use]
    #[inline(always)]
    pub const fn asking(self, query: u8, is_answer: bool, from_hi: bool) -> Self {
        Self { query, asked_by_hi: (from_hi != is_answer) as u8, ..self }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_limit_in_ticks_is_the_first_one_not_below_the_seconds() {
        for (seconds, expected) in [(0, 0), (1, 1), (5, 5), (60, 56), (3600, 3353), (u32::MAX, 4_000_000_000)]
        {
            assert_eq!(ticks(seconds), expected, "{seconds} s");
        }
    }

    proptest! {
        #[test]
        fn both_directions_of_a_flow_share_one_key(a: [u8; 4], b: [u8; 4], p: u16, q: u16, proto: u8) {
            let (a, b) = (Ip4::new(a), Ip4::new(b));
            let (out, out_hi) = flow_key(a, b, p, q, proto);
            let (back, back_hi) = flow_key(b, a, q, p, proto);
            prop_assert_eq!(out, back);
            prop_assert!(out_hi != back_hi || (a, p) == (b, q));
        }

        #[test]
        fn a_query_and_its_answer_share_a_key_that_the_other_sides_query_has_not(a: [u8; 4], b: [u8; 4], id: u16, query: u8) {
            prop_assume!(a != b);
            let (a, b) = (Ip4::new(a), Ip4::new(b));
            let (out, out_hi) = flow_key(a, b, id, id, 1);
            let (back, back_hi) = flow_key(b, a, id, id, 1);
            let asked = out.asking(query, false, out_hi);
            prop_assert_eq!(asked, back.asking(query, true, back_hi));
            prop_assert!(asked != back.asking(query, false, back_hi));
        }
    }
}
