//! The receiving side alone: frames handed to an interface as an XDP driver hands them over, from memory.
//!
//! `BPF_PROG_RUN` with live frames (Linux 5.18) has the kernel make frames of a page and pass them on as a driver with
//! XDP does after its program said `XDP_PASS`: the stack of the interface sees them in batches, as from a NIC.

use std::{
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::net::if_::if_nametoindex;

use super::{
    Datagrams, Path, WARM_UP,
    seat::{Seat, sit},
    sink::{FIRST_PORT, Sink},
};
use crate::{bpf::bpf, netns::Netns, probe};

/// Where frames come in.
#[derive(Clone, Copy)]
pub struct Entrance<'a> {
    pub netns: &'a Netns,
    pub interface: &'a str,
    /// The other end of its wire, if they are to come in there: then the interface's driver takes them in, and its XDP
    /// program if it has one. It must poll (`ethtool -K … gro on`).
    pub before: Option<(&'a Netns, &'a str)>,
}

const PAYLOAD: usize = 64;
/// In one system call, which takes milliseconds to prepare.
const BURST: u32 = 1 << 16;
/// The kernel's batches, as NAPI's.
const BATCH: u32 = 64;
const SEEN: Duration = Duration::from_secs(3);

/// A datagram of 64 bytes from `path.from`, as it comes to the entrance on its way to `path.to`, again and again. They end
/// behind the receiver's interface.
pub fn injected(path: Path<'_>, entrance: Entrance<'_>, duration: Duration) -> Result<Datagrams> {
    let frame = template(path, entrance)?;
    let (netns, interface) = entrance.before.unwrap_or((entrance.netns, entrance.interface));
    let index = netns.run(|| if_nametoindex(interface))?.with_context(|| format!("no {interface}"))?;
    let driver = Driver::load(&frame, entrance.before.map(|_| index))?;
    let inject = |duration| {
        netns.run(|| {
            sit(Seat::First)?;
            driver.inject(interface, &frame, duration)
        })?
    };
    inject(WARM_UP)?;
    let sink = Sink::open(path.to.netns())?;
    let (sent, elapsed) = inject(duration)?;
    let received = sink.close()?;
    ensure!(received > 0, "none of {sent} injected frames arrived");
    Ok(Datagrams { sent, received, elapsed })
}

/// A datagram as it comes to the entrance, without the checksums that a sending device would have filled in.
fn template(path: Path<'_>, entrance: Entrance<'_>) -> Result<Vec<u8>> {
    let tap = probe::Tap::open(entrance.netns, entrance.interface)?;
    let sender = path.from.netns().run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    let target = SocketAddrV4::new(path.to.ip(), FIRST_PORT);
    let payload = [0x5a; PAYLOAD];
    let deadline = Instant::now() + SEEN;
    while Instant::now() < deadline {
        sender.send_to(&payload, target).with_context(|| format!("no way to {target}"))?;
        while let Some(mut frame) = tap.next()? {
            if frame.ends_with(&payload) {
                clear_checksums(&mut frame)?;
                return Ok(frame);
            }
        }
    }
    bail!("no datagram to {target} came by {} of {}", entrance.interface, entrance.netns.name())
}

/// 0 is no checksum, for UDP over IPv4 (RFC 768).
fn clear_checksums(frame: &mut [u8]) -> Result<()> {
    const UDP: usize = 14 + 20;
    const ENVELOPE: usize = 50;
    const CHECKSUM: usize = 6;
    let headers = frame.len() - PAYLOAD;
    let at = match headers.checked_sub(UDP + 8) {
        Some(0) => vec![UDP],
        Some(ENVELOPE) => vec![UDP, ENVELOPE + UDP],
        _ => bail!("a datagram with {headers} bytes of headers"),
    };
    for udp in at {
        frame[udp + CHECKSUM..udp + CHECKSUM + 2].fill(0);
    }
    Ok(())
}

/// An XDP program that fills in the frame and says `XDP_PASS`. The kernel uses the pages of frames again as those before
/// it have left them: decapsulated, routed, their hop counts lower.
struct Driver(OwnedFd);

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// The member `test` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    /// The kernel insists on zero.
    _pad: u32,
}

/// `struct xdp_md`.
#[repr(C)]
#[derive(Default)]
struct XdpContext {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

impl Driver {
    /// `out`: the interface that the frames leave by.
    fn load(frame: &[u8], out: Option<u32>) -> Result<Self> {
        /// `enum bpf_cmd`, `enum bpf_prog_type`.
        const PROG_LOAD: libc::c_long = 5;
        const XDP: u32 = 6;
        let program = program(frame, out)?;
        let mut attr = Load {
            prog_type: XDP,
            insn_cnt: u32::try_from(program.len())?,
            insns: program.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
        };
        let fd = bpf(PROG_LOAD, &mut attr).context("cannot load an XDP program")?;
        // SAFETY: a fresh descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// From the thread that is in the interface's namespace; how many frames, and how long it took.
    fn inject(&self, interface: &str, frame: &[u8], duration: Duration) -> Result<(u64, Duration)> {
        /// `enum bpf_cmd`; `BPF_F_TEST_XDP_LIVE_FRAMES`.
        const PROG_RUN: libc::c_long = 10;
        const LIVE_FRAMES: u32 = 1 << 1;
        let size = u32::try_from(frame.len())?;
        let context = XdpContext {
            data_end: size,
            ingress_ifindex: if_nametoindex(interface).with_context(|| format!("no {interface}"))?,
            ..XdpContext::default()
        };
        let (start, mut sent) = (Instant::now(), 0);
        while start.elapsed() < duration {
            let mut attr = TestRun {
                prog_fd: self.0.as_raw_fd().cast_unsigned(),
                data_size_in: size,
                data_in: frame.as_ptr() as u64,
                repeat: BURST,
                ctx_size_in: u32::try_from(size_of_val(&context))?,
                ctx_in: (&raw const context) as u64,
                flags: LIVE_FRAMES,
                batch_size: BATCH,
                ..TestRun::default()
            };
            bpf(PROG_RUN, &mut attr).with_context(|| format!("cannot inject frames at {interface}"))?;
            sent += u64::from(BURST);
        }
        Ok((sent, start.elapsed()))
    }
}

/// Instructions as the kernel takes them: code, registers, offset and immediate value in eight bytes.
fn program(frame: &[u8], out: Option<u32>) -> Result<Vec<u64>> {
    /// Opcodes (RFC 9669): load and store of 4, 2 and 1 bytes, and the rest of what is needed.
    const LOAD: u8 = 0x61;
    const STORE: [(usize, u8); 3] = [(4, 0x62), (2, 0x6a), (1, 0x72)];
    const MOVE: u8 = 0xb7;
    const COPY: u8 = 0xbf;
    const ADD: u8 = 0x07;
    const IF_ABOVE: u8 = 0x2d;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    /// Number of the helper.
    const BPF_REDIRECT: i32 = 23;
    const XDP_PASS: i32 = 2;
    let instruction = |code: u8, [target, source]: [u8; 2], offset: usize, value: i32| -> Result<u64> {
        let [low, high] = i16::try_from(offset)?.to_le_bytes();
        let [a, b, c, d] = value.to_le_bytes();
        Ok(u64::from_le_bytes([code, target | source << 4, low, high, a, b, c, d]))
    };
    let (mut stores, mut at) = (Vec::new(), 0);
    while at < frame.len() {
        let rest = &frame[at..];
        let (size, code) = STORE.into_iter().find(|(size, _)| *size <= rest.len()).context("a store")?;
        let mut value = [0; 4];
        value[..size].copy_from_slice(&rest[..size]);
        stores.push(instruction(code, [2, 0], at, i32::from_le_bytes(value))?);
        at += size;
    }
    let mut program = vec![
        instruction(MOVE, [0, 0], 0, XDP_PASS)?,
        instruction(LOAD, [2, 1], 0, 0)?,
        instruction(LOAD, [3, 1], 4, 0)?,
        instruction(COPY, [4, 2], 0, 0)?,
        instruction(ADD, [4, 0], 0, i32::try_from(frame.len())?)?,
        instruction(IF_ABOVE, [4, 3], stores.len(), 0)?,
    ];
    program.extend(stores);
    if let Some(out) = out {
        program.extend([
            instruction(MOVE, [1, 0], 0, out.cast_signed())?,
            instruction(MOVE, [2, 0], 0, 0)?,
            instruction(CALL, [0, 0], 0, BPF_REDIRECT)?,
        ]);
    }
    program.push(instruction(EXIT, [0, 0], 0, 0)?);
    Ok(program)
}
