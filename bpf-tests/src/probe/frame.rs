//! Frames of the test's own making.

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use nix::{
    net::if_::if_nametoindex,
    sys::{
        socket::{setsockopt, sockopt},
        time::{TimeVal, TimeValLike as _},
    },
};

use crate::netns::Netns;

pub(super) fn send(netns: &Netns, interface: &str, bytes: &[u8]) -> Result<()> {
    netns
        .run(|| send_here(interface, bytes))?
        .with_context(|| format!("cannot send a frame on {interface} in {}", netns.name()))
}

/// Sees what comes in by an interface, before any hook does.
#[derive(Debug)]
pub struct Tap(OwnedFd);

impl Tap {
    pub fn open(netns: &Netns, interface: &str) -> Result<Self> {
        netns
            .run(|| tap_here(interface))?
            .with_context(|| format!("cannot tap {interface} in {}", netns.name()))
            .map(Self)
    }

    /// A frame, unless none comes for a while.
    pub fn next(&self) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0; 2048];
        // SAFETY: the kernel writes at most as many bytes as `frame` has.
        let read = unsafe { libc::recv(self.0.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
        match usize::try_from(read) {
            Ok(length) => {
                frame.truncate(length);
                Ok(Some(frame))
            }
            Err(_) => match io::Error::last_os_error() {
                e if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
                e => Err(e).context("a tap"),
            },
        }
    }
}

fn tap_here(interface: &str) -> io::Result<OwnedFd> {
    let socket = socket(libc::ETH_P_ALL)?;
    let (address, length) = address(interface, libc::ETH_P_ALL)?;
    // SAFETY: the pointer is valid for the length that is passed with it.
    if unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) } < 0 {
        return Err(io::Error::last_os_error());
    }
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20))?;
    Ok(socket)
}

/// `protocol` 0 receives nothing.
fn socket(protocol: libc::c_int) -> io::Result<OwnedFd> {
    let protocol = u16::try_from(protocol).map_err(io::Error::other)?.to_be();
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol.into()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn address(interface: &str, protocol: libc::c_int) -> io::Result<(libc::sockaddr_ll, libc::socklen_t)> {
    // SAFETY: plain data, for which zeros are valid.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET.unsigned_abs().try_into().map_err(io::Error::other)?;
    address.sll_protocol = u16::try_from(protocol).map_err(io::Error::other)?.to_be();
    address.sll_ifindex = if_nametoindex(interface)?.cast_signed();
    let length = mem::size_of_val(&address).try_into().map_err(io::Error::other)?;
    Ok((address, length))
}

fn send_here(interface: &str, bytes: &[u8]) -> io::Result<()> {
    let socket = socket(0)?;
    let (to, length) = address(interface, 0)?;
    // SAFETY: both pointers are valid for the lengths that are passed with them.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            (&raw const to).cast(),
            length,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
