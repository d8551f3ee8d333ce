//! UDP datagrams, there and back.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::netns::Netns;

/// How often the server looks whether it should end.
const LOOK: Duration = Duration::from_millis(100);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_millis(500);

/// Sends every datagram back, until it is dropped.
#[derive(Debug)]
pub struct UdpEcho {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpEcho {
    pub(super) fn start(netns: &Netns, at: SocketAddrV4) -> Result<Self> {
        let socket = netns
            .run(|| UdpSocket::bind(at))?
            .with_context(|| format!("cannot take UDP {at} in {}", netns.name()))?;
        socket.set_read_timeout(Some(LOOK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((size, from)) = socket.recv_from(&mut buffer) {
                    drop(socket.send_to(&buffer[..size], from));
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for UdpEcho {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

pub(super) fn send(netns: &Netns, to: SocketAddrV4, payload: &[u8]) -> Result<()> {
    let socket =
        netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?.context("cannot open a UDP socket")?;
    socket.send_to(payload, to).with_context(|| format!("cannot send from {} to {to}", netns.name()))?;
    Ok(())
}

pub(super) fn echoes(netns: &Netns, to: SocketAddrV4, count: u32, size: usize) -> Result<u32> {
    let socket =
        netns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?.context("cannot open a UDP socket")?;
    socket.connect(to).with_context(|| format!("no way from {} to {to}", netns.name()))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut echoed = 0;
    for number in 0..count {
        let mut datagram = vec![b'.'; size.max(4)];
        datagram[..4].copy_from_slice(&number.to_be_bytes());
        let mut answer = vec![0; datagram.len() + 1];
        // A refused port shows as an error of the next call: not an echo either.
        let sent = socket.send(&datagram).is_ok();
        if sent && socket.recv(&mut answer).is_ok_and(|n| answer[..n] == datagram[..]) {
            echoed += 1;
        }
    }
    Ok(echoed)
}
