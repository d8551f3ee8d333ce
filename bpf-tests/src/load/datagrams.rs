//! UDP one way, as fast as one sender can, with every lost datagram accounted for.

use std::{
    io::{Error, ErrorKind},
    mem,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd,
    ptr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    Path, RECEIVE_BUFFER, WARM_UP, port,
    seat::{Seat, join, spawn},
};

/// What was sent and what came.
#[derive(Debug, Clone, Copy)]
pub struct Datagrams {
    pub sent: u64,
    pub received: u64,
    /// From the first datagram to the last, at the receiver.
    pub elapsed: Duration,
}

impl Datagrams {
    /// Thousands of datagrams a second that arrived.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn received_kpps(&self) -> f64 {
        self.received as f64 / self.elapsed.as_secs_f64() / 1000.0
    }

    /// Part of the datagrams that did not arrive, 0 to 1.
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    pub fn loss(&self) -> f64 {
        self.sent.saturating_sub(self.received) as f64 / self.sent.max(1) as f64
    }
}

/// What the receiver does while nothing is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiver {
    /// It sleeps in the kernel. The sender wakes it, packet for packet, and where that means to wake a processor from
    /// idle it can take as long as the path.
    Sleeps,
    /// It looks again a little later: what is measured is the path.
    Polls,
}

const BATCH: usize = 64;
/// Between two looks of a receiver that polls; the receive buffer holds what comes meanwhile.
const LOOK: Duration = Duration::from_micros(200);
/// How long the receiver waits for what may still be on its way.
const PAUSE: Duration = Duration::from_millis(50);

/// Datagrams of `size` bytes for `duration`, after a warm-up that counts nothing.
pub fn datagrams(path: Path<'_>, size: usize, receiver: Receiver, duration: Duration) -> Result<Datagrams> {
    let manner = receiver;
    let receiver = path.to.netns().run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port::DATAGRAMS)))?;
    let receiver = receiver.context("cannot take the port for datagrams")?;
    receiver.set_read_timeout(Some(PAUSE))?;
    setsockopt(&receiver, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("the receive buffer")?;
    let sender = path.from.netns().run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    let sender = sender.context("cannot open a UDP socket")?;
    let target = SocketAddrV4::new(path.to.ip(), port::DATAGRAMS);
    sender.connect(target).with_context(|| format!("no way to {target}"))?;
    let sockets = Sockets { sender, receiver, size, manner };
    sockets.pass(path, WARM_UP)?;
    let measured = sockets.pass(path, duration)?;
    ensure!(measured.received > 1, "none of {} datagrams to {target} arrived", measured.sent);
    Ok(measured)
}

struct Sockets {
    sender: UdpSocket,
    receiver: UdpSocket,
    size: usize,
    manner: Receiver,
}

impl Sockets {
    fn pass(&self, path: Path<'_>, duration: Duration) -> Result<Datagrams> {
        let done = &AtomicBool::new(false);
        let Self { sender, receiver, size, manner } = self;
        thread::scope(|scope| {
            let receiving =
                spawn(scope, Seat::Second, path.to.netns(), move || receive(receiver, *size, *manner, done));
            let sending = spawn(scope, Seat::First, path.from.netns(), move || send(sender, *size, duration));
            let sent = join(sending);
            done.store(true, Ordering::Relaxed);
            let (received, elapsed) = join(receiving)?;
            Ok(Datagrams { sent: sent?, received, elapsed })
        })
    }
}

fn send(socket: &UdpSocket, size: usize, duration: Duration) -> Result<u64> {
    let mut batch = Batch::new(size);
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < duration {
        let messages = batch.messages();
        // SAFETY: `messages` describes buffers that `batch` owns, and is as long as stated.
        let count = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), BATCH_LEN, 0) };
        match u64::try_from(count) {
            Ok(count) => sent += count,
            Err(_) => match Error::last_os_error() {
                // The device's queue is full: it was not sent, and the next one may be.
                e if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                e => return Err(e).context("cannot send datagrams"),
            },
        }
    }
    Ok(sent)
}

/// Until `done` and quiet: how many came, and from the first to the last.
fn receive(socket: &UdpSocket, size: usize, manner: Receiver, done: &AtomicBool) -> Result<(u64, Duration)> {
    let flags = match manner {
        Receiver::Sleeps => libc::MSG_WAITFORONE,
        Receiver::Polls => libc::MSG_DONTWAIT,
    };
    let mut batch = Batch::new(size);
    let (mut first, mut last, mut received) = (None, None, 0);
    loop {
        let messages = batch.messages();
        // SAFETY: as in `send`; the kernel writes into the buffers only, up to their lengths.
        let count = unsafe {
            libc::recvmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), BATCH_LEN, flags, ptr::null_mut())
        };
        if let Ok(count) = usize::try_from(count) {
            if let Some(odd) = messages[..count].iter().find(|m| m.msg_len as usize != size) {
                bail!("a datagram of {} bytes came instead of {size}", odd.msg_len);
            }
            let now = Instant::now();
            first.get_or_insert(now);
            last = Some(now);
            received += count as u64;
            continue;
        }
        match Error::last_os_error() {
            // Only a pause ends it, so that what is queued counts.
            e if e.kind() == ErrorKind::WouldBlock => {
                let quiet = last.map_or(PAUSE, |last: Instant| last.elapsed());
                if done.load(Ordering::Relaxed) && quiet >= PAUSE {
                    let elapsed = first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first);
                    return Ok((received, elapsed));
                }
                if manner == Receiver::Polls {
                    thread::sleep(LOOK);
                }
            }
            e if e.kind() == ErrorKind::Interrupted => {}
            e => return Err(e).context("cannot receive datagrams"),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "64")]
const BATCH_LEN: libc::c_uint = BATCH as libc::c_uint;

/// Buffers for one system call.
struct Batch {
    payload: Vec<u8>,
    size: usize,
    pieces: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Batch {
    fn new(size: usize) -> Self {
        Self { payload: vec![0x5a; size * BATCH], size, pieces: Vec::new(), headers: Vec::new() }
    }

    /// Descriptions of the buffers, valid as long as the batch is neither moved nor used otherwise.
    fn messages(&mut self) -> &mut [libc::mmsghdr] {
        if self.headers.is_empty() {
            self.pieces = self
                .payload
                .chunks_exact_mut(self.size)
                .map(|chunk| libc::iovec { iov_base: chunk.as_mut_ptr().cast(), iov_len: chunk.len() })
                .collect();
            self.headers = self
                .pieces
                .iter_mut()
                .map(|piece| {
                    // SAFETY: plain data, for which zeros are valid.
                    let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
                    header.msg_hdr.msg_iov = piece;
                    header.msg_hdr.msg_iovlen = 1;
                    header
                })
                .collect();
        }
        &mut self.headers
    }
}
