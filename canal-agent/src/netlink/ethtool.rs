//! Offloads, by the ethtool ioctl.

use std::{ffi::c_void, io, os::fd::AsRawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::{Error, link::check_name};

/// `ETHTOOL_SGRO` of linux/ethtool.h.
const SET_GRO: u32 = 0x2c;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Switches generic receive offload of an interface in the calling thread's network namespace. On a veth end
/// this also decides whether it runs NAPI, without which XDP frames cannot be redirected into it.
pub fn set_gro(name: &str, on: bool) -> Result<(), Error> {
    let operation = "switch GRO of";
    let name = check_name(operation, name)?;
    let fail = |source| Error::Transport { operation, object: format!("interface {name}"), source };

    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .map_err(|e| fail(e.into()))?;
    let mut value = Value { command: SET_GRO, data: u32::from(on) };
    // SAFETY: `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // `check_name` bounds the length, so the last byte stays zero.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast::<c_void>().cast();
    // SAFETY: the kernel reads `request`, and reads and writes the `ethtool_value` that it points to; both
    // live until the call returns.
    let result = unsafe { libc::ioctl(any.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result == 0 { Ok(()) } else { Err(fail(io::Error::last_os_error())) }
}
