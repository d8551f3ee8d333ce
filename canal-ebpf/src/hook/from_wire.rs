//! VXLAN on the uplink: who sent it, policy of the receiving pod, then out of the envelope and into the pod.
//! Everything else passes untouched after a cheap match, and what the fast path cannot do goes to the kernel's device.
//! Where nodes may be reached without an envelope, so may we: [`plain`].

use aya_ebpf::programs::TcContext;
use canal_common::{
    Ip4, Mac,
    flow::Leg,
    reason::{Hook, Reason},
    settings::Settings,
    wire::{self, ETHERTYPE_IPV4, IPV4_LEN, PROTO_UDP, VXLAN_FLAGS},
};

use crate::{
    hook::xdp_wire,
    maps::{NODE_IPS, setting},
    packet::{self, EthHeader, INNER, Ipv4Header, OUTER, Packet, Part},
    step::{
        admit, deliver,
        flow::{self, Known},
        fragment, leg, related,
    },
    verdict::{Go, Outcome, Stop},
};

/// UDP and VXLAN headers, in network order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UdpVxlan {
    src_port: u16,
    dst_port: u16,
    len: u16,
    checksum: u16,
    flags: u32,
    vni: u32,
}

impl UdpVxlan {
    /// Our port and VNI, in a whole packet without options.
    #[inline(always)]
    pub fn is_ours(&self, ip: &Ipv4Header) -> bool {
        ip.version_ihl == 0x45
            && ip.fragment & FRAGMENTED.to_be() == 0
            && self.dst_port == setting!(vxlan_port).to_be()
            && self.flags == (u32::from(VXLAN_FLAGS) << 24).to_be()
            && self.vni == (setting!(vni) << 8).to_be()
    }
}

/// More fragments, or an offset: outer fragments are reassembled by the stack.
const FRAGMENTED: u16 = 0x3fff;

pub const UDP: usize = OUTER + IPV4_LEN;
pub const INNER_ETH: usize = UDP + size_of::<UdpVxlan>();
const HEADERS: usize = INNER + IPV4_LEN + 20;

/// What the envelope says.
struct Arrived {
    outer_src: Ip4,
    outer_tos: u8,
    inner_eth: EthHeader,
}

#[inline(always)]
pub fn run(ctx: &TcContext) -> Outcome {
    if setting!(flags) & Settings::XDP != 0
        && !packet::is_tagged(ctx)
        && let Some(note) = xdp_wire::note(ctx)
    {
        return deliver::to_interface(ctx, note.target, note.mac);
    }
    let Some(Arrived { outer_src, outer_tos, inner_eth }) = ours(ctx) else {
        return if setting!(flags) & Settings::DIRECT_NODES == 0 { Ok(Go::UNTOUCHED) } else { plain(ctx) };
    };
    if u16::from_be(inner_eth.ethertype) != ETHERTYPE_IPV4 {
        return Err(Reason::NotIpv4.into());
    }
    if inner_eth.dst != setting!(vtep_mac) {
        return Err(Reason::WrongVtep.into());
    }
    let mut packet = packet::parse(ctx, INNER)?;
    if !fragment::gather(&mut packet) {
        sender(outer_src, packet.src)?;
        fragment::scatter(&packet);
        // Later fragments reach the same decision in `from_overlay`, once more with the stack's help.
        return Ok(Go::next(Reason::Fallback));
    }
    let to = if packet.is_icmp_error() {
        sender(outer_src, packet.src)?;
        if leg::pod(packet.dst).is_none() {
            return Ok(Go::next(Reason::Fallback));
        }
        let related = related::related(ctx, INNER, &packet)?;
        speaks_for(outer_src, related.peer)?;
        if related.by_stack || related.to.kind != Leg::POD {
            return Ok(Go::next(Reason::Fallback));
        }
        *related.to
    } else {
        match approve(ctx, Hook::FromWire, &packet, outer_src)? {
            Some(to) => to,
            None => return Ok(Go::next(Reason::Fallback)),
        }
    };
    if packet.ttl <= 1 || packet.part == Part::Scattered || is_datagrams(ctx, &packet) {
        return Ok(Go::next(Reason::Fallback));
    }
    let tos = wire::merged_tos(packet.tos, outer_tos).ok_or(Reason::EcnUnaware)?;
    deliver::unwrap(ctx)?;
    if tos != packet.tos {
        packet::set_tos(ctx, packet.tos, tos).ok_or(Reason::Malformed)?;
    }
    deliver::to_pod(ctx, &to)
}

/// An aggregate of datagrams. The receiving pod has to take it apart, and what the helper leaves of the tunnel's marks on it
/// (6.18, `bpf_skb_net_shrink`) would have that go wrong; TCP takes them as they are.
#[inline(always)]
fn is_datagrams(ctx: &TcContext, packet: &Packet) -> bool {
    packet.proto == PROTO_UDP && packet::gso_size(ctx) != 0
}

/// From another node's pod to one of ours, without an envelope. Whatever else it is, the stack knows better.
#[inline(always)]
fn plain(ctx: &TcContext) -> Outcome {
    let Some(dst) = plain_destination(ctx) else { return Ok(Go::UNTOUCHED) };
    if !leg::is_in_network(dst) {
        return Ok(Go::UNTOUCHED);
    }
    packet::make_linear(ctx, OUTER + IPV4_LEN + 20);
    let Ok(mut packet) = packet::parse(ctx, OUTER) else { return Ok(Go::UNTOUCHED) };
    if !fragment::gather(&mut packet) {
        if leg::remote(packet.src).is_some_and(|from| leg::direct_node(from.target).is_some()) {
            fragment::scatter(&packet);
        }
        return Ok(Go::UNTOUCHED);
    }
    let to = if packet.is_icmp_error() {
        // Routers on the way speak as well, and to others than pods: `to_pod` judges what is for those.
        let (Some(from), Some(_)) = (leg::remote(packet.src), leg::pod(packet.dst)) else {
            return Ok(Go::UNTOUCHED);
        };
        let related = related::related(ctx, OUTER, &packet)?;
        let through = related.peer.kind == Leg::NODE && related.peer.target == from.target;
        if !through
            || leg::direct_node(from.target).is_none()
            || related.by_stack
            || related.to.kind != Leg::POD
        {
            return Ok(Go::UNTOUCHED);
        }
        *related.to
    } else {
        let sent = |from: &Leg| from.kind == Leg::NODE && leg::direct_node(from.target).is_some();
        match flow::known(&packet, sent)? {
            Known::Live { to, by_stack } if !by_stack && to.kind == Leg::POD => *to,
            Known::Live { .. } => return Ok(Go::UNTOUCHED),
            Known::Judge => {
                let Some(to) = leg::pod(packet.dst) else { return Ok(Go::UNTOUCHED) };
                let Some(from) = leg::remote(packet.src) else { return Ok(Go::UNTOUCHED) };
                if leg::direct_node(from.target).is_none() {
                    return Ok(Go::UNTOUCHED);
                }
                if admit::admit(ctx, Hook::FromWire, &packet, &from, &to, false)? {
                    return Ok(Go::UNTOUCHED);
                }
                to
            }
        }
    };
    if packet.ttl <= 1 || packet.part == Part::Scattered {
        return Ok(Go::UNTOUCHED);
    }
    deliver::to_pod(ctx, &to)
}

/// Of an IPv4 packet without a tag.
#[inline(always)]
fn plain_destination(ctx: &TcContext) -> Option<Ip4> {
    is_ipv4(ctx).then_some(())?;
    let ip: Ipv4Header = packet::read(ctx, OUTER)?;
    Some(Ip4::from_wire(ip.dst))
}

#[inline(always)]
fn is_ipv4(ctx: &TcContext) -> bool {
    // SAFETY: the context outlives the program.
    unsafe { (*ctx.skb.skb).protocol == u32::from(ETHERTYPE_IPV4.to_be()) && !packet::is_tagged(ctx) }
}

/// The pod that may have this packet; `None` when it is not for a pod, or belongs to the stack.
#[inline(always)]
pub fn approve(ctx: &TcContext, hook: Hook, packet: &Packet, outer_src: Ip4) -> Result<Option<Leg>, Stop> {
    let sent =
        |from: &Leg| from.kind == Leg::NODE && leg::node(from.target).is_some_and(|n| n.ip == outer_src);
    match flow::known(packet, sent)? {
        Known::Live { to, by_stack } => {
            if by_stack || to.kind != Leg::POD {
                return Ok(None);
            }
            Ok(Some(*to))
        }
        Known::Judge => {
            let from = sender(outer_src, packet.src)?;
            let Some(to) = leg::pod(packet.dst) else { return Ok(None) };
            let by_stack = admit::admit(ctx, hook, packet, &from, &to, false)?;
            Ok((!by_stack).then_some(to))
        }
    }
}

/// A node may speak for its own subnet and for its own address.
#[inline(always)]
pub fn sender(outer_src: Ip4, inner_src: Ip4) -> Result<Leg, Stop> {
    if let Some(from) = leg::remote(inner_src)
        && leg::node(from.target).is_some_and(|n| n.ip == outer_src)
    {
        return Ok(from);
    }
    // SAFETY: values are plain data; the reference is not kept across an update.
    let node = unsafe { NODE_IPS.get(outer_src) }.ok_or(Reason::UnknownNode)?.node;
    if inner_src != outer_src {
        return Err(Reason::WrongSource.into());
    }
    Ok(Leg { target: node, ..leg::other(Leg::NODE) })
}

/// A node reports errors of the flows that lead through it, and of those that leave the overlay.
#[inline(always)]
pub fn speaks_for(outer_src: Ip4, peer: &Leg) -> Result<(), Stop> {
    let through = peer.kind == Leg::NODE && leg::node(peer.target).is_some_and(|n| n.ip == outer_src);
    if through || peer.kind == Leg::STACK { Ok(()) } else { Err(Reason::IcmpUnrelated.into()) }
}

/// A plain VXLAN packet to our address, port and VNI.
#[inline(always)]
fn ours(ctx: &TcContext) -> Option<Arrived> {
    // 0: this network has no envelopes.
    (setting!(vxlan_port) != 0 && is_ipv4(ctx)).then_some(())?;
    let ip: Ipv4Header = packet::read(ctx, OUTER)?;
    if ip.proto != PROTO_UDP || ip.dst != setting!(node_ip).to_wire() {
        return None;
    }
    packet::make_linear(ctx, HEADERS);
    let udp: UdpVxlan = packet::read(ctx, UDP)?;
    if !udp.is_ours(&ip) {
        return None;
    }
    let inner_eth: EthHeader = packet::read(ctx, INNER_ETH)?;
    Some(Arrived { outer_src: Ip4::from_wire(ip.src), outer_tos: ip.tos, inner_eth })
}

const _: () = assert!(INNER_ETH + size_of::<EthHeader>() == INNER && size_of::<Mac>() == 6);
