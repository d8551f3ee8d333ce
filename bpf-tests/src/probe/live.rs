//! A TCP connection that is in use all the time, to see whether an event cuts it.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use super::tcp;
use crate::netns::Netns;

/// Between two bytes.
const PACE: Duration = Duration::from_millis(50);
/// Without an answer for this long the connection counts as cut.
const PATIENCE: Duration = Duration::from_secs(2);

/// Sends a byte and awaits its echo, again and again.
#[derive(Debug)]
pub struct LiveConnection {
    stream: TcpStream,
    cut: mpsc::Receiver<String>,
}

impl LiveConnection {
    /// To an [`EchoServer`](super::EchoServer); returns after the first echo.
    pub fn open(from: &Netns, to: Ipv4Addr, port: u16) -> Result<Self> {
        let to = SocketAddrV4::new(to, port);
        let mut stream = tcp::open(from, to, PATIENCE)?.with_context(|| format!("no connection to {to}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        exchange(&mut stream).map_err(anyhow::Error::msg).context("the first byte")?;
        let mut working = stream.try_clone()?;
        let (report, cut) = mpsc::channel();
        thread::spawn(move || {
            let why = loop {
                if let Err(why) = exchange(&mut working) {
                    break why;
                }
                thread::sleep(PACE);
            };
            drop(report.send(why));
        });
        Ok(Self { stream, cut })
    }

    pub fn is_alive(&self) -> bool {
        matches!(self.cut.try_recv(), Err(mpsc::TryRecvError::Empty))
    }

    /// Waits until it is cut and says how; an error if it lives on.
    pub fn cut_within(&self, deadline: Duration) -> Result<String> {
        self.cut.recv_timeout(deadline).with_context(|| format!("the connection lives on after {deadline:?}"))
    }
}

impl Drop for LiveConnection {
    fn drop(&mut self) {
        // Ends the thread.
        drop(self.stream.shutdown(Shutdown::Both));
    }
}

fn exchange(stream: &mut TcpStream) -> Result<(), String> {
    let mut byte = [b'x'];
    stream.write_all(&byte).map_err(|e| format!("sending: {e}"))?;
    match stream.read(&mut byte) {
        Ok(0) => Err("the other side closed it".to_owned()),
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(format!("no echo for {PATIENCE:?}")),
        Err(e) => Err(format!("no echo: {e}")),
    }
}
