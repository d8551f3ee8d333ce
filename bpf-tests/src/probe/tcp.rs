//! TCP: one connection attempt, and a server to answer it.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::socket::{Shutdown, shutdown};

use crate::netns::Netns;

/// How a connection attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connect {
    Ok,
    /// Someone answered: nobody listens there.
    Refused,
    /// Nobody answered: the packets are dropped.
    TimedOut,
    /// Anything else, such as an ICMP error.
    Failed(String),
}

/// The socket belongs to the namespace; the stream may be used from anywhere.
pub(super) fn open(netns: &Netns, to: SocketAddrV4, patience: Duration) -> Result<io::Result<TcpStream>> {
    netns.run(|| TcpStream::connect_timeout(&to.into(), patience))
}

pub(super) fn connect(netns: &Netns, to: SocketAddrV4, patience: Duration) -> Connect {
    match open(netns, to, patience) {
        Ok(Ok(_)) => Connect::Ok,
        Ok(Err(e)) if e.kind() == io::ErrorKind::ConnectionRefused => Connect::Refused,
        Ok(Err(e)) if e.kind() == io::ErrorKind::TimedOut => Connect::TimedOut,
        Ok(Err(e)) => Connect::Failed(e.to_string()),
        Err(e) => Connect::Failed(format!("{e:#}")),
    }
}

/// Sends back what it gets, until it is dropped.
#[derive(Debug)]
pub struct EchoServer {
    listener: Arc<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl EchoServer {
    pub(super) fn start(netns: &Netns, port: u16) -> Result<Self> {
        let listener = listen(netns, port)?;
        let listener = Arc::new(listener);
        let accepting = Arc::clone(&listener);
        let thread = thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                thread::spawn(move || drop(echo(stream)));
            }
        });
        Ok(Self { listener, thread: Some(thread) })
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        // Wakes the thread: accepting on a shut down listener is an error.
        shutdown(self.listener.as_raw_fd(), Shutdown::Both).ok();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

pub(super) fn listen(netns: &Netns, port: u16) -> Result<TcpListener> {
    netns
        .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?
        .with_context(|| format!("cannot listen on TCP port {port} in {}", netns.name()))
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 4096];
    loop {
        let size = stream.read(&mut buffer)?;
        if size == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..size])?;
    }
}
