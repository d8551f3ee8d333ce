//! Has the host's stack put fragments together before it forwards them, as it does wherever conntrack is in use.
//!
//! A fragment whose first part is still to come has no ports that a policy could be asked about, so the programs leave its
//! datagram to the stack; and what the stack puts together nobody could have judged in part. The switch is a flag of a
//! netfilter link (`BPF_F_NETFILTER_IP_DEFRAG`, Linux 6.6 with `CONFIG_NETFILTER_BPF_LINK`), whose program accepts everything. aya
//! 0.14 does not know such programs.

use std::{
    ffi::{CString, c_long},
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
};

use tracing::info;

use super::pins::{PinError, Pins};

#[derive(Debug, thiserror::Error)]
pub enum DefragError {
    #[error(
        "the kernel does not put fragments together for us ({operation}: {source}): datagrams whose fragments arrive out of order are dropped"
    )]
    Refused { operation: &'static str, source: io::Error },
    #[error(transparent)]
    Pin(#[from] PinError),
}

// Of `linux/bpf.h`, `linux/netfilter.h` and `linux/netfilter_ipv4.h`.
const BPF_PROG_LOAD: c_long = 5;
const BPF_OBJ_PIN: c_long = 6;
const BPF_LINK_CREATE: c_long = 28;
const BPF_PROG_TYPE_NETFILTER: u32 = 32;
const BPF_NETFILTER: u32 = 45;
const BPF_F_NETFILTER_IP_DEFRAG: u32 = 1;
const NFPROTO_IPV4: u32 = 2;
const NF_INET_PRE_ROUTING: u32 = 0;
/// Behind the place where fragments are put together (-400), before everybody else.
const PRIORITY: i32 = -399;

/// `r0 = 1; exit`: `NF_ACCEPT`, in the kernel's byte order.
const ACCEPT: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    pf: u32,
    hook: u32,
    priority: i32,
    netfilter_flags: u32,
}

#[repr(C)]
struct ObjPin {
    path: u64,
    fd: u32,
    flags: u32,
}

/// In this network namespace, and from now on: the link is pinned. What an earlier process pinned stays.
pub fn ensure(pins: &Pins) -> Result<(), DefragError> {
    let path = pins.defrag();
    if path.exists() {
        return Ok(());
    }
    pins.prepare()?;
    let refused = |operation| move |source| DefragError::Refused { operation, source };
    let mut load = ProgLoad {
        prog_type: BPF_PROG_TYPE_NETFILTER,
        insn_cnt: 2,
        insns: ACCEPT.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type: BPF_NETFILTER,
        ..ProgLoad::default()
    };
    load.name[..6].copy_from_slice(b"defrag");
    // SAFETY: instructions, licence and name outlive the call.
    let program = unsafe { made(BPF_PROG_LOAD, &mut load) }.map_err(refused("load the program"))?;
    let mut create = LinkCreate {
        prog_fd: number(&program),
        target_fd: 0,
        attach_type: BPF_NETFILTER,
        flags: 0,
        pf: NFPROTO_IPV4,
        hook: NF_INET_PRE_ROUTING,
        priority: PRIORITY,
        netfilter_flags: BPF_F_NETFILTER_IP_DEFRAG,
    };
    // SAFETY: it has no pointers.
    let link = unsafe { made(BPF_LINK_CREATE, &mut create) }.map_err(refused("attach it"))?;
    let name =
        CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from).map_err(refused("pin it"))?;
    let mut pin = ObjPin { path: name.as_ptr() as u64, fd: number(&link), flags: 0 };
    // SAFETY: the path outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut pin) }.map_err(refused("pin it"))?;
    info!("fragments are put together before they are forwarded");
    Ok(())
}

fn number(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

/// For commands that answer with a new descriptor.
///
/// # Safety
///
/// As of [`bpf`].
unsafe fn made<T>(command: c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attributes) }?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
///
/// `attributes` is what the kernel reads for this command, and the pointers in it are valid until it returns.
unsafe fn bpf<T>(command: c_long, attributes: &mut T) -> io::Result<c_long> {
    // SAFETY: the caller's promise; the size is that of what is pointed to.
    match unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size_of::<T>()) } {
        -1 => Err(io::Error::last_os_error()),
        other => Ok(other),
    }
}

const _: () =
    assert!(size_of::<ProgLoad>() == 72 && size_of::<LinkCreate>() == 32 && size_of::<ObjPin>() == 16);
