//! Test clusters: nodes and pods as network namespaces, with a real etcd, the real agent and the real CNI plugin.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use bpf_tests::{Host, World};
//!
//! let world = World::builder().nodes(2).build()?;
//! world.start_agents()?;
//! let web = world.node(1).add_pod("web", &[("app", "web")])?;
//! let db = world.node(2).add_pod("db", &[("app", "db")])?;
//! assert!(web.pings(db.ip()));
//! # Ok(()) }
//! ```
//!
//! Everything that a world makes carries its prefix in its name and goes away with it: when it is dropped, when
//! the test panics, and by [`mod@sweep`] when the process had no chance. Nothing outside its namespaces and its
//! folder is touched. Without the feature `kernel` this needs neither aya nor the agent's library.

pub mod agent;
pub mod artefacts;
mod bpf;
pub mod capture;
pub mod cmd;
pub mod dice;
pub mod etcd;
pub mod faults;
pub mod flannel;
pub mod load;
pub mod netns;
pub mod node;
pub mod pair;
pub mod pod;
pub mod policy;
pub mod probe;
#[cfg(feature = "kernel")]
pub mod progrun;
pub mod sweep;
pub mod topology;
pub mod wait;
pub mod world;

#[cfg(test)]
mod tests;

pub use agent::Agent;
pub use capture::Capture;
pub use cmd::{Cmd, Proc};
pub use etcd::Etcd;
pub use flannel::{FlannelBackend, FlannelNode, FlannelPod};
pub use netns::Netns;
pub use node::Node;
pub use pod::Pod;
pub use probe::{At, Connect, EchoServer, Host, LiveConnection, Pinger};
pub use sweep::{clean_up_on_interrupt, clean_up_own_on_interrupt, sweep};
pub use topology::Topology;
pub use wait::{eventually, until};
pub use world::{Builder, World};
