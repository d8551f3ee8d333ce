//! Where datagrams end that nobody is to take: behind the receiver's interface, counted.

use anyhow::{Context, Result};

use crate::netns::Netns;

/// Datagrams to this port and above end here. Policies of the benchmarks name none of these.
pub(super) const FIRST_PORT: u16 = super::PORTS.1 + 1;

/// Counts what comes, and has nobody answer; goes when it is closed.
pub(super) struct Sink<'a>(&'a Netns);

impl<'a> Sink<'a> {
    pub(super) fn open(netns: &'a Netns) -> Result<Self> {
        let sink = Self(netns);
        sink.nft("add table ip sink")?;
        sink.nft("add chain ip sink first { type filter hook prerouting priority raw; }")?;
        sink.nft(&format!("add rule ip sink first udp dport >= {FIRST_PORT} counter drop"))?;
        Ok(sink)
    }

    /// How many there were.
    pub(super) fn close(self) -> Result<u64> {
        let listing = self.nft("list chain ip sink first")?;
        let mut words = listing.split_whitespace().skip_while(|word| *word != "packets");
        let count = words.nth(1).and_then(|word| word.parse().ok());
        self.nft("delete table ip sink")?;
        count.with_context(|| format!("nft counts nothing: {listing}"))
    }

    fn nft(&self, line: &str) -> Result<String> {
        self.0.cmd("nft").arg(line).run()
    }
}
