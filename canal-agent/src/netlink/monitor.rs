//! Hints that something changed.
//!
//! Promises: every change of links, queueing disciplines, IPv4 addresses and IPv4 routes after [`Monitor::start`] returned is
//! followed by a hint; if the kernel had to drop some, by [`Change::Everything`]. Does not: describe the
//! change. Consumers read the state anew, so a hint that comes late, twice or out of order does no harm.

use std::{
    io, ops::RangeInclusive, os::fd::AsRawFd, os::unix::net::UnixStream, sync::mpsc, thread::JoinHandle,
};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{Error, Link, socket::read_datagram};

const GROUPS: [u32; 4] =
    [libc::RTNLGRP_LINK, libc::RTNLGRP_TC, libc::RTNLGRP_IPV4_IFADDR, libc::RTNLGRP_IPV4_ROUTE];

/// What comes along with changes of queueing disciplines: classes and filters, actions, chains (linux/rtnetlink.h). Nobody here
/// looks at them, there may be many, and not all can be decoded.
const WITHIN_QDISCS: [RangeInclusive<u16>; 3] =
    [libc::RTM_NEWTCLASS..=libc::RTM_GETTFILTER, 48..=50, 100..=102];

/// What to look at again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The link is new, or something about it changed.
    LinkChanged {
        index: u32,
        name: String,
    },
    LinkGone {
        index: u32,
        name: String,
    },
    /// Addresses of this link came or went.
    AddrChanged {
        index: u32,
    },
    RouteChanged,
    /// Queueing disciplines of this link came or went.
    QdiscChanged {
        index: u32,
    },
    /// Hints were lost: look at everything.
    Everything,
}

/// A running listener; dropping it ends its thread.
#[derive(Debug)]
pub struct Monitor {
    /// The listener sees the other end closing.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Listens in the calling thread's network namespace. `on_change` runs on the listener's thread.
    pub fn start(on_change: impl FnMut(Change) + Send + 'static) -> Result<Self, Error> {
        Self::open(on_change).map_err(|source| Error::Transport {
            operation: "listen to",
            object: "changes of interfaces, queues, addresses and routes".to_owned(),
            source,
        })
    }

    /// Like [`start`](Self::start), with the hints in a queue.
    pub fn channel() -> Result<(Self, mpsc::Receiver<Change>), Error> {
        let (sender, receiver) = mpsc::channel();
        // A consumer that is gone needs no hints.
        let monitor = Self::start(move |change| drop(sender.send(change)))?;
        Ok((monitor, receiver))
    }

    fn open(mut on_change: impl FnMut(Change) + Send + 'static) -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in GROUPS {
            socket.add_membership(group)?;
        }
        let (stop, stopped) = UnixStream::pair()?;
        let thread = std::thread::Builder::new().name("netlink-monitor".into()).spawn(move || {
            if let Err(error) = listen(&socket, &stopped, &mut on_change) {
                tracing::error!(%error, "the listener for network changes ended");
                on_change(Change::Everything);
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of `on_change` was reported when it happened.
            drop(thread.join());
        }
    }
}

fn listen(socket: &Socket, stopped: &UnixStream, on_change: &mut impl FnMut(Change)) -> io::Result<()> {
    let mut buffer = Vec::new();
    while wait(socket, stopped)? {
        match read_datagram(socket, &mut buffer) {
            Ok(()) => hints(&buffer, on_change),
            // The kernel could not keep the messages until we came for them.
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => on_change(Change::Everything),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Waits for the next message; `false` once the monitor is dropped.
fn wait(socket: &Socket, stopped: &UnixStream) -> io::Result<bool> {
    let watch = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut ready = [watch(socket.as_raw_fd()), watch(stopped.as_raw_fd())];
    loop {
        // SAFETY: `ready` is an array of two, alive and exclusively ours during the call.
        let result = unsafe { libc::poll(ready.as_mut_ptr(), 2, -1) };
        if result >= 0 {
            return Ok(ready[1].revents == 0);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn hints(mut rest: &[u8], on_change: &mut impl FnMut(Change)) {
    while let Some(length) = rest.get(..4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes) {
        let length = length as usize;
        let Some(bytes) = rest.get(..length).filter(|b| !b.is_empty()) else { return };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let kind = bytes.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
        if kind.is_some_and(|kind| WITHIN_QDISCS.iter().any(|kinds| kinds.contains(&kind))) {
            continue;
        }
        let change = match NetlinkMessage::deserialize(bytes).map(|m| m.payload) {
            Ok(NetlinkPayload::InnerMessage(message)) => hint(message),
            Ok(_) => None,
            // It changed, and we cannot tell what.
            Err(_) => Some(Change::Everything),
        };
        if let Some(change) = change {
            on_change(change);
        }
    }
}

fn hint(message: RouteNetlinkMessage) -> Option<Change> {
    match message {
        RouteNetlinkMessage::NewAddress(a) | RouteNetlinkMessage::DelAddress(a) => {
            Some(Change::AddrChanged { index: a.header.index })
        }
        RouteNetlinkMessage::NewRoute(_) | RouteNetlinkMessage::DelRoute(_) => Some(Change::RouteChanged),
        RouteNetlinkMessage::NewQueueDiscipline(q) | RouteNetlinkMessage::DelQueueDiscipline(q) => {
            u32::try_from(q.header.index).ok().map(|index| Change::QdiscChanged { index })
        }
        RouteNetlinkMessage::NewLink(_) => {
            Link::read(message).map(|l| Change::LinkChanged { index: l.index, name: l.name })
        }
        RouteNetlinkMessage::DelLink(_) => {
            Link::read(message).map(|l| Change::LinkGone { index: l.index, name: l.name })
        }
        _ => None,
    }
}
