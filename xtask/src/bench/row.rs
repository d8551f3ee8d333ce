//! Owns: what is measured on a topology, and the checks that make a reading worth something.

use std::time::Duration;

use anyhow::{Result, ensure};
use bpf_tests::{
    load::{self, Bulk, Congestion, Datagrams, Receiver},
    topology::{Topology, WireCount},
};

use super::{figures::percent, machine::Busy};

/// One kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Row {
    TcpBulk,
    /// Without pacing.
    TcpBulkCubic,
    TcpBulk4,
    /// Over a wire that carries frames of MTU size only.
    TcpBulkMtu,
    Udp64,
    /// The same to a receiver that polls.
    Udp64Path,
    Udp1400,
    Rtt,
    Crr,
    UdpFlows,
    /// Frames handed to the receiving side from memory.
    Receive,
    /// The same, to its driver.
    ReceiveDriver,
}

/// A column of the result: one traffic may give several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Figure {
    TcpBulk,
    TcpBulkCpu,
    TcpBulkCubic,
    TcpBulkCubicCpu,
    TcpBulk4,
    TcpBulkMtu,
    Udp64,
    Udp64Cpu,
    Udp64Path,
    Udp1400,
    RttP50,
    RttP99,
    RttP999,
    Crr,
    UdpFlows,
    Receive,
    ReceiveDriver,
    /// Not figures of merit: what was sent in vain.
    Udp64Loss,
    Udp64PathLoss,
    Udp1400Loss,
    UdpFlowsLoss,
    ReceiveLoss,
    ReceiveDriverLoss,
}

/// One measured value.
pub(super) type Reading = (Figure, f64);

impl Figure {
    /// The name, stable, for scripts; what it is, for people; the unit.
    const fn description(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::TcpBulk => ("tcp_bulk", "TCP bulk, 1 stream", "Gb/s"),
            Self::TcpBulkCpu => ("tcp_bulk_cpu", "TCP bulk, processor time", "s/GB"),
            Self::TcpBulkCubic => ("tcp_bulk_cubic", "TCP bulk, 1 stream, not paced", "Gb/s"),
            Self::TcpBulkCubicCpu => ("tcp_bulk_cubic_cpu", "TCP bulk, not paced, processor time", "s/GB"),
            Self::TcpBulk4 => ("tcp_bulk_4", "TCP bulk, 4 streams", "Gb/s"),
            Self::TcpBulkMtu => ("tcp_bulk_mtu", "TCP bulk, 1 stream, MTU-sized wire", "Gb/s"),
            Self::Udp64 => ("udp_64", "UDP 64 B, received", "kpps"),
            Self::Udp64Cpu => ("udp_64_cpu", "UDP 64 B, processor time", "s/Mp"),
            Self::Udp64Path => ("udp_64_path", "UDP 64 B, receiver polls", "kpps"),
            Self::Udp1400 => ("udp_1400", "UDP 1400 B, received", "kpps"),
            Self::RttP50 => ("rtt_p50", "TCP round trip, median", "us"),
            Self::RttP99 => ("rtt_p99", "TCP round trip, p99", "us"),
            Self::RttP999 => ("rtt_p999", "TCP round trip, p99.9", "us"),
            Self::Crr => ("crr", "connections: 16 B each way, reset", "1/s"),
            Self::UdpFlows => ("udp_flows", "UDP flows of one packet", "1/s"),
            Self::Receive => ("receive", "UDP 64 B, injected as XDP frames", "kpps"),
            Self::ReceiveDriver => ("receive_driver", "UDP 64 B, injected before the driver", "kpps"),
            Self::ReceiveDriverLoss => {
                ("receive_driver_loss", "UDP 64 B, injected before the driver, lost", "%")
            }
            Self::Udp64Loss => ("udp_64_loss", "UDP 64 B, lost", "%"),
            Self::Udp64PathLoss => ("udp_64_path_loss", "UDP 64 B, receiver polls, lost", "%"),
            Self::Udp1400Loss => ("udp_1400_loss", "UDP 1400 B, lost", "%"),
            Self::UdpFlowsLoss => ("udp_flows_loss", "UDP flows of one packet, lost", "%"),
            Self::ReceiveLoss => ("receive_loss", "UDP 64 B, injected as XDP frames, lost", "%"),
        }
    }

    /// What was sent in vain.
    pub(super) const LOSSES: [Self; 6] = [
        Self::Udp64Loss,
        Self::Udp64PathLoss,
        Self::Udp1400Loss,
        Self::UdpFlowsLoss,
        Self::ReceiveLoss,
        Self::ReceiveDriverLoss,
    ];

    pub(super) fn name(self) -> &'static str {
        self.description().0
    }

    pub(super) fn sentence(self) -> &'static str {
        self.description().1
    }

    pub(super) fn unit(self) -> &'static str {
        self.description().2
    }

    pub(super) fn compares(self) -> bool {
        !Self::LOSSES.contains(&self)
    }
}

/// Around the measured traffic there is a little else: ARP, the warm-up's last packets.
const STRAY_PACKETS: u64 = 64;
/// MTU 1500 and Ethernet's header.
const WIRE_FRAME: u64 = 1514;
/// Of one reading: fewer than a node's connection tracking holds.
const FLOWS: u64 = 100_000;

impl Row {
    pub(super) const ALL: [Self; 12] = [
        Self::TcpBulk,
        Self::TcpBulkCubic,
        Self::TcpBulk4,
        Self::TcpBulkMtu,
        Self::Udp64,
        Self::Udp64Path,
        Self::Udp1400,
        Self::Rtt,
        Self::Crr,
        Self::UdpFlows,
        Self::Receive,
        Self::ReceiveDriver,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::TcpBulk => "tcp_bulk",
            Self::TcpBulkCubic => "tcp_bulk_cubic",
            Self::TcpBulk4 => "tcp_bulk_4",
            Self::TcpBulkMtu => "tcp_bulk_mtu",
            Self::Udp64 => "udp_64",
            Self::Udp64Path => "udp_64_path",
            Self::Udp1400 => "udp_1400",
            Self::Rtt => "rtt",
            Self::Crr => "crr",
            Self::UdpFlows => "udp_flows",
            Self::Receive => "receive",
            Self::ReceiveDriver => "receive_driver",
        }
    }

    pub(super) fn measure(self, topology: &Topology, duration: Duration) -> Result<Vec<Reading>> {
        let path = topology.path();
        Ok(match self {
            Self::TcpBulk => {
                let figures = [Figure::TcpBulk, Figure::TcpBulkCpu];
                bulk_and_cpu(topology, Congestion::Default, duration, figures)?
            }
            Self::TcpBulkCubic => {
                let figures = [Figure::TcpBulkCubic, Figure::TcpBulkCubicCpu];
                bulk_and_cpu(topology, Congestion::Cubic, duration, figures)?
            }
            Self::TcpBulk4 => {
                let bulk = bulk(topology, 4, Congestion::Default, duration)?;
                vec![(Figure::TcpBulk4, bulk.gigabits_per_second())]
            }
            Self::TcpBulkMtu => {
                let _narrow = topology.narrow()?;
                let before = topology.wire_count()?;
                let bulk = bulk(topology, 1, Congestion::Default, duration)?;
                let wire = topology.wire_count()?.since(before);
                let mean = wire.bytes / wire.packets.max(1);
                ensure!(mean <= WIRE_FRAME, "the wire carried frames of {mean} bytes in the mean");
                vec![(Figure::TcpBulkMtu, bulk.gigabits_per_second())]
            }
            Self::Udp64 => {
                let busy = Busy::start()?;
                let datagrams = datagrams(topology, 64, Receiver::Sleeps, duration)?;
                let cpu = busy.seconds_per(millions(datagrams.received), datagrams.elapsed)?;
                let mut readings = rate_and_loss(&datagrams, [Figure::Udp64, Figure::Udp64Loss]);
                readings.push((Figure::Udp64Cpu, cpu));
                readings
            }
            Self::Udp64Path => rate_and_loss(
                &datagrams(topology, 64, Receiver::Polls, duration)?,
                [Figure::Udp64Path, Figure::Udp64PathLoss],
            ),
            Self::Udp1400 => rate_and_loss(
                &datagrams(topology, 1400, Receiver::Sleeps, duration)?,
                [Figure::Udp1400, Figure::Udp1400Loss],
            ),
            Self::Rtt => {
                let trips = load::round_trips(path, duration)?;
                [(Figure::RttP50, 500), (Figure::RttP99, 990), (Figure::RttP999, 999)]
                    .map(|(figure, per_mille)| (figure, trips.quantile_us(per_mille)))
                    .to_vec()
            }
            Self::Crr => vec![(Figure::Crr, load::connections(path, duration)?.per_second())],
            Self::UdpFlows => {
                topology.forget_flows()?;
                let flows = load::new_flows(path, FLOWS, duration)?;
                let (sent, received) = (flows.sent.flows, flows.received);
                ensure!(received <= sent, "{sent} flows were sent, and {received} arrived");
                ensure!(received > 0, "none of {sent} flows arrived");
                let loss = percent(sent - received, sent);
                vec![(Figure::UdpFlows, flows.per_second()), (Figure::UdpFlowsLoss, loss)]
            }
            Self::Receive => {
                let datagrams = load::injected(path, topology.entrance(), duration)?;
                check_loss(&datagrams, 0)?;
                rate_and_loss(&datagrams, [Figure::Receive, Figure::ReceiveLoss])
            }
            Self::ReceiveDriver => {
                let _narrow = topology.narrow()?;
                let datagrams = load::injected(path, topology.entrance_before_driver(), duration)?;
                rate_and_loss(&datagrams, [Figure::ReceiveDriver, Figure::ReceiveDriverLoss])
            }
        })
    }
}

/// One stream, and the processor time that it took.
fn bulk_and_cpu(
    topology: &Topology,
    congestion: Congestion,
    duration: Duration,
    [rate, cpu]: [Figure; 2],
) -> Result<Vec<Reading>> {
    let busy = Busy::start()?;
    let bulk = bulk(topology, 1, congestion, duration)?;
    let seconds = busy.seconds_per(gigabytes(bulk.bytes), bulk.elapsed)?;
    Ok(vec![(rate, bulk.gigabits_per_second()), (cpu, seconds)])
}

fn bulk(topology: &Topology, streams: usize, congestion: Congestion, duration: Duration) -> Result<Bulk> {
    let before = topology.wire_count()?;
    let bulk = load::bulk(topology.path(), streams, congestion, duration)?;
    let wire = topology.wire_count()?.since(before);
    ensure!(wire.bytes >= bulk.bytes, "{} bytes arrived, but the wire carried {}", bulk.bytes, wire.bytes);
    Ok(bulk)
}

fn datagrams(topology: &Topology, size: u16, receiver: Receiver, duration: Duration) -> Result<Datagrams> {
    let (wire, overflows) = (topology.wire_count()?, topology.receiver_overflows()?);
    let datagrams = load::datagrams(topology.path(), size.into(), receiver, duration)?;
    let overflows = topology.receiver_overflows()? - overflows;
    check_datagrams(topology, size, &datagrams, topology.wire_count()?.since(wire), overflows)?;
    Ok(datagrams)
}

fn rate_and_loss(datagrams: &Datagrams, [rate, lost]: [Figure; 2]) -> Vec<Reading> {
    vec![(rate, datagrams.received_kpps()), (lost, datagrams.loss() * 100.0)]
}

/// Every datagram went out by the wire in the stated form, and came in, or was counted where it was lost.
fn check_datagrams(
    topology: &Topology,
    size: u16,
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
    let expected = topology.datagram_on_wire(size.into());
    let mean = wire.bytes / wire.packets.max(1);
    ensure!(
        mean.abs_diff(expected) <= 1,
        "a datagram has {mean} bytes on the wire, but should have {expected}: it did not go as {} says",
        topology.kind()
    );
    check_loss(datagrams, overflows)
}

/// Every datagram came in, or was counted where it was lost.
fn check_loss(datagrams: &Datagrams, overflows: u64) -> Result<()> {
    let missing = datagrams.sent - datagrams.received.min(datagrams.sent);
    ensure!(
        missing <= overflows + STRAY_PACKETS,
        "{missing} of {} datagrams are missing, and only {overflows} of them at the receiver's socket",
        datagrams.sent
    );
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a quantity for people")]
fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

#[expect(clippy::cast_precision_loss, reason = "a quantity for people")]
fn millions(count: u64) -> f64 {
    count as f64 / 1e6
}
