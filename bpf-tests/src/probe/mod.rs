//! Questions to the network, asked from inside a namespace.

mod frame;
mod live;
mod ping;
mod tcp;
mod udp;

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use anyhow::Result;

pub use frame::Tap;
pub use live::LiveConnection;
pub use ping::{PingStats, Pinger};
pub use tcp::{Connect, EchoServer};
pub use udp::UdpEcho;

use crate::netns::Netns;

/// Somebody by an address of his, where he is neither pod nor node, or has several.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    pub netns: &'a Netns,
    pub ip: Ipv4Addr,
}

impl Host for At<'_> {
    fn netns(&self) -> &Netns {
        self.netns
    }

    fn ip(&self) -> Ipv4Addr {
        self.ip
    }
}

/// A place to ask from: a pod or a node.
pub trait Host {
    fn netns(&self) -> &Netns;

    /// The address by which others reach it.
    fn ip(&self) -> Ipv4Addr;

    /// Sends `count` pings, 200 ms apart, and counts.
    fn ping(&self, to: Ipv4Addr, count: u32) -> Result<PingStats> {
        ping::ping(self.netns(), to, count, 56)
    }

    /// The same with a payload of `size` bytes.
    fn ping_sized(&self, to: Ipv4Addr, count: u32, size: u32) -> Result<PingStats> {
        ping::ping(self.netns(), to, count, size)
    }

    /// Two pings, both answered.
    fn pings(&self, to: Ipv4Addr) -> bool {
        self.ping(to, 2).is_ok_and(|stats| stats.lost == 0)
    }

    /// Tries one TCP connection, for a second.
    fn connect(&self, to: Ipv4Addr, port: u16) -> Connect {
        tcp::connect(self.netns(), SocketAddrV4::new(to, port), Duration::from_secs(1))
    }

    /// Sends bytes as they are on an interface, Ethernet header included.
    fn send_frame(&self, interface: &str, bytes: &[u8]) -> Result<()> {
        frame::send(self.netns(), interface, bytes)
    }

    /// Sends one datagram and awaits nothing.
    fn send_udp(&self, to: Ipv4Addr, port: u16, payload: &[u8]) -> Result<()> {
        udp::send(self.netns(), SocketAddrV4::new(to, port), payload)
    }

    /// A TCP connection comes about.
    fn reaches(&self, to: Ipv4Addr, port: u16) -> bool {
        self.connect(to, port) == Connect::Ok
    }

    /// A TCP server on all addresses that sends back what it gets.
    fn serve_tcp(&self, port: u16) -> Result<EchoServer> {
        EchoServer::start(self.netns(), port)
    }

    fn serve_udp(&self, port: u16) -> Result<UdpEcho> {
        self.serve_udp_at(Ipv4Addr::UNSPECIFIED, port)
    }

    /// On one address of several, from which the answers come then.
    fn serve_udp_at(&self, address: Ipv4Addr, port: u16) -> Result<UdpEcho> {
        UdpEcho::start(self.netns(), SocketAddrV4::new(address, port))
    }

    /// Sends `count` datagrams one after another, and counts those that come back unharmed.
    fn udp_echoes(&self, to: Ipv4Addr, port: u16, count: u32) -> Result<u32> {
        udp::echoes(self.netns(), SocketAddrV4::new(to, port), count, 64)
    }
}
