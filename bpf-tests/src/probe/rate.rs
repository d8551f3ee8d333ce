//! How many small things go through: datagrams, round trips, connections.
//!
//! All by plain system calls of threads of this process, one stream at a time: the figures mean something only
//! beside each other, in one run on one machine.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};

use super::{Host, tcp};

/// How often a receiver looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);
/// How long an answer or a connection may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// A one-way stream of datagrams.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PacketRate {
    pub sent: u64,
    pub received: u64,
    pub seconds: f64,
}

impl PacketRate {
    /// Thousands of packets a second that arrived.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn received_kpps(&self) -> f64 {
        self.received as f64 / self.seconds / 1000.0
    }
}

/// Round trip times in microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latency {
    pub count: usize,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// Sends datagrams of `size` bytes as fast as it can, and counts what arrives.
pub fn udp_rate(
    from: &dyn Host,
    to: &dyn Host,
    port: u16,
    size: usize,
    duration: Duration,
) -> Result<PacketRate> {
    let receiver = to
        .netns()
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))?
        .with_context(|| format!("cannot take UDP port {port} in {}", to.netns().name()))?;
    receiver.set_read_timeout(Some(LOOK))?;
    // A full socket buffer would measure the receiver's scheduling, not the path.
    setsockopt(&receiver, sockopt::RcvBufForce, &(16 << 20)).context("the receive buffer")?;
    let sender = sender(from, to, port)?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let receiving = thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        let mut received = 0;
        loop {
            match receiver.recv(&mut buffer) {
                Ok(_) => received += 1,
                // Only a pause ends it, so that what is queued counts.
                Err(_) if stopped.load(Ordering::Relaxed) => return received,
                Err(_) => {}
            }
        }
    });
    let datagram = vec![0x5a; size];
    let start = Instant::now();
    let mut sent = 0;
    while start.elapsed() < duration {
        // Looking at the clock for every packet would cost more than the packet.
        for _ in 0..64 {
            sent += u64::from(sender.send(&datagram).is_ok());
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    let received = receiving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    Ok(PacketRate { sent, received, seconds })
}

/// Bounces one small datagram at a time.
pub fn round_trips(from: &dyn Host, to: &dyn Host, port: u16, duration: Duration) -> Result<Latency> {
    let _echo = to.serve_udp(port)?;
    let socket = sender(from, to, port)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut times = Vec::new();
    let mut buffer = [0; 64];
    let start = Instant::now();
    while start.elapsed() < duration {
        let sent = Instant::now();
        socket.send(&[1; 16]).context("cannot send")?;
        socket.recv(&mut buffer).with_context(|| format!("no echo from {}:{port}", to.ip()))?;
        times.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    ensure!(!times.is_empty(), "no round trip fits into {duration:?}");
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    Ok(Latency { count: times.len(), p50_us: at(50), p99_us: at(99) })
}

/// Opens TCP connections, one after another; the server closes each after its first byte.
pub fn connections_per_second(from: &dyn Host, to: &dyn Host, port: u16, duration: Duration) -> Result<f64> {
    let listener = Arc::new(tcp::listen(to.netns(), port)?);
    let accepting = Arc::clone(&listener);
    let server = thread::spawn(move || {
        while let Ok((mut stream, _)) = accepting.accept() {
            stream.read_exact(&mut [0]).ok();
            // Closing by reset leaves no waiting state behind, of which the ports would run out.
            setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).ok();
        }
    });
    let target = SocketAddrV4::new(to.ip(), port).into();
    let counted = from.netns().run(|| -> io::Result<f64> {
        let start = Instant::now();
        let mut count = 0.0;
        while start.elapsed() < duration {
            let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
            stream.write_all(b"x")?;
            // Waiting for the end keeps the server's queue from filling up.
            stream.set_read_timeout(Some(PATIENCE))?;
            match stream.read(&mut [0]) {
                Err(e) if e.kind() != io::ErrorKind::ConnectionReset => return Err(e),
                _ => count += 1.0,
            }
        }
        Ok(count / start.elapsed().as_secs_f64())
    })?;
    shutdown(listener.as_raw_fd(), Shutdown::Both).ok();
    server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    counted.with_context(|| format!("cannot connect to {target}"))
}

fn sender(from: &dyn Host, to: &dyn Host, port: u16) -> Result<UdpSocket> {
    let socket = from
        .netns()
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?
        .context("cannot open a UDP socket")?;
    let target = SocketAddrV4::new(to.ip(), port);
    socket.connect(target).with_context(|| format!("no way from {} to {target}", from.netns().name()))?;
    Ok(socket)
}
