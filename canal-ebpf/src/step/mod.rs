//! What the hooks share.

pub mod admit;
pub mod arp;
pub mod deliver;
pub mod flow;
pub mod fragment;
pub mod leg;
pub mod policy;
pub mod related;
