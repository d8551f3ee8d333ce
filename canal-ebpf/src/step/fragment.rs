//! Fragments: the first one has the ports, the later ones get them from a table.
//!
//! Where a later part comes before the first, the host's stack puts the datagram together: from then on all its parts go
//! there.

use aya_ebpf::bindings::BPF_ANY;
use canal_common::{
    flow::{FRAG_LIMIT, FragPorts},
    settings::Settings,
};

use crate::{
    maps::{FRAGS, setting},
    packet::{Packet, Part},
    step::flow::now,
};

/// Fills in the ports of a later fragment. `false`: its first part was not seen, or not approved.
#[inline(always)]
pub fn settle(packet: &mut Packet) -> bool {
    packet.part != Part::LaterFragment || recall(packet) == Recalled::Ports
}

/// The same for packets that may still go to the stack. `false`: it must, so that the stack may know the first part; and the
/// others of its datagram, which are [`Part::Scattered`] then, must follow it.
#[inline(always)]
pub fn gather(packet: &mut Packet) -> bool {
    if packet.part == Part::Whole {
        return true;
    }
    if setting!(flags) & Settings::DEFRAGMENTS == 0 {
        return settle(packet);
    }
    match (packet.part, recall(packet)) {
        (Part::LaterFragment, Recalled::Nothing) => {
            note(packet, FragPorts { is_scattered: 1, ..FragPorts::default() });
            false
        }
        (Part::LaterFragment, Recalled::Scattered) => false,
        (_, Recalled::Scattered) => {
            packet.part = Part::Scattered;
            true
        }
        _ => true,
    }
}

/// Whether the stack, if it is given a part that nobody could judge, holds it until it has the others.
#[inline(always)]
pub fn stack_gathers() -> bool {
    setting!(flags) & Settings::DEFRAGMENTS != 0
}

#[derive(PartialEq, Eq)]
enum Recalled {
    Nothing,
    /// Of a later fragment they are filled in.
    Ports,
    Scattered,
}

#[inline(always)]
fn recall(packet: &mut Packet) -> Recalled {
    // SAFETY: copied out at once.
    match unsafe { FRAGS.get(packet.frag_key()) } {
        Some(ports) if now().wrapping_sub(ports.seen) <= FRAG_LIMIT => {
            let ports = *ports;
            if ports.is_scattered != 0 {
                return Recalled::Scattered;
            }
            if packet.part == Part::LaterFragment {
                packet.settle(ports);
            }
            Recalled::Ports
        }
        _ => Recalled::Nothing,
    }
}

/// Remembers the ports of an approved datagram's first part.
#[inline(always)]
pub fn remember(packet: &Packet) {
    if packet.part == Part::FirstFragment {
        note(
            packet,
            FragPorts {
                src_port: packet.src_port,
                dst_port: packet.dst_port,
                query: packet.query,
                is_answer: u8::from(packet.is_answer),
                ..FragPorts::default()
            },
        );
    }
}

/// Not inlined: key and value would count against the stack of the whole hook.
#[inline(never)]
fn note(packet: &Packet, ports: FragPorts) {
    let _ = FRAGS.insert(packet.frag_key(), FragPorts { seen: now(), ..ports }, BPF_ANY.into());
}
