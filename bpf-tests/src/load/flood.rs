//! A flood of new flows: datagrams at a given pace, each with an address and ports that none had before it.

use std::{
    io::Error,
    mem,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    Path,
    seat::{Seat, sit},
    sink::{FIRST_PORT, Sink},
};
use crate::probe::Host;

/// What was sent.
#[derive(Debug, Clone, Copy)]
pub struct Flood {
    pub flows: u64,
    pub elapsed: Duration,
}

impl Flood {
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn per_second(&self) -> f64 {
        self.flows as f64 / self.elapsed.as_secs_f64()
    }
}

const BATCH: u16 = 64;

/// Sends from `from` to `to` until `done`, at most so many flows a second.
pub fn flood(from: &(dyn Host + Sync), to: Ipv4Addr, per_second: u64, done: &AtomicBool) -> Result<Flood> {
    let goes_on = |sent: Flood| {
        let due = Duration::from_nanos(sent.flows * 1_000_000_000 / per_second);
        thread::sleep(due.saturating_sub(sent.elapsed));
        !done.load(Ordering::Relaxed)
    };
    from.netns().run(|| send(to, goes_on))?
}

/// What of a flood arrived.
#[derive(Debug, Clone, Copy)]
pub struct NewFlows {
    pub sent: Flood,
    pub received: u64,
}

impl NewFlows {
    /// Flows a second that arrived.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn per_second(&self) -> f64 {
        self.received as f64 / self.sent.elapsed.as_secs_f64()
    }
}

/// As many flows as one sender can open with a datagram each, but no more than `most`, nor for longer than `duration`.
/// They end behind the receiver's interface.
pub fn new_flows(path: Path<'_>, most: u64, duration: Duration) -> Result<NewFlows> {
    let sink = Sink::open(path.to.netns())?;
    let goes_on = |sent: Flood| sent.flows < most && sent.elapsed < duration;
    let sent = path.from.netns().run(|| send(path.to.ip(), goes_on))??;
    Ok(NewFlows { sent, received: sink.close()? })
}

/// Sends flow after flow as long as `goes_on` of what was sent.
fn send(to: Ipv4Addr, goes_on: impl Fn(Flood) -> bool) -> Result<Flood> {
    sit(Seat::First)?;
    let mut datagrams = Datagrams::new(to);
    let (start, mut flows) = (Instant::now(), 0);
    loop {
        // Good for a flow to each port; then comes another one with a port of its own.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot open a UDP socket")?;
        for first in (FIRST_PORT..=u16::MAX - BATCH).step_by(BATCH.into()) {
            flows += datagrams.send(&socket, first)?;
            let sent = Flood { flows, elapsed: start.elapsed() };
            if !goes_on(sent) {
                return Ok(sent);
            }
        }
    }
}

/// Datagrams of 16 bytes for one system call, to a port each.
struct Datagrams {
    payload: [u8; 16],
    targets: Vec<libc::sockaddr_in>,
    pieces: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Datagrams {
    #[expect(clippy::unnecessary_box_returns, reason = "it points into itself")]
    fn new(to: Ipv4Addr) -> Box<Self> {
        // SAFETY: plain data, for which zeros are valid.
        let (mut target, header): (libc::sockaddr_in, libc::mmsghdr) = unsafe { mem::zeroed() };
        target.sin_family = libc::AF_INET.unsigned_abs().try_into().unwrap_or_default();
        target.sin_addr.s_addr = u32::from(to).to_be();
        let mut all = Box::new(Self {
            payload: [0x5a; 16],
            targets: vec![target; BATCH.into()],
            pieces: Vec::new(),
            headers: vec![header; BATCH.into()],
        });
        // From here on nothing moves: the pointers hold.
        let Self { payload, targets, pieces, headers } = &mut *all;
        pieces.push(libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() });
        for (header, target) in headers.iter_mut().zip(targets) {
            header.msg_hdr.msg_name = (&raw mut *target).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>().try_into().unwrap_or_default();
            header.msg_hdr.msg_iov = pieces.as_mut_ptr();
            header.msg_hdr.msg_iovlen = 1;
        }
        all
    }

    /// To the ports from `first` on; how many were sent.
    fn send(&mut self, socket: &UdpSocket, first: u16) -> Result<u64> {
        for (target, port) in self.targets.iter_mut().zip(first..) {
            target.sin_port = port.to_be();
        }
        let length = libc::c_uint::from(BATCH);
        // SAFETY: the headers point at what `self` owns, and are as many as stated.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), length, 0) };
        match u64::try_from(sent) {
            Ok(sent) => Ok(sent),
            Err(_) => match Error::last_os_error() {
                // The device's queue is full, or an answer said that nobody listens.
                e if matches!(e.raw_os_error(), Some(libc::ENOBUFS | libc::ECONNREFUSED)) => Ok(0),
                e => Err(e).context("cannot send the flood"),
            },
        }
    }
}
