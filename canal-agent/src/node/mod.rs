//! This node: what it knows, what it wants, and the cycle that makes the kernel agree.
//!
//! Owns: the cluster as last heard, the registry of local endpoints, and everything in [`crate::dataplane`], all on one
//! thread. Promises: nothing in the kernel changes what packets meet before both prefixes were listed completely; whatever
//! changed, one ordered `Node::reconcile` follows; what fails for one object is retried and reported and keeps nothing else back.
//! Does not: speak to etcd or to clients ([`crate::app`] brings messages).

mod attachments;
mod burst;
mod cycle;
mod departures;
mod endpoints;
mod events;
mod explain;
mod groundwork;
pub mod health;
mod memory;
mod message;
mod metrics;
mod names;
pub mod peers;
mod publishing;
mod rules;
pub mod state;
mod status;
mod steering;
mod store;
pub mod takeover;
mod territory;
mod told;
pub mod uplink;
pub mod waiting;

pub use groundwork::Groundwork;
pub use memory::Memory;
pub use message::{Message, Published, Question};
pub use state::{Initial, Node, NodeError, Ports, Start};
