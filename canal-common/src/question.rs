//! Questions to the loaded policy, and the packet that carries them to the program `judge`.
//!
//! ```text
//! 0        16        36        56
//! │ header │ Case 0  │ Case 1  │ …   at most CASES
//! ```
//!
//! `judge` is attached nowhere. BPF_PROG_RUN hands it such a packet and returns it with every verdict filled in.

use crate::{Ip4, abi, policy::Verdict};

/// What is asked, seen from the endpoint.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Question {
    pub peer: Ip4,
    /// [`crate::policy::key`] of the protocol and the responder's port.
    pub key: u32,
    /// Of the initiator; 0 where the protocol has no ports.
    pub src_port: u16,
    /// [`Question::INGRESS`] or [`Question::EGRESS`]; anything else is denied.
    pub direction: u8,
    pub _pad: u8,
    /// [`crate::endpoint::Endpoint::id`].
    pub endpoint: u32,
}

impl Question {
    pub const INGRESS: u8 = 0;
    pub const EGRESS: u8 = 1;
}

/// A question with room for its answer.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Case {
    pub question: Question,
    pub verdict: Verdict,
}

/// Bytes in front of the first case. The kernel takes 14 of them for an Ethernet header.
pub const HEADER_LEN: usize = 16;
/// Where the Ethernet header names what it carries, and what it says there (IEEE 802 local experimental 1): with an IP
/// protocol in this place the kernel would look for an IP header.
pub const ETHERTYPE_AT: usize = 12;
pub const ETHERTYPE: u16 = 0x88b5;
/// In one packet.
pub const CASES: usize = 64;

abi!(Question = 16 align 4, Case = 20 align 4);
