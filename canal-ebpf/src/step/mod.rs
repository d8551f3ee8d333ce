//! What the hooks share.

pub mod arp;
pub mod deliver;
pub mod flow;
pub mod leg;
pub mod policy;
