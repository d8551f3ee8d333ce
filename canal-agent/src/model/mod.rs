//! What the cluster says: Calico's v3 resources, read from etcd values, and the endpoints this node made itself.
//!
//! Owns: the reading of keys and values, admission (what is usable, and the closed reading of what is not), the
//! selector language. Promises: no input panics; an object that cannot be used is named with a reason and
//! affects nothing else. Does not: evaluate policy (that is [`crate::compile`]), talk to etcd, know the time.

pub mod cluster;
pub mod controls;
pub mod endpoint;
pub mod felix;
pub mod host;
pub mod labels;
pub mod name;
pub mod netset;
pub mod pod;
pub mod policy;
pub mod profile;
pub mod reading;
pub mod resource;
pub mod rule;
pub mod selector;
pub mod tier;

pub use cluster::{Change, Cluster};
pub use controls::Controls;
pub use endpoint::{EndpointKey, WorkloadEndpoint};
pub use labels::Labels;
pub use pod::Pod;
pub use selector::Selector;

#[cfg(test)]
mod tests;
