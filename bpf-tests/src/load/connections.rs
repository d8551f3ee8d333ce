//! TCP connections one after another: connect, 16 bytes there, 16 back, reset. Both ends share one processor, as for
//! round trips.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{self, setsockopt, sockopt};

use super::{
    PATIENCE, Path, WARM_UP, port,
    seat::{Seat, join, spawn},
};

/// Connections that came about and carried their bytes after the warm-up.
#[derive(Debug, Clone, Copy)]
pub struct Connections {
    pub count: u64,
    pub elapsed: Duration,
}

impl Connections {
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn per_second(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64()
    }
}

const MESSAGE: [u8; 16] = [0x5a; 16];

/// One client at a time, for `duration` after the warm-up.
pub fn connections(path: Path<'_>, duration: Duration) -> Result<Connections> {
    let listener = path.to.netns().run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port::CONNECTIONS)))?;
    let listener = listener.context("cannot listen for connections")?;
    let target = SocketAddrV4::new(path.to.ip(), port::CONNECTIONS);
    thread::scope(|scope| {
        let listening = &listener;
        let server = spawn(scope, Seat::First, path.to.netns(), move || serve(listening));
        let client = spawn(scope, Seat::First, path.from.netns(), move || connect(target, duration));
        let measured = join(client);
        // Ends the server: accepting from a listener that was shut down is an error.
        socket::shutdown(listener.as_raw_fd(), socket::Shutdown::Both).ok();
        let served = join(server);
        let measured = measured?;
        let served = served?;
        ensure!(
            served >= measured.count,
            "{} connections counted, but the server saw {served}",
            measured.count
        );
        Ok(measured)
    })
}

fn connect(target: SocketAddrV4, duration: Duration) -> Result<Connections> {
    let begin = Instant::now();
    let mut start = begin;
    let mut count = 0;
    let mut warm = false;
    while start.elapsed() < if warm { duration } else { WARM_UP } || !warm {
        if !warm && begin.elapsed() >= WARM_UP {
            (warm, start, count) = (true, Instant::now(), 0);
        }
        one(target).with_context(|| format!("connection to {target}"))?;
        count += 1;
    }
    Ok(Connections { count, elapsed: start.elapsed() })
}

fn one(target: SocketAddrV4) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&target.into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&MESSAGE)?;
    let mut answer = [0; MESSAGE.len()];
    stream.read_exact(&mut answer)?;
    ensure!(answer == MESSAGE, "the answer is not what was sent");
    // Closed by a reset: no waiting state is left behind, of which the ports would run out.
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(())
}

fn serve(listener: &TcpListener) -> Result<u64> {
    let mut served = 0;
    let mut last: Option<TcpStream> = None;
    while let Ok((mut stream, _)) = listener.accept() {
        // Only now: until the client has reset it, closing would be a second way to end.
        if let Some(last) = last.take() {
            last.shutdown(Shutdown::Both).ok();
        }
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut message = [0; MESSAGE.len()];
        stream.read_exact(&mut message).context("a connection without its bytes")?;
        stream.write_all(&message).context("cannot answer on a connection")?;
        served += 1;
        last = Some(stream);
    }
    Ok(served)
}
