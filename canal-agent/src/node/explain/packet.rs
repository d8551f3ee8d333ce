//! The first packet of the connection that is asked about.

use std::net::Ipv4Addr;

use canal_common::{
    policy::{icmp_port, key},
    wire::{PROTO_ICMP, PROTO_SCTP, PROTO_TCP, PROTO_UDP},
};

use crate::{
    api::explain::{self as wire, Ask},
    compile::reference::Packet,
};

/// The first port that no service owns (RFC 6335): what a client would use.
const EPHEMERAL: u16 = 49152;
const ECHO_REQUEST: u8 = 8;

/// The error is one line.
pub(super) fn packet(ask: &Ask, source: Ipv4Addr, destination: Ipv4Addr) -> Result<Packet, String> {
    let protocol = ask.protocol;
    let has_ports = matches!(protocol, PROTO_TCP | PROTO_UDP | PROTO_SCTP);
    if !has_ports && (ask.port.is_some() || ask.src_port.is_some()) {
        return Err(format!("{} has no ports that policy sees: leave them out", name(protocol)));
    }
    if protocol != PROTO_ICMP && (ask.icmp_type.is_some() || ask.icmp_code.is_some()) {
        return Err(format!("{} has no ICMP type and code: leave them out", name(protocol)));
    }
    if ask.icmp_code.is_some() && ask.icmp_type.is_none() {
        return Err("an ICMP code needs a type".to_owned());
    }
    let dst_port = match ask.port {
        None if has_ports => return Err(format!("{} needs a destination port", name(protocol))),
        port => port.unwrap_or_default(),
    };
    let is_icmp = protocol == PROTO_ICMP;
    Ok(Packet {
        source,
        destination,
        protocol,
        src_port: if has_ports { ask.src_port.unwrap_or(EPHEMERAL) } else { 0 },
        dst_port,
        icmp_type: if is_icmp { ask.icmp_type.unwrap_or(ECHO_REQUEST) } else { 0 },
        icmp_code: ask.icmp_code.unwrap_or_default(),
    })
}

/// What was not said and may matter.
pub(super) fn assumptions(ask: &Ask, packet: &Packet, asks_src_port: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if asks_src_port && packet.src_port != 0 && ask.src_port.is_none() {
        lines.push(format!(
            "source port {EPHEMERAL} is assumed, and there are rules that ask for source ports"
        ));
    }
    if packet.protocol == PROTO_ICMP && ask.icmp_type.is_none() {
        lines.push(format!("ICMP type {ECHO_REQUEST}, code 0 (echo request) is assumed"));
    }
    lines
}

/// An error says something about another packet (RFC 792).
pub(super) fn is_icmp_error(packet: &Packet) -> bool {
    packet.protocol == PROTO_ICMP && matches!(packet.icmp_type, 3 | 4 | 5 | 11 | 12)
}

/// What the kernel searches its rows by.
pub(super) fn row_key(packet: &Packet) -> u32 {
    let port = if packet.protocol == PROTO_ICMP {
        icmp_port(packet.icmp_type, packet.icmp_code)
    } else {
        packet.dst_port
    };
    key(packet.protocol, port)
}

pub(super) fn shown(packet: &Packet) -> wire::Packet {
    let Packet { source, destination, protocol, src_port, dst_port, icmp_type, icmp_code } = *packet;
    wire::Packet { source, destination, protocol, src_port, dst_port, icmp_type, icmp_code }
}

fn name(protocol: u8) -> String {
    match protocol {
        PROTO_ICMP => "ICMP".to_owned(),
        PROTO_TCP => "TCP".to_owned(),
        PROTO_UDP => "UDP".to_owned(),
        PROTO_SCTP => "SCTP".to_owned(),
        other => format!("IP protocol {other}"),
    }
}
