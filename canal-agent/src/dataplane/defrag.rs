//! Has the host's stack put fragments together before it forwards them, as it does wherever conntrack is in use.
//!
//! A fragment whose first part is still to come has no ports that a policy could be asked about, so the programs leave its
//! datagram to the stack; and what the stack puts together nobody could have judged in part. The switch is a flag of a
//! netfilter link (`BPF_F_NETFILTER_IP_DEFRAG`, Linux 6.6 with `CONFIG_NETFILTER_BPF_LINK`), whose program accepts everything. aya
//! 0.14 does not know such programs.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use tracing::info;

use super::{
    batch::bpf,
    handle::Handle,
    pins::{PinError, Pins},
};

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
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
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

/// The link, for as long as the process or its pin lives.
#[derive(Debug)]
pub struct Defrag(Handle);

impl Defrag {
    /// In this network namespace, and from now on: the link is pinned. What an earlier process pinned stays, if it still has its
    /// place, where the kernel takes no second one.
    pub fn ensure(pins: &Pins) -> Result<Self, DefragError> {
        let path = pins.defrag();
        let refused = |operation| move |source| DefragError::Refused { operation, source };
        let link = match attach() {
            Ok(link) => Handle::from(link),
            Err(DefragError::Refused { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
                return Handle::open(&path)
                    .map(Self)
                    .map_err(refused("find the pin of the one that is there"));
            }
            Err(error) => return Err(error),
        };
        pins.prepare()?;
        Pins::unpin(&path)?;
        link.pin(&path).map_err(refused("pin it"))?;
        info!("fragments are put together before they are forwarded");
        Ok(Self(link))
    }

    /// True if somebody had removed the pin.
    pub fn put_back(&self, pins: &Pins) -> Result<bool, PinError> {
        pins.put_back(&self.0, &pins.defrag())
    }
}

fn attach() -> Result<OwnedFd, DefragError> {
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
    let program = made(BPF_PROG_LOAD, &mut load).map_err(refused("load the program"))?;
    let mut create = LinkCreate {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target_fd: 0,
        attach_type: BPF_NETFILTER,
        flags: 0,
        pf: NFPROTO_IPV4,
        hook: NF_INET_PRE_ROUTING,
        priority: PRIORITY,
        netfilter_flags: BPF_F_NETFILTER_IP_DEFRAG,
    };
    made(BPF_LINK_CREATE, &mut create).map_err(refused("attach it"))
}

/// For commands that answer with a new descriptor.
fn made<T>(command: libc::c_long, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the kernel has just handed it out, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

const _: () = assert!(size_of::<ProgLoad>() == 72 && size_of::<LinkCreate>() == 32);
