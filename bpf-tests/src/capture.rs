//! Packets seen on an interface, by `tcpdump`.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::{
    cmd::{Cmd, Proc},
    netns::Netns,
    until,
};

const START: Duration = Duration::from_secs(5);

/// A running capture; the file stays in the world's folder, and with the artefacts if the test fails.
#[derive(Debug)]
pub struct Capture {
    process: Proc,
    file: PathBuf,
}

impl Capture {
    /// `filter` in tcpdump's language. Returns when packets are being taken. The beginning of each is kept.
    pub fn start(netns: &Netns, interface: &str, filter: &str, folder: &Path) -> Result<Self> {
        Self::start_with(netns, interface, filter, folder, 256)
    }

    /// The same with whole packets, to check their checksums.
    pub fn start_whole(netns: &Netns, interface: &str, filter: &str, folder: &Path) -> Result<Self> {
        Self::start_with(netns, interface, filter, folder, 0)
    }

    fn start_with(netns: &Netns, interface: &str, filter: &str, folder: &Path, length: u32) -> Result<Self> {
        let file = unused(folder, &format!("{}-{interface}", netns.name()));
        let log = file.with_extension("tcpdump.log");
        let mut process = netns
            .cmd(&format!("tcpdump -n -U --immediate-mode -s {length}"))
            .args(["-i", interface, "-w", &file.display().to_string()])
            .args((!filter.is_empty()).then_some(filter))
            .start(&log)?;
        let started = until(START, || {
            !process.is_running() || fs::read_to_string(&log).is_ok_and(|l| l.contains("listening on"))
        });
        let said = fs::read_to_string(&log).unwrap_or_default();
        ensure!(started && process.is_running(), "tcpdump on {interface} in {}: {said}", netns.name());
        Ok(Self { process, file })
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The packets so far that match, one line each.
    pub fn packets(&self, filter: &str) -> Result<Vec<String>> {
        self.read("", filter)
    }

    /// The envelopes so far that match; tcpdump takes flannel's port for another protocol unless told.
    pub fn envelopes(&self, filter: &str) -> Result<Vec<String>> {
        self.read("-T vxlan", filter)
    }

    /// As [`packets`](Self::packets), with every header and whether its checksum is right; a packet may take several lines.
    pub fn packets_in_full(&self, filter: &str) -> Result<Vec<String>> {
        self.read("-vv", filter)
    }

    /// Lengths on the wire of the packets so far that match, Ethernet header included.
    pub fn lengths(&self, filter: &str) -> Result<Vec<u32>> {
        let length = |line: String| {
            let (_, rest) = line.split_once(", length ")?;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
        };
        Ok(self.read("-e -t", filter)?.into_iter().filter_map(length).collect())
    }

    fn read(&self, how: &str, filter: &str) -> Result<Vec<String>> {
        let file = self.file.display().to_string();
        let output =
            Cmd::line("tcpdump -nn").args(how.split_whitespace()).args(["-r", &file, filter]).output()?;
        // While the file grows its last packet may be incomplete, which is an error after all others.
        Ok(output.stdout.lines().map(str::to_owned).collect())
    }

    /// Whether a matching packet comes within the deadline.
    pub fn sees(&self, filter: &str, deadline: Duration) -> bool {
        until(deadline, || self.packets(filter).is_ok_and(|p| !p.is_empty()))
    }

    /// Ends the capture with all packets in the file.
    pub fn stop(&mut self) -> Result<()> {
        self.process.signal(Signal::SIGINT)?;
        self.process.wait(START).context("tcpdump does not stop").map(drop)
    }
}

fn unused(folder: &Path, stem: &str) -> PathBuf {
    (0..1000).map(|n| folder.join(format!("{stem}-{n}.pcap"))).find(|p| !p.exists()).unwrap_or_default()
}
