//! Packets, byte by byte: well-formed ones by name, and everything else by changing these.

use std::net::Ipv4Addr;

use canal_common::{
    Mac,
    wire::{ETHERTYPE_IPV4, PROTO_ICMP, PROTO_SCTP, PROTO_TCP, PROTO_UDP, PROTO_UDPLITE, UDP_LEN, VXLAN_LEN},
};
use etherparse::{
    ArpEthIpv4Packet, ArpOperation, ArpPacket, EtherType, Ethernet2Header, IpFragOffset, IpNumber,
    Ipv4Header, Ipv4Options, TcpHeader, UdpHeader,
};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// Where the IP header starts.
pub const IP: usize = 14;

/// An address and a port.
pub type End = (Ipv4Addr, u16);

/// An Ethernet frame with an IPv4 packet in it; change the fields at will.
#[derive(Debug, Clone)]
pub struct Packet {
    pub src_mac: Mac,
    pub dst_mac: Mac,
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub proto: u8,
    pub ttl: u8,
    pub tos: u8,
    pub id: u16,
    /// In units of eight bytes.
    pub offset: u16,
    pub more: bool,
    /// A multiple of four bytes.
    pub options: Vec<u8>,
    /// Behind the IP header.
    pub body: Vec<u8>,
}

impl Packet {
    pub fn ip(src: Ipv4Addr, dst: Ipv4Addr, proto: u8, body: Vec<u8>) -> Self {
        let mac = Mac::default();
        let (id, options) = (0x1234, Vec::new());
        Self {
            src_mac: mac,
            dst_mac: mac,
            src,
            dst,
            proto,
            ttl: 64,
            tos: 0,
            id,
            offset: 0,
            more: false,
            options,
            body,
        }
    }

    pub fn tcp(src: End, dst: End, flags: u8) -> Self {
        let mut tcp = TcpHeader::new(src.1, dst.1, 1000, 65000);
        (tcp.fin, tcp.syn) = (flags & FIN != 0, flags & SYN != 0);
        (tcp.rst, tcp.ack) = (flags & RST != 0, flags & ACK != 0);
        Self::ip(src.0, dst.0, PROTO_TCP, tcp.to_bytes().to_vec()).payload(b"hello")
    }

    pub fn udp(src: End, dst: End) -> Self {
        let udp = UdpHeader { source_port: src.1, destination_port: dst.1, length: 13, checksum: 0 };
        Self::ip(src.0, dst.0, PROTO_UDP, udp.to_bytes().to_vec()).payload(b"hello")
    }

    /// SCTP; an INIT has the verification tag 0.
    pub fn sctp(src: End, dst: End, tag: u32) -> Self {
        let mut body = [src.1.to_be_bytes(), dst.1.to_be_bytes()].concat();
        body.extend(tag.to_be_bytes());
        body.extend([0; 4]);
        Self::ip(src.0, dst.0, PROTO_SCTP, body).payload(b"hello")
    }

    /// UDP-Lite that protects the header only.
    pub fn udplite(src: End, dst: End) -> Self {
        let mut body = [src.1.to_be_bytes(), dst.1.to_be_bytes()].concat();
        body.extend([0, 8, 0, 0]);
        Self::ip(src.0, dst.0, PROTO_UDPLITE, body).payload(b"hello")
    }

    /// ICMP with this rest of the header behind type, code and checksum.
    pub fn icmp(src: Ipv4Addr, dst: Ipv4Addr, kind: (u8, u8), rest: [u8; 4]) -> Self {
        let mut body = vec![kind.0, kind.1, 0, 0];
        body.extend(rest);
        Self::ip(src, dst, PROTO_ICMP, body)
    }

    pub fn echo(src: Ipv4Addr, dst: Ipv4Addr, id: u16) -> Self {
        let [i1, i0] = id.to_be_bytes();
        Self::icmp(src, dst, (8, 0), [i1, i0, 0, 1])
    }

    pub fn echo_reply(src: Ipv4Addr, dst: Ipv4Addr, id: u16) -> Self {
        let mut packet = Self::echo(src, dst, id);
        packet.body[0] = 0;
        packet
    }

    /// An ICMP error from `src` to the sender of `about`, with its IP header and eight bytes in it.
    pub fn error(src: Ipv4Addr, kind: (u8, u8), about: &Self) -> Self {
        let mut packet = Self::icmp(src, about.src, kind, [0; 4]);
        let quoted = about.bytes();
        let end = (IP + 20 + about.options.len() + 8).min(quoted.len());
        packet.body.extend(&quoted[IP..end]);
        packet
    }

    /// Fragments after `bytes` (a multiple of eight) of the body: the first and the second.
    pub fn split(&self, bytes: usize) -> [Self; 2] {
        let (mut first, mut later) = (self.clone(), self.clone());
        first.more = true;
        first.body.truncate(bytes);
        later.body.drain(..bytes);
        later.offset = u16::try_from(bytes / 8).expect("a small packet");
        [first, later]
    }

    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.body.extend(payload);
        self
    }

    #[must_use]
    pub fn macs(self, src_mac: Mac, dst_mac: Mac) -> Self {
        Self { src_mac, dst_mac, ..self }
    }

    #[must_use]
    pub fn ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    #[must_use]
    pub fn tos(self, tos: u8) -> Self {
        Self { tos, ..self }
    }

    /// No-operation options of so many bytes, a multiple of four.
    #[must_use]
    pub fn options(self, bytes: usize) -> Self {
        Self { options: vec![1; bytes], ..self }
    }

    /// The frame.
    pub fn bytes(&self) -> Vec<u8> {
        let mut ip = Ipv4Header::new(
            u16::try_from(self.body.len()).expect("a packet that fits"),
            self.ttl,
            IpNumber(self.proto),
            self.src.octets(),
            self.dst.octets(),
        )
        .expect("a packet that fits");
        ip.identification = self.id;
        ip.dont_fragment = false;
        ip.more_fragments = self.more;
        ip.fragment_offset = IpFragOffset::try_new(self.offset).expect("13 bits");
        ip.options = Ipv4Options::try_from(&self.options[..]).expect("at most 40 bytes, a multiple of 4");
        ip.set_payload_len(self.body.len()).expect("a packet that fits");
        ip.header_checksum = ip.calc_header_checksum();
        let mut bytes = ethernet(self.src_mac, self.dst_mac, ETHERTYPE_IPV4);
        bytes.extend(ip.to_bytes());
        // The checksum covers the TOS byte too, which the header has in two parts.
        bytes.extend(&self.body);
        if self.tos != 0 {
            bytes[IP + 1] = self.tos;
            refresh_checksum(&mut bytes);
        }
        bytes
    }

    /// The frame inside VXLAN.
    pub fn in_vxlan(&self, outer: &Outer) -> Vec<u8> {
        outer.around(&self.bytes())
    }
}

/// The envelope of a VXLAN packet; change the fields at will.
#[derive(Debug, Clone)]
pub struct Outer {
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub src_port: u16,
    pub dst_port: u16,
    /// First byte of the VXLAN header.
    pub flags: u8,
    pub vni: u32,
    pub tos: u8,
    pub options: usize,
    pub offset: u16,
    pub more: bool,
}

impl Outer {
    pub fn new(src: Ipv4Addr, dst: Ipv4Addr, dst_port: u16, vni: u32) -> Self {
        let (src_port, flags) = (40000, canal_common::wire::VXLAN_FLAGS);
        Self { src, dst, src_port, dst_port, flags, vni, tos: 0, options: 0, offset: 0, more: false }
    }

    pub fn around(&self, frame: &[u8]) -> Vec<u8> {
        let length = u16::try_from(UDP_LEN + VXLAN_LEN + frame.len()).expect("a frame that fits");
        let udp =
            UdpHeader { source_port: self.src_port, destination_port: self.dst_port, length, checksum: 0 };
        let mut body = udp.to_bytes().to_vec();
        body.extend([self.flags, 0, 0, 0]);
        body.extend((self.vni << 8).to_be_bytes());
        body.extend(frame);
        let mut packet = Packet::ip(self.src, self.dst, PROTO_UDP, body).tos(self.tos).options(self.options);
        (packet.offset, packet.more) = (self.offset, self.more);
        packet.bytes()
    }
}

/// An ARP question or answer, as a frame.
pub fn arp(operation: ArpOperation, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let packet = ArpEthIpv4Packet {
        operation,
        sender_mac: sender.0.octets,
        sender_ipv4: sender.1.octets(),
        target_mac: target.0.octets,
        target_ipv4: target.1.octets(),
    };
    let mut bytes = ethernet(sender.0, Mac::new([0xff; 6]), canal_common::wire::ETHERTYPE_ARP);
    bytes.extend(ArpPacket::from(packet).to_bytes());
    bytes
}

pub fn ethernet(source: Mac, destination: Mac, ethertype: u16) -> Vec<u8> {
    let (source, destination) = (source.octets, destination.octets);
    Ethernet2Header { source, destination, ether_type: EtherType(ethertype) }.to_bytes().to_vec()
}

/// Makes the IPv4 header checksum of a frame right again.
pub fn refresh_checksum(frame: &mut [u8]) {
    let end = IP + usize::from(frame[IP] & 0x0f) * 4;
    frame[IP + 10..IP + 12].fill(0);
    let sum = checksum(&frame[IP..end]);
    frame[IP + 10..IP + 12].copy_from_slice(&sum.to_be_bytes());
}

/// Ones' complement checksum; 0 for a header with a right one in it.
pub fn checksum(header: &[u8]) -> u16 {
    let words =
        header.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)])));
    canal_common::wire::fold(words.sum())
}
