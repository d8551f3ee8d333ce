//! Numbered datagrams at a steady rate in the background, of which every single one is accounted for: to see what an event
//! costs.

use std::{
    collections::HashMap,
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::{PATIENCE, Path, RECEIVE_BUFFER, go_first, port};

/// What became of them.
#[derive(Debug, Clone, Copy)]
pub struct Numbered {
    pub sent: u64,
    /// That the sender worked.
    pub elapsed: Duration,
    pub lost: u64,
    /// Came more than once.
    pub twice: u64,
    /// Between two that came.
    pub longest_gap: Duration,
    /// What the whole machine has dropped meanwhile because a processor was too busy (softnet): no path's fault.
    pub overload: u64,
}

impl Numbered {
    /// Datagrams that were sent in a second.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn per_second(&self) -> f64 {
        self.sent as f64 / self.elapsed.as_secs_f64()
    }
}

/// A stream that runs. One at a time in each direction between two hosts.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    sender: JoinHandle<Result<(u64, Duration)>>,
    receiver: JoinHandle<Result<Seen>>,
    overload: u64,
}

/// Between two bursts of the sender.
const BEAT: Duration = Duration::from_millis(1);
/// A sender that got no turn does not make up for it: a burst of hundreds would be another load.
const LONGEST_BURST: u64 = 128;
const LOOK: Duration = Duration::from_millis(20);
/// What is on its way when the sender has ended has so long to come.
const LATE: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
struct Seen {
    /// A bit for each number.
    numbers: HashMap<u64, u64>,
    count: u64,
    twice: u64,
    last: Option<Instant>,
    longest_gap: Duration,
}

impl Seen {
    fn note(&mut self, number: u64) {
        let bits = self.numbers.entry(number / 64).or_default();
        let bit = 1 << (number % 64);
        if *bits & bit == 0 {
            *bits |= bit;
            self.count += 1;
        } else {
            self.twice += 1;
        }
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.longest_gap = self.longest_gap.max(now - last);
        }
    }
}

impl Stream {
    /// Establishes the flow, and sends so many datagrams a second from then on.
    pub fn start(path: Path<'_>, per_second: u32) -> Result<Self> {
        let bind = |port| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port));
        let sender = path.from.netns().run(|| bind(0))?.context("cannot open a UDP socket")?;
        let receiver =
            path.to.netns().run(|| bind(port::STREAM))?.context("cannot take the stream's port")?;
        setsockopt(&receiver, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("the receive buffer")?;
        receiver.set_read_timeout(Some(LOOK))?;
        sender.set_read_timeout(Some(LOOK))?;
        let target = SocketAddrV4::new(path.to.ip(), port::STREAM);
        establish(&sender, &receiver, target)?;
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (overload, done) = (overload()?, Arc::new(AtomicBool::new(false)));
        let receiver = {
            let (done, received) = (done.clone(), received.clone());
            thread::spawn(move || receive(&receiver, &done, &received))
        };
        let sender = {
            let stop = stop.clone();
            thread::spawn(move || {
                let sent = send(&sender, target, per_second, &stop);
                done.store(true, Ordering::Relaxed);
                sent
            })
        };
        Ok(Self { stop, received, sender, receiver, overload })
    }

    /// How many have come so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Ends it, and waits for what is on its way.
    pub fn stop(self) -> Result<Numbered> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = |_| anyhow!("a generator panicked");
        let (sent, elapsed) = self.sender.join().map_err(ended)??;
        let seen = self.receiver.join().map_err(ended)??;
        Ok(Numbered {
            sent,
            elapsed,
            lost: sent.saturating_sub(seen.count),
            twice: seen.twice,
            longest_gap: seen.longest_gap,
            overload: overload()? - self.overload,
        })
    }
}

/// There and back.
fn establish(sender: &UdpSocket, receiver: &UdpSocket, target: SocketAddrV4) -> Result<()> {
    let begun = Instant::now();
    let (hello, mut buffer) = (b"hello", [0; 8]);
    while begun.elapsed() < PATIENCE {
        sender.send_to(hello, target)?;
        let Ok((_, from)) = receiver.recv_from(&mut buffer) else { continue };
        receiver.send_to(hello, from)?;
        if sender.recv(&mut buffer).is_ok() {
            // What was sent more than once is in the receiver's queue at most for a moment.
            while receiver.recv(&mut buffer).is_ok() {}
            return Ok(());
        }
    }
    ensure!(false, "{target} cannot be reached");
    Ok(())
}

/// By an address and not by a connection: what the network says about one datagram must not keep back the next.
fn send(
    socket: &UdpSocket,
    target: SocketAddrV4,
    per_second: u32,
    stop: &AtomicBool,
) -> Result<(u64, Duration)> {
    go_first()?;
    let begun = Instant::now();
    let (mut sent, mut due, mut last) = (0_u64, 0.0, begun);
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(BEAT);
        due += last.elapsed().as_secs_f64() * f64::from(per_second);
        last = Instant::now();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
        let burst = due as u64;
        due = due.fract();
        for _ in 0..burst.min(LONGEST_BURST) {
            match socket.send_to(&sent.to_be_bytes(), target) {
                Ok(_) => sent += 1,
                // The device's queue is full: it was not sent.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                // No way there: a loss.
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable | ErrorKind::NetworkDown
                    ) =>
                {
                    sent += 1;
                }
                Err(e) => return Err(e).context("cannot send a datagram"),
            }
        }
    }
    Ok((sent, begun.elapsed()))
}

fn receive(socket: &UdpSocket, done: &AtomicBool, received: &AtomicU64) -> Result<Seen> {
    go_first()?;
    let (mut seen, mut buffer) = (Seen::default(), [0; 8]);
    let mut quiet_since = None;
    loop {
        match socket.recv(&mut buffer) {
            Ok(8) => {
                seen.note(u64::from_be_bytes(buffer));
                received.store(seen.count, Ordering::Relaxed);
                quiet_since = None;
            }
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                let since = *quiet_since.get_or_insert_with(Instant::now);
                if done.load(Ordering::Relaxed) && since.elapsed() > LATE {
                    return Ok(seen);
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e).context("cannot receive a datagram"),
        }
    }
}

/// Packets that all processors have dropped since the machine started (the second column).
fn overload() -> Result<u64> {
    let text = fs::read_to_string("/proc/net/softnet_stat").context("the kernel's counters")?;
    let dropped = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    Ok(text.lines().filter_map(dropped).sum())
}
