//! Owns: what is measured on a topology, and the checks that make a reading worth something.

use std::time::Duration;

use anyhow::{Result, ensure};
use bpf_tests::{
    load::{self, Datagrams, Receiver},
    topology::{Topology, WireCount},
};

/// One kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Row {
    TcpBulk,
    Udp64,
    /// The same to a receiver that polls.
    Udp64Path,
    Rtt,
    Crr,
}

/// A column of the result: one traffic may give several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Figure {
    TcpBulk,
    Udp64,
    Udp64Path,
    RttP50,
    RttP99,
    Crr,
    /// Not figures of merit: what was sent in vain.
    Udp64Loss,
    Udp64PathLoss,
}

/// One measured value.
pub(super) type Reading = (Figure, f64);

impl Figure {
    /// Stable, for scripts.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::TcpBulk => "tcp_bulk",
            Self::Udp64 => "udp_64",
            Self::Udp64Path => "udp_64_path",
            Self::RttP50 => "rtt_p50",
            Self::RttP99 => "rtt_p99",
            Self::Crr => "crr",
            Self::Udp64Loss => "udp_64_loss",
            Self::Udp64PathLoss => "udp_64_path_loss",
        }
    }

    /// For people.
    pub(super) fn sentence(self) -> &'static str {
        match self {
            Self::TcpBulk => "TCP bulk, 1 stream",
            Self::Udp64 => "UDP 64 B, received",
            Self::Udp64Path => "UDP 64 B, receiver polls",
            Self::RttP50 => "TCP round trip, median",
            Self::RttP99 => "TCP round trip, p99",
            Self::Crr => "connections: 16 B each way, reset",
            Self::Udp64Loss => "UDP 64 B, lost",
            Self::Udp64PathLoss => "UDP 64 B, receiver polls, lost",
        }
    }

    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::TcpBulk => "Gb/s",
            Self::Udp64 | Self::Udp64Path => "kpps",
            Self::RttP50 | Self::RttP99 => "us",
            Self::Crr => "1/s",
            Self::Udp64Loss | Self::Udp64PathLoss => "%",
        }
    }

    pub(super) fn compares(self) -> bool {
        !matches!(self, Self::Udp64Loss | Self::Udp64PathLoss)
    }
}

/// Around the measured traffic there is a little else: ARP, the warm-up's last packets.
const STRAY_PACKETS: u64 = 64;
const PAYLOAD: u16 = 64;

impl Row {
    pub(super) const ALL: [Self; 5] = [Self::TcpBulk, Self::Udp64, Self::Udp64Path, Self::Rtt, Self::Crr];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::TcpBulk => "tcp_bulk",
            Self::Udp64 => "udp_64",
            Self::Udp64Path => "udp_64_path",
            Self::Rtt => "rtt",
            Self::Crr => "crr",
        }
    }

    pub(super) fn measure(self, topology: &Topology, duration: Duration) -> Result<Vec<Reading>> {
        let path = topology.path();
        Ok(match self {
            Self::TcpBulk => {
                let before = topology.wire_count()?;
                let bulk = load::bulk(path, 1, duration)?;
                let wire = topology.wire_count()?.since(before);
                ensure!(
                    wire.bytes >= bulk.bytes,
                    "{} bytes arrived, but the wire carried {}",
                    bulk.bytes,
                    wire.bytes
                );
                vec![(Figure::TcpBulk, bulk.gigabits_per_second())]
            }
            Self::Udp64 => {
                datagrams(topology, Receiver::Sleeps, duration, [Figure::Udp64, Figure::Udp64Loss])?
            }
            Self::Udp64Path => {
                datagrams(topology, Receiver::Polls, duration, [Figure::Udp64Path, Figure::Udp64PathLoss])?
            }
            Self::Rtt => {
                let trips = load::round_trips(path, duration)?;
                vec![(Figure::RttP50, trips.quantile_us(500)), (Figure::RttP99, trips.quantile_us(990))]
            }
            Self::Crr => vec![(Figure::Crr, load::connections(path, duration)?.per_second())],
        })
    }
}

fn datagrams(
    topology: &Topology,
    receiver: Receiver,
    duration: Duration,
    [rate, lost]: [Figure; 2],
) -> Result<Vec<Reading>> {
    let (wire, overflows) = (topology.wire_count()?, topology.receiver_overflows()?);
    let datagrams = load::datagrams(topology.path(), PAYLOAD.into(), receiver, duration)?;
    let overflows = topology.receiver_overflows()? - overflows;
    check_datagrams(topology, &datagrams, topology.wire_count()?.since(wire), overflows)?;
    Ok(vec![(rate, datagrams.received_kpps()), (lost, datagrams.loss() * 100.0)])
}

/// Every datagram went out by the wire in the stated form, and came in, or was counted where it was lost.
fn check_datagrams(
    topology: &Topology,
    datagrams: &Datagrams,
    wire: WireCount,
    overflows: u64,
) -> Result<()> {
    ensure!(
        wire.packets >= datagrams.sent,
        "{} datagrams sent, but the wire carried {} packets",
        datagrams.sent,
        wire.packets
    );
    let expected = topology.datagram_on_wire(PAYLOAD.into());
    let mean = wire.bytes / wire.packets.max(1);
    ensure!(
        mean.abs_diff(expected) <= 1,
        "a datagram has {mean} bytes on the wire, but should have {expected}: it did not go as {} says",
        topology.kind()
    );
    let missing = datagrams.sent - datagrams.received.min(datagrams.sent);
    ensure!(
        missing <= overflows + STRAY_PACKETS,
        "{missing} of {} datagrams are missing, and only {overflows} of them at the receiver's socket",
        datagrams.sent
    );
    Ok(())
}
