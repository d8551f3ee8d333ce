//! Sending a packet on: to a pod of this node, or to another node inside VXLAN.

use aya_ebpf::{
    bindings::{
        BPF_ADJ_ROOM_ENCAP_L2_MASK, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_redir_neigh,
    },
    helpers::generated::{
        bpf_get_hash_recalc, bpf_get_prandom_u32, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
    },
    programs::TcContext,
};
use canal_common::{
    Ip4, Mac,
    flow::Leg,
    node::Node,
    reason::Reason,
    wire::{self, ENVELOPE_LEN, ETH_LEN, Envelope, EnvelopeSpec},
};

use crate::{
    maps::setting,
    packet::{self, OUTER, Packet},
    verdict::{Go, Outcome},
};

/// Linux `AF_INET`.
const AF_INET: u32 = 2;

/// What a pod sees as the sender of everything: the host end of its veth, as Calico sets it.
const GATEWAY: Mac = Mac::new([0xee; 6]);

/// Inner Ethernet header inside the envelope, as the driver's segmentation offload expects it, and segment sizes left
/// alone: the pod's MTU already leaves room. Kernel ≥ 5.13 for `ENCAP_L2_ETH`.
const ENCAP_FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
    | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
    | (ETH_LEN as u64 & BPF_ADJ_ROOM_ENCAP_L2_MASK as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;

/// Into the pod's end of its veth in this same softirq: no backlog, no second pass through the host stack.
/// Only from an ingress hook. The pod's own programs on the host side are skipped: policy has been decided.
#[inline(always)]
pub fn to_pod(ctx: &TcContext, pod: &Leg) -> Outcome {
    to_interface(ctx, pod.target, pod.mac)
}

/// As [`to_pod`], to the pod with this MAC behind this veth.
#[inline(always)]
pub fn to_interface(ctx: &TcContext, ifindex: u32, mac: Mac) -> Outcome {
    packet::readdress(ctx, mac, GATEWAY).ok_or(Reason::Malformed)?;
    // SAFETY: a helper; an interface that is gone drops the packet.
    let action = unsafe { bpf_redirect_peer(ifindex, 0) };
    Ok(Go::redirected(action as i32, Reason::Delivered))
}

/// Whether `packet` (or each segment of it) fits through the tunnel to `node`.
#[inline(always)]
pub fn fits(ctx: &TcContext, packet: &Packet, node: &Node) -> bool {
    let segment = packet::gso_size(ctx);
    let len = if segment == 0 { u32::from(packet.total_len) } else { segment + u32::from(packet.headers) };
    len <= u32::from(node.mtu)
}

/// The kernel declined the fast way; nothing was changed.
pub struct Declined;

/// Wraps the packet and hands it to the uplink; the kernel finds the next hop's MAC.
#[inline(always)]
pub fn to_node(ctx: &TcContext, packet: &Packet, node: &Node) -> Result<Outcome, Declined> {
    let (ip, vtep_mac, on_link) = (node.ip, node.vtep_mac, node.flags & Node::ON_LINK != 0);
    // SAFETY: a helper on our context. Before the envelope goes on: the hash is the inner flow's.
    let hash = unsafe { bpf_get_hash_recalc(ctx.skb.skb) };
    // Every error return of the helper comes before it changes anything (6.18, bpf_skb_adjust_room).
    ctx.adjust_room(ENVELOPE_LEN as i32, BPF_ADJ_ROOM_MAC, ENCAP_FLAGS).map_err(|_| Declined)?;
    let envelope = Envelope::new(&EnvelopeSpec {
        outer_src: setting!(node_ip),
        outer_dst: ip,
        inner_src_mac: setting!(vtep_mac),
        inner_dst_mac: vtep_mac,
        vni: setting!(vni),
        src_port: wire::src_port(hash),
        dst_port: setting!(vxlan_port),
        // SAFETY: a helper without arguments.
        id: unsafe { bpf_get_prandom_u32() } as u16,
        inner_len: packet.total_len,
        ecn: wire::outer_ecn(packet.tos),
    });
    Ok(send(ctx, &envelope, on_link.then_some(ip)))
}

/// To a node on the uplink's link, as it is.
#[inline(always)]
pub fn plainly_to_node(node: &Node) -> Go {
    Go::redirected(to_neighbour(node.ip) as i32, Reason::Routed)
}

/// To the kernel's device, at whose exit `to_overlay` has it make the envelope.
#[inline(always)]
pub fn to_device() -> Go {
    let device = setting!(overlay_ifindex);
    // SAFETY: a helper; an interface that is gone drops the packet.
    let action = unsafe { bpf_redirect(device, 0) };
    Go::redirected(action as i32, Reason::Fallback)
}

/// The kernel finds out the MAC of `next_hop`, which is on the uplink's link.
#[inline(always)]
fn to_neighbour(next_hop: Ip4) -> i64 {
    // SAFETY: plain data, for which zeros are valid.
    let mut params: bpf_redir_neigh = unsafe { core::mem::zeroed() };
    params.nh_family = AF_INET;
    params.__bindgen_anon_1.ipv4_nh = next_hop.to_wire();
    let uplink = setting!(uplink_ifindex);
    // SAFETY: a helper; the parameters outlive the call and have the size that is passed.
    unsafe { bpf_redirect_neigh(uplink, &raw mut params, size_of::<bpf_redir_neigh>() as i32, 0) }
}

/// `next_hop`: where the envelope goes without asking the routing table (measured: 3 to 6 % of the whole way).
#[inline(always)]
fn send(ctx: &TcContext, envelope: &Envelope, next_hop: Option<Ip4>) -> Outcome {
    packet::write(ctx, OUTER, envelope.words).ok_or(Reason::EncapFailed)?;
    packet::write(ctx, OUTER + size_of_val(&envelope.words), envelope.ethertype)
        .ok_or(Reason::EncapFailed)?;
    let uplink = setting!(uplink_ifindex);
    let action = match next_hop {
        Some(next_hop) => to_neighbour(next_hop),
        // SAFETY: a helper; without parameters it looks the outer destination up in the routing table.
        None => unsafe { bpf_redirect_neigh(uplink, core::ptr::null_mut(), 0, 0) },
    };
    Ok(Go::redirected(action as i32, Reason::Encapsulated))
}

/// Takes the envelope off: the outer Ethernet header stays and becomes the pod's.
///
/// Segment sizes of an aggregate already describe the inner payload, hence `FIXED_GSO`.
#[inline(always)]
pub fn unwrap(ctx: &TcContext) -> Result<(), Reason> {
    ctx.adjust_room(-(ENVELOPE_LEN as i32), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO.into())
        .map_err(|_| Reason::EncapFailed)
}
