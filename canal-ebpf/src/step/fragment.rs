//! Fragments: the first one has the ports, the later ones get them from a table.

use aya_ebpf::bindings::BPF_ANY;
use canal_common::flow::{FRAG_LIMIT, FragPorts};

use crate::{
    maps::FRAGS,
    packet::{Packet, Part},
    step::flow::now,
};

/// Fills in the ports of a later fragment. `false`: its first part was not seen, or not approved.
#[inline(always)]
pub fn settle(packet: &mut Packet) -> bool {
    if packet.part != Part::LaterFragment {
        return true;
    }
    // SAFETY: copied out at once.
    match unsafe { FRAGS.get(packet.frag_key()) } {
        Some(ports) if now().wrapping_sub(ports.seen) <= FRAG_LIMIT => {
            let ports = *ports;
            packet.settle(ports);
            true
        }
        _ => false,
    }
}

/// Remembers the ports of an approved datagram's first part.
#[inline(always)]
pub fn remember(packet: &Packet) {
    if packet.part == Part::FirstFragment {
        remember_ports(packet);
    }
}

/// Not inlined: key and value would count against the stack of the whole hook.
#[inline(never)]
fn remember_ports(packet: &Packet) {
    let ports = FragPorts {
        src_port: packet.src_port,
        dst_port: packet.dst_port,
        query: packet.query,
        is_answer: u8::from(packet.is_answer),
        _pad: [0; 2],
        seen: now(),
    };
    let _ = FRAGS.insert(packet.frag_key(), ports, BPF_ANY.into());
}
