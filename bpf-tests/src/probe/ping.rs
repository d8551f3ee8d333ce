//! ICMP echo, by `ping`.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    os::fd::AsRawFd,
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::{cmd::Proc, netns::Netns, until};

/// How many were answered, how many not.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PingStats {
    pub received: u32,
    pub lost: u32,
    /// Round trips in milliseconds; zero if nothing came back.
    pub average_ms: f64,
    pub worst_ms: f64,
}

impl PingStats {
    pub fn sent(&self) -> u32 {
        self.received + self.lost
    }
}

pub(super) fn ping(netns: &Netns, to: Ipv4Addr, count: u32, size: u32) -> Result<PingStats> {
    let deadline = Duration::from_millis(200) * count + Duration::from_secs(5);
    let line = format!("ping -n -c {count} -i 0.2 -W 1 -s {size} {to}");
    let output = netns.cmd(&line).deadline(deadline).output()?;
    // 0: answers, 1: none. With 2 it could not even send, which a blackhole or prohibit route causes too.
    let stats = read(&output.stdout);
    match output.status.code() {
        Some(0..=2) => Ok(PingStats { lost: count.saturating_sub(stats.received), ..stats }),
        _ => bail!("{line}: {}{}", output.stdout, output.stderr),
    }
}

/// Pings that go on in the background, to see whether an event loses packets.
#[derive(Debug)]
pub struct Pinger {
    process: Proc,
    /// Without a name, so that it is gone with this process however that ends.
    log: File,
}

impl Pinger {
    /// Starts, and returns when the first answer is there.
    pub fn start(netns: &Netns, to: Ipv4Addr, interval: Duration) -> Result<Self> {
        let log = tempfile::tempfile().context("cannot make a log file for ping")?;
        // -O reports an unanswered packet when the next is sent, so the one in flight at the end is not a loss.
        let line = format!("ping -n -O -W 1 -i {} {to}", interval.as_secs_f64());
        let process = netns.cmd(&line).start(&path(&log))?;
        let pinger = Self { process, log };
        if !until(Duration::from_secs(5), || pinger.stats().received > 0) {
            bail!("no answer to `{line}` in {}: {}", netns.name(), pinger.text());
        }
        Ok(pinger)
    }

    /// What is known so far. Answers may still be in ping's output buffer.
    pub fn stats(&self) -> PingStats {
        read(&self.text())
    }

    /// Ends it and counts.
    pub fn stop(mut self) -> Result<PingStats> {
        self.process.signal(Signal::SIGINT)?;
        self.process.wait(Duration::from_secs(5))?;
        Ok(self.stats())
    }

    fn text(&self) -> String {
        fs::read_to_string(path(&self.log)).unwrap_or_default()
    }
}

/// By which this process can open the file again, at its beginning.
fn path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn read(text: &str) -> PingStats {
    let mut answered = std::collections::BTreeSet::new();
    let mut missed = std::collections::BTreeSet::new();
    let mut times = Vec::new();
    for line in text.lines() {
        let Some(sequence) = field(line, "icmp_seq=").and_then(|s| s.parse::<u32>().ok()) else { continue };
        if line.contains("bytes from") {
            answered.insert(sequence);
            times.extend(field(line, "time=").and_then(|t| t.parse::<f64>().ok()));
        } else if line.starts_with("no answer yet") {
            missed.insert(sequence);
        }
    }
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    PingStats {
        received: count(answered.len()),
        // An answer may come after the report.
        lost: count(missed.difference(&answered).count()),
        average_ms: times.iter().sum::<f64>() / f64::from(count(times.len()).max(1)),
        worst_ms: times.iter().copied().fold(0.0, f64::max),
    }
}

/// The word behind `name`.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_once(name)?.1.split_whitespace().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_after_the_report_is_no_loss_and_one_in_flight_is_none() {
        let stats = read(
            "64 bytes from 10.0.0.1: icmp_seq=1 ttl=64 time=0.5 ms\n\
             no answer yet for icmp_seq=2\n\
             no answer yet for icmp_seq=3\n\
             64 bytes from 10.0.0.1: icmp_seq=3 ttl=64 time=1.5 ms\n\
             From 10.0.0.9 icmp_seq=4 Destination Host Unreachable\n",
        );
        assert_eq!(stats, PingStats { received: 2, lost: 1, average_ms: 1.0, worst_ms: 1.5 });
    }
}
