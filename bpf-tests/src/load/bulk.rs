//! TCP streams that send as much as they can.

use std::{
    ffi::OsString,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    PATIENCE, Path, WARM_UP, port,
    seat::{Seat, join, spawn},
};

/// Bytes that arrived after the warm-up, and the time they took.
#[derive(Debug, Clone, Copy)]
pub struct Bulk {
    pub bytes: u64,
    pub elapsed: Duration,
}

impl Bulk {
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn gigabits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64() / 1e9
    }
}

/// Who says how fast a stream may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Congestion {
    /// What this machine gives its sockets.
    Default,
    /// CUBIC, which does not pace: only the path holds it back. A paced stream (BBR) sleeps between bursts, and shows as
    /// much of timers and wake-ups as of the path.
    Cubic,
}

const CHUNK: usize = 128 * 1024;

/// `streams` at once, for `duration` after the warm-up.
pub fn bulk(path: Path<'_>, streams: usize, congestion: Congestion, duration: Duration) -> Result<Bulk> {
    let listener = path.to.netns().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port::BULK)))?;
    let listener = listener.context("cannot listen for bulk streams")?;
    let target = SocketAddrV4::new(path.to.ip(), port::BULK);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut senders = Vec::new();
        let mut receivers = Vec::new();
        for _ in 0..streams {
            let sender = path.from.netns().run(|| TcpStream::connect_timeout(&target.into(), PATIENCE))?;
            let sender = sender.with_context(|| format!("no bulk connection to {target}"))?;
            if congestion == Congestion::Cubic {
                setsockopt(&sender, sockopt::TcpCongestion, &OsString::from("cubic"))
                    .context("this kernel has no congestion control named cubic")?;
            }
            let (receiver, _) = listener.accept().context("cannot accept a bulk stream")?;
            let stop = &stop;
            receivers.push(spawn(scope, Seat::Second, path.to.netns(), move || receive(receiver, duration)));
            senders.push(spawn(scope, Seat::First, path.from.netns(), move || send(sender, stop)));
        }
        let received: Vec<_> = receivers.into_iter().map(join).collect();
        stop.store(true, Ordering::Relaxed);
        let sent: Vec<_> = senders.into_iter().map(join).collect();
        let mut total = Bulk { bytes: 0, elapsed: duration };
        for one in received {
            let one = one?;
            total.bytes += one.bytes;
            total.elapsed = total.elapsed.max(one.elapsed);
        }
        sent.into_iter().collect::<Result<Vec<()>>>()?;
        Ok(total)
    })
}

fn send(mut stream: TcpStream, stop: &AtomicBool) -> Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let chunk = vec![0x5a; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        match stream.write_all(&chunk) {
            Ok(()) => {}
            // The receiver has seen enough.
            Err(e) if matches!(e.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => break,
            Err(e) => return Err(e).context("bulk sending stopped"),
        }
    }
    Ok(())
}

fn receive(mut stream: TcpStream, duration: Duration) -> Result<Bulk> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; CHUNK];
    let mut take = || match stream.read(&mut buffer) {
        Ok(0) => bail!("the bulk sender ended early"),
        other => other.context("bulk receiving stopped"),
    };
    let warm = Instant::now() + WARM_UP;
    while Instant::now() < warm {
        take()?;
    }
    let (start, mut bytes) = (Instant::now(), 0);
    while start.elapsed() < duration {
        bytes += take()? as u64;
    }
    Ok(Bulk { bytes, elapsed: start.elapsed() })
}
