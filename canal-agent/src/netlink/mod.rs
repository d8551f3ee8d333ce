//! The kernel's network configuration: links, queueing disciplines, addresses, routes, neighbours, offloads, sysctls.
//!
//! Owns: the sockets, and the translation between wire attributes and the types here.
//! Promises: one verb is one request that the kernel has acknowledged when the verb returns; errors name the
//! operation, the object and the kernel's own explanation. Everything blocks: call it from a thread that may.
//! Does not: remember anything, decide what should exist, or retry.
//!
//! A [`Netlink`] belongs to the network namespace in which it was opened, for ever, whichever thread uses it.

mod addr;
mod error;
mod ethtool;
mod link;
mod link_verbs;
mod monitor;
mod neigh;
mod netns;
mod qdisc;
mod route;
mod socket;
pub mod sysctl;

#[cfg(test)]
pub(crate) mod tests;

pub use addr::Address;
pub use error::Error;
pub use ethtool::set_gro;
pub use link::{Dev, Link, NAME_MAX, Vxlan};
pub use link_verbs::{NewTunnel, NewVeth, NewVxlan};
pub use monitor::{Change, Monitor};
pub use neigh::Neighbour;
pub use netns::Netns;
pub use qdisc::FilterHook;
pub use route::{Route, Scope, Way, protocol};
pub use socket::Netlink;
