//! Desired state → kernel: programs, tables, the overlay device.
//!
//! Owns: everything that is pinned, attached, routed or addressed by Canal on this node.
//! Promises: nothing is written before the first complete list; each change is one flip that a packet sees before or
//! after, never half; a fresh process recognises what an earlier one left (see each module for how).
//! Does not: decide what should be, or talk to etcd. Everything here blocks and runs on the agent's own thread.

mod batch;
pub mod counters;
pub mod defrag;
pub mod events;
pub mod flannel;
mod grace;
mod handle;
pub mod hits;
pub mod hooks;
pub mod host;
pub mod inspect;
pub mod judge;
pub mod masquerade;
pub mod nodes;
pub mod object;
pub mod overlay;
pub mod pins;
pub mod policy;
pub mod routes;
pub mod spoofing;
pub mod tables;
