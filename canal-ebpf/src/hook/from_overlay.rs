//! What the kernel's VXLAN device decapsulated because the fast path could not, and what is meant for the host:
//! the same checks, the same policy.

use aya_ebpf::{bindings::bpf_tunnel_key, helpers::generated::bpf_skb_get_tunnel_key, programs::TcContext};
use canal_common::{
    Ip4,
    flow::Leg,
    reason::{Hook, Reason},
    wire::{ETHERTYPE_IPV4, IPV4_LEN},
};

use crate::{
    hook::from_wire::{approve, sender, speaks_for},
    maps::setting,
    packet::{self, EthHeader, OUTER, Part},
    step::{deliver, fragment, leg, related},
    verdict::{Go, Outcome, Stop},
};

const HEADERS: usize = OUTER + IPV4_LEN + 20;

#[inline(always)]
pub fn run(ctx: &TcContext) -> Outcome {
    let outer_src = tunnel_source(ctx)?;
    packet::make_linear(ctx, HEADERS);
    let eth: EthHeader = packet::read(ctx, 0).ok_or(Reason::Malformed)?;
    if u16::from_be(eth.ethertype) != ETHERTYPE_IPV4 {
        return Err(Reason::NotIpv4.into());
    }
    if eth.dst != setting!(vtep_mac) {
        return Err(Reason::WrongVtep.into());
    }
    let mut packet = packet::parse(ctx, OUTER)?;
    if !fragment::gather(&mut packet) {
        sender(outer_src, packet.src)?;
        fragment::scatter(&packet);
        // For the host: its own reassembly. For a pod: forwarded and judged in `to_pod`, whole or not at all.
        return Ok(Go::next(Reason::ToStack));
    }
    let to = if packet.is_icmp_error() {
        sender(outer_src, packet.src)?;
        if leg::pod(packet.dst).is_none() {
            return Ok(Go::next(Reason::ToStack));
        }
        let related = related::related(ctx, OUTER, &packet)?;
        speaks_for(outer_src, related.peer)?;
        if related.by_stack || related.to.kind != Leg::POD { None } else { Some(*related.to) }
    } else {
        approve(ctx, Hook::FromOverlay, &packet, outer_src)?
    };
    match to {
        Some(to) if packet.ttl > 1 && packet.part != Part::Scattered => deliver::to_pod(ctx, &to),
        _ => Ok(Go::next(Reason::ToStack)),
    }
}

/// Who sent the envelope, if it was for our VNI.
#[inline(always)]
fn tunnel_source(ctx: &TcContext) -> Result<Ip4, Stop> {
    // SAFETY: plain data, for which zeros are valid.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    // SAFETY: a helper; the key outlives the call and has the size that is passed.
    let error =
        unsafe { bpf_skb_get_tunnel_key(ctx.skb.skb, &raw mut key, size_of::<bpf_tunnel_key>() as u32, 0) };
    if error != 0 || key.tunnel_id != setting!(vni) {
        return Err(Reason::UnknownNode.into());
    }
    // SAFETY: without BPF_F_TUNINFO_IPV6 the IPv4 member is the valid one; it is in host order.
    let remote = unsafe { key.__bindgen_anon_1.remote_ipv4 };
    Ok(Ip4::new(remote.to_be_bytes()))
}
