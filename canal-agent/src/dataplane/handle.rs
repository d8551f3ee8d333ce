//! A hold on a pinned object that outlives its pin. Whoever removes a pin by hand takes the last hold on an attachment away,
//! and with it the program off its interface; a table would be found by no later agent. The agent that runs keeps a hold of its own,
//! and puts the pin back.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use super::batch::bpf;

/// `enum bpf_cmd`, uapi/linux/bpf.h.
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;

impl From<OwnedFd> for Handle {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

/// The beginning of `union bpf_attr` for both.
#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[derive(Debug)]
pub(super) struct Handle(OwnedFd);

impl Handle {
    /// On what is pinned there.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let name = name(path)?;
        let mut attr = Object { pathname: name.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
        let fd = bpf(OBJ_GET, &mut attr)?;
        // SAFETY: the kernel has just handed it out, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Pins it there, where nothing may be yet.
    pub(super) fn pin(&self, path: &Path) -> io::Result<()> {
        let name = name(path)?;
        let bpf_fd = self.0.as_raw_fd().cast_unsigned();
        let mut attr = Object { pathname: name.as_ptr() as u64, bpf_fd, file_flags: 0 };
        bpf(OBJ_PIN, &mut attr).map(drop)
    }
}

fn name(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}
