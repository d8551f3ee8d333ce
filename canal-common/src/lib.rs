//! The ABI between Canal's kernel programs and its user space.
//!
//! Every key and value that crosses the boundary is declared here once, `repr(C)`, with named fields and no
//! implicit padding, so that `bpftool map dump` prints it readably and both sides agree by construction.
//! A changed layout bumps [`LAYOUT`], which is part of every map's pin path.
//!
//! Byte order: addresses are byte arrays in network order, everything else is in host order.

#![expect(
    clippy::inline_always,
    reason = "the kernel side must not make a call of them: it has eight frames and 512 bytes"
)]
#![expect(
    clippy::pub_underscore_fields,
    reason = "padding is part of the layout, and zeroed by whoever makes the value"
)]
#![cfg_attr(not(any(test, feature = "user")), no_std)]

pub mod addr;
pub mod endpoint;
pub mod event;
pub mod flow;
pub mod host;
pub mod icmp;
mod list;
pub mod names;
pub mod node;
pub mod policy;
pub mod question;
pub mod reason;
pub mod settings;
pub mod wire;

pub use addr::{Ip4, Mac};

/// Version of every layout in this crate; part of the pin path (`<bpffs>/canal/v<LAYOUT>/`).
pub const LAYOUT: u32 = 2;

/// Asserts size and alignment at compile time and, in user space, implements `aya::Pod`.
macro_rules! abi {
    ($($t:ty = $size:literal align $align:literal),+ $(,)?) => {$(
        const _: () = assert!(size_of::<$t>() == $size && align_of::<$t>() == $align);
        // SAFETY: `repr(C)`, `Copy`, no padding (the size is the sum of the fields), every bit pattern is valid.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $t {}
    )+};
}
pub(crate) use abi;
