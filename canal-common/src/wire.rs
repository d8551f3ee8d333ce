//! Pure packet arithmetic, tested on the host: header sizes, checksums, the VXLAN envelope.

use crate::{Ip4, Mac};

pub const ETH_LEN: usize = 14;
pub const IPV4_LEN: usize = 20;
pub const UDP_LEN: usize = 8;
pub const VXLAN_LEN: usize = 8;
/// What VXLAN over IPv4 adds to an inner IP packet: outer IPv4, UDP, VXLAN, inner Ethernet (RFC 7348).
pub const ENVELOPE_LEN: usize = IPV4_LEN + UDP_LEN + VXLAN_LEN + ETH_LEN;

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;

pub const PROTO_ICMP: u8 = 1;
/// IP in IP (RFC 2003).
pub const PROTO_IPIP: u8 = 4;
pub const PROTO_TCP: u8 = 6;
pub const PROTO_UDP: u8 = 17;
pub const PROTO_SCTP: u8 = 132;
/// RFC 3828: ports as UDP has them; policy does not look at them.
pub const PROTO_UDPLITE: u8 = 136;

/// First byte of a VXLAN header with a valid VNI; all reserved bits are zero.
pub const VXLAN_FLAGS: u8 = 0x08;

/// Source ports of the envelope: the kernel's default ephemeral range, which its own VXLAN device uses.
pub const SRC_PORT_MIN: u16 = 32768;
pub const SRC_PORT_MAX: u16 = 60999;

/// Source port by flow hash, so that the receiver's queues and the fabric's paths spread flows (RFC 7348 §5).
#[inline(always)]
pub const fn src_port(hash: u32) -> u16 {
    let mixed = hash ^ (hash << 16);
    let span = (SRC_PORT_MAX - SRC_PORT_MIN) as u64;
    // The product's upper half is below `span`, which fits.
    #[expect(clippy::cast_possible_truncation, reason = "below span, a u16")]
    let offset = ((mixed as u64 * span) >> 32) as u16;
    offset + SRC_PORT_MIN
}

/// Ones' complement sum folded into the checksum of a header.
#[inline(always)]
pub const fn fold(mut sum: u32) -> u16 {
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    #[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits")]
    let sum = sum as u16;
    !sum
}

/// Checksum of an IPv4 header after its TTL went down by one (RFC 1141): the sum grows by 0x0100.
#[inline(always)]
pub const fn checksum_after_ttl_decrement(checksum_be: u16) -> u16 {
    let sum = u16::from_be(checksum_be) as u32 + 0x0100;
    #[expect(clippy::cast_possible_truncation, reason = "the carry is folded in")]
    let folded = (sum + (sum >> 16)) as u16;
    folded.to_be()
}

/// Everything between the outer Ethernet header and the inner IP header, as it lies in the packet. In words, so
/// that the kernel side writes it with a few wide stores.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Envelope {
    /// Outer IPv4 (5), UDP (2), VXLAN (2), inner Ethernet addresses (3).
    pub words: [u32; 12],
    /// Inner ethertype.
    pub ethertype: u16,
}

/// What varies between envelopes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EnvelopeSpec {
    pub outer_src: Ip4,
    pub outer_dst: Ip4,
    pub inner_src_mac: Mac,
    pub inner_dst_mac: Mac,
    pub vni: u32,
    pub src_port: u16,
    pub dst_port: u16,
    /// Identification of the outer packet.
    pub id: u16,
    /// Length of the inner IP packet, in bytes.
    pub inner_len: u16,
    /// Outer ECN bits, see [`outer_ecn`].
    pub ecn: u8,
}

/// Congestion experienced, as a router marked it (RFC 3168 §5).
pub const ECN_CE: u8 = 3;
const ECN_ECT_1: u8 = 1;
const ECN_ECT_0: u8 = 2;

/// Outer ECN bits for an inner TOS byte: the same (RFC 6040 §4.1, normal mode).
#[inline(always)]
pub const fn outer_ecn(inner_tos: u8) -> u8 {
    inner_tos & 3
}

/// The inner TOS byte once the envelope with `outer_tos` is off; `None`: to be dropped, for the sender has not said that it
/// would understand the mark (RFC 6040 §4.2).
#[inline(always)]
pub const fn merged_tos(inner_tos: u8, outer_tos: u8) -> Option<u8> {
    match (inner_tos & 3, outer_tos & 3) {
        (0, ECN_CE) => None,
        (0, _) => Some(inner_tos),
        (_, ECN_CE) => Some(inner_tos | ECN_CE),
        (ECN_ECT_0, ECN_ECT_1) => Some(inner_tos ^ 3),
        _ => Some(inner_tos),
    }
}

/// Checksum of an IPv4 header after its TOS byte became another (RFC 1624).
#[inline(always)]
pub const fn checksum_after_tos(checksum_be: u16, before: u8, after: u8) -> u16 {
    let sum = !u16::from_be(checksum_be) as u32 & 0xffff;
    fold(sum + (!(before as u32) & 0xffff) + after as u32).to_be()
}

impl Envelope {
    #[inline(always)]
    pub const fn new(spec: &EnvelopeSpec) -> Self {
        let total = spec.inner_len as u32 + ENVELOPE_BYTES;
        let (src, dst) = (spec.outer_src.to_bits(), spec.outer_dst.to_bits());
        // No options; DF clear, so that a narrow underlay may fragment; TTL 64.
        let version_tos_length = 0x4500_0000 | (spec.ecn as u32) << 16 | total;
        let id = (spec.id as u32) << 16;
        let ttl_proto = 64 << 24 | (PROTO_UDP as u32) << 16;
        let sum = halves(version_tos_length) + halves(id) + halves(ttl_proto) + halves(src) + halves(dst);
        let [m0, m1, m2, m3, m4, m5] = spec.inner_dst_mac.octets;
        let [n0, n1, n2, n3, n4, n5] = spec.inner_src_mac.octets;
        Self {
            words: [
                version_tos_length.to_be(),
                id.to_be(),
                (ttl_proto | fold(sum) as u32).to_be(),
                spec.outer_src.to_wire(),
                spec.outer_dst.to_wire(),
                ((spec.src_port as u32) << 16 | spec.dst_port as u32).to_be(),
                // The UDP checksum stays zero (RFC 7348 §5: SHOULD be, over IPv4).
                ((total - IPV4_BYTES) << 16).to_be(),
                ((VXLAN_FLAGS as u32) << 24).to_be(),
                (spec.vni << 8).to_be(),
                u32::from_ne_bytes([m0, m1, m2, m3]),
                u32::from_ne_bytes([m4, m5, n0, n1]),
                u32::from_ne_bytes([n2, n3, n4, n5]),
            ],
            ethertype: ETHERTYPE_IPV4.to_be(),
        }
    }
}

const ENVELOPE_BYTES: u32 = 50;
const IPV4_BYTES: u32 = 20;
const _: () = assert!(ENVELOPE_BYTES as usize == ENVELOPE_LEN && IPV4_BYTES as usize == IPV4_LEN);

#[inline(always)]
const fn halves(word: u32) -> u32 {
    (word >> 16) + (word & 0xffff)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(envelope: &Envelope) -> Vec<u8> {
        let mut bytes: Vec<u8> = envelope.words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        bytes.extend(envelope.ethertype.to_ne_bytes());
        assert_eq!(bytes.len(), ENVELOPE_LEN);
        bytes
    }

    fn sum_of(header: &[u8]) -> u16 {
        fold(header.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum())
    }

    proptest! {
        #[test]
        fn the_outer_header_checksum_is_right(src: [u8; 4], dst: [u8; 4], id: u16, inner_len in 20u16..65000, ecn in 0u8..4) {
            let envelope = Envelope::new(&EnvelopeSpec {
                outer_src: Ip4::new(src), outer_dst: Ip4::new(dst),
                inner_src_mac: Mac::new([2; 6]), inner_dst_mac: Mac::new([4; 6]),
                vni: 1, src_port: 40000, dst_port: 8472, id, inner_len, ecn,
            });
            prop_assert_eq!(sum_of(&bytes(&envelope)[..IPV4_LEN]), 0);
        }

        #[test]
        fn a_checksum_stays_right_when_the_ttl_goes_down(mut header: [u8; 20]) {
            header[0] = 0x45;
            header[8] = header[8].max(1);
            header[10..12].fill(0);
            let sum = sum_of(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            let stored = u16::from_ne_bytes([header[10], header[11]]);
            header[8] -= 1;
            header[10..12].copy_from_slice(&checksum_after_ttl_decrement(stored).to_ne_bytes());
            // 0xffff and 0x0000 are both zero in ones' complement.
            prop_assert!(matches!(sum_of(&header), 0 | 0xffff));
        }

        #[test]
        fn a_checksum_stays_right_when_the_traffic_class_changes(mut header: [u8; 20], after: u8) {
            header[10..12].fill(0);
            let sum = sum_of(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            let stored = u16::from_ne_bytes([header[10], header[11]]);
            let before = std::mem::replace(&mut header[1], after);
            header[10..12].copy_from_slice(&checksum_after_tos(stored, before, after).to_ne_bytes());
            prop_assert!(matches!(sum_of(&header), 0 | 0xffff));
        }

        #[test]
        fn source_ports_stay_in_the_ephemeral_range(hash: u32) {
            prop_assert!((SRC_PORT_MIN..=SRC_PORT_MAX).contains(&src_port(hash)));
        }
    }

    #[test]
    fn congestion_marks_are_merged_as_rfc_6040_says() {
        // Rows: inner Not-ECT, ECT(1), ECT(0), CE; columns the same of the outer header.
        let merged = [
            [Some(0), Some(0), Some(0), None],
            [Some(1), Some(1), Some(1), Some(3)],
            [Some(2), Some(1), Some(2), Some(3)],
            [Some(3), Some(3), Some(3), Some(3)],
        ];
        for (inner, row) in (0u8..).zip(merged) {
            for (outer, want) in (0u8..).zip(row) {
                let class = 0xb8;
                assert_eq!(
                    merged_tos(class | inner, outer | 0x40),
                    want.map(|ecn: u8| class | ecn),
                    "{inner} in {outer}"
                );
            }
            assert_eq!(outer_ecn(0xfc | inner), inner);
        }
    }

    #[test]
    fn the_envelope_is_what_a_linux_vxlan_device_sends() {
        let envelope = Envelope::new(&EnvelopeSpec {
            outer_src: Ip4::new([192, 168, 50, 1]),
            outer_dst: Ip4::new([192, 168, 50, 2]),
            inner_src_mac: Mac::new([0x82, 0xd2, 0x48, 0x77, 0xea, 0xcf]),
            inner_dst_mac: Mac::new([0xb6, 0x5a, 0xac, 0x9f, 0x0c, 0xc3]),
            vni: 1,
            src_port: 40000,
            dst_port: 8472,
            id: 0,
            inner_len: 84,
            ecn: 0,
        });
        let bytes = bytes(&envelope);
        assert_eq!(&bytes[..4], &[0x45, 0, 0, 134]);
        assert_eq!(&bytes[20..36], &[0x9c, 0x40, 0x21, 0x18, 0, 114, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(
            &bytes[36..50],
            &[0xb6, 0x5a, 0xac, 0x9f, 0x0c, 0xc3, 0x82, 0xd2, 0x48, 0x77, 0xea, 0xcf, 8, 0]
        );
    }
}
