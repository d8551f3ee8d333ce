//! Bounded access to the packet: the only pointer casts, and the parser.
//!
//! Pointers into the packet die with any helper that may move its data; nothing here hands one out.

use aya_ebpf::{
    bindings::__sk_buff,
    programs::{TcContext, XdpContext},
};
use canal_common::{
    Ip4, Mac,
    flow::{FlowKey, FragKey, FragPorts, flow_key},
    icmp::{self, Query},
    policy,
    reason::Reason,
    wire::{self, ETH_LEN, IPV4_LEN, PROTO_ICMP, PROTO_SCTP, PROTO_TCP, PROTO_UDP, PROTO_UDPLITE},
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

/// With all the options that fit.
const MAX_IPV4_LEN: usize = 60;

/// More fragments follow.
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

/// What is in one piece at the beginning of a packet, as a hook sees it.
pub trait Frame {
    fn start(&self) -> usize;
    fn end(&self) -> usize;
}

impl Frame for TcContext {
    #[inline(always)]
    fn start(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }
}

impl Frame for XdpContext {
    #[inline(always)]
    fn start(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }
}

/// A pointer to `T` at `offset`, if that many bytes are there in one piece.
#[inline(always)]
fn at<T>(ctx: &impl Frame, offset: usize) -> Option<*mut T> {
    let start = ctx.start();
    if start + offset + size_of::<T>() > ctx.end() {
        return None;
    }
    Some((start + offset) as *mut T)
}

#[inline(always)]
pub fn read<T: Copy>(ctx: &impl Frame, offset: usize) -> Option<T> {
    // SAFETY: `at` checked the bounds; headers have no invalid bit patterns. x86 and arm64 allow the unaligned read.
    at::<T>(ctx, offset).map(|p| unsafe { *p })
}

#[inline(always)]
pub fn write<T: Copy>(ctx: &impl Frame, offset: usize, value: T) -> Option<()> {
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

/// What the kernel takes it for, whatever its first bytes say.
#[inline(always)]
pub fn is_arp(ctx: &TcContext) -> bool {
    // SAFETY: as above.
    unsafe { (*ctx.skb.skb).protocol == u32::from(wire::ETHERTYPE_ARP.to_be()) }
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
    /// Of an ICMP query or its answer: [`Query::kind`], else 0.
    pub query: u8,
    pub is_answer: bool,
    /// A connection request: always judged anew.
    pub opens: bool,
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
    /// A first one that must go where later ones went before it: to the stack.
    Scattered,
}

impl Packet {
    /// The key of its flow, and whether its sender is the side called `hi`.
    #[inline(always)]
    pub fn flow_key(&self) -> (FlowKey, bool) {
        let (key, from_hi) = flow_key(self.src, self.dst, self.src_port, self.dst_port, self.proto);
        if self.query == 0 {
            (key, from_hi)
        } else {
            (key.asking(self.query, self.is_answer, from_hi), from_hi)
        }
    }

    /// What rows are searched by when the sender began the flow, or the receiver did.
    #[inline(always)]
    pub fn policy_key(&self, by_sender: bool) -> u32 {
        let port = match self.proto {
            PROTO_ICMP if by_sender => self.icmp,
            PROTO_ICMP => policy::icmp_port(self.query, 0),
            PROTO_TCP | PROTO_UDP | PROTO_SCTP if by_sender => self.dst_port,
            PROTO_TCP | PROTO_UDP | PROTO_SCTP => self.src_port,
            _ => 0,
        };
        policy::key(self.proto, port)
    }

    /// Whether a flow begins with it. Of ICMP only queries do: an answer that nobody asked for, a query of an unknown
    /// kind or code, an announcement are judged one by one, for nothing that comes back belongs to them.
    #[inline(always)]
    pub fn may_begin_flow(&self) -> bool {
        self.proto != PROTO_ICMP || (self.query != 0 && !self.is_answer)
    }

    #[inline(always)]
    pub fn is_icmp_error(&self) -> bool {
        self.proto == PROTO_ICMP && self.part != Part::LaterFragment && icmp::is_error((self.icmp >> 8) as u8)
    }

    #[inline(always)]
    pub fn frag_key(&self) -> FragKey {
        FragKey { src: self.src, dst: self.dst, id: self.ip_id, proto: self.proto, _pad: 0 }
    }

    /// What a later fragment is told by the first.
    #[inline(always)]
    pub fn settle(&mut self, first: FragPorts) {
        (self.src_port, self.dst_port) = (first.src_port, first.dst_port);
        (self.query, self.is_answer) = (first.query, first.is_answer != 0);
    }

    #[inline(always)]
    fn settle_transport(&mut self, found: &Transport) {
        (self.src_port, self.dst_port, self.headers) = (found.src_port, found.dst_port, found.headers);
        (self.icmp, self.query, self.is_answer) = (found.icmp, found.query, found.is_answer);
        (self.opens, self.tcp_flags) = (found.opens, found.tcp_flags);
    }
}

/// Parses the IPv4 header at `offset` and what policy needs of the transport header.
#[inline(always)]
pub fn parse(ctx: &TcContext, offset: usize) -> Result<Packet, Reason> {
    let mut packet = parse_ip(ctx, offset, ctx.len() as usize)?;
    let header_len = usize::from(packet.headers);
    if packet.part == Part::LaterFragment {
        return Ok(packet);
    }
    // What lies behind the packet's own end is not what the receiver will read.
    if usize::from(packet.total_len) < header_len + transport_len(packet.proto) {
        return Err(Reason::Malformed);
    }
    if header_len == IPV4_LEN && matches!(packet.proto, PROTO_TCP | PROTO_UDP) {
        parse_plain_transport(ctx, offset + IPV4_LEN, &mut packet).ok_or(Reason::Malformed)?;
        return Ok(packet);
    }
    // Another variable: what a function is given the address of stays in memory, and the packet's fields shall not.
    let mut other = Transport { headers: packet.headers, ..Transport::default() };
    if parse_other(ctx.skb.skb, (offset + header_len) as u32, packet.proto.into(), &raw mut other) != 0 {
        return Err(Reason::Malformed);
    }
    packet.settle_transport(&other);
    Ok(packet)
}

/// The same for the packets that there are most of: TCP and UDP in one part, without IP options. `len`: of the frame, in bytes.
#[inline(always)]
pub fn parse_plain(ctx: &impl Frame, offset: usize, len: usize) -> Option<Packet> {
    let mut packet = parse_ip(ctx, offset, len).ok()?;
    if usize::from(packet.headers) != IPV4_LEN
        || packet.part != Part::Whole
        || !matches!(packet.proto, PROTO_TCP | PROTO_UDP)
        || usize::from(packet.total_len) < IPV4_LEN + transport_len(packet.proto)
    {
        return None;
    }
    parse_plain_transport(ctx, offset + IPV4_LEN, &mut packet)?;
    Some(packet)
}

/// Ports, and TCP's flags, at `start`: a constant, which the verifier and the branch predictor like.
#[inline(always)]
fn parse_plain_transport(ctx: &impl Frame, start: usize, packet: &mut Packet) -> Option<()> {
    let mut transport = Transport { headers: packet.headers, ..Transport::default() };
    transport.set_ports(read(ctx, start)?);
    if packet.proto == PROTO_TCP {
        transport.set_tcp(read(ctx, start + TCP_FLAGS)?);
    } else {
        transport.headers += wire::UDP_LEN as u16;
    }
    packet.settle_transport(&transport);
    Some(())
}

/// The IPv4 header alone; `headers` is its length. `len`: of the frame, in bytes.
#[inline(always)]
fn parse_ip(ctx: &impl Frame, offset: usize, len: usize) -> Result<Packet, Reason> {
    let ip: Ipv4Header = read(ctx, offset).ok_or(Reason::Malformed)?;
    let header_len = usize::from(ip.version_ihl & 0x0f) * 4;
    let total_len = u16::from_be(ip.total_len);
    if ip.version_ihl >> 4 != 4
        || header_len < IPV4_LEN
        || usize::from(total_len) < header_len
        || usize::from(total_len) + offset > len
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
        query: 0,
        is_answer: false,
        opens: false,
        tos: ip.tos,
        ttl: ip.ttl,
        headers: header_len as u16,
        total_len,
        ip_id: ip.id,
        part: Part::Whole,
    };
    if fragment & FRAGMENT_OFFSET != 0 {
        packet.part = Part::LaterFragment;
    } else if fragment & MORE_FRAGMENTS != 0 {
        packet.part = Part::FirstFragment;
    }
    Ok(packet)
}

/// Data offset and flags in a TCP header.
const TCP_FLAGS: usize = 12;

/// The least that a transport header, or its part in a first fragment, must have for us to read it.
#[inline(always)]
const fn transport_len(proto: u8) -> usize {
    match proto {
        PROTO_TCP => 20,
        PROTO_SCTP => 12,
        PROTO_UDP | PROTO_UDPLITE | PROTO_ICMP => 8,
        _ => 0,
    }
}

/// What a transport header says.
#[derive(Clone, Copy, Default)]
struct Transport {
    src_port: u16,
    dst_port: u16,
    icmp: u16,
    headers: u16,
    query: u8,
    is_answer: bool,
    opens: bool,
    tcp_flags: u8,
}

impl Transport {
    #[inline(always)]
    fn set_ports(&mut self, [src, dst]: [u16; 2]) {
        (self.src_port, self.dst_port) = (u16::from_be(src), u16::from_be(dst));
    }

    #[inline(always)]
    fn set_tcp(&mut self, [data_offset, flags]: [u8; 2]) {
        self.tcp_flags = flags;
        self.opens = flags & (TCP_SYN | TCP_ACK) == TCP_SYN;
        self.headers += u16::from(data_offset >> 4) * 4;
    }
}

/// The transport header, at `start`, of packets with IP options and of the rarer protocols; 0 unless it cannot be read.
/// Not inlined: it would cost every hook code, and stack, which is short. A global function, so that the verifier walks it
/// once per program.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn parse_other(skb: *mut __sk_buff, start: u32, proto: u32, found: *mut Transport) -> u32 {
    // SAFETY: the verifier knows the pointer as memory of this size, or null.
    let Some(found) = (unsafe { found.as_mut() }) else { return 1 };
    let (ctx, start, proto) = (&TcContext::new(skb), start as usize, proto as u8);
    // Cannot be, but the verifier knows nothing of the caller.
    if start > INNER + MAX_IPV4_LEN {
        return 1;
    }
    if proto == PROTO_ICMP {
        let Some([icmp_type, code, _, _, i1, i0, ..]) = fetch::<[u8; 8]>(ctx, start) else { return 1 };
        found.icmp = policy::icmp_port(icmp_type, code);
        if let Some(Query { kind, is_answer }) = Query::of(icmp_type, code) {
            // The identifier takes the place of both ports.
            let id = u16::from_be_bytes([i1, i0]);
            (found.src_port, found.dst_port) = (id, id);
            (found.query, found.is_answer) = (kind, is_answer);
        }
        return 0;
    }
    if !has_ports(proto) {
        return 0;
    }
    let Some(ports) = fetch(ctx, start) else { return 1 };
    found.set_ports(ports);
    match proto {
        PROTO_TCP => {
            let Some(flags) = fetch(ctx, start + TCP_FLAGS) else { return 1 };
            found.set_tcp(flags);
        }
        PROTO_SCTP => {
            let Some(tag) = fetch::<u32>(ctx, start + 4) else { return 1 };
            // Only an INIT has no verification tag (RFC 9260 §8.5.1).
            found.opens = tag == 0;
        }
        _ => found.headers += wire::UDP_LEN as u16,
    }
    0
}

/// At a variable offset, in one piece or not.
#[inline(always)]
fn fetch<T: Copy>(ctx: &TcContext, offset: usize) -> Option<T> {
    read(ctx, offset).or_else(|| ctx.load(offset).ok())
}

/// What an ICMP error says of the packet that it is about.
#[derive(Clone, Copy, Default)]
pub struct Embedded {
    pub src: Ip4,
    pub dst: Ip4,
    /// Of its flow.
    pub key: FlowKey,
    pub from_hi: bool,
}

/// The packet that an ICMP error is about: its IP header and the first eight bytes behind it (RFC 792).
#[inline(always)]
pub fn embedded(ctx: &TcContext, offset: usize) -> Option<Embedded> {
    let mut about = Embedded::default();
    if read_embedded(ctx.skb.skb, offset as u32, &raw mut about) == 0 { Some(about) } else { None }
}

/// 0 unless it cannot be read. As [`parse_other`]; and no `Option` in the signature, for the kernel refuses its type
/// information.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn read_embedded(skb: *mut __sk_buff, offset: u32, about: *mut Embedded) -> u32 {
    // SAFETY: as in `parse_other`.
    let Some(about) = (unsafe { about.as_mut() }) else { return 1 };
    let (ctx, offset) = (&TcContext::new(skb), offset as usize);
    let Ok(outer) = ctx.load::<Ipv4Header>(offset) else { return 1 };
    let start = offset + usize::from(outer.version_ihl & 0x0f) * 4 + 8;
    let Ok(ip) = ctx.load::<Ipv4Header>(start) else { return 1 };
    let transport = start + usize::from(ip.version_ihl & 0x0f) * 4;
    let Ok([s1, s0, d1, d0, i1, i0, ..]) = ctx.load::<[u8; 8]>(transport) else { return 1 };
    (about.src, about.dst) = (Ip4::from_wire(ip.src), Ip4::from_wire(ip.dst));
    let query = if ip.proto == PROTO_ICMP { Query::of(s1, s0) } else { None };
    let (src_port, dst_port) = if query.is_some() {
        let id = u16::from_be_bytes([i1, i0]);
        (id, id)
    } else if has_ports(ip.proto) {
        (u16::from_be_bytes([s1, s0]), u16::from_be_bytes([d1, d0]))
    } else {
        (0, 0)
    };
    (about.key, about.from_hi) = flow_key(about.src, about.dst, src_port, dst_port, ip.proto);
    if let Some(Query { kind, is_answer }) = query {
        about.key = about.key.asking(kind, is_answer, about.from_hi);
    }
    0
}

/// Addresses and ports; for ICMP the destination port is type and code.
#[derive(Clone, Copy, Default)]
pub struct Flow4 {
    pub src: Ip4,
    pub dst: Ip4,
    pub src_port: u16,
    pub dst_port: u16,
    pub proto: u8,
}

/// Best effort, for events about packets that may not even parse.
#[inline(always)]
pub fn peek(ctx: &TcContext, offset: usize) -> Flow4 {
    let Ok(ip) = ctx.load::<Ipv4Header>(offset) else { return Flow4::default() };
    let first_part = u16::from_be(ip.fragment) & FRAGMENT_OFFSET == 0;
    let transport = offset + usize::from(ip.version_ihl & 0x0f) * 4;
    let [s1, s0, d1, d0] = if first_part { ctx.load(transport).unwrap_or([0; 4]) } else { [0; 4] };
    let (src_port, dst_port) = match ip.proto {
        PROTO_ICMP => (0, policy::icmp_port(s1, s0)),
        proto if has_ports(proto) => (u16::from_be_bytes([s1, s0]), u16::from_be_bytes([d1, d0])),
        _ => (0, 0),
    };
    Flow4 { src: Ip4::from_wire(ip.src), dst: Ip4::from_wire(ip.dst), src_port, dst_port, proto: ip.proto }
}

#[inline(always)]
const fn has_ports(proto: u8) -> bool {
    matches!(proto, PROTO_TCP | PROTO_UDP | PROTO_SCTP | PROTO_UDPLITE)
}

/// Rewrites the Ethernet addresses and takes one hop off the TTL of the IPv4 header behind them.
#[inline(always)]
pub fn readdress(ctx: &impl Frame, dst: Mac, src: Mac) -> Option<()> {
    write(ctx, 0, EthHeader { dst, src, ethertype: wire::ETHERTYPE_IPV4.to_be() })?;
    decrement_ttl(ctx)
}

/// Another TOS byte in the IPv4 header behind the Ethernet header.
#[inline(always)]
pub fn set_tos(ctx: &impl Frame, before: u8, after: u8) -> Option<()> {
    let ip = at::<Ipv4Header>(ctx, OUTER)?;
    // SAFETY: `at` checked the bounds.
    unsafe {
        (*ip).tos = after;
        (*ip).checksum = wire::checksum_after_tos((*ip).checksum, before, after);
    }
    Some(())
}

/// RFC 1812 §5.3.1: whoever forwards takes at least one off.
#[inline(always)]
pub fn decrement_ttl(ctx: &impl Frame) -> Option<()> {
    let ip = at::<Ipv4Header>(ctx, OUTER)?;
    // SAFETY: `at` checked the bounds.
    unsafe {
        (*ip).ttl -= 1;
        (*ip).checksum = wire::checksum_after_ttl_decrement((*ip).checksum);
    }
    Some(())
}
