//! Frames of the test's own making.

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;

use crate::netns::Netns;

pub(super) fn send(netns: &Netns, interface: &str, bytes: &[u8]) -> Result<()> {
    netns
        .run(|| send_here(interface, bytes))?
        .with_context(|| format!("cannot send a frame on {interface} in {}", netns.name()))
}

fn send_here(interface: &str, bytes: &[u8]) -> io::Result<()> {
    let index = if_nametoindex(interface)?;
    // SAFETY: a system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that was just made and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: plain data, for which zeros are valid.
    let mut to: libc::sockaddr_ll = unsafe { mem::zeroed() };
    to.sll_family = libc::AF_PACKET.unsigned_abs().try_into().map_err(io::Error::other)?;
    to.sll_ifindex = index.cast_signed();
    let length = mem::size_of_val(&to).try_into().map_err(io::Error::other)?;
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
