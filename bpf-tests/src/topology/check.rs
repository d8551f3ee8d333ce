//! What keeps a comparison honest: that packets went the stated way, with the stated help of the devices.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Gear, Kind, Topology, felix};
use crate::{
    capture::Capture,
    load::{self, Receiver},
    netns::Netns,
    probe::Host as _,
};

/// Packets and bytes that left the sending side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WireCount {
    pub packets: u64,
    pub bytes: u64,
}

impl WireCount {
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self { packets: self.packets - earlier.packets, bytes: self.bytes - earlier.bytes }
    }
}

/// A wire that segments nothing, between devices that aggregate what comes, as those of a network card do.
pub struct Narrow<'a> {
    ends: Vec<(&'a Netns, &'static str)>,
    /// What the wire's devices leave to others, and XDP programs would lose.
    checksums: bool,
}

impl Narrow<'_> {
    fn set(&self, segmentation: &str, aggregation: &str) -> Result<()> {
        for (netns, device) in &self.ends {
            let features = ["tso", "gso", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"];
            let command = netns.cmd("ethtool -K").arg(device);
            let command = command.args(features.iter().flat_map(|feature| [*feature, segmentation]));
            let checksums = self.checksums.then_some(["tx-checksum-ip-generic", "off"]);
            let command = command.args(checksums.into_iter().flatten());
            command.args(["gro", aggregation]).run()?;
        }
        Ok(())
    }
}

impl Drop for Narrow<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.set("on", "off") {
            eprintln!("a wire stays narrow: {error:#}");
        }
    }
}

/// Features of a device that change what a packet costs.
pub type Offloads = BTreeMap<String, bool>;

const FEATURES: [&str; 6] = [
    "tcp-segmentation-offload",
    "generic-segmentation-offload",
    "generic-receive-offload",
    "tx-udp_tnl-segmentation",
    "tx-checksum-ip-generic",
    "rx-gro-list",
];

/// flannel's port and VNI 1, which lies above a reserved byte (RFC 7348 §5).
const IN_VXLAN: &str = "udp dst port 8472 and udp[12:4] = 0x100";
const END_MTU: u64 = 1450;
const SEEN: Duration = Duration::from_secs(3);

impl Topology {
    /// What went out by the wire (or, without nodes, by the sender's interface) so far.
    pub fn wire_count(&self) -> Result<WireCount> {
        let (netns, device) = self.wire();
        let link = link(netns, device)?;
        let tx = &link["stats64"]["tx"];
        let number = |name: &str| tx[name].as_u64().with_context(|| format!("{device} counts no {name}"));
        Ok(WireCount { packets: number("packets")?, bytes: number("bytes")? })
    }

    /// Has the wire carry frames of MTU size only, until what this returns is dropped: the devices on both of its ends
    /// segment no more, and aggregate what comes.
    pub fn narrow(&self) -> Result<Narrow<'_>> {
        let ends = match self.nodes() {
            Some((one, two)) => vec![(one.netns(), "up0"), (two.netns(), "up0")],
            None => vec![(self.path().from.netns(), "eth0"), (self.path().to.netns(), "eth0")],
        };
        let narrow = Narrow { ends, checksums: self.has_xdp() };
        narrow.set("off", "on")?;
        Ok(narrow)
    }

    fn has_xdp(&self) -> bool {
        matches!(self.kind, Kind::Canal { gear: Gear::Xdp, .. })
    }

    /// Of the wire's device and of the sender's, by `device.feature`.
    pub fn offloads(&self) -> Result<Offloads> {
        let mut all = Offloads::new();
        let (netns, device) = self.wire();
        if self.nodes().is_some() {
            offloads(netns, device, &mut all)?;
        }
        offloads(self.path().from.netns(), "eth0", &mut all)?;
        Ok(all)
    }

    /// Ethernet, IP and (with a tunnel) envelope around a UDP payload of `size` bytes.
    pub fn datagram_on_wire(&self, size: u64) -> u64 {
        let inner = 14 + 20 + 8 + size;
        // A veth whose other end runs XDP counts its packets there, behind the Ethernet header (veth.c, Linux 6.18).
        let uncounted = if self.has_xdp() { 14 } else { 0 };
        if self.kind.tunnels() { inner + 50 - uncounted } else { inner }
    }

    /// What the kernel of the receiving end threw away because a socket's buffer was full.
    pub fn receiver_overflows(&self) -> Result<u64> {
        let text = self.path().to.netns().cmd("nstat -asz UdpRcvbufErrors").run()?;
        let count = text.lines().find_map(|l| l.strip_prefix("UdpRcvbufErrors"));
        let count = count.and_then(|c| c.split_whitespace().next());
        count.and_then(|c| c.parse().ok()).with_context(|| format!("nstat said {text:?}"))
    }

    /// The ends reach each other, and a captured packet looks as it should.
    pub(super) fn prove(&self) -> Result<()> {
        let path = self.path();
        for end in [path.from, path.to] {
            let mtu = link(end.netns(), "eth0")?["mtu"].as_u64();
            ensure!(mtu == Some(END_MTU), "eth0 in {} has MTU {mtu:?}, not {END_MTU}", end.netns().name());
        }
        let (netns, device) = self.wire();
        let folder = tempfile::tempdir().context("no folder for a capture")?;
        let mut capture = Capture::start(netns, device, "ip", folder.path())?;
        // Under Canal's policy a ping would not pass: what the generators send does.
        load::datagrams(path, 64, Receiver::Sleeps, Duration::from_millis(1))?;
        let patience = |expected| if expected { SEEN } else { Duration::ZERO };
        let tunnels = self.kind.tunnels();
        let tunnelled = capture.sees(IN_VXLAN, patience(tunnels));
        let plain = capture.sees(&format!("dst host {}", path.to.ip()), patience(!tunnels));
        capture.stop()?;
        match (tunnels, tunnelled, plain) {
            (true, true, false) | (false, false, true) => {}
            (true, ..) => {
                bail!("on {device}: in VXLAN {tunnelled}, outside it {plain}; all must be in VXLAN")
            }
            (false, ..) => {
                bail!("on {device}: in VXLAN {tunnelled}, outside it {plain}; none may be in VXLAN")
            }
        }
        if let Kind::Felix { rules } = self.kind {
            felix::prove(self, rules)?;
        }
        self.offloads_are_as_stated()
    }

    /// Large packets must be able to cross whole, tunnelled or not: else the table would compare segmentation.
    fn offloads_are_as_stated(&self) -> Result<()> {
        let offloads = self.offloads()?;
        let mut needed = vec!["eth0.tcp-segmentation-offload", "eth0.generic-segmentation-offload"];
        // A veth with an XDP program has its other end cut everything to size.
        if self.kind != Kind::Bare && !self.has_xdp() {
            needed.extend(["up0.tcp-segmentation-offload", "up0.tx-udp_tnl-segmentation"]);
        }
        for name in needed {
            ensure!(
                offloads.get(name) == Some(&true),
                "{name} is off: this wire does not pass large packets"
            );
        }
        Ok(())
    }
}

fn link(netns: &Netns, device: &str) -> Result<Value> {
    let text = netns.cmd("ip -j -s link show dev").arg(device).run()?;
    let mut links: Vec<Value> = serde_json::from_str(&text).context("ip's answer")?;
    links.pop().with_context(|| format!("no {device} in {}", netns.name()))
}

fn offloads(netns: &Netns, device: &str, into: &mut Offloads) -> Result<()> {
    let text = netns.cmd("ethtool -k").arg(device).run()?;
    for line in text.lines() {
        let Some((name, state)) = line.trim().split_once(": ") else { continue };
        if FEATURES.contains(&name) {
            into.insert(format!("{device}.{name}"), state.starts_with("on"));
        }
    }
    Ok(())
}
