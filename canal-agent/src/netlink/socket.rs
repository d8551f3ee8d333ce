//! One request, one answer: the socket below every verb.
//!
//! Promises: an answer is accepted only from the kernel and only with the sequence number of the request; a
//! dump that the kernel marks as torn by a concurrent change is read again.

use std::{io, os::fd::AsFd, time::Duration};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::TimeVal,
};

use super::{Error, Netns};

/// The kernel answers in the same breath; a silence this long means that the answer is lost.
const PATIENCE: Duration = Duration::from_secs(5);
/// A dump torn this often in a row means that something rewrites the tables without pause.
const DUMP_ATTEMPTS: u32 = 20;
const NETLINK_HEADER_LEN: usize = 16;
/// `NLMSGERR_ATTR_MSG`: the kernel's sentence in an extended acknowledgement.
const ACK_MESSAGE: u16 = 1;

/// What a request does and on what, for its error.
#[derive(Clone, Copy)]
pub(super) struct What<'a> {
    pub(super) operation: &'static str,
    pub(super) object: &'a dyn std::fmt::Display,
}

impl What<'_> {
    fn transport(self, source: io::Error) -> Error {
        Error::Transport { operation: self.operation, object: self.object.to_string(), source }
    }

    fn protocol(self, what: impl Into<String>) -> Error {
        Error::Protocol { operation: self.operation, object: self.object.to_string(), what: what.into() }
    }
}

/// What to do with a message that the decoder does not understand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unreadable {
    Refuse,
    /// In a table: one exotic link must not hide all others.
    LeaveOut,
}

/// A socket to the network configuration of one network namespace.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    /// The answer being read; kept so that a large dump allocates once.
    buffer: Vec<u8>,
}

impl Netlink {
    /// For the network namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        let what = What { operation: "open", object: &"a route netlink socket" };
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(|e| what.transport(e))?;
        socket.bind_auto().map_err(|e| what.transport(e))?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(|e| what.transport(e))?;
        // Filters in dumps are obeyed or refused, never ignored; refusals explain themselves.
        socket.set_netlink_get_strict_chk(true).map_err(|e| what.transport(e))?;
        socket.set_ext_ack(true).map_err(|e| what.transport(e))?;
        socket.set_cap_ack(true).map_err(|e| what.transport(e))?;
        let patience = TimeVal::new(PATIENCE.as_secs().cast_signed(), 0);
        setsockopt(&socket.as_fd(), ReceiveTimeout, &patience).map_err(|e| what.transport(e.into()))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::new() })
    }

    /// For another network namespace. The thread that visits it ends before this returns.
    pub fn open_in(netns: &Netns) -> Result<Self, Error> {
        netns.run(Self::open)?
    }

    /// Sends a request that changes something and waits for the acknowledgement.
    pub(super) fn change(
        &mut self,
        what: What<'_>,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), Error> {
        self.send(what, request, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        let message = self.answer(what)?;
        match message.payload {
            NetlinkPayload::Error(answer) => refusal(what, message.header.flags, &answer),
            _ => Err(what.protocol("no acknowledgement")),
        }
    }

    /// Asks for one object; `None` if the kernel says that there is no such thing.
    pub(super) fn get(
        &mut self,
        what: What<'_>,
        request: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
        self.send(what, request, NLM_F_REQUEST)?;
        let message = self.answer(what)?;
        match message.payload {
            NetlinkPayload::InnerMessage(answer) => Ok(Some(answer)),
            NetlinkPayload::Error(answer) => match refusal(what, message.header.flags, &answer) {
                Ok(()) => Err(what.protocol("an acknowledgement without the object")),
                Err(e) if e.is_absent() => Ok(None),
                Err(e) => Err(e),
            },
            _ => Err(what.protocol("neither the object nor an error")),
        }
    }

    /// Reads a whole table.
    pub(super) fn dump(
        &mut self,
        what: What<'_>,
        request: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        for _ in 0..DUMP_ATTEMPTS {
            self.send(what, request.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if let Some(all) = self.read_dump(what)? {
                return Ok(all);
            }
        }
        Err(what.protocol("the table changes faster than it can be read"))
    }

    /// `None` if the table changed while it was being read.
    fn read_dump(&mut self, what: What<'_>) -> Result<Option<Vec<RouteNetlinkMessage>>, Error> {
        let mut all = Vec::new();
        let mut torn = false;
        loop {
            for message in self.receive(what, Unreadable::LeaveOut)? {
                torn |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(item) => all.push(item),
                    NetlinkPayload::Done(done) if done.code == 0 => return Ok((!torn).then_some(all)),
                    NetlinkPayload::Done(done) => {
                        return Err(Error::refused(
                            what.operation,
                            what.object.to_string(),
                            done.code.saturating_neg(),
                            None,
                        ));
                    }
                    NetlinkPayload::Error(answer) => {
                        refusal(what, message.header.flags, &answer)?;
                        return Err(what.protocol("an acknowledgement instead of a table"));
                    }
                    _ => return Err(what.protocol("neither an entry nor an end")),
                }
            }
        }
    }

    fn send(&mut self, what: What<'_>, request: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let sent = self.socket.send(&bytes, 0).map_err(|e| what.transport(e))?;
        if sent == bytes.len() { Ok(()) } else { Err(what.protocol("the request was cut short")) }
    }

    /// The one message that answers the request in flight.
    fn answer(&mut self, what: What<'_>) -> Result<NetlinkMessage<RouteNetlinkMessage>, Error> {
        loop {
            if let Some(message) = self.receive(what, Unreadable::Refuse)?.into_iter().next() {
                return Ok(message);
            }
        }
    }

    /// The messages of the next datagram that answer the request in flight.
    fn receive(
        &mut self,
        what: What<'_>,
        unreadable: Unreadable,
    ) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, Error> {
        let mut messages = Vec::new();
        read_datagram(&self.socket, &mut self.buffer).map_err(|e| what.transport(e))?;
        let mut rest = self.buffer.as_slice();
        while rest.len() >= NETLINK_HEADER_LEN {
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            let sequence = u32::from_ne_bytes([rest[8], rest[9], rest[10], rest[11]]);
            let Some(bytes) = rest.get(..length).filter(|b| b.len() >= NETLINK_HEADER_LEN) else {
                return Err(what.protocol("a message longer than its datagram"));
            };
            // What is left of an earlier request that was given up is not an answer to this one.
            if sequence == self.sequence {
                match NetlinkMessage::deserialize(bytes) {
                    Ok(message) => messages.push(message),
                    Err(e) if unreadable == Unreadable::LeaveOut && kind >= libc::RTM_NEWLINK => {
                        tracing::warn!(operation = what.operation, error = %e, "netlink entry left out");
                    }
                    Err(e) => return Err(what.protocol(e.to_string())),
                }
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}

/// Reads one datagram whole, whatever its size.
pub(super) fn read_datagram(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<()> {
    loop {
        buffer.clear();
        let size = match socket.recv(&mut *buffer, libc::MSG_PEEK | libc::MSG_TRUNC) {
            Ok(size) => size,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        buffer.clear();
        buffer.reserve(size);
        match socket.recv(&mut *buffer, 0) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map(drop),
        }
    }
}

/// What the kernel's error message says; an error of zero is an acknowledgement.
fn refusal(what: What<'_>, flags: u16, answer: &netlink_packet_core::ErrorMessage) -> Result<(), Error> {
    let Some(code) = answer.code else { return Ok(()) };
    let explanation = (flags & NLM_F_ACK_TLVS != 0).then(|| explanation(flags, &answer.header)).flatten();
    Err(Error::refused(what.operation, what.object.to_string(), code.get().saturating_neg(), explanation))
}

/// The kernel's sentence, behind the (capped) copy of the request.
fn explanation(flags: u16, echo: &[u8]) -> Option<String> {
    let request = if flags & NLM_F_CAPPED != 0 {
        NETLINK_HEADER_LEN
    } else {
        u32::from_ne_bytes(echo.get(..4)?.try_into().ok()?) as usize
    };
    let mut rest = echo.get(request.next_multiple_of(4)..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..length)?;
        if kind == ACK_MESSAGE {
            let text = value.split(|&b| b == 0).next().unwrap_or_default();
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_acknowledgement_panics(flags: u16, echo: Vec<u8>) {
            let _ = explanation(flags, &echo);
            let _ = explanation(flags | NLM_F_CAPPED, &[&[0; NETLINK_HEADER_LEN], echo.as_slice()].concat());
        }
    }

    #[test]
    fn the_kernels_sentence_is_found_behind_other_attributes() {
        let mut echo = vec![0; NETLINK_HEADER_LEN];
        echo.extend([8, 0, 2, 0, 1, 2, 3, 4]);
        echo.extend([8, 0, 1, 0, b'n', b'o', 0, 0]);
        assert_eq!(explanation(NLM_F_CAPPED, &echo).as_deref(), Some("no"));
        assert_eq!(explanation(NLM_F_CAPPED, &echo[..NETLINK_HEADER_LEN + 8]), None);
    }
}
