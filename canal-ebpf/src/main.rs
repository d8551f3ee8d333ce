//! Canal's kernel programs, one object. Read [`hook`] for the packet's itinerary, [`step`] for what the hooks share.
//!
//! | program | attached to | sees |
//! |---|---|---|
//! | `from_pod` | tcx ingress, host side of a pod's veth | what the pod sends |
//! | `to_pod` | tcx egress, host side of a pod's veth | what the host stack delivers to the pod |
//! | `from_wire` | tcx ingress, uplink | VXLAN from other nodes |
//! | `xdp_wire` | XDP, uplink; on demand | the same before the driver's GRO, of known connections |
//! | `to_overlay` | tcx egress, `canal.<VNI>` | what the host stack sends to other nodes' pods |
//! | `from_overlay` | tcx ingress, `canal.<VNI>` | what the kernel device decapsulated |
//! | `judge` | nothing | questions about the loaded policy, by BPF_PROG_RUN |
//!
//! An established packet makes these lookups: `FLOWS` (hash), `GENERATIONS` per local pod (array), `NODES` for a
//! remote peer (array), `COUNTERS` (per-CPU array).

#![no_std]
#![no_main]
#![expect(
    clippy::inline_always,
    reason = "a call would cost one of eight frames and its share of 512 bytes of stack"
)]
#![expect(clippy::needless_borrows_for_generic_args, reason = "by value they would be copied on the stack")]
#![expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]
#![expect(clippy::cast_possible_wrap, reason = "the kernel's types: lengths of headers and parameters fit")]
#![expect(clippy::cast_possible_truncation, reason = "the kernel's types: sizes, ifindexes and actions fit")]
#![expect(unreachable_pub, reason = "a binary: `pub` marks what a module offers to the others")]

/// Compiled for the bench, to show what flow table and policy cost: every packet goes where it is addressed, and nothing
/// is judged or remembered.
const BARE: bool = cfg!(feature = "bare");

mod hook;
mod judge;
mod maps;
mod packet;
mod step;
mod verdict;

use aya_ebpf::{
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use canal_common::reason::Hook;

#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    verdict::conclude(&ctx, Hook::FromPod, hook::from_pod::run(&ctx))
}

#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    verdict::conclude(&ctx, Hook::ToPod, hook::to_pod::run(&ctx))
}

#[classifier]
pub fn from_wire(ctx: TcContext) -> i32 {
    verdict::conclude(&ctx, Hook::FromWire, hook::from_wire::run(&ctx))
}

#[xdp(frags)]
pub fn xdp_wire(ctx: XdpContext) -> u32 {
    hook::xdp_wire::run(&ctx)
}

#[classifier]
pub fn to_overlay(ctx: TcContext) -> i32 {
    verdict::conclude(&ctx, Hook::ToOverlay, hook::to_overlay::run(&ctx))
}

#[classifier]
pub fn from_overlay(ctx: TcContext) -> i32 {
    verdict::conclude(&ctx, Hook::FromOverlay, hook::from_overlay::run(&ctx))
}

#[classifier]
pub fn judge(ctx: TcContext) -> i32 {
    judge::run(&ctx)
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Several helpers are GPL-only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
