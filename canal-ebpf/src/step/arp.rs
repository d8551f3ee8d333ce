//! ARP on a pod's veth: every neighbour is the host's end, so a pod needs no proxy ARP and no default route on the node.

use aya_ebpf::{helpers::bpf_redirect, programs::TcContext};
use canal_common::{Ip4, Mac, reason::Reason};

use crate::{
    maps::ENDPOINTS,
    packet::{self, EthHeader},
    verdict::{Go, Outcome},
};

/// ARP for IPv4 over Ethernet (RFC 826), behind the Ethernet header. Packed: the addresses are not aligned.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct ArpHeader {
    /// Hardware type, protocol type, both lengths.
    kind: [u8; 6],
    operation: u16,
    sender_mac: Mac,
    sender_ip: [u8; 4],
    target_mac: Mac,
    target_ip: [u8; 4],
}

const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

#[inline(always)]
pub fn from_pod(ctx: &TcContext) -> Outcome {
    packet::make_linear(ctx, packet::OUTER + size_of::<ArpHeader>());
    let eth: EthHeader = packet::read(ctx, 0).ok_or(Reason::Malformed)?;
    let mut arp: ArpHeader = packet::read(ctx, packet::OUTER).ok_or(Reason::Malformed)?;
    let (sender, target) = (Ip4::new(arp.sender_ip), Ip4::new(arp.target_ip));
    let sender_mac = arp.sender_mac;
    // SAFETY: values are plain data; the reference is not kept across an update.
    let endpoint = unsafe { ENDPOINTS.get(sender) }.ok_or(Reason::SpoofedIp)?;
    if endpoint.ifindex != packet::ifindex(ctx) {
        return Err(Reason::SpoofedIp.into());
    }
    if endpoint.pod_mac != eth.src || endpoint.pod_mac != sender_mac {
        return Err(Reason::SpoofedMac.into());
    }
    match u16::from_be(arp.operation) {
        // The answer to a question of the host's.
        REPLY => Ok(Go::next(Reason::ToStack)),
        // A gratuitous announcement, or the pod looks for a duplicate of itself: nobody has it.
        REQUEST if target == sender => Ok(Go::next(Reason::ToStack)),
        REQUEST if arp.kind == ETHERNET_IPV4 => {
            let host = endpoint.host_mac;
            arp.operation = REPLY.to_be();
            arp.target_mac = sender_mac;
            arp.target_ip = sender.octets;
            arp.sender_mac = host;
            arp.sender_ip = target.octets;
            packet::write(ctx, 0, EthHeader { dst: eth.src, src: host, ethertype: eth.ethertype })
                .ok_or(Reason::Malformed)?;
            packet::write(ctx, packet::OUTER, arp).ok_or(Reason::Malformed)?;
            // SAFETY: a helper on our own interface.
            let action = unsafe { bpf_redirect(packet::ifindex(ctx), 0) };
            Ok(Go::redirected(action as i32, Reason::ArpAnswered))
        }
        _ => Err(Reason::Malformed.into()),
    }
}
