//! How much goes through.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Host, tcp};
use crate::until;

const CHUNK: usize = 128 * 1024;

/// A measured transfer, at the receiver.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Throughput {
    pub bytes: u64,
    pub seconds: f64,
}

impl Throughput {
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn gigabits_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.bytes as f64 * 8.0 / self.seconds / 1e9 } else { 0.0 }
    }
}

/// One TCP stream from threads of this process.
pub fn tcp_bulk(from: &dyn Host, to: &dyn Host, port: u16, duration: Duration) -> Result<Throughput> {
    let listener = tcp::listen(to.netns(), port)?;
    let mut sender = tcp::open(from.netns(), SocketAddrV4::new(to.ip(), port), Duration::from_secs(3))?
        .with_context(|| format!("no connection to {}:{port}", to.ip()))?;
    let (mut receiver, _) = listener.accept().context("cannot accept")?;
    // A path that dies in the middle ends the measurement with an error.
    receiver.set_read_timeout(Some(Duration::from_secs(5)))?;
    sender.set_write_timeout(Some(Duration::from_secs(5)))?;
    let receiving = thread::spawn(move || -> std::io::Result<Throughput> {
        let mut buffer = vec![0; CHUNK];
        let (start, mut bytes) = (Instant::now(), 0);
        loop {
            let size = receiver.read(&mut buffer)?;
            if size == 0 {
                return Ok(Throughput { bytes, seconds: start.elapsed().as_secs_f64() });
            }
            bytes += size as u64;
        }
    });
    let chunk = vec![0x5a; CHUNK];
    let end = Instant::now() + duration;
    let sent = loop {
        if Instant::now() >= end {
            break Ok(());
        }
        if let Err(e) = sender.write_all(&chunk) {
            break Err(e);
        }
    };
    drop(sender);
    let received = receiving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    sent.context("sending stopped")?;
    received.context("receiving stopped")
}

/// The same with `iperf3`; `extra` are more arguments of its client.
pub fn iperf3(from: &dyn Host, to: &dyn Host, duration: Duration, extra: &[&str]) -> Result<Throughput> {
    const PORT: u16 = 5201;
    let _server = to.netns().cmd("iperf3 -s -1 -f m").start(Path::new("/dev/null"))?;
    let address: Ipv4Addr = to.ip();
    // A connection would be the server's only one, so look for the listening socket.
    let listens = || to.netns().cmd("ss -Hltn").run().is_ok_and(|s| s.contains(&format!(":{PORT} ")));
    anyhow::ensure!(
        until(Duration::from_secs(5), listens),
        "iperf3 does not listen in {}",
        to.netns().name()
    );
    let seconds = duration.as_secs_f64().ceil();
    let text = from
        .netns()
        .cmd(&format!("iperf3 -J -c {address} -t {seconds}"))
        .args(extra)
        .deadline(duration + Duration::from_secs(10))
        .run()?;
    let report: Value = serde_json::from_str(&text).context("iperf3's report")?;
    let end = &report["end"];
    let sum = end.get("sum_received").or_else(|| end.get("sum")).context("iperf3 reports no sum")?;
    let bytes = sum["bytes"].as_u64().context("iperf3 reports no bytes")?;
    Ok(Throughput { bytes, seconds: sum["seconds"].as_f64().unwrap_or_default() })
}
