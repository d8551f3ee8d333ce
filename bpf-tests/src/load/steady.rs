//! Established flows at a gentle pace, of which nothing may be lost: a UDP flow, a TCP connection, and pings; and new
//! connections beside them.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use super::{
    PATIENCE, Path, RoundTrips, port,
    seat::{Seat, join, spawn},
};
use crate::probe::{EchoServer, Pinger, UdpEcho};

/// What happened to the flows meanwhile.
#[derive(Debug)]
pub struct Steady {
    pub udp: RoundTrips,
    pub udp_lost: u64,
    pub tcp: RoundTrips,
    /// Segments that were sent again.
    pub tcp_retransmitted: u64,
    pub pings: u64,
    pub pings_lost: u64,
    pub connections: u64,
    pub connections_failed: u64,
}

/// Between two packets of a flow.
const PACE: Duration = Duration::from_millis(1);
const PING_PACE: Duration = Duration::from_millis(10);
const CONNECT_PACE: Duration = Duration::from_millis(20);
/// Later than this is lost. Shorter than the time after which a SYN is sent again.
const LATE: Duration = Duration::from_millis(900);

/// The flows; they live as long as this does.
#[derive(Debug)]
pub struct SteadyFlows {
    udp: UdpSocket,
    tcp: TcpStream,
    _servers: (UdpEcho, EchoServer),
}

impl SteadyFlows {
    /// Establishes them.
    pub fn open(path: Path<'_>) -> Result<Self> {
        let servers = (path.to.serve_udp(port::STEADY)?, path.to.serve_tcp(port::STEADY)?);
        let target = target(path);
        let (udp, tcp) = path.from.netns().run(|| {
            let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot open a UDP socket")?;
            udp.connect(target).with_context(|| format!("no way to {target}"))?;
            let tcp = TcpStream::connect_timeout(&target.into(), PATIENCE);
            anyhow::Ok((udp, tcp.with_context(|| format!("no connection to {target}"))?))
        })??;
        udp.set_read_timeout(Some(LATE))?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        let mut flows = Self { udp, tcp, _servers: servers };
        ensure!(echo_udp(&flows.udp, 0)?.is_some(), "no echo from {target}");
        echo_tcp(&mut flows.tcp)?;
        Ok(flows)
    }

    /// Uses them all for `duration`, on the second processor.
    pub fn measure(&mut self, path: Path<'_>, duration: Duration) -> Result<Steady> {
        let pinger = Pinger::start(path.from.netns(), path.to.ip(), PING_PACE)?;
        let Self { udp, tcp, .. } = self;
        let before = retransmitted(tcp)?;
        let target = target(path);
        let stream: &TcpStream = tcp;
        let (udp, tcp_trips, connected) = thread::scope(|scope| {
            let netns = path.from.netns();
            let udp = spawn(scope, Seat::Second, netns, move || datagrams(udp, duration));
            let tcp = spawn(scope, Seat::Second, netns, move || bytes(stream.try_clone()?, duration));
            let connected = spawn(scope, Seat::Second, netns, move || connections(target, duration));
            (join(udp), join(tcp), join(connected))
        });
        let (udp, udp_lost) = udp?;
        let (connections, connections_failed) = connected?;
        let pings = pinger.stop()?;
        Ok(Steady {
            udp,
            udp_lost,
            tcp: tcp_trips?,
            tcp_retransmitted: retransmitted(tcp)? - before,
            pings: pings.sent().into(),
            pings_lost: pings.lost.into(),
            connections,
            connections_failed,
        })
    }
}

fn target(path: Path<'_>) -> SocketAddrV4 {
    SocketAddrV4::new(path.to.ip(), port::STEADY)
}

/// Calls `work` at this pace.
fn paced(pace: Duration, duration: Duration, mut work: impl FnMut(u32) -> Result<()>) -> Result<()> {
    let start = Instant::now();
    let mut turn = 0;
    while start.elapsed() < duration {
        work(turn)?;
        turn += 1;
        thread::sleep((pace * turn).saturating_sub(start.elapsed()));
    }
    Ok(())
}

/// Round trips, and how many datagrams did not come back.
fn datagrams(socket: &UdpSocket, duration: Duration) -> Result<(RoundTrips, u64)> {
    let (mut times, mut lost) = (Vec::new(), 0);
    paced(PACE, duration, |turn| {
        match echo_udp(socket, turn)? {
            Some(time) => times.push(nanoseconds(time)),
            None => lost += 1,
        }
        Ok(())
    })?;
    Ok((RoundTrips::of(times)?, lost))
}

/// `None`: it did not come back in time.
fn echo_udp(socket: &UdpSocket, turn: u32) -> Result<Option<Duration>> {
    let (sent, datagram) = (Instant::now(), turn.to_be_bytes());
    socket.send(&datagram).context("cannot send a datagram")?;
    let mut answer = [0; 4];
    loop {
        match socket.recv(&mut answer) {
            Ok(_) if answer == datagram => return Ok(Some(sent.elapsed())),
            // One that was given up.
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(e).context("cannot receive a datagram"),
        }
    }
}

fn bytes(mut stream: TcpStream, duration: Duration) -> Result<RoundTrips> {
    let mut times = Vec::new();
    paced(PACE, duration, |_| {
        times.push(nanoseconds(echo_tcp(&mut stream)?));
        Ok(())
    })?;
    RoundTrips::of(times)
}

fn echo_tcp(stream: &mut TcpStream) -> Result<Duration> {
    let sent = Instant::now();
    stream.write_all(b"x").context("the connection does not take a byte")?;
    stream.read_exact(&mut [0]).context("the connection does not give the byte back")?;
    Ok(sent.elapsed())
}

/// How many were tried, and how many did not come about by their first packet.
fn connections(target: SocketAddrV4, duration: Duration) -> Result<(u64, u64)> {
    let (mut tried, mut failed) = (0, 0);
    paced(CONNECT_PACE, duration, |_| {
        tried += 1;
        match TcpStream::connect_timeout(&target.into(), LATE) {
            // A reset leaves no waiting state behind.
            Ok(stream) => {
                setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
            }
            Err(_) => failed += 1,
        }
        Ok(())
    })?;
    Ok((tried, failed))
}

/// Since the connection began.
fn retransmitted(stream: &TcpStream) -> Result<u64> {
    // SAFETY: plain data, for which zeros are valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&info))?;
    // SAFETY: the kernel writes at most as many bytes as stated.
    let outcome = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    nix::errno::Errno::result(outcome).context("what became of the connection")?;
    Ok(info.tcpi_total_retrans.into())
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
