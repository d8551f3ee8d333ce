//! Bounded access to the packet: the only pointer casts, and the parser.
//!
//! Pointers into the packet die with any helper that may move its data; nothing here hands one out.

use aya_ebpf::programs::TcContext;
use canal_common::{
    Ip4, Mac,
    flow::{FragKey, FragPorts},
    policy,
    reason::Reason,
    wire::{self, ETH_LEN, IPV4_LEN, PROTO_ICMP, PROTO_SCTP, PROTO_TCP, PROTO_UDP},
};

/// Where the IP header starts: behind the Ethernet header.
pub const OUTER: usize = ETH_LEN;
/// Where the inner IP header of a VXLAN packet starts.
pub const INNER: usize = ETH_LEN + wire::ENVELOPE_LEN;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct EthHeader {
    pub dst: Mac,
    pub src: Mac,
    /// Network order.
    pub ethertype: u16,
}

/// All multi-byte fields in network order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv4Header {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_len: u16,
    pub id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub proto: u8,
    pub checksum: u16,
    pub src: u32,
    pub dst: u32,
}

const _: () = assert!(size_of::<EthHeader>() == ETH_LEN && size_of::<Ipv4Header>() == IPV4_LEN);

/// More fragments follow.
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

/// A pointer to `T` at `offset`, if that many bytes are there in one piece.
#[inline(always)]
fn at<T>(ctx: &TcContext, offset: usize) -> Option<*mut T> {
    let start = ctx.data();
    if start + offset + size_of::<T>() > ctx.data_end() {
        return None;
    }
    Some((start + offset) as *mut T)
}

#[inline(always)]
pub fn read<T: Copy>(ctx: &TcContext, offset: usize) -> Option<T> {
    // SAFETY: `at` checked the bounds; headers have no invalid bit patterns. x86 and arm64 allow the unaligned read.
    at::<T>(ctx, offset).map(|p| unsafe { *p })
}

#[inline(always)]
pub fn write<T: Copy>(ctx: &TcContext, offset: usize, value: T) -> Option<()> {
    // SAFETY: as in `read`.
    at::<T>(ctx, offset).map(|p| unsafe { *p = value })
}

/// Makes the first `len` bytes readable in one piece, when the packet has them.
#[inline(always)]
pub fn make_linear(ctx: &TcContext, len: usize) {
    if ctx.data() + len > ctx.data_end() && ctx.len() as usize >= len {
        // A failure shows as a failed read.
        let _ = ctx.pull_data(len as u32);
    }
}

#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: the context outlives the program.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// What [`ingress_ifindex`] says of packets that this host made.
pub const FROM_HOST: u32 = 0;

/// Whether the packet carries an 802.1Q tag, which the kernel keeps beside it.
#[inline(always)]
pub fn is_tagged(ctx: &TcContext) -> bool {
    // SAFETY: as above.
    unsafe { (*ctx.skb.skb).vlan_present != 0 }
}

/// Interface the packet came in by, or [`FROM_HOST`].
#[inline(always)]
pub fn ingress_ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { (*ctx.skb.skb).ingress_ifindex }
}

/// Payload bytes per segment of an aggregate; 0 for a single packet.
#[inline(always)]
pub fn gso_size(ctx: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { (*ctx.skb.skb).gso_size }
}

/// A parsed IPv4 packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Packet {
    pub src: Ip4,
    pub dst: Ip4,
    /// Host order. For ICMP queries both ports are the identifier.
    pub src_port: u16,
    pub dst_port: u16,
    pub proto: u8,
    pub tcp_flags: u8,
    /// ICMP type and code, as [`policy::icmp_port`].
    pub icmp: u16,
    pub tos: u8,
    pub ttl: u8,
    /// IP header and transport header, in bytes.
    pub headers: u16,
    /// Length of the IP packet (of the whole aggregate), in bytes.
    pub total_len: u16,
    pub ip_id: u16,
    pub part: Part,
}

#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// Has the transport header; others follow.
    FirstFragment,
    /// Has no transport header: the ports are unknown until `FRAGS` tells.
    LaterFragment,
}

impl Packet {
    /// What rows are searched by, given the responder's port.
    #[inline(always)]
    pub fn policy_key(&self, port: u16) -> u32 {
        let port = match self.proto {
            PROTO_ICMP => self.icmp,
            PROTO_TCP | PROTO_UDP | PROTO_SCTP => port,
            _ => 0,
        };
        policy::key(self.proto, port)
    }

    /// A connection request: always judged anew.
    #[inline(always)]
    pub fn opens_tcp(&self) -> bool {
        self.proto == PROTO_TCP && self.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    #[inline(always)]
    pub fn is_icmp_error(&self) -> bool {
        // Unreachable, source quench, redirect, time exceeded, parameter problem (RFC 792).
        self.proto == PROTO_ICMP
            && self.part != Part::LaterFragment
            && matches!(self.icmp >> 8, 3 | 4 | 5 | 11 | 12)
    }

    #[inline(always)]
    pub fn frag_key(&self) -> FragKey {
        FragKey { src: self.src, dst: self.dst, id: self.ip_id, proto: self.proto, _pad: 0 }
    }

    #[inline(always)]
    pub fn set_ports(&mut self, ports: FragPorts) {
        self.src_port = ports.src_port;
        self.dst_port = ports.dst_port;
    }
}

/// Parses the IPv4 header at `offset` and what policy needs of the transport header.
#[inline(always)]
pub fn parse(ctx: &TcContext, offset: usize) -> Result<Packet, Reason> {
    let ip: Ipv4Header = read(ctx, offset).ok_or(Reason::Malformed)?;
    let header_len = usize::from(ip.version_ihl & 0x0f) * 4;
    let total_len = u16::from_be(ip.total_len);
    if ip.version_ihl >> 4 != 4
        || header_len < IPV4_LEN
        || usize::from(total_len) < header_len
        || usize::from(total_len) + offset > ctx.len() as usize
    {
        return Err(Reason::Malformed);
    }
    let fragment = u16::from_be(ip.fragment);
    let mut packet = Packet {
        src: Ip4::from_wire(ip.src),
        dst: Ip4::from_wire(ip.dst),
        src_port: 0,
        dst_port: 0,
        proto: ip.proto,
        tcp_flags: 0,
        icmp: 0,
        tos: ip.tos,
        ttl: ip.ttl,
        headers: header_len as u16,
        total_len,
        ip_id: ip.id,
        part: Part::Whole,
    };
    if fragment & FRAGMENT_OFFSET != 0 {
        packet.part = Part::LaterFragment;
        return Ok(packet);
    }
    if fragment & MORE_FRAGMENTS != 0 {
        packet.part = Part::FirstFragment;
    }
    // What lies behind the packet's own end is not what the receiver will read.
    if usize::from(total_len) < header_len + transport_len(ip.proto) {
        return Err(Reason::Malformed);
    }
    // A constant offset for the common header: the verifier and the branch predictor like it.
    if header_len == IPV4_LEN {
        parse_transport(&mut packet, &Linear { ctx, offset: offset + IPV4_LEN })?;
    } else {
        parse_transport(&mut packet, &Copied { ctx, offset: offset + header_len })?;
    }
    Ok(packet)
}

/// The least that a transport header, or its part in a first fragment, must have for us to read it.
#[inline(always)]
const fn transport_len(proto: u8) -> usize {
    match proto {
        PROTO_TCP => 20,
        PROTO_UDP | PROTO_SCTP | PROTO_ICMP => 8,
        _ => 0,
    }
}

/// Reads the transport header, wherever it is.
trait Transport {
    fn word(&self, at: usize) -> Option<[u8; 4]>;
}

struct Linear<'a> {
    ctx: &'a TcContext,
    offset: usize,
}

impl Transport for Linear<'_> {
    #[inline(always)]
    fn word(&self, at: usize) -> Option<[u8; 4]> {
        read::<u32>(self.ctx, self.offset + at).map(u32::to_ne_bytes)
    }
}

/// For headers at a variable offset.
struct Copied<'a> {
    ctx: &'a TcContext,
    offset: usize,
}

impl Transport for Copied<'_> {
    #[inline(always)]
    fn word(&self, at: usize) -> Option<[u8; 4]> {
        self.ctx.load::<u32>(self.offset + at).ok().map(u32::to_ne_bytes)
    }
}

#[inline(always)]
fn parse_transport(packet: &mut Packet, transport: &impl Transport) -> Result<(), Reason> {
    match packet.proto {
        PROTO_TCP | PROTO_UDP | PROTO_SCTP => {
            let [s1, s0, d1, d0] = transport.word(0).ok_or(Reason::Malformed)?;
            packet.src_port = u16::from_be_bytes([s1, s0]);
            packet.dst_port = u16::from_be_bytes([d1, d0]);
            if packet.proto == PROTO_TCP {
                let [data_offset, flags, ..] = transport.word(12).ok_or(Reason::Malformed)?;
                packet.tcp_flags = flags;
                packet.headers += u16::from(data_offset >> 4) * 4;
            } else {
                packet.headers += wire::UDP_LEN as u16;
            }
        }
        PROTO_ICMP => {
            let [icmp_type, code, ..] = transport.word(0).ok_or(Reason::Malformed)?;
            packet.icmp = policy::icmp_port(icmp_type, code);
            // Echo, timestamp, information and mask queries carry an identifier (RFC 792, RFC 950).
            if matches!(icmp_type, 0 | 8 | 13..=18) {
                let [i1, i0, ..] = transport.word(4).ok_or(Reason::Malformed)?;
                packet.src_port = u16::from_be_bytes([i1, i0]);
                packet.dst_port = packet.src_port;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Addresses and ports, for [`embedded`] and [`peek`].
#[derive(Clone, Copy, Default)]
pub struct Flow4 {
    pub src: Ip4,
    pub dst: Ip4,
    pub src_port: u16,
    pub dst_port: u16,
    pub proto: u8,
}

/// The packet that an ICMP error is about: its IP header and the first eight bytes behind it (RFC 792).
#[inline(always)]
pub fn embedded(ctx: &TcContext, offset: usize) -> Option<Flow4> {
    let outer: Ipv4Header = ctx.load(offset).ok()?;
    let start = offset + usize::from(outer.version_ihl & 0x0f) * 4 + 8;
    let ip: Ipv4Header = ctx.load(start).ok()?;
    let transport: [u8; 8] = ctx.load(start + usize::from(ip.version_ihl & 0x0f) * 4).ok()?;
    let [s1, s0, d1, d0, i1, i0, ..] = transport;
    let (src_port, dst_port) = if ip.proto == PROTO_ICMP {
        let id = u16::from_be_bytes([i1, i0]);
        (id, id)
    } else {
        (u16::from_be_bytes([s1, s0]), u16::from_be_bytes([d1, d0]))
    };
    Some(Flow4 {
        src: Ip4::from_wire(ip.src),
        dst: Ip4::from_wire(ip.dst),
        src_port,
        dst_port,
        proto: ip.proto,
    })
}

/// Best effort, for events about packets that may not even parse.
#[inline(always)]
pub fn peek(ctx: &TcContext, offset: usize) -> Flow4 {
    let Ok(ip) = ctx.load::<Ipv4Header>(offset) else { return Flow4::default() };
    let [s1, s0, d1, d0] = ctx.load(offset + IPV4_LEN).unwrap_or([0; 4]);
    Flow4 {
        src: Ip4::from_wire(ip.src),
        dst: Ip4::from_wire(ip.dst),
        src_port: u16::from_be_bytes([s1, s0]),
        dst_port: u16::from_be_bytes([d1, d0]),
        proto: ip.proto,
    }
}

/// Rewrites the Ethernet addresses and takes one hop off the TTL of the IPv4 header behind them.
#[inline(always)]
pub fn readdress(ctx: &TcContext, dst: Mac, src: Mac) -> Option<()> {
    write(ctx, 0, EthHeader { dst, src, ethertype: wire::ETHERTYPE_IPV4.to_be() })?;
    decrement_ttl(ctx)
}

/// RFC 1812 §5.3.1: whoever forwards takes at least one off.
#[inline(always)]
pub fn decrement_ttl(ctx: &TcContext) -> Option<()> {
    let ip = at::<Ipv4Header>(ctx, OUTER)?;
    // SAFETY: `at` checked the bounds.
    unsafe {
        (*ip).ttl -= 1;
        (*ip).checksum = wire::checksum_after_ttl_decrement((*ip).checksum);
    }
    Some(())
}
