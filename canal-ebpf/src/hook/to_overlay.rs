//! What the host stack sends to other nodes' pods: its own packets, and what the fast path left to it.

use aya_ebpf::{
    bindings::{BPF_F_ZERO_CSUM_TX, bpf_tunnel_key},
    helpers::generated::bpf_skb_set_tunnel_key,
    programs::TcContext,
};
use canal_common::{
    flow::Leg,
    node::Node,
    reason::{Hook, Reason},
    settings::Settings,
    wire::{ETHERTYPE_IPV4, IPV4_LEN},
};

use crate::{
    maps::setting,
    packet::{self, EthHeader, FROM_HOST, OUTER, Packet},
    step::{
        admit, deliver,
        flow::{self, Known},
        fragment, leg, related,
    },
    verdict::{Go, Outcome},
};

const HEADERS: usize = OUTER + IPV4_LEN + 20;

#[inline(always)]
pub fn run(ctx: &TcContext) -> Outcome {
    packet::make_linear(ctx, HEADERS);
    let eth: EthHeader = packet::read(ctx, 0).ok_or(Reason::Malformed)?;
    if u16::from_be(eth.ethertype) != ETHERTYPE_IPV4 {
        return Err(Reason::NotIpv4.into());
    }
    let mut packet = packet::parse(ctx, OUTER)?;
    let to = leg::remote(packet.dst).ok_or(Reason::NoRoute)?;
    let node = leg::node(to.target).ok_or(Reason::NoRoute)?;
    // Only a local pod's packet is policed here: the receiving node polices the rest.
    let came_by = packet::ingress_ifindex(ctx);
    let from = leg::anyone(packet.src);
    if !leg::may_come_by(&from, packet.src, came_by) {
        return Err(Reason::SpoofedIp.into());
    }
    if came_by != FROM_HOST && from.kind == Leg::POD {
        if !fragment::settle(&mut packet) {
            return Err(Reason::FragUnknown.into());
        }
        if packet.is_icmp_error() {
            related::related(ctx, OUTER, &packet)?;
        } else if let Known::Judge = flow::known(&packet, |_| true)? {
            admit::admit(ctx, Hook::ToOverlay, &packet, &from, &to, true)?;
        }
    }
    if setting!(flags) & Settings::OUTER_CHECKSUM != 0 {
        return by_device(ctx, &packet, node);
    }
    match deliver::to_node(ctx, &packet, node) {
        Ok(outcome) => outcome,
        Err(deliver::Declined) => by_device(ctx, &packet, node),
    }
}

/// The kernel's device makes the envelope: packets that carry another tunnel, odd aggregates.
#[inline(always)]
fn by_device(ctx: &TcContext, packet: &Packet, node: &Node) -> Outcome {
    let eth = EthHeader { dst: node.vtep_mac, src: setting!(vtep_mac), ethertype: ETHERTYPE_IPV4.to_be() };
    packet::write(ctx, 0, eth).ok_or(Reason::Malformed)?;
    if set_tunnel(ctx, node.ip.to_bits(), packet.tos & 3) != 0 {
        return Err(Reason::EncapFailed.into());
    }
    Ok(Go::next(Reason::Fallback))
}

/// Not inlined: the key would count against the stack of the whole hook.
#[inline(never)]
fn set_tunnel(ctx: &TcContext, remote: u32, tos: u8) -> i64 {
    // SAFETY: plain data, for which zeros are valid.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    key.tunnel_id = setting!(vni);
    key.__bindgen_anon_1.remote_ipv4 = remote;
    key.tunnel_ttl = 64;
    key.tunnel_tos = tos;
    let flags = if setting!(flags) & Settings::OUTER_CHECKSUM == 0 { BPF_F_ZERO_CSUM_TX } else { 0 };
    // SAFETY: a helper; the key outlives the call and has the size that is passed.
    unsafe {
        bpf_skb_set_tunnel_key(ctx.skb.skb, &raw mut key, size_of::<bpf_tunnel_key>() as u32, flags.into())
    }
}
