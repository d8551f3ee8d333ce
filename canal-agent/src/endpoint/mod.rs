//! Pods that the CNI plugin handed to this agent.
//!
//! Owns: the registry on disk ([`registry`]), so that a restart or a reboot of etcd loses no endpoint, and telling
//! etcd about them ([`publish`]). Does not: program anything ([`crate::node`]).

pub mod publish;
pub mod registry;

pub use registry::{Record, Registry, RegistryError};
