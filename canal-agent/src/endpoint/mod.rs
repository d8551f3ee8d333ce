//! Pods that the CNI plugin handed to this agent.
//!
//! Owns: the registry on disk ([`registry`], of [`record`]s), so that a restart or a reboot of etcd loses no endpoint, the
//! mark by which their interfaces are known ([`mark`]), what `host-local` notes about them ([`host_local`]), and telling
//! etcd ([`publish`]) and other programs of the node ([`status_files`]) about them. Does not: program anything
//! ([`crate::node`]).

pub mod goodbyes;
pub mod host_local;
pub mod mark;
pub mod publish;
mod publisher;
pub mod record;
pub mod registry;
pub mod status_files;

pub use host_local::Leases;
pub use record::{Phase, Record};
pub use registry::{Heard, Registry, RegistryError};
