//! Pods that the CNI plugin handed to this agent.
//!
//! Owns: the registry on disk ([`registry`]), so that a restart or a reboot of etcd loses no endpoint, and telling
//! etcd ([`publish`]) and other programs of the node ([`status_files`]) about them. Does not: program anything ([`crate::node`]).

pub mod publish;
pub mod registry;
pub mod status_files;

pub use registry::{Record, Registry, RegistryError};
